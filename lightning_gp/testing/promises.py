"""How a promise is checked: by name, with a message that says what is broken, by how much, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

Promises = Mapping[str, Callable[[], None]]


class Checks(list[str]):
    """The names of the promises that were checked, in order.

    Attributes:
        skipped: why the others were not, by name.

    Example:
        >>> Checks(["gradient"], {"shapes": "the targets are classes"}).skipped["shapes"]
        'the targets are classes'
    """

    def __init__(self, names: Collection[str] = (), skipped: Mapping[str, str] | None = None) -> None:
        super().__init__(names)
        self.skipped = dict(skipped or {})


class InapplicableError(Exception):
    """A promise says nothing about the case at hand; the message says why."""


def require(kept: bool, broken: str, mend: str) -> None:
    """Raises where a promise is not kept.

    Args:
        kept: whether it is.
        broken: what was found instead, with the numbers.
        mend: what to change.

    Raises:
        AssertionError: with both.
    """
    if not kept:
        raise AssertionError(f"{broken} To mend it: {mend}")


def check_promises(subject: str, promises: Promises, skip: Collection[str]) -> Checks:
    """Checks one promise after the other.

    Args:
        subject: who makes them, for the messages.
        promises: a function for each name, which raises ``AssertionError`` or ``InapplicableError``.
        skip: names to leave out.

    Raises:
        ValueError: if ``skip`` names none of them.
        AssertionError: naming the promise; also where checking it raised another error, which is its cause.
    """
    skip = [skip] if isinstance(skip, str) else skip
    unknown = sorted(set(skip) - set(promises))
    if unknown:
        raise ValueError(f"skip names {unknown}, which is no promise; there are {', '.join(promises)}.")
    done = Checks(skipped=dict.fromkeys(skip, "left out by skip"))
    for name, check in promises.items():
        if name in done.skipped:
            continue
        try:
            check()
        except InapplicableError as reason:
            done.skipped[name] = str(reason)
        except AssertionError as error:
            raise AssertionError(f"{subject} breaks the promise {name!r}: {error}") from error
        except Exception as error:
            raise AssertionError(
                f"{subject}: the promise {name!r} could not be checked, {type(error).__name__} was raised: {error}"
            ) from error
        else:
            done.append(name)
    return done
