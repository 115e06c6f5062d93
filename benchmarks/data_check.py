"""`degrid data check` against decoding the same files once with Pillow, in turn, with the same number of processes.

The data are photographs of 480x360 with palette masks, drawn from the built-in scenes into a temporary folder.

python benchmarks/data_check.py [--images 1000] [--rounds 7] [--processes 1 2]
python benchmarks/data_check.py --scale 1000 10000 100000     # seconds and memory of small images, by their number
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from PIL import Image

from degrid.data.inspection.check import check_data
from degrid.data.synthetic import LABELS, draw_scene
from degrid.image import palette_image
from degrid.threads import usable_cores

SCENES = 50  # drawn; the others are these, turned round, shifted and in another light


def make_photographs(root: Path, count: int) -> None:
    folders = root / "images", root / "masks"
    for folder in folders:
        folder.mkdir(parents=True)
    drawn = [draw_scene(np.random.default_rng(k), 360, 480) for k in range(min(count, SCENES))]
    for k in range(count):
        rng = np.random.default_rng([7, k])
        image, label = drawn[k % len(drawn)]
        shift, step, light = int(rng.integers(480)), int(rng.choice((1, -1))), rng.uniform(0.6, 1)
        image, label = (np.roll(pixels, shift, axis=1)[:, ::step] for pixels in (image, label))
        Image.fromarray((image * light).astype(np.uint8)).save(folders[0] / f"{k:06d}.jpg", quality=90)
        palette_image(np.ascontiguousarray(label), LABELS).save(folders[1] / f"{k:06d}.png")


def make_small(root: Path, count: int) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{k:06d}.jpg", quality=80)
        Image.fromarray(pixels[..., 0] // 64).save(root / "masks" / f"{k:06d}.png", compress_level=1)


def decode(file: str) -> None:
    with Image.open(file) as image:
        image.load()


def decode_all(root: Path, processes: int) -> None:
    files = [str(file) for file in sorted(root.rglob("*.*")) if file.suffix in (".jpg", ".png")]
    if processes == 1:
        for file in files:
            decode(file)
        return
    # Forked before any thread is started: the cheapest processes there are.
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(processes, mp_context=get_context(method)) as pool:
        list(pool.map(decode, files, chunksize=16))


PILLOW = """
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from PIL import Image

def decode(file):
    with Image.open(file) as image:
        image.load()

if __name__ == "__main__":
    files = sorted(str(file) for file in Path(sys.argv[1]).rglob("*.*"))
    if sys.argv[2] == "1":
        list(map(decode, files))
    else:
        with ProcessPoolExecutor(int(sys.argv[2])) as pool:
            list(pool.map(decode, files, chunksize=16))
"""


def seconds(call: object, *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)  # type: ignore[operator]
    return time.perf_counter() - began


def command(*words: object) -> None:
    # With compiled modules kept, as pip leaves them for users: the first round, which is not counted, writes them.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=settings, stdout=subprocess.PIPE, text=True, check=True
    )
    assert "ready to train on" in done.stdout or not done.stdout


def compare(root: Path, processes: int, rounds: int) -> None:
    script = root.parent / "pillow.py"
    script.write_text(PILLOW)
    ways = {
        "called from Python": (
            lambda: decode_all(root, processes),
            lambda: check_data(root, processes=processes),
        ),
        "as commands": (
            lambda: command(script, root, processes),
            lambda: command("-m", "degrid", "data", "check", root, "--processes", processes),
        ),
    }
    for way, (pillow, check) in ways.items():
        pairs = [(seconds(pillow), seconds(check)) for _ in range(rounds + 1)][1:]
        ratios = [own / theirs for theirs, own in pairs]
        low, _, high = quantiles(ratios, n=4)
        theirs, own = (median(column) for column in zip(*pairs, strict=True))
        print(
            f"{processes} processes, {way}: Pillow {theirs:.2f} s, data check {own:.2f} s; ratio {median(ratios):.2f} "
            f"(quartiles {low:.2f} to {high:.2f}, {rounds} rounds)"
        )


def scale(counts: list[int]) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            make_small(Path(folder), count)
            code = (
                "import resource, sys, time; from degrid.data.inspection.check import check_data; "
                "began = time.perf_counter(); assert check_data(sys.argv[1]).ok; print(time.perf_counter() - began, "
                "*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
            )
            done = subprocess.run([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True, check=True)
            took, own, helper = map(float, done.stdout.split())
            print(
                f"{count} images of 64x48: {took:.2f} s, {1e6 * took / count:.0f} us each; peak memory "
                f"{own / 1024:.0f} MB, of each further process {helper / 1024:.0f} MB"
            )


def versions() -> str:
    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    return ", ".join([f"Python {platform.python_version()}", *map(of, ("pillow", "numpy", "simplejpeg"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, nargs="+", default=sorted({1, usable_cores()}))
    parser.add_argument("--scale", type=int, nargs="+", default=[])
    given = parser.parse_args()
    print(f"{versions()}; {usable_cores()} of {os.cpu_count()} cores")
    if given.scale:
        scale(given.scale)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder) / "photos", given.images)
        for processes in given.processes:
            compare(Path(folder) / "photos", processes, given.rounds)


if __name__ == "__main__":
    main()
