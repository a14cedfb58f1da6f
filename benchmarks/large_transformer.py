"""What the probes of a transformer of 100 million parameters need on a CPU: peak memory and CPU time of each.

    python benchmarks/large_transformer.py [--layers 12 --width 768] [--output docs/results/large_transformer.json]

A GPT-2 of ``transformers`` from a config, with random weights and tokens, and one batch of ``--batch`` sequences of
``--tokens``. Every callback has a process of its own: the dry run, one step, and a measurement. Memory is
the kernel's high-water mark of resident memory from before ``fit``, less what was resident then (the weights were), and
as a multiple of the size of the weights. ``nothing`` trains without a callback. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from harness import RESULTS, machine, peak_memory_growth, print_table, write_json
from torch.utils.data import DataLoader

from lightning_gp import callbacks

OPTIONS: dict[str, dict[str, object]] = {
    "nothing": {},
    "GradientNorm": {"at": "probe"},
    "GradientNoise": {},
    "UpdateStatistics": {},
    "CriticalLearningRate": {},
    "LearningRateBounds": {},
    "HessianEigenvalues": {"k": 2},
    "HessianEigenvalues, differences": {"k": 2, "products": "differences"},
}
VOCABULARY = 16_000


class Language(pl.LightningModule):
    """Next-token prediction."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        import transformers

        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=256, n_embd=width, n_layer=layers, n_head=width // 64,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        self.model = transformers.GPT2LMHeadModel(config)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """The loss."""
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Without a state, so that memory is the probe's."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    module = Language(arguments.layers, arguments.width)
    tokens = torch.randint(0, VOCABULARY, (arguments.batch, arguments.tokens))
    loader = DataLoader(tokens, arguments.batch)
    kind = getattr(callbacks, name.split(",")[0], None)
    attached = [] if kind is None else [kind(every_n_steps=1, **OPTIONS[name])]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=attached, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    begin = time.process_time()
    growth = peak_memory_growth(lambda: trainer.fit(module, loader))
    assert not attached or attached[0].values, name
    return {
        "parameters": sum(each.numel() for each in module.parameters()),
        "peak_bytes": growth,
        "cpu_seconds": round(time.process_time() - begin, 1),
        "values": attached[0].values if attached else {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--one", choices=OPTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "large_transformer.json")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments)))
        return
    found, rows = {}, []
    for name in arguments.only:
        same = [
            word
            for option in ("layers", "width", "batch", "tokens")
            for word in (f"--{option}", str(getattr(arguments, option)))
        ]
        run = subprocess.run(
            [sys.executable, __file__, "--one", name, *same], capture_output=True, text=True, check=True
        )
        found[name] = each = json.loads(run.stdout.splitlines()[-1])
        each["times_parameters"] = round(each["peak_bytes"] / (4 * each["parameters"]), 2)
        rows.append([name, f"{each['peak_bytes'] / 1e9:.2f}", f"{each['times_parameters']}", f"{each['cpu_seconds']}"])
        print(*rows[-1], sep=" | ", flush=True)
    size = found[arguments.only[0]]["parameters"]
    print_table(f"{size / 1e6:.0f} million parameters", ["callback", "peak, GB", "× weights", "CPU, s"], rows)
    sizes = {key: getattr(arguments, key) for key in ("layers", "width", "batch", "tokens")}
    write_json(
        arguments.output,
        {"command": "python benchmarks/large_transformer.py", **sizes, "machine": machine(), "callbacks": found},
    )


if __name__ == "__main__":
    main()
