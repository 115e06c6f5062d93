"""What maps can depend on by the shapes of layers, against NaNs that are sent through the network."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import degrid
from degrid.analysis.reach import Following
from degrid.types import UserError


def conv(rate=1, taps=3, stride=1, **options):
    return nn.Conv2d(2, 2, taps, stride, rate * (taps // 2), rate, **options)


class Branches(nn.Module):
    """A network of many operations, with two maps of different size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            conv(taps=5, stride=2), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.wide = conv(3)
        self.far = conv(4)
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        joined = torch.cat([self.wide(x), F.hardswish(self.far(x))], 1)
        joined = joined[:, :2] * torch.sigmoid(joined[:, 2:])
        padded = F.pad(joined, (1, 0, 2, 0))[..., :-2, :-1]
        stacked = torch.stack([padded, self.pool(x)]).sum(0)
        return F.interpolate(stacked, scale_factor=2, mode="bilinear"), {
            "small": F.adaptive_avg_pool2d(stacked, (3, 4))
        }


def by_nan(network, image, axis):
    """Which rows (axis 2) or columns (3) of the output each row or column of the image reaches; [out,in]."""
    seen = []
    for place in range(image.shape[axis]):
        x = image.clone()
        x.select(axis, place).fill_(float("nan"))
        seen.append(network(x).isnan().flatten(0, 1).any(0).any(3 - axis).numpy())
    return np.stack(seen, 1)


@pytest.mark.parametrize("output", [0, 1])
def test_reach_is_what_nans_reach(output):
    torch.manual_seed(0)
    network, image = Branches().eval(), torch.randn(1, 2, 40, 36)

    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            large, rest = self.inner(x)
            return [large, rest["small"]][output]

    chosen = Chosen()
    followed = Following(chosen, image, lambda name, layer: name == "")
    assert followed.opaque == {}
    reach = followed.reach("", "")
    with torch.no_grad():
        # PyTorch multiplies the second neighbour of the first enlarged row by 0, which leaves a NaN a NaN.
        assert (reach.rows[1:] == by_nan(chosen, image, 2)[1:]).all()
        assert (reach.columns[1:] == by_nan(chosen, image, 3)[1:]).all()


@pytest.mark.parametrize("operator", ["decompose", "gi", "ssc", "average", "gaussian", "aggregation", "tent"])
def test_reach_of_smoothed_layers(operator):
    layer = nn.Sequential(conv(4))
    degrid.smooth_dilated_convs(layer, operator)
    image = torch.zeros(1, 2, 21, 18)
    reach = Following(layer, image, lambda name, module: name == "").reach("", "")
    with torch.no_grad():
        assert (reach.rows == by_nan(layer, image, 2)).all()
        assert (reach.columns == by_nan(layer, image, 3)).all()


def test_receptive_field_of_a_stem_by_hand():
    # 7x7 of stride 2, then 3x3 pooling of stride 2: 7 + 2 * 2 = 11; two more 3x3 at stride 4: 11 + 2 * 4 * 2 = 27.
    stem = nn.Sequential(conv(taps=7, stride=2), nn.MaxPool2d(3, 2, 1), conv(), conv())
    followed = Following(stem, torch.zeros(1, 2, 65, 65), lambda name, layer: name == "")
    assert followed.reach("", "0").box() == (7, 7)
    assert followed.reach("", "1").box() == (11, 11)
    assert followed.reach("", "").box() == (27, 27)


@pytest.mark.parametrize(
    ("rates", "coverage", "networks"),
    [
        ((2, 2, 2), 7 / 13, 2),
        ((4, 4, 4), 7 / 25, 4),
        ((2, 4, 8), 15 / 29, 2),
        ((4, 8, 16), 15 / 57, 4),
        ((1, 2, 3), 1, 1),
        ((1, 2, 4), 1, 1),
        ((1, 2, 5), 1, 1),
        ((2, 3), 9 / 11, 1),  # -5 and 5 are seen, -4 and 4 are not
    ],
)
def test_coverage_and_networks_of_stacks(rates, coverage, networks):
    # The facts of the first seven: .538, .280, .517, .263, 1, 1, 1.
    stack = nn.Sequential(*(conv(rate) for rate in rates))
    reach = Following(stack, torch.zeros(1, 2, 97, 97), lambda name, layer: name == "").reach("", "")
    assert reach.coverage() == pytest.approx(coverage)
    assert reach.networks() == (networks, networks)


def test_averages_over_the_whole_map_can_be_left_out():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.project = conv(2), conv(taps=1)

        def forward(self, x):
            return self.conv(x) + self.project(x.mean((2, 3), keepdim=True)).expand_as(x)

    followed = Following(Pooled(), torch.zeros(1, 2, 16, 16), lambda name, layer: name == "")
    assert followed.reach("", "").networks() == (1, 1)
    assert followed.reach("", "", averages=False).networks() == (2, 2)


def test_what_is_not_known_may_see_everything():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(2)

        def forward(self, x):
            return self.conv(x).transpose(2, 3)

    followed = Following(Turned(), torch.zeros(1, 2, 16, 16), lambda name, layer: name == "")
    assert followed.opaque == {"transpose": 1}
    assert followed.reach("", "").box() == (16, 16)
    with pytest.raises(UserError, match='layer "other" does not depend on the input of layer ""'):
        followed.reach("", "other")
