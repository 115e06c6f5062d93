"""How many training images one core makes ready in a second: read, decode, scale, flip, crop.

Without --data, it writes a folder of 500x375 pictures first (JPEG quality 90 and palette PNG masks, as VOC has them):
built-in scenes with the noise of a camera. Seconds are of the processor, so that other work on the machine counts less.

    python benchmarks/loader.py [--data FOLDER] [--crop 321] [--images 200] [--rounds 7]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from PIL import Image

from degrid.data import SyntheticScenes, TrainTransform, open_dataset
from degrid.data.loader import _Batches
from degrid.image import palette_image, read_image
from degrid.types import Dataset


def write_pictures(folder: Path, count: int) -> None:
    scenes = SyntheticScenes("train", count, (375, 500))
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index in range(count):
        sample = scenes[index]
        pixels = sample.image.permute(1, 2, 0).numpy() + rng.normal(0, 6, (375, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{index}.jpg", quality=90)
        palette_image(sample.label.numpy(), scenes.labels).save(folder / f"masks/{index}.png")


def pillow_pipeline(dataset: Dataset, crop: int) -> Callable[[int], object]:
    """What peers do: resize the whole image and label, pad, crop, flip, to float."""
    rng = np.random.default_rng(0)

    def make(index: int) -> object:
        sample = dataset[index]
        image, label = Image.fromarray(sample.image.permute(1, 2, 0).numpy()), Image.fromarray(sample.label.numpy())
        scale = rng.uniform(0.5, 2.0)
        size = round(image.width * scale), round(image.height * scale)
        image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)
        left, top = (int(rng.integers(0, max(0, side - crop) + 1)) for side in size)
        image, label = (each.crop((left, top, left + crop, top + crop)) for each in (image, label))
        if rng.random() < 0.5:
            image, label = (each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in (image, label))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return (pixels - 0.45) / 0.22, torch.from_numpy(np.array(label)).long()

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--crop", type=int, default=321)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if args.data is None:
            write_pictures(Path(place), args.images)
        dataset = open_dataset(args.data or place)
        transform = TrainTransform((args.crop, args.crop))
        batches = _Batches(dataset, transform, 10, seed=0)
        samples = [dataset[index % len(dataset)] for index in range(20)]
        files = [pair.image for pair in dataset.pairs]  # type: ignore[attr-defined]
        rng = np.random.default_rng(0)
        count = min(args.images, len(dataset))
        rows: dict[str, tuple[Callable[[int], object], int]] = {
            "degrid, batches of 10": (lambda index: batches(index), 10),
            "  of that: read and decode both": (lambda index: dataset[index], 1),
            "  of that: decode the image": (lambda index: read_image(files[index]), 1),
            "  of that: scale, flip, crop": (lambda index: transform(samples[index % 20], rng), 1),
            "resize, crop, flip with Pillow": (pillow_pipeline(dataset, args.crop), 1),
        }
        rates: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(args.rounds + 1):
            for name, (call, each) in rows.items():
                began = time.process_time()
                for index in range(count // each):
                    call(index)
                if number:
                    rates[name].append(count // each * each / (time.process_time() - began))
        for name, values in rates.items():
            low, _, high = quantiles(values, n=4)
            print(f"{name:<36}{median(values):7.0f} images/s ({low:.0f} to {high:.0f})")


if __name__ == "__main__":
    main()
