"""Ten steps of gradient descent of every module: losses and the weights' checksum, as recorded for a version of torch.

python -m tests.golden.curves     # records anew, where a change of the numbers is meant
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.module_cases import MODULES, batches, build

FOLDER = Path(__file__).parent
RATE, STEPS = 1e-4, 10


def curve(name: str) -> dict[str, object]:
    """Losses of ten steps, and the sum of all weights after them, as exact hexadecimal numbers."""
    module = build(name)
    optimizer = torch.optim.SGD(module.trained_parameters(), lr=RATE)
    losses = []
    for batch in batches(name, STEPS):
        loss = module.training_loss(restricted(name, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
    weights = torch.cat([parameter.detach().flatten() for parameter in module.trained_parameters()])
    return {"losses": losses, "weights": weights.norm().item().hex()}


def restricted(name: str, batch):
    """Environments without a query set, for modules that have no inner loop: every one of their examples trains."""
    if name in ("GradientPenalty", "IRMv1", "REx"):
        return [environments._replace(query=None) for environments in batch]
    return batch


def place() -> str:
    """What the last bits depend on."""
    return f"torch {torch.__version__.split('+')[0]}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    torch.set_num_threads(1)
    path = FOLDER / "curves.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[place()] = {name: curve(name) for name in MODULES}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
