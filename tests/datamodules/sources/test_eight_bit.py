"""What can become 8-bit without loss does; everything else is refused by name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gp.datamodules.images.sources.eight_bit import NotEightBitError, eight_bit
from lightning_gp.datamodules.images.sources.image_source import Decoding

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], 2)
VARIES = np.dstack([COLOUR, GREY])
OPAQUE = np.dstack([COLOUR, np.full_like(GREY, 255)])


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png16(colour):
    """A 16-bit PNG made by hand, for PIL writes none in colour."""
    import struct
    import zlib

    channels = 3 if colour else 1
    rows = b"".join(b"\0" + b"\x01\x02" * 8 * channels for _ in range(8))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2 if colour else 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def palette(transparent):
    image = Image.fromarray(COLOUR).quantize(16)
    return saved(image, "PNG", transparency=0) if transparent else saved(image, "PNG")


TAKEN = {
    "grey array": (GREY, GREY),
    "colour array": (COLOUR, COLOUR),
    "channels first": (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
    "one channel": (GREY[None], GREY),
    "floats": (COLOUR.astype(np.float32) / 255, COLOUR),
    "half floats": ((GREY / 255).astype(np.float16), GREY),
    "opaque array": (OPAQUE, COLOUR),
    "opaque PIL": (Image.fromarray(OPAQUE), COLOUR),
    "L": (Image.fromarray(GREY), GREY),
    "PNG": (saved(Image.fromarray(COLOUR), "PNG"), COLOUR),
    "1": (Image.fromarray(GREY > 99), (GREY > 99).astype(np.uint8) * 255),
    "grey with opaque alpha": (Image.fromarray(GREY).convert("LA"), GREY),
    "CMYK": (
        Image.fromarray(COLOUR).convert("CMYK"),
        np.asarray(Image.fromarray(COLOUR).convert("CMYK").convert("RGB")),
    ),
    "palette": (palette(False), np.asarray(Image.open(io.BytesIO(palette(False))).convert("RGB"))),
    "constant, off the grid": (np.full((8, 8), 0.3), np.full((8, 8), 76, np.uint8)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_8_bit_images_are_taken_as_they_are(case):
    given, expected = TAKEN[case]
    found = eight_bit(given)
    assert found.mode == ("L" if expected.ndim == 2 else "RGB")
    if case == "half floats":  # 11 bits hold 1/255 to half a level
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1
    else:
        np.testing.assert_array_equal(np.asarray(found), expected)


REFUSED = {
    "16-bit PNG": (png16(False), "more than 8 bits.*65535"),
    "16-bit colour PNG": (png16(True), "more than 8 bits"),
    "16-bit PPM": (b"P6 8 8 65535\n" + b"\x01\x02" * 192, "more than 8 bits"),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 99), "more than 8 bits.*from_tensors"),
    "I": (Image.fromarray(GREY.astype(np.int32)), "more than 8 bits"),
    "F": (Image.fromarray(GREY.astype(np.float32)), "more than 8 bits"),
    "16-bit TIFF": (saved(Image.fromarray(GREY.astype(np.uint16) * 99), "TIFF"), "more than 8 bits"),
    "uint16": (GREY.astype(np.uint16), "type uint16, from 0 to 252.*65535"),
    "int64": (torch.from_numpy(GREY.astype(np.int64)), "type int64"),
    "bool": (GREY > 9, "type bool"),
    "floats to 255": (GREY.astype(np.float32), r"from 0 to 252.*in \[0, 1\]"),
    "normalised": (GREY / 128 - 1, "normalisation"),
    "not a number": (np.full((8, 8), np.nan), r"in \[0, 1\]"),
    "dark 16-bit as floats": (np.arange(64.0).reshape(8, 8) / 65535, "of 256 levels"),
    "alpha": (VARIES, "transparency varies"),
    "alpha PIL": (Image.fromarray(VARIES), "transparency varies"),
    "alpha PNG": (saved(Image.fromarray(VARIES), "PNG"), "transparency varies"),
    "grey with alpha": (Image.merge("LA", [Image.fromarray(GREY)] * 2), "transparency varies"),
    "palette with transparency": (palette(True), "transparency varies"),
    "colour key": (saved(Image.fromarray(COLOUR), "PNG", transparency=(0, 255, 0)), "transparency varies"),
    "frames": (saved(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(GREY.T)]), "2 frames"),
    "vector": (np.zeros(9, np.float32), "from_tensors"),
    "signal of 3": (np.zeros((3, 32)), "signal"),
    "signal of 1": (np.zeros((1, 128)), "signal"),
    "signal of 2": (torch.zeros(2, 128), "signal"),
    "accelerometer": (np.zeros((128, 3)), "signal"),
    "five channels": (np.zeros((5, 8, 8)), "shape"),
    "empty": (np.zeros((0, 8)), "shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_everything_else_is_refused_by_name(case):
    given, message = REFUSED[case]
    with pytest.raises(NotEightBitError, match=message):
        eight_bit(given)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_the_camera(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    flat = np.zeros((16, 32, 3), np.uint8)
    flat[:8, :8] = 255
    file = saved(Image.fromarray(flat), "PNG", exif=exif)
    turned = {1: flat, 2: flat[:, ::-1], 3: flat[::-1, ::-1], 4: flat[::-1], 5: flat.transpose(1, 0, 2)}
    turned |= {6: np.rot90(flat, -1), 7: np.rot90(flat, 2).transpose(1, 0, 2), 8: np.rot90(flat)}
    np.testing.assert_array_equal(np.asarray(eight_bit(file)), turned[orientation])
    np.testing.assert_array_equal(np.asarray(eight_bit(file, exif=False)), flat)
    assert repr(Decoding(8)) != repr(Decoding(8, exif=False))  # what the cache's key is made of


def test_colour_where_grey_is_expected():
    with pytest.raises(NotEightBitError, match="in colour where grey is expected"):
        Decoding(8, grey=True).apply(COLOUR)
    np.testing.assert_array_equal(Decoding(8, grey=True).apply(np.dstack([GREY] * 3)), GREY)
    np.testing.assert_array_equal(Decoding(8).apply(GREY), np.dstack([GREY] * 3))
