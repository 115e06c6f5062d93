"""degrid.erf and degrid erf: fields of networks whose answer is known, on networks of any kind."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.image import read_image
from degrid.smoothing.table import OPERATORS
from degrid.types import UserError

SIDE = 21


def conv(rate=1, channels=1, taps=3, stride=1):
    layer = nn.Conv2d(channels, channels, taps, stride, rate * (taps // 2), rate, bias=False)
    nn.init.ones_(layer.weight)
    return layer


class Gray(nn.Module):
    """Three channels in, one for the layers inside."""

    def __init__(self, *layers):
        super().__init__()
        self.first = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.ones_(self.first.weight)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(self.first(x))


def field_of(*layers, side=SIDE, **options):
    found = degrid.erf(Gray(*layers), size=(side, side), runs=2, **options)
    return found, found.field / found.field.max()


def around(pattern, side=SIDE):
    """The pattern in the middle of a square of zeros."""
    margins = [((side - own) // 2, (side - own + 1) // 2) for own in pattern.shape]
    return np.pad(np.asarray(pattern, float), margins)


def test_one_dilated_convolution_sees_nine_points():
    found, field = field_of(conv(4))
    taps = np.zeros((9, 9))
    taps[::4, ::4] = 1
    assert np.abs(field - around(taps)).max() < 1e-6
    assert (found.theoretical, found.whole, found.box) == ((9, 9), False, 9)
    assert found.scores == {4: pytest.approx(1)}
    assert found.size == 3
    assert found.holes == pytest.approx(72 / 81)


def test_two_convolutions_see_the_product_of_their_taps():
    line = np.zeros(9)
    line[::2] = [1, 2, 3, 2, 1]
    found, field = field_of(conv(2), conv(2))
    assert np.abs(field - around(line[:, None] * line / 9)).max() < 1e-6
    assert found.theoretical == (9, 9)


def test_rates_without_a_common_divisor_leave_no_holes():
    line = np.convolve(np.convolve([1, 1, 1], [1, 0, 1, 0, 1]), [1, 0, 0, 1, 0, 0, 1])
    found, field = field_of(conv(1), conv(2), conv(3))
    assert np.abs(field - around(line[:, None] * line / line.max() ** 2)).max() < 1e-6
    assert found.holes == 0


def test_strides_before_a_layer_widen_its_field():
    # The centre of a map of stride 2 is where twice as many rows and columns are.
    found, field = field_of(conv(taps=1, stride=2), conv(3))
    taps = np.zeros((13, 13))
    taps[::6, ::6] = 1
    assert np.abs(field - around(taps)).max() < 1e-6
    assert list(found.scores) == [6]
    assert found.theoretical == (13, 13)


SUPPORTS = {  # of one 3x3 convolution of rate 4: boxes around its taps, by their side
    "regular": 1,
    "decompose": 1,
    "average": 3,
    "gaussian": 3,
    "ssc": 7,
    "aggregation": 7,
    "tent": 7,
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("operators")
    return out, degrid.erf_of_operators(out=out, runs=1)


def test_every_operator_sees_what_it_should(compared):
    _, found = compared
    single = {each.operator: each for each in found if each.network == "one convolution"}
    assert set(single) == set(OPERATORS)
    for operator, side in SUPPORTS.items():
        support = np.zeros((9, 9))
        support[::4, ::4] = 1
        wide = np.zeros((8 + side, 8 + side))
        for row, column in np.argwhere(support):
            wide[row : row + side, column : column + side] = 1
        field = single[operator].field
        assert ((field > 1e-6 * field.max()) == around(wide, 41)).all(), operator
        assert single[operator].theoretical == (8 + side, 8 + side)
    # Group interaction: all of the 4x4 block that the centre belongs to, around each tap.
    seen = np.argwhere(single["gi"].field > 1e-6 * single["gi"].field.max())
    assert len(seen) == 12 * 12
    assert seen.max(0).tolist() == [27, 27]
    assert single["tent"].scores[4] == pytest.approx(0, abs=1e-6)


def test_a_block_is_a_grid_only_without_smoothing(compared):
    out, found = compared
    block = {each.operator: each.scores[4] for each in found if each.network != "one convolution"}
    assert block["regular"] == block["decompose"] == pytest.approx(1)
    assert max(block[name] for name in ("gi", "ssc", "average", "gaussian", "aggregation", "tent")) < 0.2
    assert read_image(out / "erf.png").shape[1] > 1000
    assert np.load(out / "erf.npy").shape == (2 * len(OPERATORS), 41, 41)


def test_the_command_prints_and_writes_what_the_function_gives(tmp_path):
    model = degrid.deeplabv3("timm:test_resnet", 3, output_stride=16, channels=8)
    degrid.save(model, tmp_path / "model")
    words = ["--size", "65x65", "--runs", "1", "--layer", "encoder", "-o", str(tmp_path / "out" / "field.png")]
    result = CliRunner().invoke(app, ["erf", str(tmp_path / "model"), *words, "--json"])
    found = degrid.erf(tmp_path / "model", "encoder", size=65, runs=1)
    (printed,) = json.loads(result.stdout)
    expected = json.loads(json.dumps(found.to_dict()))
    assert printed == expected == json.loads((tmp_path / "out" / "field.json").read_text())[0]
    assert np.load(tmp_path / "out" / "field.npy")[0].shape == (65, 65)
    assert read_image(tmp_path / "out" / "field.png").shape[2] == 3
    assert str(found).startswith("encoder of Segmenter, from the image\ncan see")


class Library(nn.Module):
    """As networks of other libraries: normalised pixels in, a dictionary with two maps out."""

    seen: ClassVar[list[torch.Tensor]] = []  # what a network itself keeps is put back

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.main, self.other = nn.Conv2d(8, 2, 3, padding=2, dilation=2), nn.Conv2d(8, 2, 5, padding=2)

    def forward(self, x):
        self.seen.append(x.detach())
        features = self.stage(x)
        return {"aux": self.other(features), "out": self.main(features)}


def test_any_network_is_left_as_it_was():
    network = Library().train()
    network.stage[1].eval()
    network.main.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = degrid.erf(network, size=17, runs=2, start="stage.1")
    assert found.theoretical == (5, 5)  # of "out", not of the 5x5 of "aux"
    assert found.field.shape == (17, 17)
    assert network.training
    assert not network.stage[1].training
    assert {name for name, each in network.named_parameters() if not each.requires_grad} == {"main.bias"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not list(network.stage[1]._forward_pre_hooks)


def test_a_layer_of_a_classifier_has_a_field():
    network = Gray(conv(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 5))
    found = degrid.erf(network, layer="layers.0", size=SIDE, runs=2)
    taps = np.zeros((9, 9))
    taps[::4, ::4] = 1
    assert np.abs(found.field / found.field.max() - around(taps)).max() < 1e-6
    assert found.theoretical == (9, 9)
    with pytest.raises(UserError, match=r"expected a map .* of \(1, 5\); name another layer"):
        degrid.erf(network, size=SIDE, runs=2)


def test_images_take_the_place_of_noise(tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 30), (60 * number, 10, 255)).save(tmp_path / f"{number}.png")
    network = Library()
    network.seen.clear()
    found = degrid.erf(network, "other", [str(tmp_path)], size=(17, 19), runs=2)
    assert found.runs == 2
    red = [(each[0, 0, 0, 0].item() * 58.395 + 123.675) for each in network.seen[:2]]
    assert red == pytest.approx([0, 60], abs=1e-3)  # normalised as ImageNet's weights expect it
    assert network.seen[0].shape == (1, 3, 17, 19)


def test_one_forward_and_one_backward_pass_are_in_memory_at_a_time():
    """Of what is kept for gradients, as much at once for several images as one pass needs, and nothing afterwards."""
    network = Gray(*(layer for rate in (2, 2, 4) for layer in (conv(rate), nn.Sigmoid())))
    held, most, kept = 0, 0, []

    class Kept:
        def __init__(self, tensor):
            nonlocal held, most
            self.tensor = tensor
            held += tensor.nbytes
            most = max(most, held)
            kept.append(tensor.shape)

        def __del__(self):
            nonlocal held
            held -= self.tensor.nbytes

    found = []
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        for runs in (1, 5):
            most, kept[:] = 0, []
            degrid.erf(network, size=33, runs=runs)
            found.append((most, len(kept) / runs))
            assert held == 0
    assert found[0] == found[1]
    assert found[0][0] >= 3 * 33 * 33 * 4  # what the three sigmoids keep


def test_random_weights_are_drawn_on_a_copy():
    network = Library()
    network.reset_parameters = abs  # a user's attribute, not a method that draws weights
    before = network.main.weight.clone()
    first, again, other = (degrid.erf(network, size=17, runs=1, random_weights=seed).field for seed in (1, 1, 2))
    assert torch.equal(network.main.weight, before)
    assert (first == again).all()
    assert not (first == other).all()


def make():
    """A network, by "test_verbs_erf:make"."""
    return Gray(conv(2))


def test_functions_of_the_user_and_recipes_give_networks(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    assert degrid.erf("test_verbs_erf:make", size=15, runs=1).theoretical == (5, 5)
    with pytest.raises(UserError, match="expected a network, or a function that returns one, got int"):
        degrid.erf("test_verbs_erf:SIDE")
    with pytest.raises(UserError, match='unknown model or recipe "sinthetic"'):
        degrid.erf("sinthetic")


def test_mistakes_end_in_one_sentence(tmp_path):
    network = Gray(conv(2))
    with pytest.raises(UserError, match='Gray has no layer "layers.1". Did you mean "layers.0"'):
        degrid.erf(network, "layers.1")
    with pytest.raises(UserError, match="does not call this layer on its way to the other"):
        degrid.erf(network, "first", start="layers.0")
    with pytest.raises(UserError, match=r"expected at least 1, got 0"):
        degrid.erf(network, runs=0)
    with pytest.raises(UserError, match=r"expected a map \[N,C,h,w\], got Tensor of \(1, 4\)"):
        degrid.erf(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=9)
    result = CliRunner().invoke(app, ["erf"])
    assert "expected a MODEL, or --operators all" in str(result.exception)
