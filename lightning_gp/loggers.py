"""One adapter between figures and whatever logger a Trainer has."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gp._lightning import pl
from lightning_gp.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def epoch_end_step(trainer: Any) -> int:
    """The step under which Lightning records what ``self.log`` gets at the end of a training epoch.

    That is the last batch's, one less than the counter says in ``on_train_epoch_end``. It counts batches, so with
    several optimizers it is not ``trainer.global_step``.

    Args:
        trainer: a Trainer inside ``fit``.

    Returns:
        The step, at least 0.
    """
    return max(int(trainer.fit_loop.epoch_loop._batches_that_stepped) - 1, 0)


def log_figures(target: Any, figures: Mapping[str, Figure], step: int | None = None) -> None:
    """Hands figures to every logger, as that logger can show them, and closes them.

    W&B gets all of them in one call, together with the step (its media panels cannot choose their x-axis);
    TensorBoard gets ``add_figure``, MLflow and Comet ``log_figure`` (MLflow as an artifact that is named after key and
    step); any other logger a PNG in ``<log directory>/figures``, written whole or not at all.
    Only the process of rank zero does anything else than close the figures. Call it once per key and epoch.

    Args:
        target: a Trainer, a logger, or several loggers.
        figures: by key, e.g. ``"gradients/cosine_matrix"``.
        step: the step to record; None for ``epoch_end_step``, if ``target`` is a Trainer.

    Raises:
        ValueError: if ``step`` is None and ``target`` is not a Trainer.
    """
    fallback = "."
    if hasattr(target, "loggers"):
        fallback = target.default_root_dir
        loggers, rank_zero = target.loggers, target.is_global_zero
        step = epoch_end_step(target) if step is None else step
    else:
        loggers = target if isinstance(target, Iterable) else [target]
        rank_zero = getattr(pl.utilities.rank_zero_only, "rank", 0) == 0
    if step is None:
        raise ValueError("step=None needs a Trainer to read the step from; pass step=... with a logger.")
    try:
        if rank_zero and figures:
            for logger in loggers:
                _log_to(logger, figures, step, fallback)
    finally:
        for figure in figures.values():
            _close(figure)


def _log_to(logger: Any, figures: Mapping[str, Figure], step: int, fallback: str) -> None:
    # By name, because the loggers of Lightning's two namespaces are different classes.
    kinds = {kind.__name__ for kind in type(logger).__mro__}
    if "DummyLogger" in kinds:  # what `fast_dev_run` puts in place of every logger
        return
    if "WandbLogger" in kinds:
        import wandb
        from PIL import Image

        images = {key: wandb.Image(Image.open(io.BytesIO(_png(figure)))) for key, figure in figures.items()}
        logger.log_metrics(images, step=step)
    elif "MLFlowLogger" in kinds:
        for key, figure in figures.items():
            logger.experiment.log_figure(logger.run_id, figure, f"{_file_name(key)}-step={step:08d}.png")
    elif "CometLogger" in kinds:
        for key, figure in figures.items():
            logger.experiment.log_figure(key, figure, step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_figure"):
        for key, figure in figures.items():
            logger.experiment.add_figure(key, figure, global_step=step, close=False)
    else:
        folder = Path(getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or fallback) / "figures"
        for key, figure in figures.items():
            with replacing(folder / f"{_file_name(key)}-step={step:08d}.png") as path:
                path.write_bytes(_png(figure))


def _file_name(key: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", key)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _close(figure: Figure) -> None:
    figure.clear()
    # Figures that pyplot made stay in its registry until it is told; those of `plots` never enter it.
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)
