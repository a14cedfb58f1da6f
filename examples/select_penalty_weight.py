"""Chooses IRM's penalty weight without the test environment: a sweep with one environment left out of each run.

The table has a row per patient. The label depends on the cause; the shortcut agrees with it, too, but not equally often
in each hospital, and hardly ever in the one that is tested on. The mean loss in the hospital that was left out chooses.
"""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_gp._lightning import Trainer
from lightning_gp.datamodules import ExampleEnvironments
from lightning_gp.modules.irm import IRMv1

AGREEMENT = {"north": 0.95, "south": 0.7, "west": 0.3, "east": 0.1}
WEIGHTS = (0.0, 10.0, 1000.0)


def table(patients: int = 2000) -> dict[str, list]:
    columns = {"hospital": [], "cause": [], "shortcut": [], "y": []}
    for hospital, agreement in AGREEMENT.items():
        y = torch.rand(patients).round()
        columns["hospital"] += [hospital] * patients
        columns["cause"] += torch.where(torch.rand(patients) < 0.75, y, 1 - y).tolist()
        columns["shortcut"] += torch.where(torch.rand(patients) < agreement, y, 1 - y).tolist()
        columns["y"] += y.tolist()
    return columns  # a pandas DataFrame or ExampleEnvironments.from_csv("patients.csv", ...) would do as well


def trained(data: ExampleEnvironments, penalty_weight: float) -> tuple[Trainer, IRMv1]:
    torch.manual_seed(0)
    options = {"anneal_steps": 50, "rescale_loss": True, "criterion": F.binary_cross_entropy_with_logits}
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.05)  # noqa: E731
    module = IRMv1(nn.Linear(2, 1), penalty_weight=penalty_weight, optimizer=adam, **options)
    trainer = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    return trainer, module


def main() -> None:
    torch.manual_seed(0)
    options = {"environment": "hospital", "target": "y", "test": ["east"], "steps_per_epoch": 100}
    frame, found = table(), {}
    for weight in WEIGHTS:
        runs = [trained(ExampleEnvironments.from_frame(frame, leave_out=name, **options), weight)[0]
                for name in AGREEMENT if name != "east"]  # fmt: skip
        found[weight] = sum(float(run.callback_metrics["val/loss"]) for run in runs) / len(runs)
    chosen = min(found, key=found.get)
    print("loss in the hospital left out, by penalty weight:", found, "chosen:", chosen)
    data = ExampleEnvironments.from_frame(frame, **options)
    trainer, module = trained(data, chosen)
    trainer.test(module, data)


if __name__ == "__main__":
    main()
