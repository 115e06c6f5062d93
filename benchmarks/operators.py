"""What each smoothing operator costs over the plain dilated convolution, forward and in training.

All variants run round-robin in one process; a row is the median of the ratios to the plain convolution measured in the
same round, with the quartiles, so that a machine whose speed drifts does not matter.

    python benchmarks/operators.py [--rounds 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from torch import nn

import degrid

OPERATORS = ("decompose", "gi", "ssc", "average", "gaussian", "aggregation", "tent")
SHAPES = ((256, 2, 65), (512, 4, 65))


def layer(channels: int, rate: int, operator: str) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, bias=False))
    if operator != "regular":
        degrid.smooth_dilated_convs(conv, operator)
        with torch.no_grad():  # learned filters away from their start, where they could be skipped
            for name, parameter in conv.named_parameters():
                if ".smoothing." in name:
                    parameter.add_(0.01)
    return conv.to(memory_format=torch.channels_last)


def forward_only(conv: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return conv(x)

    return call


def training(conv: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()

    def call() -> object:
        return conv(x).sum().backward()

    return call


def compare(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round-robin, after two calls to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {platform.processor() or platform.machine()}, float32")
    print("overhead over the plain dilated 3x3 convolution, %: median (quartiles)\n")
    print(f"{'shape':<22}{'mode':<10}" + "".join(f"{name:>20}" for name in OPERATORS))
    for channels, rate, size in SHAPES:
        for mode, wrap, batch in (("forward", forward_only, 1), ("training", training, 2)):
            side = size if batch == 1 else 41
            x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
            calls = {name: wrap(copy.deepcopy(layer(channels, rate, name)), x) for name in ("regular", *OPERATORS)}
            seconds = compare(calls, args.rounds)
            cells = []
            for name in OPERATORS:
                ratios = [100 * (a / b - 1) for a, b in zip(seconds[name], seconds["regular"], strict=True)]
                low, _, high = quantiles(ratios, n=4)
                cells.append(f"{median(ratios):+.0f} ({low:+.0f}..{high:+.0f})")
            print(f"C{channels} r{rate} {batch}x{side}x{side:<8}{mode:<10}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
