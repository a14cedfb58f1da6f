"""A LIL step against a plain MAML step at 3 inner steps: what the regularisers cost.

    python benchmarks/lil.py                     # writes docs/results/lil_step.json, about 2 minutes
    python benchmarks/lil.py --only sinusoid     # one workload

Both contenders take turns in one process on one thread; a step is zero grad, forward, backward and Adam. Ratios are
those of processor time, which other load on the machine moves less than wall-clock time. Random images stand in for
Omniglot.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gp import LIL, MAML, Environments
from lightning_gp.allocator import keep_freed_memory
from lightning_gp.networks import Conv4, SinusoidMLP

TARGET = 1.6
STEPS = 3
TOLERANCE = 1e-10
CONTENDERS: dict[str, tuple[type[MAML], dict[str, Any]]] = {
    "MAML": (MAML, {}),
    "LIL": (LIL, {}),
    "LIL, amplitude only": (LIL, {"phase_weight": 0.0}),
    'LIL, detach="target"': (LIL, {"detach": "target"}),
    "FOMAML": (MAML, {"first_order": True}),
    "LIL on FOMAML": (LIL, {"first_order": True}),
}


def sinusoid() -> tuple[nn.Module, Environments, dict[str, Any]]:
    """MLP 40-40, 100 environments of 10 points, regression with the Gaussian divergence."""
    x = 10 * torch.rand(100, 20, 1) - 5
    y = torch.sin(x)
    environments = Environments((x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:]))
    return SinusoidMLP(), environments, {"inner_lr": 0.01, "criterion": F.mse_loss}


def classes(ways: int, per_class: int, count: int, feature: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    labels = torch.arange(ways).repeat(per_class).expand(count, -1).contiguous()
    return torch.rand(count, ways * per_class, *feature), labels


def mlp_classes() -> tuple[nn.Module, Environments, dict[str, Any]]:
    """The same MLP as a classifier: 5 outputs, 2 points of each class."""
    network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    return network, Environments(classes(5, 2, 100, (1,)), classes(5, 2, 100, (1,))), {"inner_lr": 0.1}


def conv4(downsample: Any) -> tuple[nn.Module, Environments, dict[str, Any]]:
    """Conv4-64, 28×28, 5-way 1-shot, 15 queries, 4 environments."""
    images = Environments(classes(5, 1, 4, (1, 28, 28)), classes(5, 15, 4, (1, 28, 28)))
    return Conv4(5, downsample=downsample), images, {"inner_lr": 0.5}


WORKLOADS: dict[str, tuple[Callable[[], tuple[nn.Module, Environments, dict[str, Any]]], int, int]] = {
    "sinusoid": (sinusoid, 60, 4),
    "sinusoid-size classifier": (mlp_classes, 60, 4),
    "Conv4-64, strided": (lambda: conv4("stride"), 10, 1),
    "Conv4-64, max-pooling": (lambda: conv4("max_pool"), 6, 1),
}


def build(name: str, network: nn.Module, options: dict[str, Any]) -> MAML:
    kind, own = CONTENDERS[name]
    divergence = {"divergence": "gaussian"} if kind is LIL and options.get("criterion") is F.mse_loss else {}
    return kind(network, inner_steps=STEPS, **options, **own, **divergence)


def check_gradient(network: nn.Module, environments: Environments, options: dict[str, Any]) -> float:
    """LIL's gradient against MAML's plus that of the regularisers without sharing, in float64; stops if they differ."""
    (x, y), query = environments
    assert query is not None
    small = Environments((x[:2].double(), _wide(y[:2])), (query[0][:2].double(), _wide(query[1][:2])))
    ours, theirs = copy.deepcopy(network).double(), copy.deepcopy(network).double()
    build("LIL", ours, options).training_loss(small).backward()
    plain = build("MAML", theirs, options)
    plain.training_loss(small).backward()
    _regularisers(plain, small, options).backward()
    error = harness.relative_error(harness.gradient_of(ours), harness.gradient_of(theirs))
    if error > TOLERANCE:
        raise RuntimeError(f"LIL's gradient is off by {error:.1e} (float64); allowed is {TOLERANCE:.0e}")
    return error


def _wide(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y


def _regularisers(module: MAML, environments: Environments, options: dict[str, Any]) -> Tensor:
    from lightning_gp.functional.linearity import phase_loss

    path = module.adaptation(module.loss, module.network_parameters(), environments)
    kind: Any = "gaussian" if options.get("criterion") is F.mse_loss else "kl"
    assert environments.query is not None
    phase = phase_loss(module.predict, path, environments.query[0], divergence=kind)
    return (0.1 * phase + 0.01 * path.path_length).mean()


def stepper(module: MAML, environments: Environments) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        module.training_loss(environments).backward()
        optimizer.step()

    return step


def measure(workload: str) -> dict[str, Any]:
    make, rounds, burst = WORKLOADS[workload]
    network, environments, options = make()
    error = check_gradient(network, environments, options)
    steps = {name: stepper(build(name, copy.deepcopy(network), options), environments) for name in CONTENDERS}
    seconds = harness.interleave(steps, rounds, clock=time.process_time, burst=burst)
    summaries = {name: harness.summary(values) for name, values in seconds.items()}
    base = summaries["MAML"]["median_ms"]
    ratios = {name: round(row["median_ms"] / base, 3) for name, row in summaries.items()}
    harness.print_table(
        f"{workload}: {(make.__doc__ or conv4.__doc__ or '').strip()} Gradient of LIL checked to {error:.0e}",
        ("step", "CPU ms, median", "quartiles", "of MAML"),
        [
            (name, f"{row['median_ms']:.2f}", f"{row['q1_ms']:.2f}-{row['q3_ms']:.2f}", f"{ratios[name]:.2f}")
            for name, row in summaries.items()
        ],
    )
    met = ratios["LIL"] <= TARGET
    print(f"target: LIL at most {TARGET} of MAML: {'met' if met else 'MISSED'}", flush=True)
    return {
        "gradient_error_float64": error,
        "steps": {name: {"processor_time": row, "of_maml": ratios[name]} for name, row in summaries.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "lil_step.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    workloads = {name: measure(name) for name in arguments.only}
    results = {
        "machine": harness.machine(),
        "inner_steps": STEPS,
        "target_of_maml": TARGET,
        "workloads": workloads,
    }
    harness.write_json(arguments.output, results)


if __name__ == "__main__":
    main()
