"""One network on the episodes of several data modules: does it fit them, and how well does it do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_gp._lightning import LightningDataModule, LightningModule
from lightning_gp.environments import as_batches
from lightning_gp.modules.trial import check_classes


def check_fits(module: LightningModule, data: LightningDataModule, name: str) -> None:
    """Runs the network on a first test batch, so that what does not fit shows before hours of training.

    Args:
        module: an ``EnvironmentModule``; any other is taken as it is.
        data: the data module to be tested on; prepared and set up here.
        name: of the data in messages.

    Raises:
        ValueError: if the network cannot take the images, or has not as many outputs as an episode has classes.
    """
    data.prepare_data()
    data.setup("test")
    predict, network = getattr(module, "predict", None), getattr(module, "network", None)
    if not callable(predict) or not isinstance(network, torch.nn.Module):
        return
    (x, y), _ = as_batches(data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0))[0]
    try:
        with torch.no_grad():
            predictions = predict(dict(network.named_parameters()), x[0])
        check_classes(predictions, y[0], getattr(module, "criterion", None), getattr(data, "ways", None))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The test data {name!r} do not fit the network {type(network).__name__}: its examples have shape "
            f"{tuple(x.shape[2:])} (channels, height, width for images). {error} Give all data modules the same "
            "image_size, colours and ways, and build the network for them."
        ) from error


def metric_of(values: Mapping[str, float]) -> str:
    """``"accuracy"`` where there is one, else ``"loss"``."""
    return "accuracy" if "accuracy" in values else "loss"


def summary(results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the mean half-width of the seeds' 95 % intervals over episodes.

    Args:
        results: of each seed, what ``test`` logged, with ``<metric>_ci95``.

    Returns:
        ``metric``, ``mean``, ``std`` (n − 1; None for one seed), ``ci95``, ``seeds`` (all values).
    """
    metric = metric_of(results[0])
    values = [float(each[metric]) for each in results]
    return {
        "metric": metric,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "ci95": statistics.fmean(float(each[f"{metric}_ci95"]) for each in results),
        "seeds": values,
    }


def as_text(cell: Mapping[str, Any]) -> str:
    """``mean ± std``, accuracies in percent."""
    factor, digits = (100, 2) if cell["metric"] == "accuracy" else (1, 4)
    spread = "" if cell["std"] is None else f" ± {factor * cell['std']:.{digits}f}"
    return f"{factor * cell['mean']:.{digits}f}{spread}"


def print_domains(table: Mapping[str, Mapping[str, Any]]) -> None:
    """One line for each test data set."""
    width = max(len(name) for name in table) + 2
    print(f"\n{'test data':{width}}{'metric':>10}{'mean ± std':>18}{'95 % interval':>16}{'seeds':>7}")
    for name, cell in table.items():
        factor, digits = (100, 2) if cell["metric"] == "accuracy" else (1, 4)
        interval = f"± {factor * cell['ci95']:.{digits}f}"
        print(f"{name:{width}}{cell['metric']:>10}{as_text(cell):>18}{interval:>16}{len(cell['seeds']):>7}")
    print("std: over seeds; interval: over the test episodes of a seed. Accuracies in percent.")
