"""Convolutions as sums of shifted 1x1 convolutions equal the convolutions."""

import pytest
import torch
from torch import nn

from degrid.acceleration import taps
from degrid.acceleration.taps import TapConv2d, reach_onednn, use_taps


@pytest.mark.parametrize("rate", range(1, 25))
@pytest.mark.parametrize("out", [5, 48])
def test_equals_the_convolution(rate, out):
    torch.manual_seed(rate)
    conv = nn.Conv2d(6, out, 3, padding=rate, dilation=rate, bias=rate % 2 == 0)
    for count, height, width in ((1, 23, 31), (3, 1, 7), (2, 16, 16)):
        x = torch.randn(count, 6, height, width)
        with torch.no_grad():
            torch.testing.assert_close(TapConv2d(conv)(x), conv(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("out", [5, 48])
def test_other_kernels(out):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, out, (5, 3), padding=(4, 2), dilation=2)
    x = torch.randn(2, 4, 11, 13)
    with torch.no_grad():
        torch.testing.assert_close(TapConv2d(conv)(x), conv(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("out", "kind"), [(5, torch.float32), (48, torch.bfloat16)])
def test_bfloat16_is_added_up_in_float32(out, kind):
    """As exact as the library's bfloat16: against the float64 result of the same rounded numbers."""
    torch.manual_seed(0)
    conv = nn.Conv2d(256, out, 3, padding=6, dilation=6).bfloat16()
    x = torch.randn(1, 256, 20, 20).bfloat16()
    exact = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=6, dilation=6)
    with torch.no_grad():
        found, library = TapConv2d(conv)(x), conv(x)
    assert found.dtype == kind
    ours, theirs = ((each.double() - exact).abs().max() for each in (found, library))
    assert ours <= 1.5 * theirs


def network():
    return nn.Sequential(
        nn.Conv2d(2048, 64, 3, padding=12, dilation=12),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 256, 1),
        nn.Conv2d(256, 21, 3, padding=6, dilation=6),
        nn.Conv2d(256, 21, 3, stride=2, padding=1),
    )


def test_only_where_it_wins(monkeypatch):
    monkeypatch.setattr(taps, "has_matrix_units", lambda: True)
    exact, rough = network(), network()
    assert use_taps(exact, torch.float32) == 1
    assert [isinstance(layer, TapConv2d) for layer in exact] == [False, False, False, True, False]
    assert use_taps(rough, torch.bfloat16) == 2
    assert [isinstance(layer, TapConv2d) for layer in rough] == [True, False, False, True, False]
    monkeypatch.setattr(taps, "has_matrix_units", lambda: False)
    plain = network()
    assert use_taps(plain, torch.bfloat16) == 1
    assert [isinstance(layer, TapConv2d) for layer in plain] == [False, False, False, True, False]


def test_single_taps_reach_onednn_with_the_same_values():
    torch.manual_seed(0)
    plain = [nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1, groups=4), nn.Conv2d(16, 8, 1, bias=False)]
    others = [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, padding=1)]
    network, x = nn.Sequential(*plain, *others).eval(), torch.randn(1, 8, 64, 65)
    threads, expected = torch.get_num_threads(), network(x)
    try:
        torch.set_num_threads(1)
        before = in_onednn(network, x)
        assert reach_onednn(network) == len(plain)
        assert in_onednn(network, x) > before
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(threads)
    assert [conv.dilation for conv in others] == [(1, 1)] * 3


def in_onednn(network, x):
    """How many convolutions oneDNN computes."""
    with torch.profiler.profile() as seen, torch.inference_mode():
        network(x)
    return sum(event.name == "aten::mkldnn_convolution" for event in seen.events())
