"""Episodes per second of ours and of learn2learn on Omniglot, and what a set of 60,000 images costs.

python benchmarks/episodes.py --data data        (the folder that has Omniglot)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, interleave, machine, print_table, summary, write_json

from lightning_gp.allocator import keep_freed_memory
from lightning_gp.datamodules import ClassFolderDataModule, OmniglotDataModule

EPISODES = 32
CLASSES, IMAGES, SIZE = 100, 600, 84


def learn2learn_batch(images: torch.Tensor, labels: torch.Tensor) -> Any:
    """32 episodes of learn2learn, from floating-point images in memory (its own Omniglot decodes files as it goes)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gym's call to upgrade
        import learn2learn as l2l

    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    transforms = l2l.data.transforms
    steps = [
        transforms.FusedNWaysKShots(dataset, n=5, k=16),
        transforms.LoadData(dataset),
        transforms.RemapLabels(dataset),
        transforms.ConsecutiveLabels(dataset),
    ]
    taskset = getattr(l2l.data, "Taskset", None) or l2l.data.TaskDataset
    tasks = taskset(dataset, task_transforms=steps, num_tasks=-1)
    return lambda: [tasks.sample() for _ in range(EPISODES)]


def omniglot(root: Path, rounds: int) -> dict[str, Any]:
    """The same classes for all: 1028 upright characters, 20 drawings each, 5-way 1-shot with 15 queries."""
    data = OmniglotDataModule(root, environments_per_batch=EPISODES, rotations=False)
    data.prepare_data()
    turned = OmniglotDataModule(root, environments_per_batch=EPISODES)
    split = data.load_split("train")
    images = torch.from_numpy(split.images[:, None]).float() / 255
    labels = torch.arange(len(split.names)).repeat_interleave(20)

    def ours(module: OmniglotDataModule, as_float: bool) -> Any:
        episodes = module.episodes("train")
        place = iter(range(0, 10**9, EPISODES))

        def batch() -> object:
            start = next(place)
            drawn = episodes.__getitems__(range(start, start + EPISODES))
            return module.finished(drawn) if as_float else drawn

        return batch

    contenders = {
        "learn2learn": learn2learn_batch(images, labels),
        "ours, uint8 as delivered": ours(data, as_float=False),
        "ours, float32 as the network gets it": ours(data, as_float=True),
        "ours with rotations, uint8": ours(turned, as_float=False),
    }
    times = interleave(contenders, rounds, clock=time.process_time, burst=4)
    result: dict[str, Any] = {}
    for name, seconds in times.items():
        median = float(np.median(seconds))
        result[name] = summary(seconds) | {"episodes_per_second": round(EPISODES / median)}
        result[name]["times_learn2learn"] = round(float(np.median(times["learn2learn"])) / median, 1)
    rows = [
        [n, str(r["median_ms"]), str(r["episodes_per_second"]), str(r["times_learn2learn"])] for n, r in result.items()
    ]
    print_table("Omniglot 5w1s15q, 32 episodes", ["", "ms per batch", "episodes/s", "× learn2learn"], rows)
    return result


def write_photos(root: Path) -> None:
    """60,000 JPEG files of 100 classes: 10 different ones for each class, hard links otherwise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        folder = root / f"class{c:03d}"
        folder.mkdir(parents=True)
        for i in range(10):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.jpg", quality=95)
        for i in range(10, IMAGES):
            os.link(folder / f"{i % 10:04d}.jpg", folder / f"{i:04d}.jpg")


def photos_module(root: Path) -> ClassFolderDataModule:
    return ClassFolderDataModule(root, fractions=(0.64, 0.16, 0.2), image_size=SIZE, environments_per_batch=4)


def private_megabytes() -> float:
    """Resident memory of this process that is not the page cache's. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def use_photos(root: Path) -> dict[str, float]:
    """In a fresh process: start-up from the cache until the first batch, memory, time of a meta-batch."""
    before, start, cpu = private_megabytes(), time.perf_counter(), time.process_time()
    data = photos_module(root)
    data.prepare_data()
    data.setup("fit")
    next(iter(data.train_dataloader()))
    result = {"startup_s": time.perf_counter() - start, "startup_cpu_s": time.process_time() - cpu}
    images, episodes = data.images().images, data.episodes("train")
    for at in range(0, len(images), 1000):  # warms the page cache
        images[at : at + 1000].max()
    times: list[float] = []
    walls: list[float] = []
    for batch in range(200):
        wall, cpu = time.perf_counter(), time.process_time()
        episodes.__getitems__(range(4 * batch, 4 * batch + 4))
        times.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    result["meta_batch_ms"] = 1e3 * float(np.median(walls))
    result["meta_batch_cpu_ms"] = 1e3 * float(np.median(times))
    result["private_memory_growth_mb"] = private_megabytes() - before
    return {name: round(value, 3) for name, value in result.items()}


def photos() -> dict[str, float]:
    """60,000 images of 84×84: building the cache, then using it from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["LIGHTNING_GP_CACHE"] = folder + "/cache"
        write_photos(root / "photos")
        start, cpu = time.perf_counter(), time.process_time()
        photos_module(root / "photos").prepare_data()
        built = {"build_s": round(time.perf_counter() - start, 1), "build_cpu_s": round(time.process_time() - cpu, 1)}
        words = [sys.executable, __file__, "--use", str(root / "photos")]
        used = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    result = built | used
    print_table("60,000 images, 84×84", ["", "value"], [[name, str(value)] for name, value in result.items()])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that has Omniglot")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=["omniglot", "photos"])
    parser.add_argument("--output", type=Path, default=RESULTS / "episodes.json")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # for all contenders, as `lightning-gp fit` does
    if options.use:
        print(json.dumps(use_photos(options.use)))
        return
    results: dict[str, Any] = {
        "command": "python benchmarks/episodes.py --data DATA",
        "machine": machine(),
        "clock": "CPU time of the process for Omniglot; both clocks for the 60,000 images",
        "torchmeta": "not measured: it cannot be imported with a current torchvision",
    }
    if options.only != "photos":
        results["omniglot_5w1s15q"] = omniglot(options.data, options.rounds)
    if options.only != "omniglot":
        results["60000_images_84px"] = photos()
    write_json(options.output, results)


if __name__ == "__main__":
    main()
