"""What the callbacks leave in a W&B run, read back from the file that an offline run writes."""

import json
import re

import pytest
import torch
import wandb
from torch.nn import functional as F
from torch.utils.data import DataLoader
from wandb.proto import wandb_internal_pb2

from lightning_gp import ERM
from lightning_gp._lightning import pl
from lightning_gp.callbacks import (
    CosineSimilarity,
    CriticalLearningRate,
    GradientNorm,
    HessianEigenvalues,
    LearningRateBounds,
    PhaseAmplitudeConsistency,
)
from lightning_gp.dashboards import SECTIONS, Pictures
from lightning_gp.environments import Environments
from lightning_gp.networks import SinusoidMLP
from tests.callbacks.callback_cases import fit, sinusoid_data, sinusoid_maml

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7
FULL, LAST = 1, 4


def payloads(content):
    """The records of a ``.wandb`` file, which is a LevelDB log: blocks of records that may be cut at a block's end."""
    position, record = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:  # padding
            position += left
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        record += content[position + RECORD_HEADER : position + RECORD_HEADER + size]
        position += RECORD_HEADER + size
        if kind in (FULL, LAST):
            yield record
            record = b""


class Recorded:
    """An offline run: its history rows, the definitions of its x-axes, the folder of its files."""

    def __init__(self, folder):
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        self.files = path.parent / "files"
        self.rows, self.axes, self.config = [], {}, {}
        for payload in payloads(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            if record.HasField("history"):
                self.rows.append(row := {})
                for item in record.history.item:
                    key, value = item.nested_key or [item.key], json.loads(item.value_json)
                    if len(key) == 1:
                        row[key[0]] = value
                    else:  # a picture: one item for each of its attributes
                        row.setdefault(key[0], {})[key[1]] = value
            elif record.HasField("config"):
                self.config |= {each.key: json.loads(each.value_json) for each in record.config.update}
            elif record.HasField("metric"):
                metric = record.metric
                self.axes[metric.name or metric.glob_name] = metric.step_metric

    def series(self, key):
        """(global step, value) of every row that has the key."""
        return [(row["trainer/global_step"], row[key]) for row in self.rows if key in row]

    def names(self):
        return {key for row in self.rows for key in row}


def recorded(tmp_path, module, data, callbacks):
    logger = pl.loggers.WandbLogger(project="test", save_dir=tmp_path, offline=True)
    fit(tmp_path, module, data, callbacks, logger=logger, log_every_n_steps=1)
    wandb.finish()
    wandb.teardown()  # the file is complete only when the process that writes it has ended
    return Recorded(tmp_path)


@pytest.fixture(scope="module")
def maml(tmp_path_factory):
    """Two epochs of three steps with all callbacks."""
    callbacks = [
        GradientNorm(histogram=True),
        CosineSimilarity(),
        PhaseAmplitudeConsistency(),
        HessianEigenvalues(k=2, trace=True, density=True, per_environment=True),
        LearningRateBounds(),
        CriticalLearningRate(),
    ]
    run = recorded(tmp_path_factory.mktemp("maml"), sinusoid_maml(inner_steps=2), sinusoid_data(), callbacks)
    return run, callbacks


EPOCH_ENDS = [2, 5]  # the last of three steps, counted from 0, in each epoch


def test_every_number_is_recorded_once_per_epoch_at_its_last_step(maml):
    run, callbacks = maml
    assert [step for step, _ in run.series("val/loss")] == EPOCH_ENDS
    for callback in callbacks:
        assert callback.values
        for key, value in callback.values.items():
            series = run.series(key)
            assert [step for step, _ in series] == EPOCH_ENDS, key
            assert series[-1][1] == pytest.approx(value, rel=1e-6), key


def test_runs_can_be_grouped_by_what_they_are(maml):
    config = maml[0].config
    assert (config["run/algorithm"], config["run/network"]) == ("MAML", "SinusoidMLP")
    assert (config["run/optimizer"], config["run/outer_lr"]) == ("Adam", 1e-3)
    assert (config["run/max_epochs"], config["inner_lr"]) == (2, 0.01)


def test_the_global_step_is_the_x_axis_of_every_key(maml):
    run, _ = maml
    assert run.axes["*"] == "trainer/global_step"
    assert all("trainer/global_step" in row for row in run.rows)


def test_keys_form_the_sections(maml):
    run, _ = maml
    sections = {key.partition("/")[0] for key in run.names() if "/" in key}
    assert {"train", "val", "gradients", "linearity", "curvature", "learning_rates"} <= sections
    assert "step" not in run.names()  # Lightning reads this key as the step itself


def test_the_dashboard_shows_what_is_recorded(maml):
    run, callbacks = maml
    panels = [panel for section in SECTIONS.values() for panel in section]
    curves = [panel for panel in panels if not isinstance(panel, Pictures)]
    for key in {"train/loss", "val/loss", *(key for callback in callbacks for key in callback.values)}:
        assert sum(bool(re.search(panel.keys, key)) for panel in curves) == 1, key
    for panel in curves:
        if not re.search("accuracy|prototype|penalty|differences", panel.keys):  # there are none in this run
            assert any(re.search(panel.keys, key) for key in run.names()), panel.title


def check_picture(run, key):
    series = run.series(key)
    assert [step for step, _ in series] == EPOCH_ENDS
    for _, picture in series:
        assert picture["_type"] == "image-file"
        assert (run.files / picture["path"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", ["gradients/norm_histogram", "curvature/spectral_density"])
def test_pictures_are_recorded_once_per_epoch(maml, key):
    run, _ = maml
    check_picture(run, key)


def test_cosine_matrix_is_recorded_once_per_epoch(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 1)
    batches = [Environments(support=(own, own.sin())) for own in x]
    module = ERM(SinusoidMLP([4]), criterion=F.mse_loss)
    run = recorded(tmp_path, module, DataLoader(batches, batch_size=None), [CosineSimilarity(matrix=True)])
    check_picture(run, "gradients/cosine_matrix")
    cosines = [value for _, value in run.series("gradients/cosine")]
    assert len(cosines) == 2
    assert all(-1 <= value <= 1 for value in cosines)
