"""``lightning-gp diagnose``: a card on the model and data of a config, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_gp.commands.training import lightning_cli
from lightning_gp.diagnosis.measuring import diagnose
from lightning_gp.plots import require_matplotlib, save_figure
from lightning_gp.runs.command import command
from lightning_gp.runs.folders import write_json


def main(args: Sequence[str]) -> None:
    """Diagnoses the config and options that ``args`` spell."""
    also = {f"diagnose.{name}": name for name in ("steps", "ckpt_path", "probe_size", "output")}
    command(diagnose_config, "lightning-gp diagnose", args, also, rest="words")


def diagnose_config(
    words: Sequence[str],
    steps: int = 20,
    ckpt_path: Path | None = None,
    probe_size: int | None = None,
    output: Path = Path("runs/diagnose"),
) -> None:
    """Measures gradients, curvature and the distance to the edge of stability of a config's model and data.

    At its initial weights or at a checkpoint; says what to change, and writes diagnose.json and diagnose.png. Nothing
    is trained.

    Args:
        words: the command line of `fit`.
        steps: training batches at rate 0 before measuring.
        ckpt_path: weights and optimizer to measure at.
        probe_size: environments or examples to measure on.
        output: folder of the card.

    Raises:
        ValueError: if the config names no data, or something cannot be measured.
    """
    from lightning_gp.allocator import keep_freed_memory

    keep_freed_memory()
    cli = lightning_cli(words, "lightning-gp diagnose", run=False)
    if cli.datamodule is None:
        raise ValueError("The config names no data; add a `data:` section, as for `lightning-gp fit`.")
    require_matplotlib()
    print(f"Measuring {type(cli.model).__name__} …", flush=True)
    accelerator = "cpu" if cli.trainer.strategy.root_device.type == "cpu" else "auto"
    card = diagnose(
        cli.model, cli.datamodule, steps=steps, ckpt_path=ckpt_path, probe_size=probe_size, accelerator=accelerator
    )
    numbers = output / "diagnose.json"
    write_json(numbers, card.as_dict())
    (picture,) = save_figure(card.plot(), numbers)
    print(f"\n{card}\n\nPicture: {picture}   Numbers: {numbers}", flush=True)
