"""One network on the episodes of several data modules: does it fit them, and how well does it do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_gp._lightning import LightningDataModule, LightningModule
from lightning_gp.contracts import Classifies
from lightning_gp.environments import as_batches
from lightning_gp.modules.base import EnvironmentModule
from lightning_gp.modules.trial import check_classes
from lightning_gp.runs.summaries import as_text, over_seeds


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
    if not isinstance(module, EnvironmentModule):
        return
    (x, y), _ = as_batches(data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0))[0]
    try:
        with torch.no_grad():
            predictions = module.predict(module.network_parameters(), x[0])
        check_classes(predictions, y[0], module.criterion, data.ways if isinstance(data, Classifies) else None)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The test data {name!r} do not fit the network {type(module.network).__name__}: its examples have shape "
            f"{tuple(x.shape[2:])} (channels, height, width for images). {error} Give all data modules the same "
            "image_size, colours and ways, and build the network for them."
        ) from error


def summary(results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the mean half-width of the seeds' 95 % intervals over episodes.

    Args:
        results: of each seed, what ``test`` logged, with ``<metric>_ci95``.

    Returns:
        ``metric`` (``"accuracy"`` where there is one, else ``"loss"``), ``mean``, ``std`` (n − 1; None for one seed),
        ``seeds`` (all values), ``ci95``.
    """
    metric = "accuracy" if "accuracy" in results[0] else "loss"
    ci95 = statistics.fmean(float(each[f"{metric}_ci95"]) for each in results)
    return {"metric": metric, **over_seeds([each[metric] for each in results]), "ci95": ci95}


def shown(cell: Mapping[str, Any]) -> tuple[str, str]:
    """``mean ± std`` and ``± ci95``, accuracies in percent."""
    factor, digits = (100, 2) if cell["metric"] == "accuracy" else (1, 4)
    return as_text(cell["mean"], cell["std"], digits, factor), f"± {factor * cell['ci95']:.{digits}f}"


def print_domains(table: Mapping[str, Mapping[str, Any]]) -> None:
    """One line for each test data set."""
    width = max(len(name) for name in table) + 2
    print(f"\n{'test data':{width}}{'metric':>10}{'mean ± std':>18}{'95 % interval':>16}{'seeds':>7}")
    for name, cell in table.items():
        mean, interval = shown(cell)
        print(f"{name:{width}}{cell['metric']:>10}{mean:>18}{interval:>16}{len(cell['seeds']):>7}")
    print("std: over seeds; interval: over the test episodes of a seed. Accuracies in percent.")
