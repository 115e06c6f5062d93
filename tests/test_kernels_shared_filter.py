"""The gradient of a shared filter, against summing what autograd gives for a filter per channel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from degrid.kernels.smoothing import _compiled_gradient, _gradient_with_torch, shared_filter_gradient


def by_autograd(grad, x, size):
    """In double precision."""
    kernel = torch.zeros(size, size, dtype=torch.float64, requires_grad=True)
    channels = x.shape[1]
    y = F.conv2d(x.double(), kernel.expand(channels, 1, size, size), padding=size // 2, groups=channels)
    return torch.autograd.grad(y, kernel, grad.double())[0]


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 16, 37]), st.integers(1, 9), st.integers(1, 9)),
    size=st.sampled_from([1, 3, 5, 7, 11]),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_equals_autograd(shape, size, channels_last, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    grad, x = (torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    expected = by_autograd(grad, x, size)
    found = _compiled_gradient(grad, x, size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    if dtype == torch.float32:
        torch.testing.assert_close(_gradient_with_torch(grad, x, (size, size)).double(), expected, rtol=1e-4, atol=1e-3)


def test_by_hand():
    """One pixel lit in each map: one number, at their distance."""
    x, grad = torch.zeros(1, 2, 5, 6), torch.zeros(1, 2, 5, 6)
    x[0, 1, 3, 2], grad[0, 1, 2, 4] = 3, 5
    expected = torch.zeros(5, 5)
    expected[2 + 1, 2 - 2] = 15
    assert torch.equal(shared_filter_gradient(grad, x, 5), expected)


def test_large_sums_are_exact_to_single_precision():
    torch.manual_seed(0)
    grad, x = torch.randn(2, 64, 41, 41), 1 + torch.randn(2, 64, 41, 41)
    expected = by_autograd(grad, x, 7)
    assert (shared_filter_gradient(grad, x, 7) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_double_precision_and_second_derivatives_run_as_pytorch():
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert shared_filter_gradient(grad, x, 3).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda grad, x: shared_filter_gradient(grad, x, 3), (grad, x))


@pytest.mark.parametrize("installed", [True, False])
def test_without_numba(monkeypatch, installed):
    from degrid.kernels import smoothing

    monkeypatch.setattr(smoothing, "numba_installed", lambda: installed)
    grad, x = torch.randn(2, 8, 9, 7), torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(
        shared_filter_gradient(grad, x, 7).double(), by_autograd(grad, x, 7), rtol=1e-4, atol=1e-4
    )
