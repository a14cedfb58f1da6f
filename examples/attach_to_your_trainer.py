"""Every callback on an image classifier that knows nothing of this package; the numbers land in ``logs/``."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gp import callbacks as gp


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 10))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def digits(count, shapes):  # ten random shapes, seen through noise
    labels = torch.randint(10, (count,))
    return TensorDataset(shapes[labels] + torch.randn(count, 1, 16, 16), labels)


if __name__ == "__main__":
    pl.seed_everything(0)
    shapes = torch.randn(10, 1, 16, 16)
    train, val = DataLoader(digits(2048, shapes), 64, shuffle=True), DataLoader(digits(512, shapes), 64)
    measure = [gp.GradientNorm(groups=2), gp.CosineSimilarity(), gp.PhaseAmplitudeConsistency()]
    measure += [gp.HessianEigenvalues(k=2), gp.LearningRateBounds()]
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=pl.loggers.CSVLogger("logs"), callbacks=measure)
    trainer.fit(Classifier(), train, val)
