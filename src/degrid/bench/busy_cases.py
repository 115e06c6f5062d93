"""Cases of `degrid bench busy`: prediction beside other programs, and on half of the cores. Imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from degrid.bench.measure import Apart, Case, Made
from degrid.bench.suite import Block, Scope
from degrid.threads import settle_threads, usable_cores

if TYPE_CHECKING:
    import numpy as np

    from degrid.models.segmenter import Segmenter

SIZE = (513, 513)
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's name of each precision."""


def busy(scope: Scope) -> list[Block]:
    """DeepLab v3+ on MobileNetV2, beside one endless loop for each core, and alone on half of the cores.

    Each way runs in a process of its own. Of the usual code and of OpenVINO, threads are what they choose.
    """
    picture = scope.picture(scope.sizes(SIZE)[0])
    loads = {"beside a busy process on each core": usable_cores(), "beside none": 0}
    found = [
        Block(f"{precision}, {name}", 30, partial(_beside, picture, precision, name, count), rounds=9, seconds=0)
        for name, count in loads.items()
        for precision in PRECISIONS
    ]
    if usable_cores() > 1 and hasattr(os, "sched_setaffinity"):
        found.append(Block("half of the cores", 30, partial(_on_half, picture), rounds=9, seconds=0))
    return found


def network() -> Segmenter:
    """DeepLab v3+ on MobileNetV2 at output stride 16, with random weights."""
    import torch

    from degrid.networks import deeplabv3plus

    torch.manual_seed(0)
    return deeplabv3plus("timm:mobilenetv2_100", 21).eval()


def _beside(picture: np.ndarray, precision: str, name: str, count: int) -> list[Case]:
    ways: dict[str, Apart] = {}
    if find_spec("openvino") and find_spec("onnxscript"):
        ways[f"OpenVINO, {precision}"] = Apart(_openvino, picture, precision)
    ways |= {
        f"degrid.Predictor, {precision}": Apart(_predictor, picture, precision),
        f"eager, {precision}": Apart(_eager, picture, precision),
    }
    load, base = _Load(count), next(iter(ways))
    return [Case(way, partial(load.beside, run), f"{precision}, {name}", way == base) for way, run in ways.items()]


def _on_half(picture: np.ndarray) -> list[Case]:
    cores = usable_cores()
    ways = {"degrid.Predictor": Apart(_predictor, picture, "float32", cores // 2)}
    for threads in range(1, cores + 1):
        way = f"degrid.Predictor, OMP_NUM_THREADS={threads}"
        ways[way] = Apart(_predictor, picture, "float32", cores // 2, threads)
    return [Case(way, run, "float32, half of the cores", not number) for number, (way, run) in enumerate(ways.items())]


class _Load:
    """Processes that spin without waiting, as long as this exists."""

    def __init__(self, count: int) -> None:
        processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        weakref.finalize(self, _end, processes)

    def beside(self, run: Callable[[], object]) -> None:
        """Do something meanwhile."""
        run()


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _predictor(picture: np.ndarray, precision: str, cores: int = 0, threads: int = 0) -> Made:
    """As `degrid predict` does it; if they are given, on that many cores and with that many threads."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    settle_threads()
    from degrid.engine.inference.predictor import Predictor
    from degrid.engine.memory import keep_freed_memory

    keep_freed_memory()
    return partial(Predictor(network(), "cpu", precision), picture), {}


def _eager(picture: np.ndarray, precision: str) -> Made:
    import torch

    from degrid.bench.network_cases import by_hand

    image = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
    return by_hand(network(), image, precision), {}


def _openvino(picture: np.ndarray, precision: str) -> Made:
    import openvino

    from degrid.verbs.export import export

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        export(network(), file, format="openvino")
        settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
        compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    image = picture.transpose(2, 0, 1)[None].copy()
    return lambda: compiled(image)[0].copy(), {}
