"""What a module, its data and a measurement promise each other, written down once.

Modules, callbacks, maps and data modules take these types instead of looking for attributes by name. A stranger's
LightningModule fulfils none of them: the callbacks' own adapter makes an objective of it, and checks in a dry run what
it promises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from lightning_gp.environments import EnvironmentBatch, Environments
from lightning_gp.loops import InnerLoop
from lightning_gp.types import Examples, MetaGradient, Names, Parameters, Rates, Split

Dealt: TypeAlias = Literal["episodes", "shares"]
"""How data are dealt to processes: every process draws whole environments of its own (``"episodes"``), or holds a share
of the examples of *each* environment, the same environments in the same order (``"shares"``)."""
CurvatureKind: TypeAlias = Literal["fomaml", "maml", "positive_penalty", "ascent", "first_order_ascent"]
"""Which effective curvature of ``theory.critical_outer_lr`` an objective has."""


class Key(NamedTuple):
    """A number that is logged.

    Attributes:
        name: as it is logged, without prefix; ``<i>``, ``<group>`` and other words stand for what there may be several
            of; ``<stage>`` is ``val`` and ``test`` (where the half-width of a 95 % interval may follow, ``_ci95``).
        range: of its values, such as ``[0, ∞)``.
        meaning: one line.
    """

    name: str
    range: str
    meaning: str

    @property
    def pattern(self) -> str:
        r"""A regular expression of the whole names that are logged under this key.

        Example:
            >>> Key("curvature/eigenvalue_<i>", "ℝ", "").pattern
            'curvature/eigenvalue_\\d+'
        """
        pattern = re.escape(self.name).replace("<i>", r"\d+")
        if pattern.startswith("<stage>"):
            pattern = pattern.replace("<stage>", "(val|test)") + "(_ci95)?"
        return re.sub("<[a-z]+>", ".+", pattern)


def with_keys(kind: type[Any]) -> None:
    """Puts the table of a class's ``keys`` into its docstring, in place of ``{keys}``."""
    rows = [f"    | ``{key.name}`` | {key.meaning} | {key.range} |" for key in kind.keys]
    table = "\n".join(["    | key | meaning | range |", "    |---|---|---|", *rows])
    kind.__doc__ = (kind.__doc__ or "").replace("    {keys}", table)


@dataclass(frozen=True)
class Rate:
    """The rate α of an objective that a map varies, and what it does to the curvature.

    Attributes:
        name: of the argument, such as ``"inner_lr"``.
        label: of an axis, such as ``"inner rate α"``.
        get: the numbers that were put in, one for each parameter or group; what is learned starts from there.
        set: puts one number in for all of them.
        kind: which effective curvature c(λ) the objective has; None where no theory is known.
        steps: S of the inner loop, 1 without one.
        factor: the theory's α per unit of this rate: 2 for a penalty α‖∇L‖² without the half.
        names: of the parameters that it acts on; None for all.
        changes: why it is not one number throughout training, which a map needs; empty if it is.
    """

    name: str
    label: str
    get: Callable[[], tuple[float, ...]]
    set: Callable[[float], None]
    kind: CurvatureKind | None = None
    steps: int = 1
    factor: float = 1.0
    names: Names | None = None
    changes: str = ""


@runtime_checkable
class MeasuresEnvironments(Protocol):
    """A module whose callbacks differentiate the losses of environments at the unadapted parameters."""

    def environment_losses(self, parameters: Parameters, environments: Environments, split: Split = "query") -> Tensor:
        """L_τ(θ), (E,)."""


@runtime_checkable
class Objective(MeasuresEnvironments, Protocol):
    """What training minimises, and on which examples: what callbacks, maps and the tuner take.

    Attributes:
        couples_environments: the objective is no mean over environments, so it cannot be put together from parts.
        shares_examples: whether other processes hold more examples of the same environments.
        second_order: whether training differentiates a gradient.
    """

    couples_environments: bool

    @property
    def shares_examples(self) -> bool: ...  # noqa: D102

    @property
    def second_order(self) -> bool: ...  # noqa: D102

    def network_parameters(self) -> Parameters:
        """θ: the network's parameters by name."""

    def trained_parameters(self) -> list[nn.Parameter]:
        """Everything that the outer optimizer changes."""

    def trained_examples(self, environments: Environments) -> Examples:
        """The examples on which the unadapted risk is trained, and on which callbacks measure it."""

    def environment_terms(self, parameters: Parameters, environments: Environments) -> dict[str, Tensor]:
        """The terms of the objective in each environment, (E,) each."""

    def term_weights(self) -> Mapping[str, float]:
        """The weight of each term."""

    def environment_objectives(self, parameters: Parameters, environments: Environments) -> Tensor:
        """What training minimises in each environment, (E,): the weighted sum of the terms."""

    def training_loss(self, batch: EnvironmentBatch) -> Tensor:
        """The scalar that training minimises."""

    def pieces(self, batches: Sequence[Environments]) -> list[Environments]:
        """The batch cut into what is computed at once."""


@runtime_checkable
class Adapts(Objective, Protocol):
    """An objective with an inner loop.

    Attributes:
        compile_step: whether its written-out gradient is to be compiled.
        learns_rates: whether the outer optimizer trains the inner rates.
    """

    compile_step: bool

    @property
    def learns_rates(self) -> bool: ...  # noqa: D102

    def meta_gradient(
        self,
        parameters: Parameters,
        environments: Environments,
        rates: Rates | None = None,
        function: Callable[..., MetaGradient] | None = None,
        **options: Any,
    ) -> MetaGradient:
        """The gradient of the query losses after the inner loop, written out."""

    def inner_loop(self) -> InnerLoop:
        """Loss, rates, steps, what is adapted, and order, as one value."""

    def predict(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Outputs of one environment, (K, ...)."""


@runtime_checkable
class Varies(Protocol):
    """An objective with a rate α that a map can vary."""

    def rate(self) -> Rate:
        """The rate.

        Raises:
            ValueError: saying why there is none.
        """


@runtime_checkable
class Deals(Protocol):
    """A data module that says how it deals its data to processes."""

    dealt: Dealt


@runtime_checkable
class NamesEnvironments(Protocol):
    """A data module of a fixed list of environments: position e of every batch is environment e.

    Attributes:
        environment_names: names by split, ``"train"``, ``"val"`` and ``"test"``.
    """

    @property
    def environment_names(self) -> Mapping[str, Sequence[str]]: ...  # noqa: D102


@runtime_checkable
class Classifies(Protocol):
    """A data module that says how many classes an environment has; None for regression."""

    ways: int | None


def dealt_by(datamodule: Any) -> Dealt:
    """How a data module deals its data to processes; episodes, unless it says otherwise."""
    return datamodule.dealt if isinstance(datamodule, Deals) else "episodes"
