"""The three conventions of bilinear resizing."""

import pytest
import torch
import torch.nn.functional as F

from degrid import UserError
from degrid.contracts import convention_of
from degrid.resize import RESIZES, resize, resize_mirrored, scaled_size


def test_tf_legacy_by_hand():
    """source = i * in / out: 0, 0.5, 1, 1.5 for 2 -> 4, where the upper neighbour of the last pixel is itself."""
    x = torch.tensor([[[[0.0, 10.0], [20.0, 30.0]]]])
    expected = [[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]]
    assert resize(x, (4, 4), "tf_legacy")[0, 0].tolist() == expected


@pytest.mark.parametrize("width", [320, 321, 333])
def test_logits_of_a_mirrored_image_lie_on_those_of_the_image(width):
    """A network that passes on every 16th pixel of a ramp: enlarged, it is the same ramp in the mirror."""
    ramp = torch.arange(width).float().expand(1, 1, 32, width)
    plain = resize(ramp[..., ::16, ::16], (32, width), "tf_legacy")
    mirrored = resize_mirrored(ramp.flip(-1)[..., ::16, ::16], (32, width), "tf_legacy", width)
    torch.testing.assert_close(mirrored[..., 16:-32], plain[..., 16:-32], rtol=0, atol=1e-3)
    for symmetric in ("half_pixel", "align_corners"):
        logits = torch.randn(1, 2, 5, 7)
        found = resize_mirrored(logits, (32, width), symmetric, width)
        torch.testing.assert_close(found, resize(logits, (32, width), symmetric).flip(-1), rtol=0, atol=1e-5)


def test_tf_legacy_equals_a_literal_version():
    x = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    out = resize(x, (13, 4), "tf_legacy")
    for i in range(13):
        for j in range(4):
            y, z = i * 5 / 13, j * 7 / 4
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, 4), min(z0 + 1, 6)
            a, b = y - y0, z - z0
            value = (1 - a) * ((1 - b) * x[0, :, y0, z0] + b * x[0, :, y0, z1])
            value = value + a * ((1 - b) * x[0, :, y1, z0] + b * x[0, :, y1, z1])
            torch.testing.assert_close(out[0, :, i, j], value, rtol=1e-5, atol=1e-6)


def test_last_columns_of_an_enlarged_map_are_constant():
    """For 41 -> 321, as source_systems states, the last 7 columns."""
    out = resize(torch.randn(1, 1, 41, 41), (321, 321), "tf_legacy")[0, 0]
    assert bool((out[:, -7:] == out[:, -1:]).all())
    assert not bool((out[:, -9:] == out[:, -1:]).all())


@pytest.mark.parametrize(("convention", "corners"), [("half_pixel", False), ("align_corners", True)])
def test_the_others_are_pytorchs(convention, corners):
    x = torch.randn(2, 3, 5, 6)
    expected = F.interpolate(x, (9, 4), mode="bilinear", align_corners=corners)
    assert torch.equal(resize(x, (9, 4), convention), expected)


@pytest.mark.parametrize("convention", RESIZES)
def test_same_size_is_untouched_and_constants_stay(convention):
    x = torch.randn(1, 1, 4, 5)
    assert resize(x, (4, 5), convention) is x
    flat = resize(torch.full((1, 1, 3, 3), 2.5), (8, 10), convention)
    torch.testing.assert_close(flat, torch.full((1, 1, 8, 10), 2.5))


def test_scaled_sizes_of_the_original_systems():
    assert scaled_size((321, 321), 0.75, "align_corners") == (241, 241)
    assert scaled_size((513, 513), 0.5, "align_corners") == (257, 257)
    assert scaled_size((321, 321), 0.75, "tf_legacy") == (240, 240)
    assert scaled_size((2, 1, 3, 5), 0.1) == (1, 1)


def test_names():
    with pytest.raises(UserError, match='unknown way to resize "cubic"; known: half_pixel'):
        resize(torch.zeros(1, 1, 2, 2), (3, 3), "cubic")
    assert convention_of(torch.nn.Identity()) == "half_pixel"
