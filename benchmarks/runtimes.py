"""Which runtimes compute what degrid computes, from files of free and of fixed size: a table in Markdown.

Every runtime that is installed is tried in a process of its own, on ten networks (five operators; DeepLab v3 on
resnet18d, v3+ on mobilenetv2) of random weights, at three sizes. A cell is the worst of them.

pip install onnxruntime openvino tract opencv-python-headless MNN ...      # those that are wanted
npm install onnxruntime-web      # in the folder from which this is called
python benchmarks/runtimes.py [--runtimes tract opencv] [--networks 10]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import degrid
from degrid.exporters.graph import example_image
from degrid.exporters.runtime import ExportedModel
from degrid.exporters.table import find_exporter
from degrid.resize import resize

SIZES = (97, 129), (65, 65), (200, 151)
OPERATORS = "regular", "gi", "ssc", "gaussian", "tent"
NETWORKS = [*itertools.product(("deeplabv3", "deeplabv3plus"), OPERATORS)]
KINDS = {
    "any size, uint8": degrid.ImageInput(),
    "97x129, uint8": degrid.ImageInput(size=SIZES[0]),
    "97x129, float32": degrid.ImageInput("float32", SIZES[0]),
}
Run = Callable[[np.ndarray], Any]


def network(head: str, operator: str) -> torch.nn.Module:
    """With a classifier of larger weights than usual, so that random networks find several classes."""
    torch.manual_seed(0)
    labels = degrid.open_dataset("synthetic:1", "train").labels
    if head == "deeplabv3":
        model = degrid.deeplabv3("timm:resnet18d", labels, output_stride=8, operator=operator, channels=32)
    else:
        model = degrid.deeplabv3plus("timm:mobilenetv2_100", labels, output_stride=16, operator=operator, channels=32)
    torch.nn.init.normal_(model.head.classifier.weight)
    return model.eval()


def onnxruntime(file: Path) -> Run:
    session = importlib.import_module("onnxruntime").InferenceSession(str(file))
    return lambda image: session.run(None, {"image": image})[0]


def openvino(file: Path) -> Run:
    core = importlib.import_module("openvino").Core()
    compiled = core.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled(image)[0]


def web(file: Path) -> Run:
    """onnxruntime-web in Node, from the folder where `npm install onnxruntime-web` was called."""
    script = file.with_suffix(".mjs")
    script.write_text(WEB)

    def run(image: np.ndarray) -> Any:
        pixels, made = file.with_suffix(".in"), file.with_suffix(".out")
        pixels.write_bytes(image.tobytes())
        words = [
            "node",
            str(script),
            str(Path("node_modules").resolve()),
            str(file),
            str(image.dtype),
            *map(str, image.shape),
        ]
        done = subprocess.run([*words, str(pixels), str(made)], capture_output=True, text=True)
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


def by_format(name: str) -> Callable[[Path], Run]:
    """A runtime that reads files of its own: of the network beside the ONNX file, which degrid writes and opens."""

    def make(file: Path) -> Run:
        exporter = find_exporter(name)
        kind, number, output = file.stem.replace("_", " ").split("-")
        takes = KINDS[kind] if exporter.any_batch or KINDS[kind].size else degrid.ImageInput(batch=1)
        model = torch.load(file.parent / f"{number}.pt", weights_only=False)
        made = file.with_name(f"{file.stem}-{name}{exporter.ending}")
        degrid.export(model, made, format=name, output=output, takes=takes)
        opened = ExportedModel(f"{name}={made}")
        return lambda image: opened(torch.from_numpy(image)).numpy()

    return make


FORMATS = {"opencv": "cv2", "litert": "litert_torch", "executorch": "executorch", "mnn": "MNN", "iree": "iree.compiler"}
RUNTIMES = {each.__name__: each for each in (onnxruntime, openvino, web, tract)} | {
    name: by_format(name) for name in FORMATS
}


def installed(runtime: str) -> bool:
    if runtime == "web":
        return Path("node_modules/onnxruntime-web").exists()
    try:
        return importlib.util.find_spec(FORMATS.get(runtime, runtime)) is not None
    except ModuleNotFoundError:
        return False


def compared(make: Callable[[Path], Run], file: Path, model: Any, sizes: Iterable[tuple[int, int]]) -> list[float]:
    """Per size the part of pixels with the right class, or the largest difference over the largest logit."""
    run, found = make(file), []
    ids = file.stem.endswith("ids")
    for size in sizes:
        image = example_image((1, 3, *size), seed=3)
        with torch.no_grad():
            logits = model(image)
        given = np.asarray(run((image.float() if "float32" in file.stem else image).numpy()))
        if ids:
            wanted = resize(logits, size, model.resize).argmax(1).numpy()
            found.append(float((given.reshape(wanted.shape) == wanted).mean()))
        else:
            difference = np.abs(given.reshape(logits.shape) - logits.numpy()).max()
            found.append(float(difference / logits.abs().max()))
    return found


def tried(runtime: str, folder: Path) -> dict[str, str]:
    """Each kind of file and output -> the worst that came of it."""
    cells = {}
    for kind, output in itertools.product(KINDS, ("ids", "logits")):
        values, failed = [], ""
        for file in sorted(folder.glob(f"{kind.replace(' ', '_')}-*-{output}.onnx")):
            model = torch.load(folder / f"{file.stem.split('-')[1]}.pt", weights_only=False)
            try:
                values += compared(RUNTIMES[runtime], file, model, SIZES if "any" in kind else SIZES[:1])
            except Exception as error:  # every runtime has its own
                failed = failed or f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        worst = (f"{100 * min(values):.2f} %" if output == "ids" else f"{max(values):.0e}") if values else ""
        count = sum(1 for _ in folder.glob(f"{kind.replace(' ', '_')}-*-{output}.onnx"))
        cells[f"{kind}, {output}"] = worst + (f" (not all {count}: {failed})" if failed and worst else failed)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--networks", type=int, default=len(NETWORKS))
    parser.add_argument("--folder", type=Path, help="of files made before; for the processes")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(tried(options.runtimes[0], options.folder)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, (head, operator) in enumerate(NETWORKS[:: len(NETWORKS) // options.networks]):
            model = network(head, operator)
            torch.save(model, folder / f"{number}.pt")
            for (kind, takes), output in itertools.product(KINDS.items(), ("ids", "logits")):
                file = folder / f"{kind.replace(' ', '_')}-{number}-{output}.onnx"
                degrid.export(model, file, output=output, takes=takes)
            print(f"{head} {operator} written", file=sys.stderr)
        columns = [f"{kind}, {output}" for kind, output in itertools.product(KINDS, ("ids", "logits"))]
        print("| runtime |", " | ".join(columns), "|")
        print("|---" * (len(columns) + 1) + "|")
        for runtime in options.runtimes:
            if not installed(runtime):
                print(f"| {runtime} | not installed |" + " |" * (len(columns) - 1))
                continue
            words = [sys.executable, __file__, "--runtimes", runtime, "--folder", str(folder)]
            done = subprocess.run(words, capture_output=True, text=True)
            cells = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
            rest = [cells.get(column, f"process ended with {done.returncode}") for column in columns]
            print("|", runtime, "|", " | ".join(rest), "|", flush=True)


if __name__ == "__main__":
    main()
