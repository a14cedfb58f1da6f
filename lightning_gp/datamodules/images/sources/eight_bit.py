"""Whether an image can become 8-bit without loss: the one place that decides, for files, arrays and tensors alike."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)
_FAINT = 16  # levels of 256; what is off the 8-bit grid and spans fewer would lose most of what it shows
_THIN = 4  # pixels; no image is narrower, unless it is a small square


class NotEightBitError(ValueError):
    """The image is whole, but would lose something as 8-bit grey or colour."""


def eight_bit(image: Any, exif: bool = True) -> Any:
    """The image as a PIL image of mode ``L`` or ``RGB``.

    Taken as they are: 8-bit grey, colour, CMYK and palettes; alpha that is the same everywhere is dropped. Floating
    point in [0, 1] is rounded to 1/255. Everything else is refused.

    Args:
        image: the bytes of a file, a PIL image, or an array or tensor (height, width[, channels]) or (channels, height,
            width) of 1, 3 or 4 channels.
        exif: whether the orientation that a camera noted is applied.

    Raises:
        NotEightBitError: naming what would be lost, and how to scale.
        OSError: or whatever else PIL raises when a file is broken.
    """
    from PIL import Image, ImageOps

    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    if not isinstance(image, Image.Image):
        return Image.fromarray(_pixels(image))
    _check_depth(image)
    if exif:
        image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or "A" in image.getbands() or "a" in image.getbands():
        alpha = image.convert("RGBA").getchannel("A").getextrema()
        if alpha[0] != alpha[1]:
            raise NotEightBitError(f"its transparency varies (alpha from {alpha[0]} to {alpha[1]}); {_FLATTEN}")
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


_FLATTEN = "paste it on a background of your choice first (and save it as RGB)"


def _check_depth(image: Any) -> None:
    """Refuses more than 8 bits, which PIL hides in part: it opens 16-bit colour as 8-bit."""
    tiles = [tile[3] for tile in image.__dict__.get("tile", ())]
    parts = [part for given in tiles for part in (given if isinstance(given, tuple) else (given,))]
    deep = any(";16" in part if isinstance(part, str) else image.format == "PPM" and _above_255(part) for part in parts)
    if deep or image.mode[:1] in "IF":
        low, high = image.getextrema() if image.mode[:1] in "IF" else ("?", "?")
        raise NotEightBitError(
            f"it has more than 8 bits (mode {image.mode}, values {low} to {high}); scale it by the range of its type, "
            "such as np.asarray(image) / 65535, and give it as floating point in [0, 1] (from_dataset), save it as "
            "8-bit, or keep all bits with FewShotDataModule.from_tensors"
        )
    if image.format != "MPO" and image.__dict__.get("n_frames", getattr(image, "n_frames", 1)) > 1:  # MPO: previews
        raise NotEightBitError(f"it has {image.n_frames} frames; save the one that is meant")


def _above_255(part: Any) -> bool:
    return isinstance(part, int) and part > 255


def _pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 (height, width) or (height, width, 3) of an array or tensor."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        first = pixels.shape[0] in (1, 3) or (pixels.shape[0] == 4 != pixels.shape[2])
        pixels = np.moveaxis(pixels, 0, 2) if first else pixels
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)) or 0 in pixels.shape:
        raise NotEightBitError(
            f"an image is of type {type(image).__name__}, shape {pixels.shape} and dtype {pixels.dtype}; it must be a "
            "PIL image, or an array or tensor (height, width), (height, width, 3) or (3, height, width) of uint8 or "
            "floating point; FewShotDataModule.from_tensors takes examples of any shape"
        )
    height, width = pixels.shape[:2]
    if height != width and min(height, width) < _THIN:
        raise NotEightBitError(
            f"shape {tuple(np.shape(image))} is a signal rather than an image of {height}×{width} pixels; "
            "FewShotDataModule.from_tensors takes it whole"
        )
    if pixels.dtype.kind == "f":
        pixels = _rounded(pixels)
    elif pixels.dtype != np.uint8:
        full = f"{np.iinfo(pixels.dtype).max}" if pixels.dtype.kind in "ui" else "its largest value"
        raise NotEightBitError(
            f"pixels are of type {pixels.dtype}, from {pixels.min()} to {pixels.max()}; it must be uint8 or floating "
            f"point in [0, 1]: divide by the range that they have ({full} is that of the type), use "
            "astype(np.uint8) if they are 8-bit, or keep all bits with FewShotDataModule.from_tensors"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        alpha = pixels[:, :, 3]
        if alpha.min() != alpha.max():
            raise NotEightBitError(f"its transparency varies (alpha from {alpha.min()} to {alpha.max()}); {_FLATTEN}")
        pixels = pixels[:, :, :3]
    return np.ascontiguousarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _rounded(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise NotEightBitError(
            f"floating-point pixels reach from {low:.3g} to {high:.3g}, they must be in [0, 1]; leave out the "
            "normalisation, mean=… and std=… are arguments here, or divide by the range of the type"
        )
    scaled = pixels.astype(np.float64) * 255
    rounded = np.rint(scaled)
    if 0 < 255 * (high - low) < _FAINT and np.abs(scaled - rounded).max() > 0.01 + 255 * np.finfo(pixels.dtype).eps:
        raise NotEightBitError(
            f"floating-point pixels from {low:.4g} to {high:.4g} span {255 * (high - low):.1f} of 256 levels, and "
            "would lose most of what they show; stretch all images by the same factor, or keep all bits with "
            "FewShotDataModule.from_tensors"
        )
    return rounded.astype(np.uint8)
