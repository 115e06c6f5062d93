"""Cases of `degrid bench start` and `throughput`: whole commands from call to end, on one photograph and on many."""

from __future__ import annotations

import os
import subprocess
import sys
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
from degrid.bench.suite import Block, Scope
from degrid.data.synthetic import LABELS
from degrid.image import palette_image, read_image
from degrid.types import UserError

SIZE = (375, 500)
FORMATS = {"onnx": ("onnxruntime", "model.onnx"), "openvino": ("openvino", "model.xml")}
"""Formats to the package that runs them, and their file."""


PEERS = {
    "torchvision": """
import sys, torch
from PIL import Image
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
from torchvision.transforms.functional import pil_to_tensor
model = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=8).eval()
with torch.inference_mode():
    ids = model(pil_to_tensor(Image.open(sys.argv[1]))[None] / 255)["out"].argmax(1)[0].to(torch.uint8)
Image.fromarray(ids.numpy()).save(sys.argv[2])
""",
    "segmentation_models_pytorch": """
import sys, numpy as np, torch
from PIL import Image
import segmentation_models_pytorch as smp
model = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=8).eval()
pixels = np.asarray(Image.open(sys.argv[1]).resize((512, 384)))
with torch.inference_mode():
    ids = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).argmax(1)[0].to(torch.uint8)
Image.fromarray(ids.numpy()).save(sys.argv[2])
""",
}
"""Packages to programs that segment an image by them, with random weights."""


def start(scope: Scope) -> list[Block]:
    """Commands on one photograph, with DeepLab v3+ on MobileNetV2 in a folder and in exported files; and on 12."""
    return [Block("commands", 200, partial(_commands, scope), rounds=5, warmup=1, seconds=0)]


def _commands(scope: Scope) -> list[Case]:
    from degrid.bench.part_cases import write_photos
    from degrid.model_folder import save
    from degrid.networks import deeplabv3plus
    from degrid.verbs.export import export

    held = tempfile.TemporaryDirectory()
    folder = Path(held.name)
    photo, model, out, data = folder / "photo.jpg", folder / "model", folder / "out", folder / "data"
    Image.fromarray(scope.picture(scope.sizes(SIZE)[0])).save(photo, quality=90)
    write_photos(data / "train", 11)
    write_photos(data / "val", 1, 11)
    save(deeplabv3plus("timm:mobilenetv2_100", len(LABELS)).eval(), model)
    ways: dict[str, list[str | Path]] = {
        "degrid predict, a model folder": ["predict", model, photo, "-o", out],
        "degrid info, a model folder": ["info", model],
        "degrid data check, 12 photographs": ["data", "check", data],
        "degrid eval, a model folder, one photograph": ["eval", model, "--data", data],
    }
    for format, (package, name) in FORMATS.items():
        if find_spec(package) and find_spec("onnxscript"):
            export(model, folder / name, format=format)
            ways[f"degrid predict, {name}"] = ["predict", folder / name, photo, "-o", out]
            ways[f"degrid info, {name}"] = ["info", folder / name]
            ways[f"degrid eval, {name}, one photograph"] = ["eval", folder / name, "--data", data]
            export(model, folder / f"logits.{name}", format=format, output="logits")
            ways[f"degrid predict, {name} of logits"] = ["predict", folder / f"logits.{name}", photo, "-o", out]
    run = partial(_run, held)
    peers = {package: partial(run, ["-c", code, photo, folder / "peer.png"]) for package, code in PEERS.items()}
    return [
        Case("import torch", partial(run, ["-c", "import torch"]), "start", base=True),
        *(Case(name, partial(run, ["-m", "degrid", *words]), "start") for name, words in ways.items()),
        *(Case(f"{package}, one photograph", peer, "start") for package, peer in peers.items() if find_spec(package)),
    ]


def _run(held: tempfile.TemporaryDirectory[str], words: list[str | Path]) -> None:
    """Run Python to its end; `held` is the folder that it reads, which lasts as long as the cases do."""
    # Programs are compiled to byte code when they are installed, which is not what is measured.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=settings)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, words))} failed: {done.stderr.strip()[-200:]}")


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
    from degrid.exporters.table import OpenedFile

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
