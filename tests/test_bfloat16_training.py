"""Gradients of dilated convolutions in bfloat16 on the CPU, which oneDNN gets wrong, against double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from degrid.acceleration.bfloat16 import right_gradients
from degrid.engine.training.loop import Training, train_step
from degrid.engine.training.objective import Objective
from degrid.types import Batch

LAST = torch.channels_last
WIDE = 40
"""Columns of a map; below 32 the library is right."""
CASES = {
    "depthwise": (F.conv2d, (8, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": 8}),
    "depthwise, most taps outside": (F.conv2d, (8, 1, 3, 3), {"padding": 12, "dilation": 12, "groups": 8}),
    "along the height": (F.conv2d, (8, 1, 3, 3), {"padding": (2, 1), "dilation": (2, 1), "groups": 8}),
    "in pairs": (F.conv2d, (8, 2, 3, 3), {"padding": 3, "dilation": 3, "groups": 4}),
    "odd numbers of channels": (F.conv2d, (5, 8, 3, 3), {"padding": 2, "dilation": 2}),
    "transposed": (F.conv_transpose2d, (8, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": 8}),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def gradients(convolve, x, weight, settings, kind):
    """Of a loss that is the output times random numbers, for the input and the filter."""
    leaves = [each.to(kind).contiguous(memory_format=LAST).requires_grad_() for each in (x, weight)]
    y = convolve(*leaves, **settings)
    return torch.autograd.grad(y, leaves, normal(*y.shape, seed=2).to(kind).contiguous(memory_format=LAST))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_double_precision(case):
    convolve, shape, settings = CASES[case]
    x, weight = normal(2, 8, 20, WIDE), normal(*shape, seed=1)
    truth = gradients(convolve, x, weight, settings, torch.double)
    with right_gradients():
        found = gradients(convolve, x, weight, settings, torch.bfloat16)
    # Without AVX-512, PyTorch's gradient of the input adds nine taps in bfloat16; ours of the filter adds in float32.
    for own, other, bound in zip(found, truth, (0.02, 0.01), strict=True):
        assert own.dtype == torch.bfloat16
        assert (own - other).abs().max() < bound * other.abs().max()


def has_own_kernel():
    return torch._C._dispatch_has_kernel_for_dispatch_key("aten::convolution_backward", "CPU")


def test_pytorch_is_as_before_once_nobody_needs_the_gradients():
    with right_gradients():
        with right_gradients():
            assert has_own_kernel()
        assert has_own_kernel()
    assert not has_own_kernel()


def test_a_training_step_in_bfloat16_has_the_gradients_of_float32():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    ).to(memory_format=LAST)
    state = Training(net, torch.optim.SGD(net.parameters(), lr=0))
    batch = Batch(normal(2, 3, 20, WIDE), torch.arange(2 * 20 * WIDE).reshape(2, 20, WIDE) % 7 % 2, ["a", "b"])
    found = {}
    for precision in ("float32", "bfloat16"):
        train_step(state, [batch], Objective(), precision)
        found[precision] = net[1].weight.grad.clone()
    largest = found["float32"].abs().max()
    assert (found["bfloat16"] - found["float32"]).abs().max() < 0.05 * largest
    assert not has_own_kernel()


@pytest.mark.long
def test_a_compiled_training_step_in_bfloat16_has_the_gradients_of_float32():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8).to(memory_format=LAST)
    x = normal(2, 8, 20, WIDE).contiguous(memory_format=LAST)
    conv(x).square().mean().backward()
    truth, conv.weight.grad = conv.weight.grad, None
    with right_gradients(), torch.autocast("cpu", torch.bfloat16):
        torch.compile(conv)(x).float().square().mean().backward()
    assert (conv.weight.grad - truth).abs().max() < 0.02 * truth.abs().max()
