"""The same training on one or many devices; the numbers stay the same. docs/multi_gpu.md says what to expect.

    python examples/multi_gpu.py --devices 2                       one machine
    torchrun --nproc-per-node 2 examples/multi_gpu.py --devices 2  the same, started by torchrun
    srun python examples/multi_gpu.py --devices 4 --num-nodes 2    in a SLURM job of 2 nodes with 4 tasks each

``--accelerator cpu`` tries it without GPUs.
"""

import argparse

import torch

from lightning_gp import ANIL
from lightning_gp._lightning import Trainer
from lightning_gp.callbacks import GradientNorm
from lightning_gp.datamodules import SinusoidDataModule
from lightning_gp.networks import SinusoidMLP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, help="per node")
    parser.add_argument("--num-nodes", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    # ANIL never adapts the body, MAML all of it: neither needs find_unused_parameters.
    model = ANIL(SinusoidMLP(), inner_lr=0.01, criterion=torch.nn.functional.mse_loss)
    # 96 environments per step over all devices: two devices get 48 each, and the weights come out the same.
    data = SinusoidDataModule(environments_per_batch=96, iterations_per_epoch=200, val_episodes=192, test_episodes=192)
    trainer = Trainer(
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        num_nodes=arguments.num_nodes,
        strategy="ddp" if arguments.devices * arguments.num_nodes > 1 else "auto",
        max_epochs=arguments.epochs,
        callbacks=[GradientNorm()],  # of all devices' environments, not the mean of the devices' norms
        logger=False,
    )
    trainer.fit(model, data)
    if trainer.is_global_zero:
        shown = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "train/loss"}
        print({name: round(value, 6) for name, value in shown.items() if "cost" not in name})


if __name__ == "__main__":
    main()
