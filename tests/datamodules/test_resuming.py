"""The same seed gives the same episodes of images: any number of workers and processes, resumed in mid-epoch too."""

from types import SimpleNamespace

import pytest
import torch

from lightning_gp._lightning import LightningModule, Trainer, pl
from lightning_gp.datamodules import ClassFolderDataModule
from tests.datamodules.image_cases import write_tree

STEPS = 5  # in an epoch


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    splits = {"train": [f"a{i}" for i in range(9)], "val": ["b0", "b1"], "test": ["c0", "c1"]}
    return write_tree(tmp_path_factory.mktemp("tree"), splits)


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(torch.cat([batch.support[0], batch.query[0]], 1))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data(tree, **arguments):
    changes = {"random_crop": 1, "horizontal_flip": True, "color_jitter": 0.3}
    return ClassFolderDataModule(
        tree, ways=2, queries=2, image_size=6, iterations_per_epoch=STEPS, val_episodes=4, **changes, **arguments
    )


def fit(tmp_path, module, episodes, steps, callbacks=(), **arguments):
    Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        max_steps=steps,
        max_epochs=-1,
    ).fit(module, episodes, **arguments)


@pytest.mark.filterwarnings("ignore:.*when using `ckpt_path`, callbacks used to create the checkpoint.*")
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0)])
def test_a_resumed_run_sees_exactly_the_episodes_that_would_have_come(tree, tmp_path, before, after):
    whole = Recorder()
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, whole, data(tree, num_workers=before), 2 * STEPS + 2, [saving])
    assert len({batch.numpy().tobytes() for batch in whole.batches}) == 2 * STEPS + 2
    for step in (3, STEPS, STEPS + 2):  # in the middle and at the end of an epoch
        resumed = Recorder()
        path = tmp_path / f"step={step}.ckpt"
        fit(tmp_path, resumed, data(tree, num_workers=after), 2 * STEPS + 2, ckpt_path=path, weights_only=False)
        assert len(resumed.batches) == 2 * STEPS + 2 - step
        assert torch.equal(torch.cat(whole.batches[step:]), torch.cat(resumed.batches))


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_the_batches_of_one(tree, devices, workers):
    def loaded(rank, devices, workers):
        module = data(tree, num_workers=workers)
        module.trainer = SimpleNamespace(
            distributed_sampler_kwargs={"num_replicas": devices, "rank": rank}, lightning_module=None
        )
        loader = module.train_dataloader()
        loader.sampler.set_epoch(1)
        return [module.on_after_batch_transfer(batch, 0).query[0] for batch in loader]

    alone = loaded(0, 1, 0)
    ranks = [loaded(rank, devices, workers) for rank in range(devices)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        torch.testing.assert_close(torch.stack(parts, 1).flatten(0, 1), whole, rtol=0, atol=1e-6)
