"""The peer that our CamVid numbers are held against: segmentation_models.pytorch, plain recipe.

DeepLabV3Plus on MobileNetV2 at output stride 16 (decoder rates as that library sets them), ImageNet weights, SGD
0.02 (decoder 5 times that), momentum 0.9, poly 0.9, batch 8, random scale 0.5-1.5, 320 crops, flip, float32,
cross-entropy at full size. Scores the test split at the end with degrid's own confusion matrix.

    pip install segmentation-models-pytorch==0.6.0
    python benchmarks/camvid_anchor.py CAMVID MOBILENET_V2.pth --steps 625 --seed 0

CAMVID holds images/, labels/ and the split files; the weights are torchvision's MobileNetV2 names.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image

from degrid.engine.evaluation.metrics import ConfusionMatrix, scores
from degrid.types import IGNORE_INDEX, LabelSpace

CROP, BATCH, CLASSES = 320, 8, 11


def read(root: Path, split: str) -> list[tuple[Image.Image, Image.Image]]:
    names = (root / f"{split}.txt").read_text().split()
    pairs = []
    for name in names:
        image = Image.open(root / "images" / f"{name}.jpg").convert("RGB")
        label = Image.open(root / "labels" / f"{name}.png")
        label.load()
        pairs.append((image, label))
    return pairs


def augment(image: Image.Image, label: Image.Image, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scale = rng.uniform(0.5, 1.5)
    size = (round(image.width * scale), round(image.height * scale))
    x, y = (np.array(part) for part in (image.resize(size, 2), label.resize(size, 0)))
    pad = [(0, max(0, CROP - size[1])), (0, max(0, CROP - size[0]))]
    x = np.pad(x, [*pad, (0, 0)], constant_values=127)
    y = np.pad(y, pad, constant_values=IGNORE_INDEX)
    top, left = (rng.integers(0, have - CROP + 1) for have in y.shape)
    x, y = x[top : top + CROP, left : left + CROP], y[top : top + CROP, left : left + CROP]
    return (x[:, ::-1], y[:, ::-1]) if rng.random() < 0.5 else (x, y)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float().permute(0, 3, 1, 2) / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--steps", type=int, default=625)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=CLASSES)
    weights = torch.load(args.weights, weights_only=True)
    model.encoder.load_state_dict({key: value.float() for key, value in weights.items()})
    groups = [
        {"params": model.encoder.parameters(), "factor": 1.0},
        {"params": [*model.decoder.parameters(), *model.segmentation_head.parameters()], "factor": 5.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=1e-4)
    pairs = read(args.data, "train")
    order: list[int] = []
    began = time.monotonic()
    model.train()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * group["factor"] * (1 - step / args.steps) ** 0.9
        while len(order) < BATCH:
            order += rng.permutation(len(pairs)).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        crops = [augment(*pairs[i], rng) for i in chosen]
        x = normalise(torch.from_numpy(np.stack([image for image, _ in crops])))
        y = torch.from_numpy(np.stack([label for _, label in crops])).long()
        loss = F.cross_entropy(model(x), y, ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step} loss {loss.item():.3f} {time.monotonic() - began:.0f} s", flush=True)
    seconds = time.monotonic() - began

    model.eval()
    result = {
        "steps": args.steps,
        "seed": args.seed,
        "train_seconds": round(seconds),
        "torch": torch.__version__,
    }
    for split in ("val", "test"):
        matrix = ConfusionMatrix(CLASSES)
        pairs = read(args.data, split)
        for image, label in pairs:
            truth = torch.from_numpy(np.array(label))
            height, width = truth.shape
            x = F.pad(normalise(torch.from_numpy(np.array(image))[None]), (0, -width % 16, 0, -height % 16))
            with torch.inference_mode():
                guess = model(x)[0, :, :height, :width].argmax(0)
            matrix.update(guess, truth)
        found = scores(matrix, LabelSpace.of_size(CLASSES), len(pairs))
        result[split] = {
            "miou": found.miou,
            "pixel_accuracy": found.pixel_accuracy,
            "class_iou": found.class_iou,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
