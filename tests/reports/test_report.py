"""``lightning-gp report``: what stands on the page of a run, and that it needs nothing else."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import lightning_gp
from lightning_gp import callbacks
from lightning_gp.cli import main
from lightning_gp.contracts import Key
from lightning_gp.dashboards import callback_classes
from lightning_gp.reports.logs import read_logs
from lightning_gp.reports.meanings import meanings, outside
from lightning_gp.reports.panels import EDGE, edge_panel, panels

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Collects what a page holds, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class Stranger(pl.LightningModule):
    """Knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def page(tmp_path, monkeypatch, capsys):
    """That of a short run with callbacks and a picture, tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["--trainer.max_epochs=2", "--data.iterations_per_epoch=2", "--data.val_episodes=4"]
    words += ["--data.test_episodes=20", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    more = ["--trainer.callbacks+=GradientNorm", "--trainer.callbacks.histogram=true"]
    more += [
        "--trainer.callbacks+=LearningRateBounds",
        "--trainer.callbacks.prefix=own_",
        "--trainer.log_every_n_steps=1",
    ]
    assert main(["fit", "--config", "sinusoid_maml", *words, *more]) == 0
    assert main(["test", "--config", "sinusoid_maml", *words]) == 0
    assert main(["report", "runs/sinusoid_maml"]) == 0
    assert "Report: runs/sinusoid_maml/report.html" in capsys.readouterr().out
    return Page(Path("runs/sinusoid_maml/report.html").read_text("utf-8"))


def test_a_page_of_a_run(page):
    # it needs nothing from outside: no script, no link, every picture in the page
    assert {tag for tag, _ in page.seen} & {"script", "link", "iframe", "object"} == set()
    addresses = [value for _, attributes in page.seen for name, value in attributes.items() if name in ("src", "href")]
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.seen
    logs = read_logs(Path("runs/sinusoid_maml"))
    assert "MAML of SinusoidMLP on SinusoidDataModule · 2 epochs, 4 steps · seed 0" in page.text
    assert all(key in page.text for key in logs.curves)
    (tested,) = logs.tests.values()
    assert f"{tested['test/loss']:.2f}"[:3] in page.text
    assert "before adaptation after 5 steps" in page.text
    # the edge, of a callback with a prefix
    value = logs.last[f"own_{EDGE}"]
    assert f"own_learning_rates/edge: {value:.3g} at the last measurement (step 3)" in page.text
    assert "GradientNorm The norm of the gradient" in page.text
    assert "gradients_norm_histogram step 3, of 2" in page.text
    assert "class_path: lightning_gp.MAML" in page.text
    assert "best: val/loss" in page.text
    assert f"trained with lightning_gp {lightning_gp.__version__}" in page.text
    assert "outside its range" not in page.text


def test_the_same_logs_make_the_same_page(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,0,2.0\n0,1,1.0\n")
    (first, second) = (lightning_gp.report(tmp_path, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_a_run_of_a_strangers_module(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, logger=logger, default_root_dir=tmp_path, log_every_n_steps=1, **options)
    trainer.fit(Stranger(), DataLoader(torch.randn(8, 2), batch_size=2))
    page = Page(lightning_gp.report(tmp_path).read_text("utf-8"))
    assert "It was not measured" in page.text
    assert "Not tested yet" in page.text
    assert "There is no config.yaml" in page.text
    assert "lightning (from the checkpoint)" in page.text


def test_strange_names_and_values_are_shown_as_they_are(tmp_path):
    header = "epoch,step,gradients/cosine,<script>alert(1)</script>,nothing"
    (tmp_path / "metrics.csv").write_text(f"{header}\n0,0,0.5,1,nan\n0,1,1.5,2,nan\n0,2,nan,3,nan\n")
    (tmp_path / "config.yaml").write_text("model:\n  note: '<b> & more'\n")
    page = Page(lightning_gp.report(tmp_path).read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.seen}
    assert "<script>alert(1)</script>" in page.text
    assert "'<b> & more'" in page.text
    assert "0.5 … 1.5, 1 not finite outside its range [−1, 1]" in page.text


def test_without_a_run_it_says_where_runs_are(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    (tmp_path / "a/seed_0").mkdir(parents=True)
    (tmp_path / "a/seed_0/metrics.csv").write_text("epoch,step\n")
    assert main(["report", str(tmp_path)]) == 2
    assert f"There are runs in {tmp_path / 'a/seed_0'}." in capsys.readouterr().err


def test_every_declared_key_has_its_meaning():
    for kind in callback_classes():
        for key in kind.keys if kind.__module__.startswith("lightning_gp.") else ():
            name = re.sub("<[a-z]+>", "part", key.name.replace("<i>", "1").replace("<stage>", "val"))
            found = meanings([name])[name]
            assert found.key == key
            assert hasattr(callbacks, found.source)
    assert meanings(["train/loss_epoch"], "MAML")["train/loss_epoch"].source == "MAML"
    assert meanings(["mine"])["mine"] == ("", "", None)


@pytest.mark.parametrize(
    ("bounds", "inside", "beyond"),
    [
        ("[0, ∞)", [0.0, 5.0, float("nan")], [-1.0, float("inf")]),
        ("(0, ∞]", [1e-9, float("inf")], [0.0, -1.0]),
        ("[−1, 1]", [-1.0, 1.0, 1.0 + 1e-8], [1.1, -1.1]),
        ("ℝ", [-3.0], []),
        ("(−∞, ∞)", [-3.0], []),
        ("{0, 1}", [0.0, 1.0], [0.5]),
        ("[1, ``max_products``]", [7.0], []),
        ("", [7.0], []),
    ],
)
def test_ranges(bounds, inside, beyond):
    key = Key("a", bounds, "")
    assert not [value for value in inside if outside(key, value)]
    assert [value for value in beyond if outside(key, value)] == beyond


def test_every_curve_is_drawn_once_and_flat_ones_are_told():
    curves = {key: {0: 1.0, 5: 2.0} for key in ("val/loss", "val/loss_step_0", "val/loss_step_10", "mine", "x_y/norm")}
    curves |= {"curvature/converged": {0: 1.0, 5: 1.0}, "learning_rates/outer": {0: 0.1, 5: 0.1}}
    curves |= {"learning_rates/outer_critical": {0: 0.3, 5: 0.2}, "cost_seconds/GradientNorm": {0: 1.0}}
    drawn, constant = panels(curves)
    keys = [key for each in drawn.values() for panel in each for key in panel.keys]
    assert sorted([*keys, *constant]) == sorted(set(curves) - {"cost_seconds/GradientNorm"})
    assert constant == {"curvature/converged": 1.0}
    assert drawn["adaptation"][0].keys == ("val/loss_step_0", "val/loss_step_10")
    assert edge_panel(curves) is None
