"""Winograd against the direct dilated convolution, by layer and in a whole network beside OpenVINO, float32, CPU.

All variants run round-robin in one process; a ratio is the median over the rounds of the ratio within a round, with the
quartiles, so that a machine whose speed drifts does not matter; after it the ratio of the fastest calls. The error is
the largest one, relative to the largest output of the float64 convolution.

    python benchmarks/winograd.py layers  [--rounds 15] [--threads 2] [--keep-memory]
    python benchmarks/winograd.py network [--rounds 7]  [--threads 2] [--keep-memory] [--size 513]

--keep-memory has glibc keep freed memory, instead of fetching large blocks from the system anew each time.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median, quantiles

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import degrid
from degrid.kernels import winograd
from degrid.kernels.fold import folded
from degrid.kernels.support import use_torch_threads

SHAPES = (
    (256, 256, 2, 65, 1),
    (512, 512, 4, 65, 1),
    (512, 512, 4, 41, 1),
    (256, 256, 2, 41, 2),
    (128, 128, 1, 65, 1),
    (64, 64, 1, 129, 1),
    (2048, 256, 12, 65, 1),
    (2048, 256, 24, 65, 1),
)
"""Channels in, channels out, rate, side of the map, batch."""


def compare(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round-robin, after three calls to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 3):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(base: list[float], other: list[float]) -> str:
    """How many times as fast the second is; last, by the fastest call of each, which other work disturbs least."""
    values = [a / b for a, b in zip(base, other, strict=True)]
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.2f} ({low:.2f}..{high:.2f}) {min(base) / min(other):.2f}"


def layers(rounds: int) -> None:
    print(f"{'shape':<24}{'direct ms':>10}{'Winograd ms':>12}{'over channels_last':>26}{'over NCHW':>25}", end="")
    print(f"{'without numba':>25}{'tile':>8}{'error':>9}")
    for channels, count, rate, side, batch in SHAPES:
        torch.manual_seed(0)
        conv = nn.Conv2d(channels, count, 3, padding=rate, dilation=rate)
        plain = torch.randn(batch, channels, side, side)
        x = plain.contiguous(memory_format=torch.channels_last)
        rows = conv.weight.contiguous(memory_format=torch.channels_last)
        fast = winograd.WinogradConv2d.from_conv(conv)
        tile = winograd.best_tile(tuple(plain.shape), count, rate) or (4, 4)
        fast._tile = lambda x, t=tile: t  # also where it does not pay
        twin = winograd._Prepared(conv.weight)
        pixels, bias = x.permute(0, 2, 3, 1), conv.bias
        calls = {
            "direct": lambda x=x, w=rows, c=conv: F.conv2d(x, w, c.bias, 1, c.padding, c.dilation),
            "winograd": lambda f=fast, x=x: f(x),
            "nchw": lambda x=plain, c=conv: c(x),
            "twin": partial(winograd._in_torch, pixels, partial(twin.multiply, tile=tile), bias, rate, False, tile),
        }
        with torch.inference_mode():
            exact = F.conv2d(plain.double(), conv.weight.double(), bias.double(), 1, rate, rate)
            error = ((fast(x) - exact).abs().max() / exact.abs().max()).item()
            times = compare(calls, rounds)
        own, direct = times["winograd"], times["direct"]
        print(f"{channels}>{count} r{rate} {batch}x{side}x{side}".ljust(24), end="")
        print(f"{1e3 * median(direct):>10.2f}{1e3 * median(own):>12.2f}{ratio(direct, own):>26}", end="")
        print(f"{ratio(times['nchw'], own):>25}{ratio(direct, times['twin']):>25}", end="")
        print(f"{winograd.best_tile(tuple(x.shape), count, rate)!s:>8}{error:>9.1e}", flush=True)


def folded_network(size: int) -> nn.Module:
    """DeepLab v3 on ResNet-50, output stride 8, random weights, batch norm folded, channels_last."""
    torch.manual_seed(0)
    model = degrid.deeplabv3("timm:resnet50", 21, output_stride=8)
    with torch.no_grad():  # statistics as after training: activations neither vanish nor grow
        model.train()
        for _ in range(5):
            model(torch.randint(0, 256, (2, 3, 129, 129), dtype=torch.uint8))
    return folded(model).eval().to(memory_format=torch.channels_last)


def openvino_network(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Tensor]:
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    with torch.inference_mode():
        converted = ov.convert_model(model, example_input=x, input=[tuple(x.shape)])
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    array = x.numpy()
    return lambda: torch.from_numpy(np.asarray(next(iter(request.infer([array]).values()))))


def network(rounds: int, size: int, threads: int) -> None:
    model = folded_network(size)
    x = torch.rand(1, 3, size, size) * 255
    fast = copy.deepcopy(model)
    print(f"DeepLab v3 ResNet-50, output stride 8, {size} x {size}: {winograd.use_winograd(fast)} layers replaced")
    images = x.contiguous(memory_format=torch.channels_last)
    calls = {
        "direct": lambda: model(images),
        "winograd": lambda: fast(images),
        "openvino": openvino_network(model, x, threads),
    }
    with torch.inference_mode():
        logits = {name: call() for name, call in calls.items()}
        times = compare(calls, rounds)
        exact = copy.deepcopy(model).double()(images.double())
    for name, values in times.items():
        error = ((logits[name] - exact).abs().max() / exact.abs().max()).item()
        same = (logits[name].argmax(1) == exact.argmax(1)).float().mean().item()
        print(f"{name:<10}{1e3 * median(values):>8.0f} ms, error {error:.1e}, argmax as float64's: {100 * same:.4f} %")
    print(f"Winograd over direct channels_last: {ratio(times['direct'], times['winograd'])}")
    print(f"Winograd over OpenVINO float32: {ratio(times['openvino'], times['winograd'])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "network"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=513)
    parser.add_argument("--keep-memory", action="store_true")
    args = parser.parse_args()
    use_torch_threads()  # the first start of compiled threads changes PyTorch's number
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        libc = ctypes.CDLL(None)
        for setting, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # MMAP_MAX, TRIM_THRESHOLD, TOP_PAD
            libc.mallopt(setting, value)
    print(f"torch {torch.__version__}, {args.threads} threads, {platform.processor() or platform.machine()}", end="")
    print(", freed memory kept" if args.keep_memory else "")
    if args.what == "layers":
        layers(args.rounds)
    else:
        network(args.rounds, args.size, args.threads)


if __name__ == "__main__":
    main()
