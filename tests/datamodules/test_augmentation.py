"""Augmentation and normalisation of whole batches."""

import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from lightning_gp.datamodules import ClassImages, FewShotDataModule
from lightning_gp.datamodules.episodes.augmentation import (
    NUMBERS,
    Augmentation,
    NumberedEpisodes,
    _cut_window,
    normalized,
)
from lightning_gp.environments import Environments


@pytest.fixture
def x():
    return torch.rand(64, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def numbers():
    return torch.rand(64, NUMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Pixels(FewShotDataModule):
    def load_split(self, split):
        pixels = np.random.default_rng(0).integers(0, 256, (5 * 6, 8, 8, 3), dtype=np.uint8)
        return ClassImages(pixels, np.full(5, 6), list("abcde"))


def small(**arguments):
    return Pixels(ways=3, shots=2, queries=3, environments_per_batch=2, iterations_per_epoch=3, **arguments)


def arrived(data, split="train"):
    return data.on_after_batch_transfer(next(iter(data._loader(split))), 0)


def test_a_shift_is_a_padded_crop_and_every_shift_comes(x, numbers):
    result = Augmentation(random_crop=2)(x, numbers)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for image, source in zip(result, padded, strict=True):
        crops = {(i, j): source[:, i : i + 9, j : j + 7] for i in range(5) for j in range(5)}
        seen.add(min(crops, key=lambda place: float((crops[place] - image).abs().max())))
        assert min(float((crop - image).abs().max()) for crop in crops.values()) < 1e-9
    assert len(seen) > 18  # of 25, in 64 draws


def test_the_largest_number_still_shifts_within_the_padding(x):
    result = Augmentation(random_crop=2)(x[:1].float(), torch.ones(1, NUMBERS))  # a float32 can round up to 1
    torch.testing.assert_close(result[0, :, :-2, :-2], x[0, :, 2:, 2:].float())


def test_a_flip_is_exact_and_takes_half(x, numbers):
    result = Augmentation(horizontal_flip=True)(x, numbers)
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(result, x, strict=True)])
    assert torch.equal(flipped, numbers[:, 4] < 0.5)
    assert torch.equal(result[~flipped], x[~flipped])


def test_resized_crops_are_bilinear_cuts_of_the_promised_area(numbers):
    ramp = torch.linspace(0.5, 39.5, 40, dtype=torch.float64) / 40  # the value is the place
    x = torch.stack([ramp.expand(40, 40), ramp[:, None].expand(40, 40)]).expand(64, 2, 40, 40)
    result = Augmentation(random_resized_crop=0.3)(x, numbers)
    width = (result[:, 0, 20, 30] - result[:, 0, 20, 10]) * 2  # of 20 of 40 pixels, away from the edges
    height = (result[:, 1, 30, 20] - result[:, 1, 10, 20]) * 2
    area, ratio = width * height, width / height
    whole = (width < 0.999) & (height < 0.999)  # not cut off at the image's side
    assert 0.29 < float(area.min()) < 0.5
    assert float(area.max()) <= 1 + 1e-9
    assert float(ratio[whole].min()) > 0.74
    assert float(ratio[whole].max()) < 1.34
    assert float(result.min()) >= 0.5 / 40 / 2  # nothing from outside
    scale, shift = _cut_window(0.3, numbers.unbind(1))
    assert float((shift.abs() + scale).max()) <= 1 + 1e-12


@pytest.mark.parametrize("channel", [1, 3])
def test_jitter_is_that_of_torchvision(x, numbers, channel):
    x = x[:, :channel]
    result = Augmentation(color_jitter=0.4)(x, numbers)
    for image, changed, u in zip(x, result, numbers, strict=True):
        brightness, contrast, saturation = (1 + 0.4 * (2 * float(v) - 1) for v in u[5:8])
        expected = TF.adjust_contrast(TF.adjust_brightness(image, brightness), contrast)
        expected = TF.adjust_saturation(expected, saturation)
        torch.testing.assert_close(changed, expected, atol=2e-3, rtol=0)  # torchvision rounds the weights of grey


def test_saturation_keeps_the_hue():
    x = torch.tensor([0.6, 0.4, 0.3]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    numbers = torch.full((1, NUMBERS), 0.5)
    numbers[0, 7] = 0.0
    result = Augmentation(color_jitter=0.5)(x, numbers)
    before, after = (colorsys.rgb_to_hsv(*image[0, :, 0, 0].tolist()) for image in (x, result))
    assert after[0] == pytest.approx(before[0], abs=1e-6)
    assert after[1] < 0.7 * before[1]


def test_no_augmentation_is_no_change(x, numbers):
    assert Augmentation()(x, numbers) is x


ALL = {"random_crop": 2, "horizontal_flip": True, "color_jitter": 0.4}


def test_training_images_are_augmented_by_seed_and_episode_alone():
    data = small(**ALL)
    loaded = next(iter(data.train_dataloader()))
    before = torch.get_rng_state()
    batch = data.on_after_batch_transfer(loaded, 0)
    assert isinstance(batch, Environments)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    again = arrived(small(**ALL, num_workers=1))
    plain, other = arrived(small()), arrived(small(**ALL, seed=1))
    for part in ("support", "query"):
        (x, y), (x_again, y_again) = getattr(batch, part), getattr(again, part)
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
        assert torch.equal(y, getattr(plain, part)[1])
        assert not torch.equal(x, getattr(plain, part)[0])
        assert not torch.equal(x, getattr(other, part)[0])
        assert x.shape == getattr(plain, part)[0].shape


def test_an_episode_does_not_depend_on_its_batch():
    data = small(**ALL)
    episodes = data.episodes("train")
    together = data.finished(episodes.__getitems__([4, 1, 7]))
    alone = data.finished(episodes.__getitems__([7]))
    torch.testing.assert_close(together.query[0][2:], alone.query[0])


def test_support_and_query_of_one_image_would_differ():
    numbers = small(**ALL).episodes("train").__getitems__([0]).numbers
    assert numbers.shape == (1, 3 * 5, NUMBERS)
    assert len(numbers.unique()) == numbers.numel()


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_is_not_augmented(split):
    data = small(**ALL)
    assert not isinstance(next(iter(data._loader(split))), NumberedEpisodes)
    assert torch.equal(arrived(data, split).query[0], arrived(small(), split).query[0])


@pytest.mark.parametrize("split", ["train", "test"])
def test_normalisation_is_of_all_splits(split):
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    plain, batch = arrived(small(), split), arrived(small(mean=mean, std=std), split)
    for c in range(3):
        expected = (plain.query[0][:, :, c] - mean[c]) / std[c]
        torch.testing.assert_close(batch.query[0][:, :, c], expected)


def test_half_precision_modules_get_half_precision_images():
    data = small(**ALL)
    batch = data.finished(next(iter(data.train_dataloader())), torch.bfloat16)
    assert batch.support[0].dtype == torch.bfloat16
    exact = data.finished(next(iter(data.train_dataloader())))
    torch.testing.assert_close(batch.query[0].float(), exact.query[0], atol=4e-3, rtol=0)


def test_grey_images_too():
    class Grey(Pixels):
        def load_split(self, split):
            data = super().load_split(split)
            return data._replace(images=np.ascontiguousarray(data.images[..., 0]))

    data = Grey(ways=3, shots=2, queries=3, environments_per_batch=2, mean=[0.5], std=[0.5], **ALL)
    assert arrived(data).query[0].shape == (2, 9, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"random_crop": -1}, "random_crop=-1 must be a whole number of at least 0"),
        ({"random_resized_crop": 1.5}, "random_resized_crop=1.5 must be a finite number of at least 0 and at most 1"),
        ({"color_jitter": -0.1}, "color_jitter=-0.1 must be a finite number of at least 0 and at most 1"),
        ({"random_crop": 4, "random_resized_crop": 0.5}, "two ways to crop"),
        ({"mean": [0.5]}, r"mean=\[0.5\], std=None; give both"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, "give both"),
        ({"mean": [0.5], "std": [0.0]}, "std > 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_what_does_not_fit_the_images_is_refused():
    with pytest.raises(ValueError, match=r"random_crop=8 pixels; choose less than image_size=8"):
        small(random_crop=8).setup("fit")
    with pytest.raises(ValueError, match="mean has 2 numbers, but images have 3 channels"):
        normalized(torch.zeros(1, 1, 3, 2, 2), [0, 0], [1, 1])
