"""Mixing within blocks, compiled, against PyTorch in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from degrid.kernels import smoothing
from degrid.kernels.smoothing import _with_torch, mix_groups


@settings(max_examples=60)
@given(
    rate=st.integers(1, 5),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    cut=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    count=st.integers(1, 2),
    channels=st.sampled_from([1, 3, 16, 37]),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients(rate, blocks, cut, count, channels, channels_last, seed):
    """Also where the last rows and columns are left out, as many as a block has or fewer."""
    generator = torch.Generator().manual_seed(seed)
    shape = [rate * number for number in blocks]
    size = tuple(side - min(less, rate - 1) for side, less in zip(shape, cut, strict=True))
    y = torch.randn(count, channels, *shape, generator=generator)
    weight = torch.randn(rate**2, rate**2, generator=generator)
    grad = torch.randn(count, channels, *size, generator=generator)
    if channels_last:
        y = y.contiguous(memory_format=torch.channels_last)
    results = []
    for own, cast in ((mix_groups, torch.float32), (_with_torch, torch.float64)):
        leaves = [tensor.detach().to(cast).requires_grad_() for tensor in (y, weight)]
        out = own(*leaves, rate, size).mul_(2)  # in place, as a ReLU may change it
        results.append([out, *torch.autograd.grad(out, leaves, grad.to(cast))])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_by_hand():
    y = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    weight = torch.zeros(4, 4)
    weight[0, 3], weight[1, 0] = 5, 7
    assert mix_groups(y, weight, 2, (2, 2)).tolist() == [[[[14.0, 0.0], [0.0, 5.0]]]]
    assert mix_groups(y, weight, 2, (1, 2)).tolist() == [[[[14.0, 0.0]]]]


def test_second_derivatives():
    """Of the compiled version, by those of PyTorch's."""
    torch.manual_seed(0)
    y, weight = torch.randn(1, 2, 4, 4), torch.randn(4, 4)

    def second(mix, cast):
        leaves = [tensor.to(cast).requires_grad_() for tensor in (y, weight)]
        first = torch.autograd.grad(mix(*leaves, 2, (3, 4)).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(part.square().sum() for part in first), leaves)

    for found, expected in zip(second(mix_groups, torch.float32), second(_with_torch, torch.float64), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_numba_and_in_half_precision(monkeypatch, dtype):
    y, weight = torch.randn(2, 3, 6, 6).to(dtype), torch.randn(9, 9)
    expected = _with_torch(y.double(), weight.double(), 3, (5, 6))
    monkeypatch.setattr(smoothing, "numba_installed", lambda: False)
    found = mix_groups(y, weight, 3, (5, 6))
    assert found.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), expected, rtol=close, atol=3 * close)
