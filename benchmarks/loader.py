"""Measure the image rate of the loaders, compared with that of a training step.

JPEGs of ImageNet's usual size, made of two photographs, are augmented as in the paper; one process
loads them. Loaders and the step are timed in turn within one run.

    python benchmarks/loader.py [--images 256] [--rounds 4] [--device cpu] [--json FILE]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from machine import keep
from PIL import Image
from sklearn.datasets import load_sample_images
from step import CASES, WARM_UP, training_step, wait_for

from ofq.config.datasets import locate
from ofq.config.images import Augmentation, Images
from ofq.config.stage import Loader
from ofq.training.data.decoding import decoder
from ofq.training.data.images import ImageSource, open_images

SIZE = (500, 375)
CLASSES = 8
MODEL = "deit_tiny_patch16_224"
BATCH = 8
CASE = "StatsQ + QKR"
WANTED = Images(
    augmentation=Augmentation(
        policy="rand-m9-mstd0.5-inc1", erasing=0.25, interpolation="random"
    )
)  # fmt: skip


def make_images(root: Path, count: int) -> float:
    """Write SPLIT/CLASS/IMAGE of random parts of photographs; return the mean size in kilobytes."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    sizes = []
    for split, number in (("train", count), ("val", CLASSES)):
        for i in range(number):
            folder = root / split / str(i % CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            photo, width = photos[i % 2], int(rng.integers(420, 560))
            height = width * SIZE[1] // SIZE[0]
            left, top = (
                int(rng.integers(0, n - m + 1))
                for n, m in zip(photo.size, (width, height), strict=True)
            )
            part = photo.crop((left, top, left + width, top + height))
            part.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{i}.JPEG", quality=95)
            sizes.append((folder / f"{i}.JPEG").stat().st_size)
    return statistics.fmean(sizes) / 1000


def rate(root: Path, loader: Loader) -> float:
    """Return the images per second of one loading process, without its start."""
    files = ImageSource(locate(str(root), root), 1, decoder=decoder(loader))
    batches = open_images(files, WANTED, MODEL, 0).train_batches(0, BATCH)
    for _ in range(2):  # skips batches that were preprocessed while the process started
        next(batches)
    start, count = time.perf_counter(), 0
    for loaded in batches:
        count += len(loaded.inputs)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Print the rates, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    step = training_step(
        argparse.Namespace(model=MODEL, batch=BATCH, device=options.device, precision="fp32"),
        CASES[CASE],
    )
    for _ in range(WARM_UP):
        step()
    names = {"plain": "plain loader", "fast": "fast loader", "step": f"step, {CASE}"}
    rates: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        size = make_images(Path(folder), options.images)
        print(f"{options.images} JPEGs, {SIZE[0]} x {SIZE[1]}, {size:.0f} kB on average")
        for _ in range(options.rounds):
            for loader in get_args(Loader):
                rates[loader].append(rate(Path(folder), loader))
            wait_for(options.device)
            start = time.perf_counter()
            for _ in range(3):
                step()
            wait_for(options.device)
            rates["step"].append(3 * BATCH / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{'images per second, one core':<30}{'':>8}{'x plain':>10}")
    for name, value in medians.items():
        print(f"{names[name]:<30}{value:>8.1f}{value / medians['plain']:>10.2f}")
    keep(options.json, {"kilobytes": size, "images_per_second": medians})


if __name__ == "__main__":
    main()
