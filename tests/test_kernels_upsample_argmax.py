"""Class ids without the enlarged logits, against enlarging them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from degrid.engine.inference.tta import confidence_bands
from degrid.kernels import upsample_argmax as module
from degrid.kernels import upsample_argmax_numpy
from degrid.kernels.upsample_argmax import _by_bands, _compiled, upsample_argmax
from degrid.resize import RESIZES, resize
from degrid.types import UserError


def by_numpy(logits, size, convention):
    return torch.stack(
        [torch.from_numpy(upsample_argmax_numpy.upsample_argmax(x.numpy(), size, convention)) for x in logits]
    )


PATHS = {"compiled": _compiled, "torch": _by_bands, "numpy": by_numpy}
conventions = st.sampled_from(RESIZES)
paths = st.sampled_from(sorted(PATHS))


def enlarged_argmax(logits, size, convention):
    return resize(logits, size, convention).argmax(1).to(torch.uint8)


def smooth(shape, seed, noise=0.1):
    """Regions with noise, as a network's logits are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(*shape[:2], shape[2] // 4 + 2, shape[3] // 4 + 2, generator=generator)
    return 3 * resize(coarse, shape[2:]) + noise * torch.randn(shape, generator=generator)


@settings(max_examples=150)
@given(
    path=paths,
    convention=conventions,
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.01, 1.0, 10.0]),
    channels_last=st.booleans(),
)
def test_the_class_is_the_best_up_to_rounding(path, convention, shape, size, seed, noise, channels_last):
    """In double precision, no class is ahead of the one found by more than rounding explains."""
    logits = smooth(shape, seed, noise)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    ids = PATHS[path](logits, size, convention)
    exact = resize(logits.double(), size, convention)
    behind = exact.amax(1) - exact.gather(1, ids[:, None].long())[:, 0]
    assert ids.shape == (shape[0], *size)
    assert behind.max() <= 1e-5 * (1 + logits.abs().max())


@settings(max_examples=150)
@given(
    path=paths,
    convention=conventions,
    data=st.data(),
    power=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_ties_go_to_the_lowest_class(path, convention, data, power):
    """Small whole numbers and shares that are powers of two: nothing is rounded, and ties are everywhere."""
    cells, classes = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), data.draw(st.integers(1, 6))
    extra = 1 if convention == "align_corners" else 0
    count, size = ([n * 2**p + extra for n, p in zip(cells, powers, strict=True)] for powers in ((0, 0), power))
    values = data.draw(st.lists(st.integers(-2, 2), min_size=1, max_size=40))
    logits = torch.tensor(values, dtype=torch.float32).repeat(1 + 2 * classes * count[0] * count[1] // len(values))
    logits = logits[: 2 * classes * count[0] * count[1]].reshape(2, classes, *count)
    assert torch.equal(PATHS[path](logits, tuple(size), convention), enlarged_argmax(logits, tuple(size), convention))


@pytest.mark.parametrize("convention", RESIZES)
@pytest.mark.parametrize("size", [(513, 513), (40, 30), (65, 65), (65, 200)])
def test_agrees_on_what_a_network_gives(convention, size):
    logits = smooth((1, 21, 65, 65), 1).contiguous(memory_format=torch.channels_last)
    expected = enlarged_argmax(logits, size, convention)
    assert len(expected.unique()) > 10
    for path in PATHS.values():
        found = path(logits, size, convention)
        assert (found != expected).float().mean() < 2e-5


def test_by_hand():
    """Two classes on 2 pixels, ahead by 3 on the left and by 1 on the right: the border is at three quarters."""
    logits = torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]])
    assert upsample_argmax(logits, (1, 9), "align_corners").tolist() == [[[0, 0, 0, 0, 0, 0, 0, 1, 1]]]
    assert upsample_argmax(logits, (2, 4)).tolist() == [[[0, 0, 0, 1]] * 2]
    assert upsample_argmax(logits, (1, 4), "tf_legacy").tolist() == [[[0, 0, 1, 1]]]


@pytest.mark.parametrize(
    ("path", "convention"),
    [(path, name) for path in PATHS for name in RESIZES if name != "tf_legacy" or path == "compiled"],
)
def test_not_a_number_wins_as_in_torch(path, convention):
    logits = smooth((1, 5, 6, 7), 3)
    logits[0, 3, 2, 2] = logits[0, 1, 2, 3] = logits[0, 4, 5, 6] = torch.nan
    size = (23, 31)
    expected = enlarged_argmax(logits.contiguous(memory_format=torch.channels_last), size, convention)
    assert torch.equal(PATHS[path](logits, size, convention), expected)


def test_types_and_the_number_of_classes():
    logits = smooth((2, 256, 4, 5), 0, 1.0)
    half = logits.bfloat16()
    assert torch.equal(upsample_argmax(half, (9, 9)), upsample_argmax(half.float(), (9, 9)))
    assert torch.equal(upsample_argmax(logits.double(), (4, 5)), logits.argmax(1).to(torch.uint8))
    assert upsample_argmax(logits.requires_grad_(), (4, 5)).max() > 200
    with pytest.raises(UserError, match="at most 256 classes; got 257"):
        upsample_argmax(torch.zeros(1, 257, 2, 2), (4, 4))
    with pytest.raises(UserError, match='unknown way to resize "cubic"'):
        upsample_argmax(torch.zeros(1, 2, 2, 2), (4, 4), "cubic")


def test_without_numba_in_bands(monkeypatch):
    """The twin is what runs then, and it never holds more than a band of enlarged logits."""
    logits, size = smooth((2, 4, 6, 7), 0), (50, 60)
    expected = upsample_argmax(logits, size)
    monkeypatch.setattr(module, "numba_installed", lambda: False)
    monkeypatch.setitem(module.BAND, "cpu", 2 * 4 * 60 * 7)
    rows = []
    lerp = torch.Tensor.lerp
    monkeypatch.setattr(torch.Tensor, "lerp", lambda low, *rest: rows.append(low.shape[1]) or lerp(low, *rest))
    assert torch.equal(upsample_argmax(logits, size), expected)
    assert rows == [7] * 7 + [1]


@pytest.mark.parametrize("convention", RESIZES)
@pytest.mark.parametrize("size", [(50, 61), (5, 6), (1, 1)])
def test_numpy_is_as_sure_as_torch(monkeypatch, convention, size):
    monkeypatch.setattr(upsample_argmax_numpy, "BAND", 4 * size[1] * 7)
    logits = smooth((1, 4, 9, 14), 5, 1.0)
    expected = torch.cat([band for _, band in confidence_bands(logits, size, convention, probabilities=False)])
    found = torch.from_numpy(upsample_argmax_numpy.confidence(logits[0].numpy(), size, convention))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert size == (1, 1) or found.std() > 0.05
