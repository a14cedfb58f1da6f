"""Killed inside an epoch, resumed, killed and resumed again: bitwise the run that nobody killed, whatever the data."""

import pytest
import torch

from lightning_gp._lightning import LightningModule, Trainer, pl
from lightning_gp.contracts import NamesEnvironments, dealt_by
from lightning_gp.datamodules import ExampleEnvironments, SinusoidDataModule
from lightning_gp.environments import Environments

STEPS = 11
SIZES = {"a": 24, "b": 17}


def named(**arguments):
    generator = torch.Generator().manual_seed(0)
    train = {
        name: (torch.randn(n, 1, generator=generator), torch.randn(n, 1, generator=generator))
        for name, n in SIZES.items()
    }
    return ExampleEnvironments(train, **arguments)


FAMILIES = {
    "episodes": lambda: SinusoidDataModule(shots=2, queries=2, environments_per_batch=2, iterations_per_epoch=8),
    "named, full batches": lambda: named(steps_per_epoch=8),
    "named, mini-batches": lambda: named(batch_size=3),  # 8 in an epoch
}


class Trained(LightningModule):
    """Learns from every example of a batch, and remembers the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        batch = [batch] if isinstance(batch, Environments) else batch
        self.seen.append(torch.cat([part.support[0].flatten() for part in batch]))
        return sum(((self.net(part.support[0]) - part.support[1]) ** 2).mean() for part in batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def run(folder, make, steps, accumulate, path=None):
    module = Trained()
    saving = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saving],
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
    ).fit(module, make(), ckpt_path=path, weights_only=path is None)
    return module


@pytest.mark.filterwarnings("ignore:.*when using `ckpt_path`, callbacks used to create the checkpoint.*")
@pytest.mark.filterwarnings("ignore:.*does not contain the state of.*")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_kills_change_nothing(family, accumulate, tmp_path):
    make = FAMILIES[family]
    whole = run(tmp_path / "whole", make, STEPS, accumulate)
    if family != "named, full batches":
        assert len({batch.numpy().tobytes() for batch in whole.seen}) == len(whole.seen)
    for first, second in ((1, 3), (2, 6), (3, 9)):
        folder = tmp_path / f"{first}"
        parts = [run(folder / "0", make, first, accumulate)]
        parts.append(run(folder / "1", make, second, accumulate, folder / "0" / f"step={first}.ckpt"))
        parts.append(run(folder / "2", make, STEPS, accumulate, folder / "1" / f"step={second}.ckpt"))
        seen = [batch for part in parts for batch in part.seen]
        assert len(seen) == len(whole.seen)
        assert all(map(torch.equal, seen, whole.seen))
        assert torch.equal(parts[-1].net.weight, whole.net.weight)


def test_what_data_modules_declare():
    episodes, environments = FAMILIES["episodes"](), named()
    assert dealt_by(episodes) == "episodes"
    assert dealt_by(environments) == "shares"
    assert isinstance(environments, NamesEnvironments)
    assert not isinstance(episodes, NamesEnvironments)
    assert environments.environment_names["train"] == ("a", "b")
