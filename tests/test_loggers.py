"""Figures reach each logger in its own form, under the step that ``self.log`` uses, and are closed."""

import subprocess
import sys

import pytest
import torch

from lightning_gp._lightning import Callback, LightningModule, Trainer, pl
from lightning_gp.loggers import log_figures
from lightning_gp.plots import cosine_matrix, histogram

CSVLogger = pl.loggers.CSVLogger
TensorBoardLogger = pl.loggers.TensorBoardLogger


def figures():
    return {
        "gradients/cosine_matrix": cosine_matrix(torch.eye(3)),
        "gradients/norms": histogram(torch.arange(5.0), "norm"),
    }


def test_csv_logger_gets_pictures_beside_the_log(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    log_figures(logger, figures(), step=7)
    written = sorted(path.name for path in (tmp_path / "run" / "version_0" / "figures").iterdir())
    assert written == ["gradients_cosine_matrix-step=00000007.png", "gradients_norms-step=00000007.png"]
    for path in (tmp_path / "run" / "version_0" / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path, name="run", version=0)

    def full(self, content):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        log_figures(logger, figures(), step=7)
    assert list((tmp_path / "run" / "version_0" / "figures").iterdir()) == []


def test_tensorboard_gets_images(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    log_figures(logger, figures(), step=7)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert sorted(events.Tags()["images"]) == sorted(figures())
    assert [event.step for event in events.Images("gradients/cosine_matrix")] == [7]


class Recorder:
    """Stands in for WandbLogger, which is recognised by name."""

    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step):
        self.calls.append((metrics, step))


def test_wandb_gets_all_pictures_in_one_call():
    import wandb

    logger = type("WandbLogger", (Recorder,), {})()
    log_figures([logger], figures(), step=7)
    [(metrics, step)] = logger.calls
    assert step == 7
    assert metrics.keys() == figures().keys()
    assert all(isinstance(value, wandb.Image) for value in metrics.values())


class Client:
    """Stands in for MLflow's client and Comet's experiment, which take figures by a method of the same name."""

    def __init__(self):
        self.calls = []

    def log_figure(self, *arguments, **options):
        self.calls.append((*arguments, *options.values()))


def test_mlflow_gets_artifacts_that_are_named_after_key_and_step():
    logger = type("MLFlowLogger", (), {"experiment": Client(), "run_id": "a1"})()
    log_figures(logger, figures(), step=7)
    names = [name for run, figure, name in logger.experiment.calls if run == "a1"]
    assert names == ["gradients_cosine_matrix-step=00000007.png", "gradients_norms-step=00000007.png"]


def test_comet_gets_figures_under_their_keys():
    logger = type("CometLogger", (), {"experiment": Client()})()
    log_figures(logger, figures(), step=7)
    assert [(name, step) for name, figure, step in logger.experiment.calls] == [(key, 7) for key in figures()]


def test_only_rank_zero_logs(monkeypatch):
    monkeypatch.setattr(pl.utilities.rank_zero_only, "rank", 1)
    logger = type("WandbLogger", (Recorder,), {})()
    log_figures(logger, figures(), step=7)
    assert logger.calls == []


def test_figures_are_closed_also_when_logging_fails():
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    class Failing:
        def log_metrics(self, metrics, step):
            raise RuntimeError("offline")

    figure, axes = pyplot.subplots()
    axes.plot([1, 2])
    with pytest.raises(RuntimeError, match="offline"):
        log_figures(type("WandbLogger", (Failing,), {})(), {"a": figure}, step=0)
    assert figure.axes == []
    assert not pyplot.fignum_exists(figure.number)


def test_a_logger_alone_needs_a_step(tmp_path):
    with pytest.raises(ValueError, match="pass step="):
        log_figures(CSVLogger(tmp_path), figures())


class Tiny(LightningModule):
    """Five batches an epoch, two optimizers, so that the global step runs twice as fast as the batches."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(5, 2))


class Draws(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("scalar", 1.0, on_epoch=True, batch_size=1)
        log_figures(trainer, {"picture": cosine_matrix(torch.eye(2))})


def fit(tmp_path, logger, **options):
    trainer = Trainer(
        max_epochs=2,
        logger=logger,
        callbacks=[Draws()],
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(Tiny())


def test_pictures_and_scalars_share_their_steps(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    fit(tmp_path, logger)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    scalars = [event.step for event in events.Scalars("scalar")]
    assert [event.step for event in events.Images("picture")] == scalars
    assert len(scalars) == 2


@pytest.mark.parametrize(("logger", "options"), [(True, {"fast_dev_run": True}), (False, {})])
def test_without_a_logger_nothing_is_written(tmp_path, logger, options):
    fit(tmp_path, logger, **options)
    assert list(tmp_path.rglob("*.png")) == []


def test_importing_loads_neither_matplotlib_nor_wandb():
    code = (
        "import sys, lightning_gp._lightning; before = set(sys.modules)\n"
        "import lightning_gp.loggers, lightning_gp.plots, lightning_gp.dashboards\n"
        "heavy = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(heavy & {'wandb', 'wandb_workspaces', 'matplotlib', 'PIL'}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
