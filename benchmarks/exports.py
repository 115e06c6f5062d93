"""Exported models beside eager networks: the same pictures, from RGB pixels to class ids.

DeepLab v3 on ResNet-50 at output stride 8, 21 classes, random weights, one picture at a time. The base is torchvision's
network as its documentation uses it, in a process of its own: eager, NCHW, float32, `interpolate` and `argmax` by hand.
Files run in processes of their own too, as `degrid predict` runs them. All run in turn. int8 is calibrated on other
built-in scenes of that size; `degrid export` says what it costs in mIoU.

    python benchmarks/exports.py [--sizes 513] [--rounds 5] [--repeats 3] [--only onnx openvino] [--output ids]
        [-o FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peers import NETWORKS, as_cases, inference
from torch import nn

import degrid
from degrid.bench.measure import Apart, Case, Made, measure, merged
from degrid.bench.network_cases import CLASSES, by_predictor, randomised
from degrid.bench.report import Results, write_markdown, write_results
from degrid.bench.suite import machine_facts, machine_state, versions
from degrid.data.synthetic import scene
from degrid.engine.memory import keep_freed_memory
from degrid.exporters.runtime import ExportedModel
from degrid.exporters.table import EXPORTERS, find_exporter
from degrid.threads import settle_threads
from degrid.types import LabelSpace, Sample

NETWORK, PEER = "DeepLab v3 ResNet-50 stride 8", "torchvision deeplabv3_resnet50"


class Scenes:
    """To calibrate on; nothing is measured, so the labels are empty."""

    labels = LabelSpace.of_size(CLASSES)

    def __init__(self, side: int) -> None:
        self.side = side

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Sample:
        image = torch.from_numpy(scene((self.side, self.side), index + 1)[0]).permute(2, 0, 1)
        return Sample(image, torch.zeros(image.shape[1:], dtype=torch.uint8), str(index))


def exported(model: nn.Module, folder: Path, kind: str, int8: bool, side: int, output: str) -> Path:
    path = folder / f"{kind}{'-int8' if int8 else ''}{find_exporter(kind).ending}"
    quantization = degrid.Int8(Scenes(side), max_drop=100) if int8 else None
    degrid.export(model, path, format=kind, output=output, int8=quantization)
    return path


def from_file(path: Path, picture: np.ndarray) -> Made:
    keep_freed_memory()
    predict = by_predictor(ExportedModel(path), "float32")
    return lambda: predict(picture), {}


def cases(side: int, folder: Path, kinds: list[str], output: str) -> list[Case]:
    picture = scene((side, side))[0]
    peer = Apart(inference, NETWORK, PEER, [picture], "float32")
    torch.manual_seed(0)
    ours = randomised(NETWORKS[NETWORK]["degrid"]())
    ways: dict[str, Made] = {f"{PEER}, eager": (peer, {})}
    for precision in ("float32", "bfloat16"):
        predict = by_predictor(ours, precision)
        ways[f"degrid Predictor, {precision}"] = (lambda predict=predict: predict(picture)), {}
    settle_threads()  # for the processes that are started from here on
    for kind in kinds:
        for int8 in (False, True) if find_exporter(kind).has_int8 else (False,):
            print(f"exporting {kind}{', int8' if int8 else ''} ..", file=sys.stderr)
            name = f"degrid export, {kind}{', int8' if int8 else ''}"
            ways[name] = Apart(from_file, exported(ours, folder, kind, int8, side, output), picture), {}
    return as_cases(f"{NETWORK}, {side}x{side}", ways, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[513])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["onnx", "openvino"], choices=list(EXPORTERS))
    parser.add_argument("--output", default="ids", choices=["ids", "logits"], help="what the files give")
    parser.add_argument("-o", "--out", type=Path, default=Path("build/exports"))
    args = parser.parse_args()
    keep_freed_memory()
    machine, before, rows = machine_facts(), machine_state(), []
    machine["versions"] |= versions(["openvino", "onnxruntime", "nncf"])
    with tempfile.TemporaryDirectory() as folder:
        for side in args.sizes:
            made = cases(side, Path(folder), args.only, args.output)
            rows += merged([measure(made, args.rounds) for _ in range(args.repeats)])
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    results = Results(machine, {"before": before, "after": machine_state()}, settings, {"exports": rows})
    write_results(args.out / "exports.json", results)
    write_markdown(args.out / "exports.md", results)
    print((args.out / "exports.md").read_text())
    print(f"results: {args.out / 'exports.json'}")


if __name__ == "__main__":
    main()
