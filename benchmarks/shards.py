"""Reading images with their masks in random order: shards beside the plain files of a dataset, in turn.

python benchmarks/shards.py CamVid --rounds 9          files that the system has in memory
python benchmarks/shards.py CamVid --rounds 5 --cold   files that it was told to forget before each round (Linux)
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np

import degrid
from degrid.types import Dataset


def forget(root: str) -> None:
    """Ask the system to keep no file below a folder in memory."""
    for folder, _, files in os.walk(root):
        for name in files:
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def seconds(dataset: Dataset) -> tuple[float, float]:
    """Of the clock and of the processor, for reading every sample."""
    order = random.Random(0).sample(range(len(dataset)), len(dataset))
    began, used = time.perf_counter(), time.process_time()
    for index in order:
        dataset[index]
    return time.perf_counter() - began, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder of a dataset with a split train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        places = {"plain files": given.data}
        for kind in ("tar", "tfrecord"):
            places[kind] = str(Path(folder, kind))
            degrid.write_shards(given.data, places[kind], kind=kind, splits=["train"])
        datasets = {name: degrid.open_dataset(place) for name, place in places.items()}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
        for _ in range(given.rounds + 1):
            for name, dataset in datasets.items():
                if given.cold:
                    forget(places[name])
                found[name].append(seconds(dataset))
        base = np.array(found["plain files"][1:])  # the first round warms up
        for name, rows in found.items():
            ratios = base / np.array(rows[1:])
            for part, clock in enumerate(("clock", "processor")):
                low, median, high = np.quantile(ratios[:, part], (0.25, 0.5, 0.75))
                print(f"{name}, {clock}: {median:.2f} times as fast as plain files ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
