"""IRM on your own environments: any mapping of names to data, of unequal sizes.

The label depends on the first feature alike in every hospital. The second feature agrees with the label, too, but not
equally often in each, and mostly disagrees in the hospital that training never sees.
"""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp._lightning import Trainer
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.modules.irm import IRMv1


def hospital(patients: int, agreement: float) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.rand(patients, 1).round()
    cause = torch.where(torch.rand(patients, 1) < 0.75, y, 1 - y)
    shortcut = torch.where(torch.rand(patients, 1) < agreement, y, 1 - y)
    return torch.cat([2 * cause - 1, 2 * shortcut - 1], 1), y


def main() -> None:
    torch.manual_seed(0)
    train = {"north": hospital(4000, 0.95), "south": hospital(3000, 0.7), "west": hospital(2000, 0.8)}
    data = ExampleEnvironments(train, test={"east": hospital(2000, 0.1)}, val_fraction=0.2, steps_per_epoch=100)

    for name, penalty_weight in (("ERM", 0.0), ("IRM", 1000.0)):
        module = IRMv1(
            nn.Linear(2, 1),
            penalty_weight=penalty_weight,
            anneal_steps=100,
            rescale_loss=True,
            criterion=F.binary_cross_entropy_with_logits,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
        )
        trainer = Trainer(max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(module, data)
        trainer.test(module, data)
        print(name, "weights of cause and shortcut:", module.network.weight.detach().tolist())


if __name__ == "__main__":
    main()
