"""Is the critical rate right? Predicted from the curvature, against the one found by bisection of real optimizer steps.

    python benchmarks/learning_rates.py [--only MAML] [--output docs/results/learning_rates.json]

Every module is trained on one fixed batch, in float64, with the optimizer in question, so that its moments are those of
training. From there, the same weights and state serve three numbers:

- *predicted*: as ``LearningRateBounds`` predicts it, from 10 to 20 products with the Jacobian of the update;
- *found*: by bisection over the rate of steps of the real optimizer with the module's real gradients. A constant is
  subtracted from the gradient so that the weights are a stationary point (they are not quite one after a training, and
  a fast drift would change the curvature meanwhile) and the second moments are held; the weights are displaced by
  1e-8, and a rate diverges if what changes its sign from step to step grows. What grows without changing sign runs down
  a negative curvature, at any rate. (From 1e-9 AdamW divides the rounding of gradients that are zero, such as those of
  a bias before batch norm, by second moments as small.)
  What alternates is taken out by eighth differences: second ones let a negative curvature of half the size through, as
  an adapted network with batch norm has it (LIL on Conv4), and its growth was taken for divergence. No differences
  suppress what grows threefold a step, as momentum makes of it: with SGD, where directions of curvature are orthogonal,
  the eight most negative ones are therefore projected out at every step.
- *untouched*: by bisection over the rate at which the loss of the batch, from the weights as they are and with the
  momentum of a new start, rises by 5 % within 30 steps. It contains the drift, and is shown for comparison only.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, print_table, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lightning_gp import ANIL, ERM, FOMAML, LIL, MAML, Environments, GradientPenalty, IRMv1, REx
from lightning_gp.datamodules import ColoredMNISTDataModule, OmniglotDataModule, SinusoidDataModule
from lightning_gp.environments import as_batches
from lightning_gp.functional import UpdateJacobian, leading_curvature
from lightning_gp.functional.kernels import plain_kernels
from lightning_gp.functional.lanczos import leading_eigenpairs
from lightning_gp.networks import ColoredMNISTMLP, Conv4, SinusoidMLP
from lightning_gp.theory import UpdateRule, update_rule

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum 0.9": partial(torch.optim.SGD, momentum=0.9),
    "Nesterov 0.9": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "AdamW": torch.optim.AdamW,
}
MOMENTUM = ("exp_avg", "momentum_buffer")
ORDER = 8  # of the differences that leave what alternates; at 2 a negative curvature half as large would still pass
WARM_UP, SHARE = 300, 0.03  # steps on the fixed batch, at this share of the critical rate


class Rows(nn.Module):
    """A small transformer that reads an image row by row."""

    def __init__(self, side: int = 14, width: int = 16, classes: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * side, width)
        self.position = nn.Parameter(torch.randn(side, width) / 10)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (K, 1)."""
        rows = x.transpose(1, 2).flatten(2)
        return self.head(self.encoder(self.embed(rows) + self.position).mean(1))


class Stranger(nn.Module):
    """A classifier that knows nothing of this package: batch norm, cross-entropy, a mean over a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(2, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 2)
        )

    def training_loss(self, batch: Environments) -> Tensor:
        """Of the whole batch."""
        x, y = batch.support
        return F.cross_entropy(self.network(x.flatten(0, 1)), y.flatten().long())


def sinusoids() -> Environments:
    data = SinusoidDataModule(environments_per_batch=10, iterations_per_epoch=1)
    data.setup("fit")
    return as_batches(next(iter(data.train_dataloader())))[0]


def omniglot(folder: str) -> Environments:
    data = OmniglotDataModule(
        os.path.join(folder, "omniglot"), ways=5, shots=1, queries=5, environments_per_batch=4, iterations_per_epoch=1
    )
    data.prepare_data()
    data.setup("fit")
    (batch,) = as_batches(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
    return Environments(*((F.adaptive_avg_pool2d(x.flatten(0, 1), 16).unflatten(0, x.shape[:2]), y) for x, y in batch))


def colored(folder: str) -> Environments:
    data = ColoredMNISTDataModule(os.path.join(folder, "mnist"), examples=100)
    data.prepare_data()
    data.setup("fit")
    return as_batches(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))[0]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1)
    )


def modules(folder: str) -> dict[str, tuple[Callable[[], Any], Environments]]:
    lines, characters, digits = sinusoids(), omniglot(folder), colored(folder)
    sinusoid = partial(SinusoidMLP, (40, 40))
    conv = partial(Conv4, 5, channels=8, image_size=16)
    squared, binary = {"criterion": F.mse_loss}, {"criterion": F.binary_cross_entropy_with_logits}
    small = partial(ColoredMNISTMLP, 32)
    return {
        "ERM, conv net": (lambda: ERM(convolutional(), **binary), digits),
        "ERM, transformer": (lambda: ERM(Rows(), **binary), digits),
        "MAML, S = 1": (lambda: MAML(sinusoid(), inner_lr=0.01, **squared), lines),
        "MAML, S = 5": (lambda: MAML(sinusoid(), inner_lr=0.01, inner_steps=5, **squared), lines),
        "FOMAML, S = 1": (lambda: FOMAML(sinusoid(), inner_lr=0.01, **squared), lines),
        "FOMAML, S = 2": (lambda: FOMAML(sinusoid(), inner_lr=0.01, inner_steps=2, **squared), lines),
        "ANIL": (lambda: ANIL(conv(), inner_lr=0.1), characters),
        "LIL": (lambda: LIL(sinusoid(), inner_lr=0.01, inner_steps=3, divergence="gaussian", **squared), lines),
        "LIL, Conv4": (lambda: LIL(conv(), inner_lr=0.1, inner_steps=3), characters),
        "negative penalty": (lambda: GradientPenalty(sinusoid(), 1e-4, -1, **squared), lines),
        "positive penalty": (lambda: GradientPenalty(sinusoid(), 1e-2, 1, **squared), lines),
        "IRMv1": (lambda: IRMv1(small(), penalty_weight=100.0, **binary), digits),
        "REx": (lambda: REx(small(), penalty_weight=100.0, **binary), digits),
        "somebody's classifier": (Stranger, digits),
    }


class Problem:
    """One module with one optimizer on one fixed batch, after a short training."""

    def __init__(self, build: Callable[[], Any], batch: Environments, optimizer: Callable[..., Optimizer]) -> None:
        torch.manual_seed(0)
        self.module = build().double()
        parts = [part for part in batch if part is not None]
        self.batch = Environments(*((x.double(), y.double() if y.is_floating_point() else y) for x, y in parts))
        self.parameters = [each for each in self.module.parameters() if each.requires_grad]
        self.optimizer = optimizer(self.parameters, lr=0.0)
        self.step()  # the state
        for step in range(WARM_UP):
            if step % 50 == 0:
                critical = self.predicted()
            self.set_rate(SHARE * min(critical, 10.0))
            self.step()
        for parameter in self.parameters:
            state = self.optimizer.state[parameter]
            for name in MOMENTUM:
                if isinstance(state.get(name), Tensor):
                    state[name].zero_()
        self.saved = copy.deepcopy((self.module.state_dict(), self.optimizer.state_dict()))
        self.falling = self.directions_down()

    def gradients(self) -> float:
        """Leaves the gradient of the batch in ``.grad``; the loss."""
        self.optimizer.zero_grad()
        with plain_kernels(second_order=True):
            loss: Tensor = self.module.training_loss(self.batch)
            loss.backward()
        return float(loss.detach())

    def step(self) -> float:
        """One step; the loss before it."""
        loss = self.gradients()
        self.optimizer.step()
        return loss

    def set_rate(self, rate: float) -> None:
        """Of all groups."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def restore(self, rate: float) -> None:
        """The weights and the state after the training."""
        self.module.load_state_dict(self.saved[0])
        self.optimizer.load_state_dict(copy.deepcopy(self.saved[1]))
        self.set_rate(rate)

    def rule(self) -> UpdateRule:
        """Of the optimizer as it is."""
        return update_rule(self.optimizer)

    def jacobian(self) -> tuple[UpdateJacobian, dict[str, Tensor]]:
        """Of the update on the batch, and the parameters."""
        own = isinstance(self.module, Stranger)
        module = self.module

        def objective(parameters: dict[str, Tensor]) -> Tensor:
            if own:
                return module.training_loss(self.batch)
            losses: Tensor = module.environment_objectives(parameters, self.batch)
            return losses.mean()

        named = dict(module.named_parameters()) if own else module.network_parameters()
        with plain_kernels(second_order=True):
            return UpdateJacobian(objective, named), named

    def directions_down(self, most: int = 8) -> Tensor:
        """The most negative curvatures' eigenvectors, rows; those of a symmetric Jacobian with plain SGD alone.

        Momentum makes of them what grows more than twofold a step, and no differences suppress that.
        """
        jacobian, _ = self.jacobian()
        start = torch.randn(jacobian.update.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        if not jacobian.symmetric or not isinstance(self.optimizer, torch.optim.SGD):
            return start.new_zeros(0, len(start))
        with plain_kernels(second_order=True):
            pairs = leading_eigenpairs(lambda vector: -jacobian(vector), start, most, 1e-4, max_products=500)
        return pairs.vectors[pairs.values > 0]

    def predicted(self) -> float:
        """As ``LearningRateBounds`` predicts it."""
        rule = self.rule()
        with plain_kernels(second_order=True):
            jacobian, named = self.jacobian()
            found = leading_curvature(jacobian, rule.root_scales(named), rule.coupled_decay(named), rule.critical_rate)
        return rule.critical_rate(found.value)

    def diverges(self, rate: float, size: float = 1e-8, blocks: int = 15, steps: int = 10) -> bool:
        """Whether what changes its sign from step to step grows, near a stationary point.

        Displacement and momentum are let go for some steps, freed of what does not alternate, and scaled back to their
        first size, again and again: all three leave a linear recursion what it is.
        """
        self.restore(rate)
        self.gradients()
        drift = [parameter.grad.clone() for parameter in self.parameters]
        origin = self.places()[0]
        held = {id(p): {k: v for k, v in self.optimizer.state[p].items() if k not in MOMENTUM} for p in self.parameters}
        held = copy.deepcopy(held)
        generator = torch.Generator().manual_seed(1)
        displaced = torch.randn(origin.shape, generator=generator, dtype=origin.dtype)
        state = torch.stack([size * displaced / displaced.norm(), torch.zeros_like(displaced)])
        growths: list[float] = []
        while len(growths) < blocks:
            state = self.without_falling(state)
            path = [state * (size / state[0].norm())]
            self.put(origin + path[0][0], path[0][1])
            for _ in range(steps):
                self.gradients()
                for parameter, constant in zip(self.parameters, drift, strict=True):
                    parameter.grad.sub_(constant)
                self.optimizer.step()
                theta, buffers = self.places()
                moved = torch.stack([theta + rate * self.decoupled * origin - origin, buffers])
                path.append(self.without_falling(moved))
                self.put(origin + path[-1][0], path[-1][1])
                for parameter in self.parameters:  # the second moments of the training, not of the tiny displacement
                    self.optimizer.state[parameter].update(copy.deepcopy(held[id(parameter)]))
                if not bool(path[-1].isfinite().all()) or float(path[-1][0].norm()) > 1e4 * size:
                    break
            if len(path) < 4 or not bool(path[-1].isfinite().all()):
                return True
            order = min(ORDER, len(path) - 1)
            weighted = [(-1) ** j * math.comb(order, j) * each for j, each in enumerate(path[: -order - 2 : -1])]
            state = torch.stack(weighted).sum(0) / 2**order
            growths.append(float(state[0].norm()) / size)
        # Over several blocks: what turns has a small displacement at one time and a large one at another.
        return statistics.fmean(map(math.log, growths[-10:])) > 0

    def without_falling(self, state: Tensor) -> Tensor:
        """Weights and momentum (2, P) without the directions of negative curvature."""
        return state - state @ self.falling.T @ self.falling

    @property
    def decoupled(self) -> float:
        """Decoupled weight decay, whose own drift is taken out."""
        coupled = not isinstance(self.optimizer, torch.optim.AdamW)
        return 0.0 if coupled else float(self.optimizer.defaults["weight_decay"])

    def places(self) -> tuple[Tensor, Tensor]:
        """Weights and momentum, flat."""
        weights = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        buffers = [self._buffer(parameter) for parameter in self.parameters]
        return weights, torch.cat(
            [
                torch.zeros_like(p).reshape(-1) if b is None else b.reshape(-1).clone()
                for p, b in zip(self.parameters, buffers, strict=True)
            ]
        ).detach()

    def put(self, weights: Tensor, buffers: Tensor) -> None:
        """Weights and momentum from flat vectors."""
        sizes = [parameter.numel() for parameter in self.parameters]
        with torch.no_grad():
            for parameter, own, buffer in zip(self.parameters, weights.split(sizes), buffers.split(sizes), strict=True):
                parameter.copy_(own.view_as(parameter))
                place = self._buffer(parameter)
                if place is not None:
                    place.copy_(buffer.view_as(parameter))

    def _buffer(self, parameter: Tensor) -> Tensor | None:
        state = self.optimizer.state[parameter]
        return next((state[name] for name in MOMENTUM if isinstance(state.get(name), Tensor)), None)

    def rises(self, rate: float, by: float = 0.05, steps: int = 30) -> bool:
        """Whether the loss of the batch rises, from the weights as they are."""
        self.restore(rate)
        first = self.step()
        losses = (self.step() for _ in range(steps))
        return any(not math.isfinite(loss) or loss > first + by * abs(first) for loss in losses)


def bisected(diverges: Callable[[float], bool], around: float) -> float:
    """The rate, to 1 %, within a factor of 8 of a guess; ∞ or 0 where it is outside."""
    low, high = around / 8, around * 8
    if diverges(low):
        return 0.0
    if not diverges(high):
        return math.inf
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if diverges(middle) else (middle, high)
    return math.sqrt(low * high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("LIGHTNING_GP_DATA", "../shared/data"), help="folder of MNIST, Omniglot"
    )
    parser.add_argument("--only", default="", help="modules whose name contains this")
    parser.add_argument("--output", type=Path, default=RESULTS / "learning_rates.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    if arguments.output.exists():  # goes on where it was stopped
        results = json.loads(arguments.output.read_text("utf-8"))["cases"]
    for name, (build, batch) in modules(arguments.data).items():
        if arguments.only not in name:
            continue
        for optimizer, make in OPTIMIZERS.items():
            if f"{name}, {optimizer}" in results:
                continue
            begin = time.perf_counter()
            problem = Problem(build, batch, make)
            problem.restore(0.0)
            predicted = problem.predicted()
            found, untouched = bisected(problem.diverges, predicted), bisected(problem.rises, predicted)
            results[f"{name}, {optimizer}"] = {
                "predicted": predicted,
                "found": found,
                "ratio": found / predicted,
                "untouched": untouched / predicted,
            }
            print(name, optimizer, f"{found / predicted:.3f}", f"{time.perf_counter() - begin:.0f} s", flush=True)
            write_json(arguments.output, {"cases": results, "summary": summary(results)})
    header = ["module and optimizer", "predicted", "found", "found/predicted", "untouched/predicted"]
    rows = [[name, *(f"{value:.3g}" for value in each.values())] for name, each in results.items()]
    print_table("critical rates", header, rows)
    print(summary(results))


def summary(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """The worst and the median factor between the two rates."""
    factors = [max(each["ratio"], 1 / each["ratio"]) if each["ratio"] else math.inf for each in results.values()]
    return {"worst": max(factors), "median": statistics.median(factors), "cases": len(factors)}


if __name__ == "__main__":
    main()
