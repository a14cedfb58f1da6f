"""Colored MNIST: digits whose colour predicts the label, but not equally well everywhere.

[A19] M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant risk minimization, section 5.2.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gp.checks import flag, number, optional_whole
from lightning_gp.datamodules.named.base import NamedEnvironmentsDataModule
from lightning_gp.types import Examples

TRAINING_IMAGES = 50_000
"""Of MNIST's 60,000 training images, those that the training environments share; the rest is for the test."""


class ColoredMNISTDataModule(NamedEnvironmentsDataModule):
    """Colored MNIST [A19, section 5.2]: x (K, 2, 14, 14) in [0, 1], y (K, 1) in {0., 1.}.

    The first 50,000 images of MNIST's training set are shuffled and dealt out to the training environments in turn
    (25,000 each with two), the other 10,000 make the test environment. The label says whether the digit is below 5, and
    is flipped with probability ``label_noise``; the colour, that is which of the two channels shows the image, equals
    the label thus obtained with the environment's probability of agreement. Every second row and column is kept.

    Environments are called after their agreement, as in ``agree_0.9``.

    Args:
        data_dir: folder that holds ``MNIST/raw``, torchvision's layout; the files may be compressed.
        train_agreement: P(colour = label) in each training environment; at least two.
        test_agreement: the same in the test environment.
        label_noise: probability that a label is flipped.
        grayscale: drop the colour, x (K, 1, 14, 14): the oracle of [A19], which nothing spurious can mislead.
        examples: at most this many examples in each training environment; None for all.
        download: fetch missing files through torchvision.
        seed: of the shuffle, the noise, the colours, and what ``NamedEnvironmentsDataModule`` uses it for.
        **kwargs: see ``NamedEnvironmentsDataModule``.

    Raises:
        ValueError: if a probability is outside [0, 1], or there are fewer than two training environments.
        FileNotFoundError: in ``setup``, if MNIST is missing and ``download`` is False.
    """

    def __init__(
        self,
        data_dir: str = "data",
        train_agreement: Sequence[float] = (0.9, 0.8),
        test_agreement: float = 0.1,
        label_noise: float = 0.25,
        grayscale: bool = False,
        examples: int | None = None,
        download: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if len(train_agreement) < 2:
            raise ValueError(f"train_agreement={tuple(train_agreement)!r}: give at least two training environments.")
        named: dict[str, Any] = {"test_agreement": test_agreement, "label_noise": label_noise}
        named |= {f"train_agreement[{i}]": value for i, value in enumerate(train_agreement)}
        number(minimum=0, maximum=1, **named)
        optional_whole(1, examples=examples)
        flag(grayscale=grayscale, download=download)
        super().__init__(seed=seed, **kwargs)
        self.data_dir = data_dir
        self.train_agreement = tuple(train_agreement)
        self.test_agreement = test_agreement
        self.label_noise = label_noise
        self.grayscale = grayscale
        self.examples = examples
        self.download = download

    def prepare_data(self) -> None:
        """Downloads MNIST where ``download`` says so and it is missing."""
        if self.download and not all(_find(self.data_dir, name) for name in ("images-idx3", "labels-idx1")):
            from torchvision.datasets import MNIST

            MNIST(self.data_dir, download=True)

    def make_environments(self) -> Mapping[str, Mapping[str, Examples]]:
        """Colours all environments from one random stream."""
        images, digits = read_mnist(self.data_dir)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(TRAINING_IMAGES, generator=generator)
        train: dict[str, Examples] = {}
        for position, agreement in enumerate(self.train_agreement):
            rows = order[position :: len(self.train_agreement)][: self.examples]
            name = f"agree_{agreement:g}"
            name = name if name not in train else f"{name}_{position}"
            train[name] = self._environment(images[rows], digits[rows], agreement, generator)
        rest = images[TRAINING_IMAGES:], digits[TRAINING_IMAGES:]
        test = {f"agree_{self.test_agreement:g}": self._environment(*rest, self.test_agreement, generator)}
        return {"train": train, "test": test}

    def _environment(self, images: Tensor, digits: Tensor, agreement: float, generator: torch.Generator) -> Examples:
        x, y = colored(images, digits, agreement, self.label_noise, generator)
        return (x.sum(1, keepdim=True) if self.grayscale else x), y


def colored(
    images: Tensor, digits: Tensor, agreement: float, label_noise: float, generator: torch.Generator
) -> Examples:
    """One environment.

    Args:
        images: uint8, (K, 28, 28).
        digits: integers, (K,).
        agreement: P(colour = label).
        label_noise: P(label flipped).
        generator: of the noise and the colours.

    Returns:
        x (K, 2, 14, 14), float32 in [0, 1], with the image in the channel of its colour and zeros in the other; y
        (K, 1), float32 in {0., 1.}.
    """
    count = len(digits)
    labels = (digits < 5) ^ (torch.rand(count, generator=generator) < label_noise)
    colours = labels ^ (torch.rand(count, generator=generator) >= agreement)
    small = images[:, ::2, ::2].float() / 255
    x = torch.zeros(count, 2, *small.shape[1:])
    x[torch.arange(count), colours.long()] = small
    return x, labels.float().unsqueeze(1)


def read_mnist(data_dir: str) -> Examples:
    """MNIST's training set: images (60000, 28, 28) uint8 and digits (60000,) uint8.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged.
    """
    return _read_idx(data_dir, "images-idx3", (60_000, 28, 28)), _read_idx(data_dir, "labels-idx1", (60_000,))


def _find(data_dir: str, name: str) -> Path | None:
    raw = Path(data_dir) / "MNIST" / "raw"
    candidates = [raw / f"train-{name}-ubyte{suffix}" for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(data_dir: str, name: str, shape: tuple[int, ...]) -> Tensor:
    path = _find(data_dir, name)
    if path is None:
        raise FileNotFoundError(
            f"MNIST is missing: no train-{name}-ubyte (or .gz) in {Path(data_dir) / 'MNIST' / 'raw'}. Pass "
            "download=True, or the data_dir that holds it."
        )
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header = 4 + 4 * len(shape)
    if len(content) != header + int(np.prod(shape)):
        raise ValueError(
            f"{path.name} has {len(content)} bytes, not those of {shape}; delete it and pass download=True."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
