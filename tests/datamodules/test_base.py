"""What all data modules share, in Lightning's hands."""

from types import SimpleNamespace

import pytest
import torch

from lightning_gp._lightning import LightningModule, Trainer, pl
from lightning_gp.datamodules import EpisodeDataModule, SinusoidDataModule


def on_rank(data, rank, devices):
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": devices, "rank": rank})
    return data


class Recorder(LightningModule):
    """Does no training; remembers what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_batches, self.val_batches, self.test_batches = [], [], []

    def training_step(self, batch, batch_idx):
        self.train_batches.append(batch.support[0])
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.val_batches.append(batch.support[0])

    def test_step(self, batch, batch_idx):
        self.test_batches.append(batch.support[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data(**arguments):
    arguments = {
        "environments_per_batch": 4,
        "iterations_per_epoch": 3,
        "val_episodes": 6,
        "test_episodes": 8,
    } | arguments
    return SinusoidDataModule(shots=2, queries=2, **arguments)


def trainer(tmp_path, **arguments):
    return Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"enable_checkpointing": "callbacks" in arguments} | arguments),
    )


def test_a_trainer_sees_fresh_training_and_fixed_validation_episodes(tmp_path):
    module, episodes = Recorder(), data()
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, episodes)
    run.test(module, episodes, verbose=False)
    expected = episodes.episodes("train").__getitems__(range(24)).support[0]
    assert torch.equal(torch.cat(module.train_batches), expected)
    first, second = torch.cat(module.val_batches).chunk(2)
    assert torch.equal(first, second)
    assert [len(batch) for batch in module.val_batches] == [4, 2, 4, 2]
    assert len(torch.cat(module.test_batches)) == 8


def test_resuming_at_an_epoch_continues_with_its_episodes(tmp_path):
    whole = Recorder()
    trainer(tmp_path, max_epochs=2).fit(whole, data())
    first, second = Recorder(), Recorder()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(first, data())
    run.save_checkpoint(tmp_path / "epoch.ckpt")
    trainer(tmp_path, max_epochs=2).fit(second, data(), ckpt_path=tmp_path / "epoch.ckpt", weights_only=False)
    assert torch.equal(torch.cat(whole.train_batches), torch.cat(first.train_batches + second.train_batches))


@pytest.mark.filterwarnings("ignore:.*when using `ckpt_path`, callbacks used to create the checkpoint.*")
@pytest.mark.parametrize(
    ("step", "limit", "workers"), [(k, n, 0) for k in (2, 4, 5, 7, 10) for n in (1.0, 4)] + [(7, 1.0, 1)]
)
def test_resuming_at_any_step_continues_with_the_episodes_that_come_next(tmp_path, step, limit, workers):
    def run(module, callbacks, **arguments):
        steps = trainer(tmp_path, max_steps=12, max_epochs=-1, limit_train_batches=limit, **callbacks)
        steps.fit(module, data(iterations_per_epoch=5, num_workers=workers), **arguments)

    whole, resumed = Recorder(), Recorder()
    saving = pl.callbacks.ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)
    run(whole, {"callbacks": [saving]})
    run(resumed, {}, ckpt_path=tmp_path / "saved" / f"step={step}.ckpt", weights_only=False)
    assert len(resumed.train_batches) == 12 - step
    assert torch.equal(torch.cat(whole.train_batches[step:]), torch.cat(resumed.train_batches))


def test_two_devices_share_the_batches_of_one():
    def loaders(data):
        return list(zip(("train", "val"), (data.train_dataloader(), data.val_dataloader()), strict=True))

    for split, loader in loaders(data()):
        ranks = [dict(loaders(on_rank(data(), rank, 2)))[split] for rank in range(2)]
        for whole, *parts in zip(loader, *ranks, strict=True):
            together = torch.stack([part.support[0] for part in parts], 1).flatten(0, 1)
            assert torch.equal(together, whole.support[0])


def test_lightning_leaves_the_sampler_alone():
    from pytorch_lightning.trainer.connectors.data_connector import _DataConnector

    distributed = SimpleNamespace(use_distributed_sampler=True, is_distributed=True)
    connector = SimpleNamespace(trainer=SimpleNamespace(_accelerator_connector=distributed))
    assert not _DataConnector._requires_distributed_sampler(connector, data().train_dataloader())


def test_worker_processes_bring_the_same_batches():
    alone = torch.cat([batch.support[0] for batch in data().val_dataloader()])
    shared = torch.cat([batch.support[0] for batch in data(num_workers=1).val_dataloader()])
    assert torch.equal(alone, shared)


def test_overfit_batches_repeats_the_first_batch(tmp_path):
    module = Recorder()
    with pytest.warns(UserWarning, match="overfit"):
        trainer(tmp_path, max_epochs=2, overfit_batches=1).fit(module, data())
    assert len(module.train_batches) == 2
    assert torch.equal(*module.train_batches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"environments_per_batch": 3}, r"environments_per_batch=3 .* multiple of 2"),
        ({"val_episodes": 5}, r"val_episodes=5 .* multiple of 2"),
    ],
)
def test_numbers_that_devices_cannot_share_are_refused_in_setup(arguments, message):
    with pytest.raises(ValueError, match=message):
        on_rank(data(**arguments), 0, 2).setup("fit")


@pytest.mark.parametrize("name", ["environments_per_batch", "iterations_per_epoch", "val_episodes", "test_episodes"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be a whole number of at least 1"):
        data(**{name: 0})


def test_negative_seeds_and_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="seed=-1"):
        data(seed=-1)
    with pytest.raises(ValueError, match="split='valid' is unknown; use one of train, val, test"):
        data().episodes("valid")


def test_the_base_class_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="EpisodeDataModule must define make_episodes"):
        EpisodeDataModule().setup("fit")


def test_all_arguments_are_hyperparameters():
    hparams = data(seed=7, noise=0.5).hparams
    assert hparams["seed"] == 7
    assert hparams["noise"] == 0.5
    assert hparams["shots"] == 2
    assert hparams["num_workers"] == 0
