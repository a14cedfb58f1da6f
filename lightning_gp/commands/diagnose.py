"""``lightning-gp diagnose``: a card on the model and data of a config, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gp.commands.training import lightning_cli
from lightning_gp.diagnosis.measuring import diagnose
from lightning_gp.plots import require_matplotlib, save_figure
from lightning_gp.runs.command import spelled
from lightning_gp.runs.folders import write_json

OPTIONS = {
    "diagnose.steps": int,
    "diagnose.ckpt_path": Path,
    "diagnose.probe_size": int,
    "diagnose.output": Path,
}


def main(args: Sequence[str]) -> None:
    """Prints the card, and writes ``diagnose.json`` and ``diagnose.png``."""
    from lightning_gp.allocator import keep_freed_memory

    keep_freed_memory()
    description = (
        "Measures gradients, curvature and the distance to the edge of stability of the model and data of a config of "
        "`fit`, at its initial weights or at a checkpoint, and says what to change. Nothing is trained."
    )
    known, rest = spelled(args, OPTIONS)
    cli = lightning_cli([*rest, *known], "lightning-gp diagnose", _add_options, run=False, description=description)
    options = cli.config.diagnose
    if cli.datamodule is None:
        raise ValueError("The config names no data; add a `data:` section, as for `lightning-gp fit`.")
    require_matplotlib()
    print(f"Measuring {type(cli.model).__name__} …", flush=True)
    card = diagnose(
        cli.model,
        cli.datamodule,
        steps=options.steps,
        ckpt_path=options.ckpt_path,
        probe_size=options.probe_size,
        accelerator="cpu" if cli.trainer.strategy.root_device.type == "cpu" else "auto",
    )
    numbers = options.output / "diagnose.json"
    write_json(numbers, card.as_dict())
    (picture,) = save_figure(card.plot(), numbers)
    print(f"\n{card}\n\nPicture: {picture}   Numbers: {numbers}", flush=True)


def _add_options(parser: Any) -> None:
    parser.add_argument("--diagnose.steps", type=int, default=20, help="training batches at rate 0 before measuring")
    parser.add_argument("--diagnose.ckpt_path", type=Path, default=None, help="weights and optimizer to measure at")
    parser.add_argument("--diagnose.probe_size", type=int, default=None, help="environments or examples to measure on")
    parser.add_argument("--diagnose.output", type=Path, default=Path("runs/diagnose"), help="folder of the card")
