"""``lightning-gp algorithms``, ``networks``, ``data``, ``callbacks`` and ``configs``: what there is, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_gp.runs.synopsis import PACKAGE, names

KINDS = {"algorithms": "modules", "networks": "networks", "data": "datamodules", "callbacks": "callbacks"}
OPTIONS = {
    "algorithms": "lightning-gp fit --model.help NAME",
    "networks": "lightning-gp fit --model MAML --model.network.help NAME",
    "data": "lightning-gp fit --data.help NAME",
    "configs": "lightning-gp fit --config NAME --print_config",
    "callbacks": "lightning-gp fit --trainer.callbacks.help NAME",
}


def main(args: Sequence[str]) -> None:
    """Prints the classes of the kind that ``args`` names."""
    kind = args[0]
    rows = sorted(configs() if kind == "configs" else names(KINDS[kind]))
    width = max(len(name) for name, _ in rows)
    for name, line in rows:
        print(f"  {name:{width}}  {line}")
    print(f"Options: {OPTIONS[kind]}")


def configs() -> Iterator[tuple[str, str]]:
    """The name of each config of the package and the comment that it begins with."""
    for path in (PACKAGE / "configs").glob("*.yaml"):
        yield path.stem, path.read_text("utf-8").partition("\n")[0].removeprefix("# ").partition(": lightning-gp")[0]
