"""Which runtimes compute what degrid computes, from its ONNX files of free and of fixed size: a table in Markdown.

Every runtime that is installed is tried in a process of its own, on ten networks (five operators; DeepLab v3 on
resnet18d, v3+ on mobilenetv2) of random weights, at three sizes. A cell is the worst of them.

pip install onnxruntime openvino opencv-python-headless MNN tract      # those that are wanted
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


def opencv(file: Path) -> Run:
    net = importlib.import_module("cv2").dnn.readNetFromONNX(str(file))

    def run(image: np.ndarray) -> Any:
        net.setInput(image)
        return net.forward()

    return run


def mnn(file: Path) -> Run:
    expr, nn = importlib.import_module("MNN.expr"), importlib.import_module("MNN.nn")
    made = file.with_suffix(".mnn")
    words = ["-f", "ONNX", "--modelFile", str(file), "--MNNModel", str(made), "--bizCode", "degrid"]
    subprocess.run([sys.executable, "-m", "MNN.tools.mnnconvert", *words], check=True, capture_output=True)
    module = nn.load_module_from_file(str(made), ["image"], [file.stem.split("-")[-1]])

    def run(image: np.ndarray) -> Any:
        kind = expr.uint8 if image.dtype == np.uint8 else expr.float
        values = image.flatten().tolist() if image.dtype == np.uint8 else image
        found = module.forward([expr.const(values, list(image.shape), expr.NCHW, kind)])[0]
        found = expr.convert(found, expr.NCHW) if found.data_format == expr.NC4HW4 else found
        return np.array(found.read()).reshape(found.shape)

    return run


def tract(file: Path) -> Run:
    model = importlib.import_module("tract").onnx().load(str(file)).into_model().into_runnable()
    return lambda image: model.run([image])[0].to_numpy()


RUNTIMES = {each.__name__: each for each in (onnxruntime, openvino, opencv, mnn, tract)}
PACKAGES = {"opencv": "cv2", "mnn": "MNN"}


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
            if importlib.util.find_spec(PACKAGES.get(runtime, runtime)) is None:
                print(f"| {runtime} | not installed |" + " |" * (len(columns) - 1))
                continue
            words = [sys.executable, __file__, "--runtimes", runtime, "--folder", str(folder)]
            done = subprocess.run(words, capture_output=True, text=True)
            cells = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
            rest = [cells.get(column, f"process ended with {done.returncode}") for column in columns]
            print("|", runtime, "|", " | ".join(rest), "|", flush=True)


if __name__ == "__main__":
    main()
