"""Effective receptive fields and the gridding score, against values worked out by hand and in the literature notes."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from degrid.analysis import (
    checkerboard_energy,
    dilated_stage_receptive_field,
    effective_receptive_field,
    gridding_score,
    hole_ratio,
    independent_networks,
    phase_exchange,
)
from degrid.analysis.field_numbers import (
    effective_size,
    mass_side,
    phase_masses,
    radial_profile,
    score_of_width,
    spectrum,
)
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


def test_phase_exchange():
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert phase_exchange(conv(2, 3), x, (2, 2)) == pytest.approx(0, abs=1e-6)
    smoothed = conv(2, 3)
    smooth_dilated_convs(smoothed, "tent")
    assert 0.5 < phase_exchange(smoothed, x, (2, 2)) <= 0.75

    def spread(x):  # every position becomes the mean of its block
        return torch.nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)

    assert phase_exchange(spread, x, (2, 2)) == pytest.approx(0.75)
    assert phase_exchange(spread, x, (2, 1)) == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"expected an output of the input's size \(16, 16\), got \(8, 8\)"):
        phase_exchange(nn.MaxPool2d(2), x, (2, 2))


def test_independent_networks():
    x = torch.randn(1, 1, 25, 25, generator=torch.Generator().manual_seed(0))
    assert independent_networks(conv(4), x) == (4, 4)
    assert independent_networks(nn.Sequential(conv(4), conv(6)), x) == (2, 2)
    assert independent_networks(nn.Sequential(conv(2), conv(3)), x) == (1, 1)
    assert independent_networks(nn.Conv2d(1, 1, (1, 3), padding=(0, 2), dilation=2), x) == (25, 2)


def test_width_explains_the_score_of_a_small_field():
    # A Gaussian explains itself; sampled on every fourth pixel, it is a grid that its width does not explain.
    offset = np.arange(-20, 21)
    line = np.exp(-(offset**2) / (2 * 0.8**2))
    field = line[:, None] * line
    assert score_of_width(field, 4) == pytest.approx(gridding_score(field, 4), rel=1e-3)
    assert 0.01 < gridding_score(field, 4) < 0.2
    wide = np.exp(-(offset**2) / (2 * 5**2))
    grid = np.where(offset % 4 == 0, wide, 0)[:, None] * np.where(offset % 4 == 0, wide, 0)
    assert gridding_score(grid, 4) == pytest.approx(1)
    assert score_of_width(grid, 4) < 1e-6


def test_numbers_of_a_field_by_hand():
    field = np.zeros((11, 11))
    field[3:8, 3:8] = 1  # 25 pixels
    field[5, 5] = 10
    assert mass_side(field) == 5
    assert mass_side(field, 0.5) == 3  # 10 + 8 of 34
    assert effective_size(field) == 5  # all are above 4.55 % of 10
    assert effective_size(np.where(field == 1, 0.4, field)) == 1
    # At distance 1, rounded: 4 pixels, and 4 diagonal ones at 1.41.
    profile = radial_profile(field)
    assert profile[:2].tolist() == [10, 1]
    assert profile[5] == 0
    assert len(profile) == 6


def test_spectrum_of_a_grid_has_its_images():
    field = np.zeros((24, 24))
    field[::4, ::4] = 1
    found = spectrum(field)
    peaks = np.argwhere(found > 0.5)
    assert {tuple(peak) for peak in peaks.tolist()} == {(y, x) for y in range(0, 24, 6) for x in range(0, 24, 6)}


def test_checkerboard_energy():
    random = np.random.default_rng(0)
    noise = random.standard_normal((5, 64, 64))
    assert checkerboard_energy(noise, 2) == pytest.approx(1, abs=0.4)
    board = np.zeros((64, 64))
    board[::2, ::2] = 1
    assert checkerboard_energy(noise + board, 2) > 5
    assert 2 < checkerboard_energy(noise + board, 4) < 8  # 3 of its 15 frequencies
    with pytest.raises(UserError, match="a grid of period 4 needs maps of at least 32 pixels, got 16x16"):
        checkerboard_energy(noise[:, :16, :16], 4)


def test_last_stage_of_a_network_before_and_after():
    torch.manual_seed(0)
    encoder = timm.create_model("resnet26", features_only=True, output_stride=8, zero_init_last=False)
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
