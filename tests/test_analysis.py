"""Effective receptive fields and the gridding score, against values worked out by hand and in the literature notes."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from degrid.analysis import (
    dilated_stage_receptive_field,
    effective_receptive_field,
    gridding_score,
    hole_ratio,
)
from degrid.analysis.receptive_field import phase_masses
from degrid.smoothing import smooth_dilated_convs
from degrid.types import UserError


def conv(rate, channels=1):
    layer = nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, bias=False)
    nn.init.uniform_(layer.weight, 0.1, 1)
    return layer


def field_of(rate, operator=None, **options):
    layer = conv(rate)
    if operator:
        smooth_dilated_convs(layer, operator, lambda name, module: True, **options)
    return effective_receptive_field(layer, (1, 8 * rate + 1, 8 * rate + 1), runs=1)


def test_field_of_a_convolution_is_its_kernel():
    layer = conv(3)
    field = effective_receptive_field(layer, (1, 15, 15), runs=2)
    taps = field[4:13:3, 4:13:3]
    weights = layer.weight[0, 0].detach().double().numpy()
    # A cross-correlation: the tap at offset +3 is the kernel's last one.
    assert np.allclose(taps / taps.max(), weights / weights.max(), atol=1e-6)
    assert np.count_nonzero(field) == 9
    assert field[7, 7] == taps[1, 1]


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        (None, (1, 1, 1, 1, 1)),
        (lambda r: {"operator": "average", "size": r - 1}, (1, 0.0519, 0.0126, 0.0049, 0.0013)),
        (lambda r: {"operator": "gaussian", "sigma": 0.5**0.5, "size": r - 1}, (1, 0.1231, 0.1399, 0.1504, 0.1579)),
        (lambda r: {"operator": "gaussian", "size": r - 1}, (1, 0.0673, 0.0563, 0.0651, 0.0732)),
        (lambda r: {"operator": "average", "size": 2 * (r // 2) + 1}, (0.0782, 0.0170, 0.0061, 0.0029, 0.0009)),
        (
            lambda r: {"operator": "gaussian", "sigma": r / 3, "size": 2 * r - 1},
            (0.0308, 0.0030, 0.0013, 0.0008, 0.0003),
        ),
        (lambda r: {"operator": "gaussian", "sigma": r / 2, "size": 2 * r - 1}, (0.0062, 0.0008, 0.0002, 0.0001, 0)),
        (lambda r: {"operator": "tent"}, (0, 0, 0, 0, 0)),
        (lambda r: {"operator": "ssc"}, (1, 1, 1, 1, 1)),
    ],
    ids=["none", "box r-1", "Gaussian as coded", "Gaussian 1", "odd box", "r/3", "r/2", "tent", "ssc at start"],
)
def test_gridding_scores_of_single_layers(options, scores):
    found = [gridding_score(field_of(r, **(options(r) if options else {})), r) for r in (2, 4, 6, 8, 12)]
    assert found == pytest.approx(scores, abs=6e-5)


def test_gridding_score_by_hand():
    field = np.zeros((5, 5))
    field[2, 2], field[2, 3] = 3, 1  # phases (0,0) and (0,1) with 3/4 and 1/4
    assert phase_masses(field, 2).tolist() == [[0.75, 0.25], [0, 0]]
    assert gridding_score(field, 2) == pytest.approx((4 * (9 / 16 + 1 / 16) - 1) / 3)
    assert gridding_score(np.ones((8, 8)), 2) == pytest.approx(0)
    assert gridding_score(7 * field, 2) == pytest.approx(gridding_score(field, 2))
    with pytest.raises(UserError, match="a rate of at least 2"):
        gridding_score(field, 1)


def test_hole_ratio_by_hand():
    # 3x3 taps 4 apart: the 9x9 square around them has 81 positions, 9 of them seen.
    field = np.zeros((17, 17))
    field[4:13:4, 4:13:4] = 1
    assert hole_ratio(field) == pytest.approx(72 / 81)
    assert hole_ratio(np.ones((17, 17))) == 0


def phase_exchange(function, shape, rate, seed=0):
    """Change the input on one phase of the grid only: the fraction of the output's change that is on other phases.

    0 if the phases are separate networks, (r^2 - 1) / r^2 if they are fully mixed.
    """
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, *shape, generator=random)
    change = torch.zeros_like(x)
    change[..., ::rate, ::rate] = torch.randn(change[..., ::rate, ::rate].shape, generator=random)
    with torch.no_grad():
        energy = (function(x + change) - function(x)).square().sum((0, 1))
    kept = energy[::rate, ::rate].sum()
    return float(1 - kept / energy.sum())


def test_phase_exchange():
    assert phase_exchange(conv(2, 3), (3, 16, 16), 2) == pytest.approx(0, abs=1e-6)
    smoothed = conv(2, 3)
    smooth_dilated_convs(smoothed, "tent")
    assert 0.5 < phase_exchange(smoothed, (3, 16, 16), 2) <= 0.75
    mixed = nn.Conv2d(1, 1, 1, bias=False)
    mixed.weight.data.fill_(1)

    def spread(x):  # every position becomes the sum of its block
        return torch.nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)

    assert phase_exchange(spread, (1, 16, 16), 2) == pytest.approx(0.75)


def test_last_stage_of_a_network_before_and_after():
    torch.manual_seed(0)
    encoder = timm.create_model("resnet50", features_only=True, output_stride=8, zero_init_last=False)
    encoder.train()
    encoder.layer4[0].bn1.eval()  # frozen by its owner
    plain = dilated_stage_receptive_field(encoder, side=33, runs=2)
    assert gridding_score(plain, 2) == pytest.approx(1)  # rates 2, 4, 4: a network for every phase
    assert encoder.training
    assert not encoder.layer4[0].bn1.training
    smooth_dilated_convs(encoder, "tent")
    smoothed = dilated_stage_receptive_field(encoder, side=33, runs=2)
    assert gridding_score(smoothed, 2) < 0.1
    assert hole_ratio(smoothed) < 0.1 < 0.5 < hole_ratio(plain)


def test_mistakes():
    with pytest.raises(UserError, match="expected an output of the input's size"):
        effective_receptive_field(nn.Conv2d(1, 1, 3, stride=2), (1, 9, 9))
    with pytest.raises(UserError, match="no stage of this encoder has a dilated convolution"):
        dilated_stage_receptive_field(timm.create_model("resnet18", features_only=True))


def test_stages_of_mobilenets_are_found():
    encoder = timm.create_model("mobilenetv2_100", features_only=True, output_stride=8)
    field = dilated_stage_receptive_field(encoder, side=33, runs=1)
    assert field.shape == (33, 33)
    assert gridding_score(field, 4) == pytest.approx(1)
