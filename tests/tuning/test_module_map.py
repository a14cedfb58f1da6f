"""Maps of modules that know nothing of this package, against recursions written out here."""

import json
import math
import pickle

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gp.cli import main
from lightning_gp.trainability import TrainabilityResult, plot_map
from lightning_gp.trainability.storage import Cell
from lightning_gp.tuning import ModuleMap

CURVATURES = torch.tensor([8.0, 2.0], dtype=torch.float64)
DECAYS, RATES = [0.5, 4.0], [0.02, 0.2, 1.0]


class Quadratic(pl.LightningModule):
    """½ Σ hᵢ wᵢ² and weight decay: w ← (1 − β(h + d)) w."""

    def __init__(self, decay: float = 0.5, momentum: float = 0.0, automatic: bool = True):
        super().__init__()
        self.save_hyperparameters()
        self.weights = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64) + torch.rand(2))
        self.automatic_optimization = automatic

    def training_step(self, batch, batch_idx):
        loss = (CURVATURES * self.weights.square()).sum() / 2
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        options = {"weight_decay": self.hparams.decay, "momentum": self.hparams.momentum}
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3, **options)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]  # it rests


class Batches(pl.LightningDataModule):
    def train_dataloader(self):
        return batches()


def batches():
    return DataLoader(TensorDataset(torch.zeros(3, 1)), 1)


def mapped(name="decay", values=DECAYS, rates=RATES, iterations=8, **options):
    def build(seed, value):
        return Quadratic(**{name: value}, automatic=options.get("automatic", True))

    kept = {key: value for key, value in options.items() if key != "automatic"}
    return ModuleMap(build, batches(), name, values, rates, iterations, **{"divergence": 100.0, **kept})


def start(seed):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Quadratic().weights.detach()


def losses(rate, decay, iterations, seed=0):
    """L(w_k), k = 0 … T."""
    factors = [(1 - rate * (CURVATURES + decay)) ** k for k in range(iterations + 1)]
    return [float((CURVATURES * (factor * start(seed)).square()).sum() / 2) for factor in factors]


def test_cells_are_the_modules_own_training(tmp_path):
    result = mapped(seeds=(0, 3)).run(tmp_path / "map.jsonl", progress=False)
    for cell, outcome in result.cells.items():
        wanted = losses(cell.outer_lr, cell.inner_lr, 8, cell.seed)
        assert outcome.first_loss == pytest.approx(wanted[0], rel=1e-12)
        gone = [k for k, loss in enumerate(wanted) if loss > 100 * wanted[0]]
        assert outcome.diverged == bool(gone)
        if gone:
            assert outcome.iterations == gone[0]
        else:
            assert (outcome.loss, outcome.iterations) == (pytest.approx(sum(wanted[6:]) / 3, rel=1e-9), 8)
    assert result.diverged.tolist() == [[0, 0, 2], [0, 2, 2]]
    described = result.header["settings"]["objective"]
    assert (described["class"], described["label"]) == ("Quadratic", "decay")
    assert described["arguments"] == {"momentum": 0.0, "automatic": True}


def test_refined_border_and_edge_are_those_of_the_recursion():
    trainability = mapped(iterations=60, rates=[0.1, 1.0])
    result = trainability.run(progress=False, refine=0.02)
    label, edges = trainability.edges()
    assert edges == pytest.approx([2 / (8 + decay) for decay in DECAYS], rel=1e-2)
    for found, edge in zip(result.critical_outer_lrs(), edges, strict=True):
        assert edge < found < 1.1 * edge
    legend = plot_map(result, lines=[(label, edges)]).axes[0].get_legend().get_texts()
    assert {text.get_text() for text in legend} >= {label, "β_c found"}


def test_momentum_has_its_own_edge_and_zero_its_line():
    trainability = mapped("momentum", [0.5, 0.9], [0.1, 0.3, 0.6, 2.0], 60, zero=True)
    for momentum in (0.0, 0.5, 0.9):  # decay is 0.5
        assert trainability.edge(momentum) == pytest.approx((2 + 2 * momentum) / 8.5, rel=1e-2)
    result = trainability.run(progress=False)
    assert result.zero_critical_outer_lr() == pytest.approx(math.sqrt(0.1 * 0.3))
    assert result.seed_borders(0.9)[0] == pytest.approx(math.sqrt(0.3 * 0.6))


def test_manual_optimization_has_the_same_cells_and_no_edge():
    manual = mapped(automatic=False)
    own, other = manual.run(progress=False), mapped().run(progress=False)
    assert {cell: outcome.loss for cell, outcome in own.cells.items()} == {
        cell: outcome.loss for cell, outcome in other.cells.items()
    }
    with pytest.raises(ValueError, match="automatic_optimization=False"):
        manual.edge(0.5)


def test_a_file_goes_on_and_other_settings_are_refused(tmp_path):
    path = tmp_path / "map.jsonl"
    mapped().run(path, progress=False)
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    mapped().run(path, progress=False)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match=r"settings\.iterations is 8, not 9"):
        mapped(iterations=9).run(path, progress=False)


def built(seed, value):
    return Quadratic(value)


def loaders(seed):
    return batches()


def test_another_process_computes_the_same():
    """As an executor does: pickled there and back, with data that each process makes."""
    own = ModuleMap(built, loaders, "decay", DECAYS, RATES, 8)
    cell = Cell(3, 0.5, 0.02)
    assert own.compute(cell) == pickle.loads(pickle.dumps(own.compute))(cell)
    assert own.compute(cell)._replace(iterations=8) == mapped().compute(cell)


class Nan(Quadratic):
    def training_step(self, batch, batch_idx):
        return self.weights.sum() * math.nan


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Quadratic(), TypeError, "give a function of the seed and the value of decay"),
        (lambda seed, value: nn.Linear(1, 1), TypeError, "built a Linear, no LightningModule"),
        (lambda seed, value: Nan(value), ValueError, "The loss of Nan is nan on the first batch, at decay = 0.5"),
    ],
)
def test_what_cannot_be_mapped_is_refused_before_training(module, error, message):
    with pytest.raises(error, match=message):
        ModuleMap(module, batches(), "decay", DECAYS, RATES, 3).run(progress=False)


@pytest.fixture
def config(tmp_path):
    path, home = tmp_path / "config.yaml", "tests.tuning.test_module_map"
    path.write_text(yaml.safe_dump({"model": f"{home}.Quadratic", "data": f"{home}.Batches"}))
    return ["map", "--config", str(path), "--outer_lrs", "0.02,0.2,1.0", "--iterations", "8"]


def test_command_maps_the_module_of_a_config_and_draws_the_edge(config, tmp_path, capsys):
    path = tmp_path / "map.jsonl"
    assert main([*config, "--vary", "decay", "--over", "0.5,4", "--divergence=100", f"--map.output={path}"]) == 0
    found = TrainabilityResult.load(path)
    wanted = mapped().run(progress=False)
    assert {cell: each.loss for cell, each in found.cells.items()} == {
        cell: each.loss for cell, each in wanted.cells.items()
    }
    edge = tmp_path / "map-edge.json"
    (line,) = json.loads(edge.read_text())["lines"].values()
    assert line == pytest.approx([2 / 8.5, 2 / 12], rel=1e-2)
    assert main(["map", "plot", str(path), "--output", str(tmp_path / "picture")]) == 0
    assert (tmp_path / "picture.png").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vary", "decay"], "--vary decay wants both --over"),
        (["--vary", "decay", "--over", "0.5,4", "--optimizer", "adam"], "--optimizer adam with --vary"),
        (["--inner_lrs", "0.5,4"], "lightning-gp map --vary NAME"),
    ],
)
def test_command_says_what_is_missing(config, tmp_path, capsys, words, message):
    assert main([*config, *words, f"--map.output={tmp_path / 'map.jsonl'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "map.jsonl").exists()
