"""The maps of the papers' four problems with gradient descent outside, and of two of them with Adam.

[T19] S. Takagi et al. (2019), Role of two learning rates in convergence of model-agnostic meta-learning.
[T21] S. Takagi et al. (2021), Analysis of trainability of gradient-based multi-environment learning from gradient norm
regularization perspective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional as F

from lightning_gp.datamodules import (
    ClassFolderDataModule,
    ColoredMNISTDataModule,
    ImageClassDataModule,
    MiniImageNetDataModule,
    OmniglotDataModule,
    SinusoidDataModule,
)
from lightning_gp.experiments import maps
from lightning_gp.experiments.adam_borders import explained
from lightning_gp.experiments.map_findings import fallen, gone, larger_near_the_end
from lightning_gp.experiments.maps import RUN, Panel, Run, borders, complete
from lightning_gp.modules.irm import IRMv1
from lightning_gp.modules.maml import MAML
from lightning_gp.networks.colored_mnist import ColoredMNISTMLP
from lightning_gp.networks.conv4 import Conv4
from lightning_gp.networks.sinusoid import SinusoidMLP
from lightning_gp.trainability.engine import OptimizerName
from lightning_gp.trainability.map import TrainabilityMap
from lightning_gp.trainability.objective import Trainable
from lightning_gp.trainability.result import TrainabilityResult
from lightning_gp.trainability.stream import Data

NEAR_THE_END = "if α is close to the value above which the losses diverge, a larger β can be used than at α = 0"
LARGE = "the maximum β is larger at large α than at α = 0"
ONE, TEN = (0,), tuple(range(10))


def _sinusoid(seed: int, compile: bool) -> MAML:
    return MAML(SinusoidMLP(), criterion=F.mse_loss, compile=compile)


def _sinusoids(seed: int) -> SinusoidDataModule:
    return SinusoidDataModule(environments_per_batch=100, seed=seed)


def _conv4(seed: int, channels: int, in_channels: int = 1, image_size: int = 28) -> MAML:
    return MAML(Conv4(5, channels, in_channels=in_channels, image_size=image_size))


def _omniglot(seed: int, root: str, environments: int, queries: int) -> OmniglotDataModule:
    return OmniglotDataModule(root, 5, 1, queries, environments_per_batch=environments, seed=seed)


def _mini_imagenet(seed: int, root: str, class_folders: bool, image_size: int) -> ImageClassDataModule:
    kind = ClassFolderDataModule if class_folders else MiniImageNetDataModule
    return kind(root, ways=5, shots=1, image_size=image_size, seed=seed)


def _invariant(seed: int) -> IRMv1:
    return IRMv1(ColoredMNISTMLP(hidden=256, layers=1), criterion=nn.BCEWithLogitsLoss())


def _colored_mnist(seed: int, root: str, examples: int | None) -> ColoredMNISTDataModule:
    return ColoredMNISTDataModule(root, examples=examples, seed=seed)


def _map(
    run: Run,
    objective: Callable[[int], Trainable],
    data: Callable[[int], Data],
    inner_lrs: tuple[str, int],
    outer_lrs: tuple[str, int],
    iterations: int,
    seeds: Sequence[int] = maps.FIVE,
    **options: Any,
) -> TrainabilityMap:
    """A map over two ranges, each with the count of rates that ``quick`` has, of ``seeds`` where the run names none."""
    options |= {"iterations": iterations, "device": run.device, "seeds": run.chosen(seeds)}
    return TrainabilityMap(objective, data, *run.grid(inner_lrs, outer_lrs), **options)


def sinusoid_map(run: Run, compile: bool = False, optimizer: OptimizerName = "sgd") -> TrainabilityMap:
    """The map of the paper; ``quick`` has every third rate or so, and 200 iterations."""
    module, iterations = partial(_sinusoid, compile=compile), 200 if run.quick else 500
    return _map(run, module, _sinusoids, ("1e-4:9e-1", 12), ("1e-2:9e0", 10), iterations, optimizer=optimizer)


def omniglot_map(run: Run, root: str, optimizer: OptimizerName = "sgd") -> TrainabilityMap:
    """The map of the paper, or a small one of the same ranges."""
    channels, environments, queries = (8, 4, 5) if run.quick else (64, 32, 15)
    module = partial(_conv4, channels=channels)
    data = partial(_omniglot, root=root, environments=environments, queries=queries)
    return _map(run, module, data, ("1e-3:9e0", 12), ("1e-1:9e1", 10), 100, ONE, optimizer=optimizer)


def mini_imagenet_map(run: Run, root: str, class_folders: bool = False, image_size: int = 84) -> TrainabilityMap:
    """The map of the paper, or a small one of the same ranges."""
    channels, iterations = (8, 100) if run.quick else (32, 10_000)
    module = partial(_conv4, channels=channels, in_channels=3, image_size=image_size)
    data = partial(_mini_imagenet, root=root, class_folders=class_folders, image_size=image_size)
    return _map(run, module, data, ("1e-4:9e-1", 12), ("1e-2:9e0", 10), iterations, ONE)


def colored_mnist_map(run: Run, root: str) -> TrainabilityMap:
    """The map of the paper, or a small one of the same ranges."""
    data = partial(_colored_mnist, root=root, examples=1000 if run.quick else None)
    return _map(run, _invariant, data, ("1e-2:9e2", 12), ("1e-2:9e1", 12), 500, ONE if run.quick else TEN)


def sin(run: Run = RUN, compile: bool = False) -> None:
    """The trainability map of sinusoid regression with MAML [T21, Fig. 6a; T19, Fig. 4a].

    MLP 40-40, 10 points, 100 environments, 1 inner step, SGD inside and outside; the loss after 500 iterations for
    α in 1e-4 … 9e-1 and β in 1e-2 … 9, each stepping through 1 … 9 in every decade; five seeds. Some twelve minutes a
    seed on one core. Whether β can be larger near the largest usable α is tested over seeds (``border_tests``).

    Args:
        run: see Run.
        compile: compile the step: twice as fast, a slow start.
    """
    result = run.computed(sinusoid_map(run, compile), "sin")
    _one("sin", run, result, "Sinusoid, MAML, SGD outside", NEAR_THE_END, compile=compile)


def omn(run: Run = RUN, root: str = "data") -> None:
    """The trainability map of Omniglot classification with MAML [T21, Fig. 6b; T19, Fig. 4b].

    5-way 1-shot, 15 queries, Conv4 with 64 channels, 32 environments, 1 inner step, SGD inside and outside; the loss
    after 100 iterations for α in 1e-3 … 9 and β in 1e-1 … 90, each stepping through 1 … 9 in every decade. The full map
    wants a GPU (--device cuda) or many machines (--shard). --quick has 8 channels, 4 environments, 5 queries and a
    coarse grid, and takes minutes. One seed; --seeds 5 decides whether β can be larger near the largest usable α.

    Args:
        run: see Run.
        root: folder of the Omniglot data.
    """
    _one("omn", run, run.computed(omniglot_map(run, root), "omn"), "Omniglot, MAML, SGD outside", LARGE)


def mini(run: Run = RUN, root: str = "data", class_folders: bool = False, image_size: int = 84) -> None:
    """The trainability map of mini-ImageNet classification with MAML [T21, Fig. 6c].

    5-way 1-shot, 15 queries, Conv4 with 32 channels, 4 environments, 1 inner step, SGD inside and outside; the loss
    after 10,000 iterations for α in 1e-4 … 9e-1 and β in 1e-2 … 9, each stepping through 1 … 9 in every decade. It
    wants a GPU (--device cuda) or many machines (--shard). --quick has 8 channels, 100 iterations and a coarse grid.
    One seed, if --seeds names no others.

    Args:
        run: see Run.
        root: folder of the images.
        class_folders: take any images in root/{train,val,test}/<class>/.
        image_size: side in pixels.
    """
    result = run.computed(mini_imagenet_map(run, root, class_folders, image_size), "min")
    _one("min", run, result, "mini-ImageNet, MAML, SGD outside", LARGE)


def cmn(run: Run = RUN, root: str = "data") -> None:
    """The trainability map of IRMv1 on colored MNIST [T21, Fig. 6d].

    One hidden layer of width 256, full batches, 500 iterations of gradient descent, 10 runs averaged, penalty weight α
    in 1e-2 … 900 and β in 1e-2 … 90, each stepping through 1 … 9 in every decade; no annealing, no rescaling of the
    loss, no weight decay. The full map wants a GPU (--device cuda) or many machines (--shard). --quick has 1,000 images
    per environment, one seed and a coarse grid, and takes some ten minutes.

    Args:
        run: see Run.
        root: folder that holds MNIST/raw.
    """
    result = run.computed(colored_mnist_map(run, root), "cmn", criterion="worse")
    if complete([result]):
        finding, fall = fallen(result)
        numbers = {"fall": fall, "borders": borders(result), "borders_of_lower_loss": borders(result, "worse")}
        panel = Panel("Colored MNIST, IRMv1", criterion="worse")
        maps.write("cmn", run, {panel: result}, [finding], numbers)


def adam(run: Run = RUN, compile: bool = False, omniglot: str | None = None) -> None:
    """Trainability maps with Adam outside: the effect of the inner rate is gone [T19, Fig. 6].

    The maps of sin and, if asked for, of omn, with Adam in place of gradient descent in the outer loop. Adam divides
    the gradient by its size, so that its steps do not grow with the curvature, and rates that are too large do not end
    in infinities: a rate counts as usable if it lowers the loss. Two borders are drawn beside what was found: where
    the first step alone leaves the map's bound of divergence, and the edge of stability at the initial weights.

    Args:
        run: see Run.
        compile: compile the sinusoid step.
        omniglot: also Omniglot, from this folder; wants a GPU, or --quick.
    """
    both = {"sinusoid": sinusoid_map(run, compile, "adam")}
    if omniglot is not None:
        both["omniglot"] = omniglot_map(run, omniglot, "adam")
    results = {name: run.computed(trainability, "adam", f"adam-{name}", "worse") for name, trainability in both.items()}
    if complete(list(results.values())):
        found = {name: explained(both[name], result) for name, result in results.items()}
        panels = {
            Panel(f"{name.capitalize()}, MAML, Adam outside", lines=found[name][0], criterion="worse"): result
            for name, result in results.items()
        }
        findings, tests = zip(*map(gone, results.values()), strict=True)
        numbers = {
            "near_the_end": dict(zip(results, tests, strict=True)),
            "borders": {name: borders(result, "worse") for name, result in results.items()},
            "explained": {name: each for name, (_, each) in found.items()},
        }
        maps.write("adam", run, panels, findings, numbers, compile=compile)


def _one(name: str, run: Run, result: TrainabilityResult, title: str, paper: str, **options: bool) -> None:
    """Writes one map and whether a larger β is usable near the last α."""
    if complete([result]):
        finding, test = larger_near_the_end(result, paper)
        numbers = {"near_the_end": test, "borders": borders(result)}
        maps.write(name, run, {Panel(title): result}, [finding], numbers, **options)
