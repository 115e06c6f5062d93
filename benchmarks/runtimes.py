"""Which runtimes compute what degrid computes: a matrix of runtimes, sizes, precisions and results, in docs/export.md.

Two networks of random weights (DeepLab v3+ on MobileNetV2 with `gi`, v3 on ResNet-10-T with `tent`), their batch norm
calibrated on synthetic scenes. Each kind of file is written as class ids and as logits. A cell is the worst of both
networks and all sizes: pixels of the same class, and the largest difference of logits over the largest logit.

Every cell is computed in a process of its own and kept in --results at once, so that the script can be stopped, and
called again in another environment: rows are named by the runtime and its version.

pip install degrid[export] opencv-python-headless MNN tract ...      # those that are wanted
npm install onnxruntime-web      # in the folder from which this is called
python benchmarks/runtimes.py [--runtimes tract opencv]
python docs/generate.py      # the table in docs/export.md
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import degrid
from degrid.exporters.facts import ImageInput
from degrid.exporters.graph import example_image
from degrid.exporters.runtime import ExportedModel
from degrid.exporters.table import EXPORTERS, find_exporter
from degrid.resize import resize
from degrid.types import UserError

RESULTS = Path(__file__).parents[1] / "docs" / "runtimes.json"
SIZES = (97, 129), (65, 65), (200, 151)
NETWORKS = {"v3plus": ("timm:mobilenetv2_100", "gi"), "v3": ("timm:resnet10t", "tent")}
KINDS = {
    "any size": ImageInput(),
    "97x129, uint8": ImageInput(size=SIZES[0]),
    "97x129, float32": ImageInput("float32", SIZES[0]),
    "any size, int8": ImageInput(),
}
LONGEST = 1800
"""Seconds for a cell."""
Run = Callable[[np.ndarray], Any]


class Runtime(NamedTuple):
    """A runtime: its distributions in Python, and what opens a file of ONNX; or its format of degrid."""

    distributions: tuple[str, ...]
    open: Callable[[Path], Run] | None = None


@functools.cache
def network(name: str) -> Any:
    """With a classifier of larger weights than usual, so that random networks find several classes."""
    torch.manual_seed(0)
    scenes = degrid.open_dataset("synthetic:4", "train")
    encoder, operator = NETWORKS[name]
    make, stride = (degrid.deeplabv3, 8) if name == "v3" else (degrid.deeplabv3plus, 16)
    model: Any = make(encoder, scenes.labels, output_stride=stride, operator=operator, channels=32)
    torch.nn.init.normal_(model.head.classifier.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the average of all batches
    with torch.no_grad():
        model.train()(torch.stack([scenes[index].image[:, :128, :128].float() for index in range(4)]))
    return model.eval()


def onnxruntime(file: Path) -> Run:
    session = importlib.import_module("onnxruntime").InferenceSession(str(file))
    return lambda image: session.run(None, {"image": image})[0]


def web(file: Path) -> Run:
    """onnxruntime-web in Node, from the folder where `npm install onnxruntime-web` was called."""
    script, pixels, made = (file.with_suffix(ending) for ending in (".mjs", ".in", ".out"))
    script.write_text(WEB)

    def run(image: np.ndarray) -> Any:
        pixels.write_bytes(image.tobytes())
        places = (script, Path("node_modules").resolve(), file, image.dtype, *image.shape, pixels, made)
        done = subprocess.run(["node", *map(str, places)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-150:])
        return np.frombuffer(made.read_bytes(), np.dtype(done.stdout.strip().splitlines()[-1]))

    return run


WEB = """
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const [modules, file, type, n, c, h, w, pixels, made] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${modules}/onnxruntime-web/dist/ort.node.min.mjs`));
const session = await ort.InferenceSession.create(readFileSync(file), { executionProviders: ["wasm"] });
const bytes = readFileSync(pixels);
const whole = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
const data = type === "uint8" ? new Uint8Array(whole) : new Float32Array(whole);
const given = new ort.Tensor(type, data, [n, c, h, w].map(Number));
const result = Object.values(await session.run({ image: given }))[0];
writeFileSync(made, Buffer.from(result.data.buffer, result.data.byteOffset, result.data.byteLength));
console.log(result.type);
"""


def tract(file: Path) -> Run:
    model = importlib.import_module("tract").onnx().load(str(file)).into_model().into_runnable()
    return lambda image: model.run([image])[0].to_numpy()


RUNTIMES = {
    "onnxruntime": Runtime(("onnxruntime",), onnxruntime),
    "onnxruntime-web": Runtime((), web),
    "openvino": Runtime(("openvino",)),
    "torch-export": Runtime(("torch",)),
    "aot-inductor": Runtime(("torch",)),
    "opencv": Runtime(("opencv-python-headless",)),
    "tensorrt": Runtime(("onnxruntime",)),
    "litert": Runtime(("ai-edge-litert", "litert-torch")),
    "coreml": Runtime(("coremltools",)),
    "executorch": Runtime(("executorch",)),
    "mnn": Runtime(("MNN",)),
    "iree": Runtime(("iree-base-compiler",)),
    "tract": Runtime(("tract",), tract),
    "ncnn": Runtime(("ncnn", "pnnx")),
}


def row_of(name: str) -> str | None:
    """A runtime and its versions; None where it is not installed."""
    if name == "onnxruntime-web":
        package = Path("node_modules/onnxruntime-web/package.json")
        return f"{name} {json.loads(package.read_text())['version']}" if package.exists() else None
    try:
        found = [f"{each} {importlib.metadata.version(each)}" for each in RUNTIMES[name].distributions]
    except importlib.metadata.PackageNotFoundError:
        return None
    return ", ".join(found) if RUNTIMES[name].distributions[0] == name else f"{name} ({', '.join(found)})"


def opened(name: str, kind: str, output: str, which: str, folder: Path) -> tuple[Run | None, ImageInput]:
    """A network in a runtime, ready to run, and what it takes; no function for a format that is only written here."""
    runtime, takes = RUNTIMES[name], KINDS[kind]
    format = "onnx" if runtime.open else name
    exporter = find_exporter(format)
    if takes.size is None:
        takes = ImageInput(exporter.inputs[0], batch=None if exporter.any_batch else 1)
    int8 = degrid.Int8("synthetic:16", max_drop=100, float_layers=0) if kind.endswith(", int8") else None
    stem = f"{which}_{output}_{kind}_{format}".replace(", ", "_").replace(" ", "_").replace("-", "_")
    file = folder / f"{stem}{exporter.ending}"
    if not file.exists():
        degrid.export(network(which), file, format=format, output=output, takes=takes, int8=int8)
    if runtime.open:
        return runtime.open(file), takes
    if not exporter.runs_here:
        return None, takes
    model = ExportedModel(f"{name}={file}")
    return (lambda image: model(torch.from_numpy(image)).numpy()), takes


def compared(name: str, kind: str, output: str, folder: Path) -> str:
    """The worst of both networks and all sizes."""
    found: list[float] = []
    for which in NETWORKS:
        model = network(which)
        run, takes = opened(name, kind, output, which, folder)
        if run is None:
            return "written, not run"
        for size in [takes.size] if takes.size else SIZES:
            image = example_image((1, 3, *size), takes.type, seed=3)
            with torch.no_grad():
                logits = model(image)
            given = np.asarray(run(image.numpy()))
            if output == "ids":
                wanted = resize(logits, size, model.resize).argmax(1).numpy()
                found.append(float((given.reshape(wanted.shape) == wanted).mean()))
            else:
                difference = np.abs(given.reshape(logits.shape) - logits.numpy()).max()
                found.append(float(difference / logits.abs().max()))
    return f"{round(100 * min(found), 2):g} %" if output == "ids" else f"{max(found):.0e}".replace("e-0", "e-")


def cell(name: str, kind: str, folder: Path) -> str:
    """What comes of one cell, computed in a process of its own: the results, or why there are none."""
    exporter = find_exporter("onnx" if RUNTIMES[name].open else name)
    if kind.endswith(", int8") and not exporter.has_int8:
        return "-"
    words = [sys.executable, __file__, "--cell", name, kind, "--folder", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"not ready after {LONGEST} s"
    if done.returncode == 0:
        return done.stdout.splitlines()[-1]
    return f"process ended with {done.returncode}: {' '.join(done.stderr.split())[-100:]}"


def outcome(name: str, kind: str, folder: Path) -> str:
    """What `cell` computes, here in this process."""
    found = {}
    exporter = find_exporter("onnx" if RUNTIMES[name].open else name)
    for output in exporter.outputs:
        try:
            found[output] = compared(name, kind, output, folder)
        except UserError as error:
            found[output] = str(error).split(";")[0]
        except Exception as error:  # every runtime has its own
            found[output] = f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
    return ", ".join(dict.fromkeys(found.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--minutes", type=float, default=1e9, help="stop before a cell that would begin later")
    parser.add_argument("--folder", type=Path, default=Path("runtimes_files"), help="for the files that are written")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    if options.cell:
        name, kind = options.cell
        print(outcome(name, kind, options.folder))
        return
    begin = time.monotonic()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in options.runtimes:
        if (row := row_of(name)) is None:
            print(f"{name} is not installed", file=sys.stderr)
            continue
        cells = results.setdefault(row, {"PyTorch": torch.__version__.split("+")[0]})
        for kind in KINDS:
            if kind in cells or time.monotonic() - begin > 60 * options.minutes:
                continue
            cells[kind] = cell(name, kind, options.folder)
            print(f"{row}, {kind}: {cells[kind]}", file=sys.stderr, flush=True)
            options.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    assert EXPORTERS.keys() - {"onnx"} <= RUNTIMES.keys()
    main()
