"""What a logged number means, from the keys that callbacks and modules declare."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lightning_gp.contracts import Key
from lightning_gp.dashboards import callback_classes, module_classes

PATTERNS = (
    Key("cost_seconds/<name>", "[0, ∞)", "seconds of a callback's first measurement"),
    Key("lr-<name>", "[0, ∞)", "learning rate, of Lightning's LearningRateMonitor"),
)
"""Of what declares no keys of its own."""
SYMBOLS = {"ℝ": "(-inf, inf)", "∞": "inf", "−": "-"}


class Meaning(NamedTuple):
    """What is declared of a key.

    Attributes:
        source: name of the class that logs it; empty if nobody declares it.
        about: the first line of that class.
        key: the declaration; None if there is none.
    """

    source: str
    about: str
    key: Key | None


def meanings(names: Iterable[str], algorithm: str = "") -> dict[str, Meaning]:
    """Who logs each name, and what it means.

    Args:
        names: as they are logged, with or without the prefix of a callback.
        algorithm: class name of the module, whose declarations come first.

    Example:
        >>> meanings(["probe_gradients/norm"])["probe_gradients/norm"].source
        'GradientNorm'
    """
    modules: list[Any] = sorted(module_classes(), key=lambda kind: (kind.__name__ != algorithm, kind.__name__ != "ERM"))
    declared: list[tuple[Any, Key]] = [(kind, key) for kind in [*modules, *callback_classes()] for key in kind.keys]
    found = {}
    for name in names:
        bare = re.sub(r"_(step|epoch)$", "", name) if name.startswith("train/") else name
        match = next((each for each in declared if re.fullmatch(f"(.*[^a-z])?{each[1].pattern}", bare)), None)
        if match is not None:
            kind, key = match
            about = (kind.__doc__ or "").strip().partition("\n")[0]
            found[name] = Meaning(kind.__name__, about, key)
        else:
            other = next((key for key in PATTERNS if re.fullmatch(key.pattern, name)), None)
            found[name] = Meaning("", "", other)
    return found


def outside(key: Key, value: float) -> bool:
    """Whether a number is outside the declared range; NaN, which stands for what is undefined, is not.

    Example:
        >>> key = Key("gradients/cosine", "[−1, 1]", "")
        >>> outside(key, 1.5), outside(key, -1.0), outside(Key("a", "(0, ∞]", ""), 0.0)
        (True, False, True)
    """
    text = key.range
    for symbol, word in SYMBOLS.items():
        text = text.replace(symbol, word)
    limits = re.fullmatch(r"([\[(])([-\w.]+), ([-\w.]+)([\])])", text)
    if text == "{0, 1}":
        return value not in (0.0, 1.0) and not math.isnan(value)
    try:
        low, high = (float(limits[2]), float(limits[3])) if limits else (-math.inf, math.inf)
    except ValueError:  # a bound by name
        return False
    slack = 1e-6 * max(1.0, abs(value)) if math.isfinite(value) else 0.0  # of rounding in float32
    open_low, open_high = (limits[1] == "(", limits[4] == ")") if limits else (False, False)
    return (value <= low if open_low else value < low - slack) or (value >= high if open_high else value > high + slack)
