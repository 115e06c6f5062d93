"""Cases of `degrid bench throughput`: many photographs from file to file, beside the network alone on their pixels."""

from __future__ import annotations

import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import degrid
from degrid.bench.measure import Case
from degrid.bench.network_cases import by_hand, deeplabv3plus_mobilenetv2
from degrid.bench.part_cases import write_photos
from degrid.bench.start_cases import FORMATS
from degrid.bench.suite import Block, Scope
from degrid.data.synthetic import LABELS
from degrid.image import palette_image, read_image

COUNT, QUICK_COUNT = 64, 3
"""Photographs of 500x375."""


def throughput(scope: Scope) -> list[Block]:
    """DeepLab v3+ on MobileNetV2, from JPEGs to scores, and to masks and overlays."""
    count = QUICK_COUNT if scope.quick else COUNT
    return [
        Block("PyTorch", 200, partial(_network_cases, count), rounds=5, warmup=1, seconds=0),
        *(
            Block(name, 80, partial(_file_cases, count, format, name), rounds=5, warmup=1, seconds=0)
            for format, (package, name) in FORMATS.items()
            if find_spec(package) and find_spec("onnxscript")
        ),
    ]


def _network_cases(count: int) -> list[Case]:
    """Every case reads `held`, which lasts as long as they do."""
    held = tempfile.TemporaryDirectory()
    folder, model = Path(held.name), deeplabv3plus_mobilenetv2(len(LABELS))
    write_photos(folder / "train", 1, count)
    files = [image for image, _ in write_photos(folder / "val", count)]
    images = [torch.from_numpy(read_image(file)).permute(2, 0, 1) for file in files]
    predictor = degrid.Predictor(model, device="cpu", precision="float32")

    def alone() -> None:
        for image in images:
            predictor.class_ids(image)

    group = f"DeepLab v3+ MobileNetV2, {count} photographs of 500x375, float32"
    return [
        Case("the network alone, pixels in memory", alone, group, True, count),
        Case("degrid eval", lambda: degrid.evaluate(model, folder, device="cpu"), group, items=count),
        Case("degrid predict: masks and overlays", partial(_predict, held, files, model), group, items=count),
        Case("Pillow, eager PyTorch, Pillow: masks", partial(_by_hand, held, files, model), group, items=count),
    ]


def _file_cases(count: int, format: str, name: str) -> list[Case]:
    from degrid.exporters.opened import OpenedFile

    held = tempfile.TemporaryDirectory()
    folder = Path(held.name)
    files = [image for image, _ in write_photos(folder / "val", count)]
    images = [np.ascontiguousarray(read_image(file).transpose(2, 0, 1)[None]) for file in files]
    degrid.export(deeplabv3plus_mobilenetv2(len(LABELS)), folder / name, format=format)
    file = OpenedFile(folder / name)

    def alone() -> None:
        for image in images:
            file(image)

    group = f"{name}, {count} photographs of 500x375"
    return [
        Case("the runtime alone, pixels in memory", alone, group, True, count),
        Case("degrid predict: masks and overlays", partial(_predict, held, files, folder / name), group, items=count),
    ]


def _predict(held: tempfile.TemporaryDirectory[str], files: list[Path], model: nn.Module | Path) -> None:
    degrid.predict(model, files, Path(held.name, "out"), device="cpu", precision="float32")


def _by_hand(held: tempfile.TemporaryDirectory[str], files: list[Path], model: nn.Module) -> None:
    """The usual code, one thing after another."""
    for file in files:
        image: Tensor = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]
        ids = by_hand(model, image)().to(torch.uint8).numpy()
        palette_image(ids, LABELS).save(Path(held.name, f"{file.stem}.png"))
