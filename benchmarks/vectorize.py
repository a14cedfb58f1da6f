"""Is ``vectorize="auto"`` the best choice? A step of MAML with all environments at once, one by one, and by auto.

    python benchmarks/vectorize.py [--device cuda] [--output docs/results/vectorize_cuda.json]

The contenders take turns; times are medians in milliseconds, with how many environments are computed at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness import RESULTS, interleave, print_table, summary, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp import MAML, Environments
from lightning_gp.networks import Conv4, ResNet12, SinusoidMLP

CHOICES = (True, False, "auto")


def images(environments: int, examples: int, channels: int, side: int, device: str) -> tuple[Tensor, Tensor]:
    labels = torch.arange(examples, device=device).remainder(5).expand(environments, examples).contiguous()
    return torch.rand(environments, examples, channels, side, side, device=device), labels


def cases(device: str) -> dict[str, tuple[Callable[[], nn.Module], dict[str, object], tuple[Tensor, Tensor]]]:
    x = torch.rand(100, 10, 1, device=device)
    return {
        "sinusoid MLP, 100 environments": (SinusoidMLP, {"criterion": F.mse_loss}, (x, 2 * x)),
        "Conv4-64, 28x28, 32 environments of 25": (lambda: Conv4(5), {"inner_lr": 0.4}, images(32, 25, 1, 28, device)),
        "Conv4-32, 84x84, 4 environments of 80, 5 steps": (
            lambda: Conv4(5, 32, 3, 84),
            {"inner_lr": 0.01, "inner_steps": 5},
            images(4, 80, 3, 84, device),
        ),
        "ResNet-12, 84x84, 4 environments of 25": (
            lambda: ResNet12(5),
            {"inner_lr": 0.01},
            images(4, 25, 3, 84, device),
        ),
    }


def step_of(module: MAML, batch: Environments, device: str) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        module.training_loss(batch).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {}
    rows = []
    for name, (network, options, examples) in cases(arguments.device).items():
        modules = {}
        for choice in CHOICES:
            torch.manual_seed(0)
            modules[str(choice)] = MAML(network(), vectorize=choice, **options).to(arguments.device)
        batch = Environments(examples, examples)
        steps = {choice: step_of(module, batch, arguments.device) for choice, module in modules.items()}
        seconds = interleave(steps, arguments.rounds)
        results[name] = {
            choice: {**summary(seconds[choice]), "at_once": modules[choice]._chunk_size} for choice in modules
        }
        rows.append([name, *(f"{found['median_ms']:.1f} ({found['at_once']})" for found in results[name].values())])  # type: ignore[attr-defined]
    what = torch.cuda.get_device_name() if arguments.device == "cuda" else "one CPU thread"
    record = {"device": what, "torch": torch.__version__, "milliseconds": results}
    write_json(arguments.output or RESULTS / f"vectorize_{arguments.device}.json", record)
    print_table(f"One outer step of MAML, {what}", ["", "all at once", "one by one", "auto"], rows)


if __name__ == "__main__":
    main()
