"""Cases of `degrid bench start`: commands in processes of their own, from call to end, beside `import torch`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from degrid.bench.measure import Case
from degrid.bench.suite import Block, Scope
from degrid.data.synthetic import LABELS
from degrid.types import UserError

SIZE = (375, 500)
FORMATS = {"onnx": ("onnxruntime", "model.onnx"), "openvino": ("openvino", "model.xml")}
"""Formats to the package that runs them, and their file."""


def start(scope: Scope) -> list[Block]:
    """Commands on one photograph, with DeepLab v3+ on MobileNetV2 in a folder and in exported files."""
    return [Block("commands", 150, partial(_commands, scope), rounds=5, warmup=1, seconds=0)]


def _commands(scope: Scope) -> list[Case]:
    from degrid.model_folder import save
    from degrid.networks import deeplabv3plus
    from degrid.verbs.export import export

    held = tempfile.TemporaryDirectory()
    folder = Path(held.name)
    photo, model, out = folder / "photo.jpg", folder / "model", folder / "out"
    Image.fromarray(scope.picture(scope.sizes(SIZE)[0])).save(photo, quality=90)
    save(deeplabv3plus("timm:mobilenetv2_100", len(LABELS)).eval(), model)
    ways: dict[str, list[str | Path]] = {
        "degrid predict, a model folder": ["predict", model, photo, "-o", out],
        "degrid info, a model folder": ["info", model],
    }
    for format, (package, name) in FORMATS.items():
        if find_spec(package) and find_spec("onnxscript"):
            export(model, folder / name, format=format)
            ways[f"degrid predict, {name}"] = ["predict", folder / name, photo, "-o", out]
    cases = [Case("import torch", partial(_run, held, ["-c", "import torch"]), "start", base=True)]
    return cases + [Case(name, partial(_run, held, ["-m", "degrid", *words]), "start") for name, words in ways.items()]


def _run(held: tempfile.TemporaryDirectory[str], words: list[str | Path]) -> None:
    """Run Python to its end; `held` is the folder that it reads, which lasts as long as the cases do."""
    # Programs are compiled to byte code when they are installed, which is not what is measured.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=settings)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, words))} failed: {done.stderr.strip()[-200:]}")
