"""A training step of DeepLab v3 on ResNet-50 against torchvision's, and what each keeps for the backward pass.

All variants are the same network (output stride 8, ASPP rates 12, 24, 36, a 3x3 convolution before the classifier) and
run in turn in one process; a row is the median of the ratios to torchvision's eager default (batch statistics, NCHW,
float32) measured in the same round, with the quartiles.

    python benchmarks/training.py [--rounds 5] [--crop 321] [--batch 2] [--only NAME ...]

Saved activations: all tensors that autograd keeps between forward and backward, parameters and buffers left out, each
storage once.
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
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import degrid
from degrid.engine.device import autocast
from degrid.engine.losses import cross_entropy_sum, loss_weight
from degrid.models import freeze_batch_norm
from degrid.models.memory import checkpoint_activations

CLASSES = 21
Loss = Callable[[], Tensor]


def peer(x: Tensor, y: Tensor) -> tuple[nn.Module, Loss]:
    model = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False
    ).train()
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    return model, lambda: F.cross_entropy(model((x.float() - mean) / std)["out"], y, ignore_index=255)


def ours(
    x: Tensor, y: Tensor, frozen: bool = False, fold: bool = False, bfloat16: bool = False, checkpoint: bool = False
) -> tuple[nn.Module, Loss]:
    model = degrid.deeplabv3("timm:resnet50", CLASSES, output_stride=8, network="deeplabv3_refined").train()
    model.to(memory_format=torch.channels_last)
    if frozen:
        freeze_batch_norm(model, fold=fold)
    if checkpoint:
        checkpoint_activations(model)
    x = x.contiguous(memory_format=torch.channels_last)

    def loss() -> Tensor:
        with autocast(x.device, "bfloat16" if bfloat16 else "float32"):
            logits = model(x)
        return cross_entropy_sum(logits, y) / loss_weight(y, tuple(logits.shape[-2:]))

    return model, loss


VARIANTS: dict[str, Callable[[Tensor, Tensor], tuple[nn.Module, Loss]]] = {
    "torchvision": peer,
    "train": ours,
    "train bf16": lambda x, y: ours(x, y, bfloat16=True),
    "frozen": lambda x, y: ours(x, y, frozen=True),
    "folded": lambda x, y: ours(x, y, frozen=True, fold=True),
    "folded bf16": lambda x, y: ours(x, y, frozen=True, fold=True, bfloat16=True),
    "folded bf16 checkpointed": lambda x, y: ours(x, y, frozen=True, fold=True, bfloat16=True, checkpoint=True),
    "train bf16 checkpointed": lambda x, y: ours(x, y, bfloat16=True, checkpoint=True),
}


def saved_mib(model: nn.Module, loss: Loss) -> float:
    """MiB that a step keeps between forward and backward."""
    sizes: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss()  # kept, so that no storage is given twice
    total = sum(sizes.values()) / 2**20
    del value
    return total


def step(model: nn.Module, loss: Loss) -> Callable[[], None]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return call


def keep_freed_memory() -> None:
    """glibc gives blocks above 32 MB back at once, and the kernel then clears them anew for every tensor."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):
            libc.mallopt(option, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", type=int, default=321)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, where other work disturbs")
    parser.add_argument("--allocator", action="store_true", help="keep freed memory, for all variants")
    args = parser.parse_args()
    if args.allocator:
        keep_freed_memory()
    names = list(dict.fromkeys(["torchvision", *args.only]))
    torch.manual_seed(0)
    x = torch.randint(0, 256, (args.batch, 3, args.crop, args.crop), dtype=torch.uint8)
    y = torch.randint(0, CLASSES, (args.batch, args.crop, args.crop))
    calls, saved = {}, {}
    for name in names:
        model, loss = VARIANTS[name](x, y)
        saved[name] = saved_mib(model, loss)
        calls[name] = step(model, loss)
    gc.collect()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.batch} crops of {args.crop}")
    now = time.process_time if args.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds + 1 if args.rounds else 0):
        for name, call in calls.items():
            began = now()
            call()
            if number >= 1:
                seconds[name].append(now() - began)
    for name in names:
        row = f"{name:<26}{saved[name]:7.0f} MiB ({saved[name] / saved['torchvision']:.2f})"
        if args.rounds > 1:
            ratios = [theirs / own for own, theirs in zip(seconds[name], seconds["torchvision"], strict=True)]
            low, _, high = quantiles(ratios, n=4)
            row += f"{median(seconds[name]):8.2f} s   {median(ratios):.2f} x ({low:.2f} to {high:.2f})"
        print(row)


if __name__ == "__main__":
    main()
