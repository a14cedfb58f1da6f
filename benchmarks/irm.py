"""A whole IRMv1 step against an ERM step, full batch on colored MNIST: what the penalty costs.

    python benchmarks/irm.py --data-dir data           # writes docs/results/irm_step.json
    python benchmarks/irm.py --examples 2500           # a tenth of the data; random images without --data-dir

The contenders take turns in one process on one thread; a step is zero grad, forward, backward and Adam. First all
formulations of IRMv1 are checked to have the same gradient in float64. Ratios are those of processor time, which other
load on the machine moves less than wall-clock time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp import Environments
from lightning_gp.datamodules import ColoredMNISTDataModule
from lightning_gp.modules.erm import ERM
from lightning_gp.modules.irm import IRMv1
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP

WEIGHT = 100.0
TOLERANCE = 1e-10
TARGET = 1.05
CRITERION = F.binary_cross_entropy_with_logits


def erm(network: nn.Module) -> Callable[[Environments], Tensor]:
    return ERM(network, criterion=CRITERION).training_loss


def closed_form(network: nn.Module) -> Callable[[Environments], Tensor]:
    return IRMv1(network, penalty_weight=WEIGHT, criterion=CRITERION).training_loss


def any_criterion(network: nn.Module) -> Callable[[Environments], Tensor]:
    """The module with a criterion that it does not know: autograd through the scale."""
    return IRMv1(network, penalty_weight=WEIGHT, criterion=lambda z, y: CRITERION(z, y)).training_loss


def reference(network: nn.Module) -> Callable[[Environments], Tensor]:
    """As one writes it by hand: each environment's loss differentiated by a dummy scale, with its graph."""

    def loss(batch: Environments) -> Tensor:
        terms = []
        for x, y in zip(*batch.support, strict=True):
            scale = torch.ones((), dtype=x.dtype, requires_grad=True)
            risk = CRITERION(network(x) * scale, y)
            (derivative,) = torch.autograd.grad(risk, scale, create_graph=True)
            terms.append(risk + WEIGHT * derivative.square())
        return torch.stack(terms).mean()

    return loss


CONTENDERS: Mapping[str, Callable[[nn.Module], Callable[[Environments], Tensor]]] = {
    "ERM": erm,
    "IRMv1, closed form": closed_form,
    "IRMv1, autograd for any criterion": any_criterion,
    "IRMv1, written by hand with autograd": reference,
}


def colored_mnist(data_dir: str | None, examples: int) -> Environments:
    if data_dir is not None:
        batch = next(iter(ColoredMNISTDataModule(data_dir, examples=examples).train_dataloader()))
        assert isinstance(batch, Environments)
        return batch
    return Environments((torch.rand(2, examples, 2, 14, 14), torch.rand(2, examples, 1).round()))


def check_gradients(network: nn.Module, batch: Environments) -> float:
    """The largest relative error of the IRMv1 formulations in float64; stops if it is too large."""
    small = Environments((batch.support[0][:, :200].double(), batch.support[1][:, :200].double()))
    gradients = {}
    for name, build in CONTENDERS.items():
        copied = copy.deepcopy(network).double()
        build(copied)(small).backward()
        gradients[name] = harness.gradient_of(copied)
    names = [name for name in CONTENDERS if name.startswith("IRM")]
    error = max(harness.relative_error(gradients[name], gradients[names[-1]]) for name in names)
    if error > TOLERANCE:
        raise RuntimeError(f"the formulations of IRMv1 differ by {error:.1e} (float64); allowed is {TOLERANCE:.0e}")
    return error


def stepper(
    network: nn.Module, build: Callable[[nn.Module], Any], batch: Environments, clock: list[float]
) -> Callable[[], None]:
    """A training step that notes its processor time in ``clock``."""
    loss, optimizer = build(network), torch.optim.Adam(network.parameters(), lr=1e-4)

    def step() -> None:
        start = time.process_time()
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        clock.append(time.process_time() - start)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder that holds MNIST/raw; random images without it")
    parser.add_argument("--examples", type=int, default=25_000, help="in each of the two environments")
    parser.add_argument("--hidden", type=int, default=390)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "irm_step.json")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = colored_mnist(arguments.data_dir, arguments.examples)
    network = ColoredMNISTMLP(arguments.hidden)
    error = check_gradients(network, batch)
    clocks: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    steps = {name: stepper(copy.deepcopy(network), build, batch, clocks[name]) for name, build in CONTENDERS.items()}
    wall = harness.interleave(steps, arguments.rounds)
    summaries = {name: harness.summary(clock[-arguments.rounds :]) for name, clock in clocks.items()}
    base = summaries["ERM"]["median_ms"]
    ratios = {name: round(values["median_ms"] / base, 4) for name, values in summaries.items()}
    harness.print_table(
        f"IRMv1 step, 2 x {arguments.examples} examples, hidden {arguments.hidden}; gradients equal to {error:.0e}",
        ("formulation", "CPU ms, median", "quartiles", "of ERM", "wall ms"),
        [
            (
                name,
                f"{row['median_ms']:.1f}",
                f"{row['q1_ms']:.1f}-{row['q3_ms']:.1f}",
                f"{ratios[name]:.3f}",
                f"{harness.summary(wall[name])['median_ms']:.1f}",
            )
            for name, row in summaries.items()
        ],
    )
    met = ratios["IRMv1, closed form"] <= TARGET
    print(f"target: the closed form at most {TARGET} of ERM: {'met' if met else 'MISSED'}")
    harness.write_json(
        arguments.output,
        {
            "machine": harness.machine(),
            "examples": arguments.examples,
            "hidden": arguments.hidden,
            "gradient_error_float64": error,
            "target_of_erm": TARGET,
            "steps": {
                name: {"processor_time": row, "of_erm": ratios[name], "wall": harness.summary(wall[name])}
                for name, row in summaries.items()
            },
        },
    )


if __name__ == "__main__":
    main()
