"""What each smoothing operator costs over the plain dilated convolution, forward and in training.

All variants run round-robin in one process; a cell is the median of the ratios to the plain convolution measured in the
same round, with the quartiles, so that a machine whose speed drifts does not matter. "regular" is the plain convolution
measured twice: what it differs from 0 is noise. "MiB" is what autograd keeps beyond what it keeps for the plain one.
With one thread the clock counts processor time, so that a busy machine can be used too.

    python benchmarks/operators.py [--rounds 9] [--threads 2] [--size SIDE ...] [--only NAME ...]
    python benchmarks/operators.py --network    # whole DeepLab v2 on ResNet-101, images of 321, frozen batch norm

Without --size: maps of 65, one at a time, forward; of 41, two at a time, in training. bfloat16 is autocast.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from torch import nn

import degrid
from degrid.engine.device import autocast
from degrid.kernels.support import numba_installed, use_torch_threads
from degrid.models import freeze_batch_norm

OPERATORS = ("regular", "decompose", "gi", "ssc", "average", "gaussian", "aggregation", "tent")
SHAPES = ((256, 2), (512, 4))
PRECISIONS = ("float32", "bfloat16")
CPU = torch.device("cpu")
Call = Callable[[], object]


def keep_freed_memory() -> None:
    """Large maps come from memory freed before rather than, page by page, from the system; glibc only."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for setting, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):
            libc.mallopt(setting, value)


def off_the_start(model: nn.Module) -> None:
    """Learned filters away from their start, where they could be skipped."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".smoothing." in name:
                parameter.add_(0.01)


def layer(channels: int, rate: int, operator: str) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, bias=False))
    if operator != "regular":
        degrid.smooth_dilated_convs(conv, operator)
        off_the_start(conv)
    return conv.to(memory_format=torch.channels_last)


def network(operator: str) -> nn.Module:
    torch.manual_seed(0)
    model = degrid.deeplabv2("caffe:resnet101", 21, operator=operator)
    off_the_start(model)
    freeze_batch_norm(model, fold=False)
    return model.to(memory_format=torch.channels_last)


def forward_only(model: nn.Module, x: torch.Tensor, precision: str) -> Call:
    def call() -> object:
        with torch.inference_mode(), autocast(CPU, precision):
            return model(x)

    return call


def training(model: nn.Module, x: torch.Tensor, precision: str) -> Call:
    def call() -> object:
        with autocast(CPU, precision):
            y = model(x)
        y = y if isinstance(y, torch.Tensor) else y[0]
        return y.sum().backward()

    return call


def kept(call: Call, model: nn.Module) -> float:
    """MiB that autograd keeps between forward and backward, parameters left out, each storage once.

    What hooks inside the model keep by themselves, such as a weight cast by autocast, is not seen.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # The tensors are held, so that no two storages can have the same address.
    found: dict[int, torch.Tensor] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        found[saved.untyped_storage().data_ptr()] = saved
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        call()
    return sum(saved.untyped_storage().nbytes() for place, saved in found.items() if place not in own) / 2**20


def compare(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round-robin, after two calls to warm up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            gc.collect()
            began = clock()
            call()
            if number >= 2:
                seconds[name].append(clock() - began)
    return seconds


def report(seconds: dict[str, list[float]], extra: dict[str, float]) -> None:
    base = seconds["base"]
    print(f"  plain: {1e3 * median(base):.1f} ms")
    for name, own in seconds.items():
        if name == "base":
            continue
        low, middle, high = quantiles([100 * (a / b - 1) for a, b in zip(own, base, strict=True)], n=4)
        memory = f"   {extra[name]:+.1f} MiB" if extra else ""
        print(f"  {name:<14}{middle:+6.1f} %  ({low:+.1f} to {high:+.1f}){memory}")


def layers(operators: list[str], rounds: int, sizes: list[int]) -> None:
    for channels, rate in SHAPES:
        for mode, wrap, batch in (("forward", forward_only, 1), ("training", training, 2)):
            for side in sizes or [65 if batch == 1 else 41]:
                for precision in PRECISIONS:
                    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
                    x.requires_grad_(wrap is training)
                    models = {name: layer(channels, rate, name) for name in operators}
                    models = {"base": layer(channels, rate, "regular"), **models}
                    calls = {name: wrap(model, x, precision) for name, model in models.items()}
                    print(f"\n{channels} channels, rate {rate}, {batch}x{side}x{side}, {precision}, {mode}")
                    extra = {}
                    if wrap is training:
                        memory = {name: kept(calls[name], model) for name, model in models.items()}
                        extra = {name: value - memory["base"] for name, value in memory.items()}
                    report(compare(calls, rounds), extra)


def networks(operators: list[str], rounds: int) -> None:
    """Two networks at a time, since all at once need much memory."""
    plain = network("regular")
    for mode, wrap in (("forward", forward_only), ("training", training)):
        for precision in PRECISIONS:
            print(f"\nDeepLab v2, ResNet-101, 1x3x321x321, {precision}, {mode}")
            for name in operators:
                x = torch.rand(1, 3, 321, 321).mul(255).contiguous(memory_format=torch.channels_last)
                models = {"base": plain, name: network(name)}
                for model in models.values():
                    model.train(wrap is training)
                calls = {key: wrap(model, x, precision) for key, model in models.items()}
                extra = {}
                if wrap is training:
                    memory = {key: kept(calls[key], model) for key, model in models.items()}
                    extra = {key: value - memory["base"] for key, value in memory.items()}
                report(compare(calls, rounds), extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, nargs="*", default=[], help="sides of the maps, for both modes")
    parser.add_argument("--only", nargs="*", default=list(OPERATORS), help="these operators")
    parser.add_argument("--network", action="store_true", help="a whole network")
    args = parser.parse_args()
    keep_freed_memory()
    if numba_installed():
        use_torch_threads()  # starting numba's threads sets PyTorch's number
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {platform.processor() or platform.machine()}")
    print("over the plain dilated convolution: median (quartiles)")
    if args.network:
        networks(args.only, args.rounds)
    else:
        layers(args.only, args.rounds, args.size)


if __name__ == "__main__":
    main()
