"""Time and memory to read checkpoints of other frameworks, each in a process of its own (Linux).

python benchmarks/read_checkpoint.py [--megabytes 180]     write, then read, V1, V2, caffemodel, .pth and .npy
python benchmarks/read_checkpoint.py --read FILE           read one file; prints seconds and bytes of extra memory
python benchmarks/read_checkpoint.py --convert [FILE]      convert a file and copy its bytes in turn; prints the ratios
                                                           (by default torchvision's deeplabv3_resnet101, 244 MB)
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_COPY = """
import pathlib, sys, time
began = time.perf_counter()
pathlib.Path(sys.argv[2]).write_bytes(pathlib.Path(sys.argv[1]).read_bytes())
print(time.perf_counter() - began)
"""


def memory(what: str) -> int:
    """Bytes of memory in use ("VmRSS") or the most so far ("VmHWM"); pages of mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) << 10


def read(path: str) -> None:
    from degrid.checkpoints.readers.files import read_tensors

    Path("/proc/self/clear_refs").write_text("5")  # start counting the most in use anew
    before, began = memory("VmRSS"), time.perf_counter()
    source = read_tensors(path)
    seconds, peak = time.perf_counter() - began, memory("VmHWM") - before
    assert sum(value.nbytes for value in source.tensors.values())
    print(f"{seconds:.3f} {peak}")


def write_all(folder: Path, megabytes: int) -> list[Path]:
    """Layers of a ResNet's size, in every format."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tf_writer import caffemodel, write_v1, write_v2

    rng = np.random.default_rng(0)
    values = {f"block{i}/conv/weights": rng.random((3, 3, 512, 512), np.float32) for i in range(megabytes * 10 // 94)}
    write_v1(folder / "v1.ckpt", values)
    write_v2(folder / "v2.ckpt", values)
    (folder / "net.caffemodel").write_bytes(caffemodel({name: [value] for name, value in values.items()}))
    torch.save({name: torch.from_numpy(value) for name, value in values.items()}, folder / "net.pth")
    np.save(folder / "net.npy", np.array({name: {"weights": value} for name, value in values.items()}))
    return [folder / name for name in ("v1.ckpt", "v2.ckpt.index", "net.caffemodel", "net.pth", "net.npy")]


def compare_with_copying(path: Path | None, rounds: int = 7) -> None:
    """How much longer converting takes than reading a file's bytes and writing them."""
    import torch
    import torchvision

    import degrid

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if path is None:
            path = out / "net.pth"
            net = torchvision.models.segmentation.deeplabv3_resnet101(weights=None, weights_backbone=None)
            torch.save(net.state_dict(), path)
        degrid.convert(path, out / "model")  # imports what is needed
        ratios = []
        for _ in range(rounds):
            # In a process of its own: in this one, memory in large pages can make reading six times as fast.
            copying = [sys.executable, "-c", _COPY, str(path), str(out / "copy")]
            copied = float(subprocess.run(copying, capture_output=True, text=True, check=True).stdout)
            began = time.perf_counter()
            degrid.convert(path, out / "model")
            converted = time.perf_counter() - began
            ratios.append(converted / copied)
            print(f"copied in {copied:.2f} s, converted in {converted:.2f} s")
    print(f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=180)
    parser.add_argument("--read", metavar="FILE")
    parser.add_argument("--convert", metavar="FILE", nargs="?", const="")
    args = parser.parse_args()
    if args.convert is not None:
        compare_with_copying(Path(args.convert) if args.convert else None)
        return
    if args.read:
        read(args.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in write_all(Path(folder), args.megabytes):
            done = subprocess.run(
                [sys.executable, __file__, "--read", path], capture_output=True, text=True, check=True
            )
            seconds, peak = map(float, done.stdout.split())
            print(f"{path.name}: {args.megabytes} MB, {seconds:.2f} s, {peak / 1e6:.0f} MB of extra memory")


if __name__ == "__main__":
    main()
