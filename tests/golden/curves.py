"""Ten steps of gradient descent of every module: losses and the weights' checksum, as recorded for a version of torch.

python -m tests.golden.curves     # records anew, where a change of the numbers is meant
"""

from __future__ import annotations

import hashlib
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
    """What the last bits depend on: torch, and the kernels that it picks for this processor, by what they give."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, 40, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    images = left[:, None, :8, :8]
    given = [
        *(left[:, :rows, :columns] @ right[:, :columns, :rows] for rows in (1, 5, 10, 40) for columns in (1, 5, 40)),
        *(left[0, :, :columns] @ right[0, :columns] for columns in (1, 5, 40)),
        *(function(left) for function in (torch.tanh, torch.sigmoid, torch.exp, torch.sin, torch.sqrt, torch.sum)),
        *(torch.log_softmax(left, 1), torch.conv2d(images, right[:, None, :3, :3]), torch.linalg.norm(left)),
    ]
    digest = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in given)).hexdigest()
    return f"torch {torch.__version__.split('+')[0]}, kernels {digest[:8]}"


def main() -> None:
    torch.set_num_threads(1)
    path = FOLDER / "curves.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[place()] = {name: curve(name) for name in MODULES}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
