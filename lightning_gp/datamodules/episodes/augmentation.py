"""Random crops, flips and colour changes of all images of a batch at once, on the device that has them.

The random numbers come with the batch: they are a function of (seed, episode, image) alone
(:func:`lightning_gp.datamodules.episodes.draws.uniforms`), so runs repeat exactly, on any number of processes, and no
global generator is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gp.checks import number, whole
from lightning_gp.environments import Environments
from lightning_gp.types import Examples

NUMBERS = 8
"""How many random numbers :class:`Augmentation` takes for an image."""

_RATIOS = (math.log(3 / 4), math.log(4 / 3))  # of width to height in a random resized crop, as is usual
_LUMA = (0.299, 0.587, 0.114)  # Rec. 601: what PIL and torchvision call grey


class NumberedEpisodes(NamedTuple):
    """An ``Environments`` on its way to the device, with the random numbers that will augment it.

    Attributes:
        support: see :class:`~lightning_gp.environments.Environments`.
        query: likewise.
        numbers: (E, K + Q, NUMBERS), uniform in [0, 1), of the support images and then the query images.
    """

    support: Examples
    query: Examples
    numbers: Tensor

    def environments(self) -> Environments:
        """Without the numbers."""
        return Environments(self.support, self.query)


class Augmentation(NamedTuple):
    """What is done at random to training images.

    Attributes:
        random_crop: pixels p by which an image is shifted at most, each way; what comes in is black (the same as
            padding by p and cropping).
        random_resized_crop: smallest share of the image's area that is cut out and scaled to its size, of aspect ratio
            3/4 to 4/3; 0 for none.
        horizontal_flip: whether every other image is mirrored.
        color_jitter: s; brightness, contrast and saturation are each scaled by a factor from [1 − s, 1 + s].
    """

    random_crop: int = 0
    random_resized_crop: float = 0.0
    horizontal_flip: bool = False
    color_jitter: float = 0.0

    def check(self, image_size: int | None = None) -> Augmentation:
        """Returns itself if it makes sense.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        number(minimum=0, maximum=1, random_resized_crop=self.random_resized_crop, color_jitter=self.color_jitter)
        whole(0, random_crop=self.random_crop)
        if image_size is not None and self.random_crop >= image_size:
            raise ValueError(f"random_crop={self.random_crop} pixels; choose less than image_size={image_size}.")
        if self.random_crop and self.random_resized_crop:
            raise ValueError(
                f"random_crop={self.random_crop} and random_resized_crop={self.random_resized_crop} are two ways to "
                "crop; choose one and leave the other 0."
            )
        return self

    def __call__(self, x: Tensor, numbers: Tensor) -> Tensor:
        """The images changed, each by its own numbers.

        Args:
            x: (B, channels, height, width) in [0, 1], floating point.
            numbers: (B, NUMBERS), uniform in [0, 1).

        Returns:
            (B, channels, height, width) in [0, 1].
        """
        u = numbers.to(x.dtype).unbind(1)
        if self.random_crop:
            x = _window(x, *_shift_window(self.random_crop, u, x.shape))
        if self.random_resized_crop:
            x = _window(x, *_cut_window(self.random_resized_crop, u))
        if self.horizontal_flip:
            x = torch.where(_per_image(u[4]) < 0.5, x.flip(-1), x)
        if self.color_jitter:
            x = _jitter(x, *(1 + self.color_jitter * (2 * _per_image(v) - 1) for v in u[5:8]))
        return x


def _shift_window(pixels: int, u: Sequence[Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
    span = 2 * pixels + 1
    steps = torch.stack([(v * span).floor().clamp(max=span - 1) - pixels for v in u[:2]], 1)
    return torch.ones_like(steps), 2 * steps / steps.new_tensor([shape[3], shape[2]])


def _cut_window(smallest: float, u: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    area = smallest + (1 - smallest) * u[2]
    ratio = torch.exp(_RATIOS[0] + (_RATIOS[1] - _RATIOS[0]) * u[3])
    scale = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)
    return scale, (2 * torch.stack(list(u[:2]), 1) - 1) * (1 - scale)


def _window(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The part of each image at ``shift`` and of size ``scale`` (both (B, 2), as (x, y), the image being [−1, 1]²)."""
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = scale.unbind(1)
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _jitter(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    x = (x * brightness).clamp(0, 1)
    mean = _grey(x).mean((2, 3), keepdim=True)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    grey = _grey(x)
    return (grey + saturation * (x - grey)).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    """(B, 1, height, width)."""
    return (x * x.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True) if x.shape[1] == 3 else x


def _per_image(v: Tensor) -> Tensor:
    return v.view(-1, 1, 1, 1)


def augmented(x: Tensor, numbers: Tensor, augmentation: Augmentation) -> Tensor:
    """As :class:`Augmentation`, of images (E, K, channels, height, width) with numbers (E, K, NUMBERS)."""
    return augmentation(x.flatten(0, 1), numbers.flatten(0, 1)).view(x.shape)


def normalized(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x − mean) / std per channel, of images (E, K, channels, height, width).

    Raises:
        ValueError: if the numbers of channels differ.
    """
    if len(mean) not in (1, x.shape[2]):
        raise ValueError(f"mean has {len(mean)} numbers, but images have {x.shape[2]} channels; give one for each.")
    shape = (len(mean), 1, 1)
    return (x - x.new_tensor(mean).view(shape)) / x.new_tensor(std).view(shape)
