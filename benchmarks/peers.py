"""degrid beside the libraries that people use otherwise: inference and a training step, on the same pictures.

Compared are DeepLab v3 on ResNet-50 at output stride 8 and DeepLab v3+ on ResNet-50 at stride 16, v3 on MobileNet, each
as the library builds it and as its documentation has it used: PyTorch eager, NCHW, float32, `interpolate` and `argmax`
by hand. The base of every comparison is the first library that is installed. All run in turn, each peer in a process of
its own; that of degrid keeps freed memory, as `degrid predict` and `degrid train` do. Weights are random, 21 classes.

    python benchmarks/peers.py [--images FOLDER] [--sizes 321 513] [--rounds 5] [--repeats 1] [-o FOLDER]

torchvision comes with degrid. `pip install --no-deps segmentation-models-pytorch` adds the other; without it, its rows
are left out. It takes only sides that its output stride divides: where 321 and 513 are asked for it gets the same
picture at the next smaller such size, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import degrid
from degrid.bench.measure import MIB, Apart, Case, Made, Row, measure, merged, saved_activations
from degrid.bench.network_cases import CLASSES, by_hand, by_predictor, randomised, step_by_hand, training_step
from degrid.bench.report import Results, write_markdown, write_pictures, write_results
from degrid.bench.suite import machine_facts, machine_state, versions
from degrid.data.synthetic import scene
from degrid.engine.memory import keep_freed_memory
from degrid.image import IMAGE_SUFFIXES, read_image
from degrid.models import freeze_batch_norm
from degrid.types import Batch

STRIDES = {"smp": 16}
"""What the sides of a picture must be multiples of."""


class Normalised(nn.Module):
    """A peer's network behind the normalisation that it wants from its user; gives the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network((image.float() - self.mean) / self.std)
        return logits["out"] if isinstance(logits, dict) else logits


class TimmEncoderTorchvisionHead(nn.Module):
    """The usual mixture by hand: timm's features, torchvision's DeepLabHead."""

    def __init__(self) -> None:
        super().__init__()
        import timm
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead

        self.encoder = timm.create_model("resnet50", features_only=True, output_stride=8, out_indices=(4,))
        self.head = DeepLabHead(2048, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[-1])


def torchvision_network(name: str) -> nn.Module:
    from torchvision.models import segmentation

    make = getattr(segmentation, name)
    return make(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)


def smp_network(name: str, **settings: Any) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)("resnet50", encoder_weights=None, classes=CLASSES, **settings)


Make = Callable[[], nn.Module]
NETWORKS: dict[str, dict[str, Make]] = {
    "DeepLab v3 ResNet-50 stride 8": {
        "torchvision deeplabv3_resnet50": lambda: torchvision_network("deeplabv3_resnet50"),
        "timm encoder, torchvision head": TimmEncoderTorchvisionHead,
        "smp DeepLabV3": lambda: smp_network("DeepLabV3", encoder_output_stride=8, decoder_atrous_rates=(12, 24, 36)),
        "degrid": lambda: degrid.deeplabv3("timm:resnet50", CLASSES, output_stride=8, network="deeplabv3_refined"),
    },
    "DeepLab v3 MobileNet stride 16": {
        "torchvision deeplabv3_mobilenet_v3_large": lambda: torchvision_network("deeplabv3_mobilenet_v3_large"),
        "degrid": lambda: degrid.deeplabv3(
            "timm:mobilenetv3_large_100", CLASSES, network="deeplabv3_refined", rates=(12, 24, 36)
        ),
    },
    "DeepLab v3+ ResNet-50 stride 16": {
        "smp DeepLabV3Plus": lambda: smp_network("DeepLabV3Plus"),
        "degrid": lambda: degrid.deeplabv3plus(
            "timm:resnet50", CLASSES, network="deeplabv3plus_smp", rates=(12, 24, 36)
        ),
    },
}
"""Comparisons: name of the network as each library builds it; degrid last."""


def installed(name: str) -> bool:
    return not name.startswith("smp") or importlib.util.find_spec("segmentation_models_pytorch") is not None


def usable(name: str, pixels: np.ndarray) -> np.ndarray:
    """The picture as the library takes it: cut to the sides that it can take."""
    stride = next((stride for peer, stride in STRIDES.items() if name.startswith(peer)), 1)
    height, width = (side // stride * stride for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[:height, :width])


def title(name: str, given: Sequence[int], taken: Sequence[int]) -> str:
    """The name, with a word where the library had to be given another size."""
    same = tuple(given) == tuple(taken)
    return name if same else f"{name} (refuses this size; {taken[0]}x{taken[1]} instead)"


def inference(comparison: str, name: str, pictures: list[np.ndarray], precision: str) -> Made:
    """All pictures one after the other."""
    torch.manual_seed(0)
    made = NETWORKS[comparison][name]()
    if name == "degrid":
        predict = by_predictor(randomised(made), precision)
        return lambda: [predict(picture) for picture in pictures], {}
    model = randomised(Normalised(made))
    images = [torch.from_numpy(usable(name, each)).permute(2, 0, 1)[None].contiguous() for each in pictures]
    calls = [by_hand(model, image) for image in images]
    return lambda: [call() for call in calls], {}


def training(comparison: str, name: str, batch: Batch, precision: str, frozen: bool = False) -> Made:
    """One step of SGD on two crops; with what it keeps for the backward pass."""
    torch.manual_seed(0)
    made = NETWORKS[comparison][name]()
    if name == "degrid":
        model = made.train().to(memory_format=torch.channels_last)
        if frozen:
            freeze_batch_norm(model)
        run = training_step(model, batch, precision)
    else:
        model = Normalised(made).train()
        run = step_by_hand(model, batch)
    return run, {"saved MiB": saved_activations(run, model) / MIB}


def inference_cases(comparison: str, pictures: list[np.ndarray]) -> list[Case]:
    """A call is a run over all pictures."""
    height, width = pictures[0].shape[:2]
    ways: dict[str, Made] = {}
    for name in filter(installed, NETWORKS[comparison]):
        if name == "degrid":
            for precision in ("float32", "bfloat16"):
                ways[f"degrid Predictor, {precision}"] = inference(comparison, name, pictures, precision)
        else:
            apart = Apart(inference, comparison, name, pictures, "float32")
            ways[title(name, (height, width), usable(name, pictures[0]).shape[:2])] = apart, apart.notes
    return as_cases(f"inference, {comparison}, {height}x{width}", ways, len(pictures))


def training_cases(comparison: str, pictures: list[np.ndarray], crop: int) -> list[Case]:
    """A call is a step on two crops."""
    ways: dict[str, Made] = {}
    for name in filter(installed, NETWORKS[comparison]):
        batch = training_batch(name, pictures, crop)
        if name == "degrid":
            for precision, frozen in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
                row = f"degrid, {'frozen batch norm, ' if frozen else ''}{precision}"
                ways[row] = training(comparison, name, batch, precision, frozen)
        else:
            apart = Apart(training, comparison, name, batch, "float32")
            ways[title(name, (crop, crop), batch.label.shape[-2:])] = apart, apart.notes
    return as_cases(f"training step, {comparison}, 2 crops of {crop}", ways, 2)


def as_cases(group: str, ways: dict[str, Made], items: int) -> list[Case]:
    """The first is the base."""
    base = next(iter(ways))
    return [Case(name, call, group, name == base, items, notes) for name, (call, notes) in ways.items()]


def training_batch(name: str, pictures: list[np.ndarray], crop: int) -> Batch:
    """The first pictures with labels that are drawn from their brightness: the time does not depend on them."""
    crops = [usable(name, fitted(pictures[index % len(pictures)], crop)) for index in (0, 1)]
    image = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return Batch(image, (image.long().sum(1) * CLASSES // 766), ("a", "b"))


def fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture of side x side pixels."""
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def read_pictures(folder: Path | None, count: int) -> list[np.ndarray]:
    if folder is None:
        return [scene((513, 513), seed)[0] for seed in range(count)]
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise SystemExit(f"no images in {folder}: expected files such as photo.jpg")
    return [read_image(file) for file in files[:count]]


def blocks(args: argparse.Namespace, pictures: list[np.ndarray]) -> list[Callable[[], list[Case]]]:
    """What is measured together, made only when its turn comes."""
    found: list[Callable[[], list[Case]]] = []
    for comparison, rows in NETWORKS.items():
        if not any(installed(name) for name in rows if name != "degrid"):
            continue
        for size in args.sizes:
            resized = [fitted(picture, size) for picture in pictures]
            found.append(lambda c=comparison, p=resized: inference_cases(c, p))
        if args.train:
            found.append(lambda c=comparison: training_cases(c, pictures, args.crop))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of pictures; by default built-in scenes")
    parser.add_argument("--count", type=int, default=2, help="pictures to use")
    parser.add_argument("--sizes", type=int, nargs="+", default=[321, 513], help="sides of the pictures, pixels")
    parser.add_argument("--crop", type=int, default=321, help="side of the training crops, pixels")
    parser.add_argument("--no-train", dest="train", action="store_false", help="inference only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=Path("build/peers"))
    args = parser.parse_args()
    for name in sorted({name for rows in NETWORKS.values() for name in rows if not installed(name)}):
        print(f"left out: {name}, since segmentation_models_pytorch is not installed")
    keep_freed_memory()
    pictures = read_pictures(args.images, args.count)
    parts = blocks(args, pictures)
    found: list[list[list[Row]]] = [[] for _ in parts]
    machine, before = machine_facts(), machine_state()
    machine["versions"] |= versions(["segmentation-models-pytorch"])
    for _ in range(args.repeats):
        for index, make in enumerate(parts):
            found[index].append(measure(make(), args.rounds))
            print(f"measured: {found[index][0][0].group}", flush=True)
    rows = [row for part in found for row in merged(part)]
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    results = Results(machine, {"before": before, "after": machine_state()}, settings, {"peers": rows})
    write_results(args.out / "peers.json", results)
    write_markdown(args.out / "peers.md", results)
    write_pictures(args.out, results)
    print((args.out / "peers.md").read_text())
    print(f"results: {args.out / 'peers.json'}, {args.out / 'peers.png'}")


if __name__ == "__main__":
    main()
