"""A training step of the CamVid recipe against one of the peer's (camvid_anchor.py), in turn, in one process.

pip install segmentation-models-pytorch==0.6.0
python benchmarks/camvid_step.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median, quantiles

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

import degrid
from degrid.engine.device import autocast
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import make_optimizer, moving_average, parameter_groups

CLASSES = 11


def ours(x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    model = degrid.deeplabv3plus("timm:mobilenetv2_100", CLASSES, output_stride=16, channels=128).train()
    model.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = make_optimizer("adamw", parameter_groups(model, 0.02, 3, 3), 1e-4, 0.9)
    average, objective = moving_average(model, 0.99), Objective()

    def step() -> None:
        with autocast(x.device, "auto"):
            logits = model(x)
        optimizer.zero_grad()
        (objective.totals([logits], y) / objective.weights([tuple(logits.shape[-2:])], y)).sum().backward()
        optimizer.step()
        average.update_parameters(model)

    return step


def peer(x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    model = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss = F.cross_entropy(model(x.float() / 127.5 - 1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 320, 320), dtype=torch.uint8)
    y = torch.randint(0, CLASSES, (8, 320, 320))
    calls = {"degrid": ours(x, y), "peer": peer(x, y)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    ratios = [theirs / own for own, theirs in zip(seconds["degrid"], seconds["peer"], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    print({name: round(median(values), 2) for name, values in seconds.items()}, "s per step, median")
    print(f"peer / degrid: {median(ratios):.2f} (quartiles {low:.2f} to {high:.2f}, {rounds} rounds)")


if __name__ == "__main__":
    main()
