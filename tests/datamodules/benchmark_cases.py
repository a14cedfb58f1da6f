"""Helpers of the benchmark data sets' tests."""

from tests.datamodules.image_cases import identities


def small(kind, root, **arguments):
    """A data module with the smallest of episodes."""
    return kind(root, **({"ways": 2, "shots": 1, "queries": 1, "image_size": 8} | arguments))


def contents(data):
    """split → class name → sorted (class, number) of its images; ``data`` is prepared as a trainer does it."""
    data.prepare_data()
    found = {}
    for split in ("train", "val", "test"):
        part = data.load_split(split)
        found[split] = {
            name: sorted(identities(part.images[start : start + count]))
            for name, count, start in zip(part.names, part.counts, part.first_rows(), strict=True)
        }
    return found


def images_of(found):
    """split → sorted images, whatever the classes are called."""
    return {split: sorted(image for images in classes.values() for image in images) for split, classes in found.items()}


def assert_no_leaks(found):
    """No class and no image is in two splits."""
    for kinds in ({s: list(c) for s, c in found.items()}, images_of(found)):
        every = [item for items in kinds.values() for item in items]
        assert len(every) == len(set(every))
