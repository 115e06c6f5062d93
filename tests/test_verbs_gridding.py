"""degrid.gridding and degrid gridding: networks that fall apart, and what joins them."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.analysis.part import Part
from degrid.cli import app
from degrid.types import UserError
from degrid.verbs.gridding import _sawtooth


class Summed(nn.ModuleList):
    """The sum of what several layers give."""

    def forward(self, x):
        return sum(layer(x) for layer in self)


class Pyramid(nn.Module):
    """As DeepLab v2 and v3 behind their strides: dilated layers in a row, then several side by side, and pooling."""

    def __init__(self, row, side, pooling=False, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(*(self.layer(channels, channels, rate) for rate in row))
        self.branches = Summed(self.layer(channels, 2, rate)[0] for rate in side)
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1)) if pooling else None
        self.last = nn.Conv2d(2, 2, 1)
        self.auxiliary = nn.Conv2d(channels, 2, 3, padding=5, dilation=5)

    @staticmethod
    def layer(inputs, outputs, rate):
        conv = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)
        nn.init.kaiming_normal_(conv.weight)
        return nn.Sequential(conv, nn.LeakyReLU(inplace=True))

    def forward(self, image):
        x = self.stage(self.stem(image))
        y = self.branches(x)
        if self.pooling is not None:
            y = self.last(y + self.pooling(x))
        large = nn.functional.interpolate(y, image.shape[-2:], mode="bilinear")
        return {"out": large, "aux": self.auxiliary(x)}


@pytest.fixture(scope="module")
def v2():
    network = Pyramid((2, 2, 4), (6, 12))
    return network, degrid.gridding(network, size=81, runs=2)


def test_deeplab_v2_falls_apart_into_four(v2):
    _, found = v2
    assert (found.start, found.networks, found.networks_by_shape, found.averages) == ("stage.0.0", 4, 4, False)
    assert found.period == (2, 2)
    assert found.exchange == 0  # to the last bit
    assert found.score == pytest.approx(1)
    assert found.size == (41, 41)
    assert found.checkerboard is None  # noise has no logits worth looking at
    rows = {layer.name: layer for layer in found.layers}
    assert list(rows) == ["stage.0.0", "stage.1.0", "stage.2.0", "branches.0", "branches.1"]  # nothing auxiliary
    assert [layer.coverage for layer in found.layers[:3]] == pytest.approx([3 / 5, 5 / 9, 9 / 17])
    assert [layer.divisor for layer in found.layers] == [(2, 2)] * 5
    assert [layer.networks for layer in found.layers] == [4] * 5
    assert [layer.networks_from_here for layer in found.layers] == [4, 4, 4, 36, 144]


def test_repairs_join_the_networks_and_say_what_they_cost(v2):
    network, found = v2
    assert found.repairs[0].change == 'degrid.smooth_dilated_convs(model, "tent")'
    assert [each.networks for each in found.repairs] == [1, 1, 1]
    assert min(each.exchange for each in found.repairs) > 0.5
    assert max(each.score for each in found.repairs) < 0.1
    assert [each.parameters for each in found.repairs] == [0, 9 + 9 + 49, 0]
    # Filters of 3x3, 3x3 and 7x7 on 4 channels; convolutions of 3x3 from 4 channels to 4.
    assert [each.multiply_adds for each in found.repairs] == pytest.approx([(9 + 9 + 49) * 4 / (3 * 9 * 16)] * 2 + [0])
    assert "stage.0.0 2 -> 3" in found.repairs[2].change
    assert network.stage[0][0].dilation == (2, 2)  # all on copies
    assert type(network.stage[0][0]) is nn.Conv2d
    text = str(found)
    assert "networks        4 independent, interleaved" in text
    assert "branches.1  12    regular     1.0000" in text


def test_sixteen_behind_image_pooling():
    network = Pyramid((4, 8, 16), (12, 24), pooling=True)
    found = degrid.gridding(network, size=81, runs=1, repairs=False)
    assert [layer.divisor for layer in found.layers] == [(4, 4)] * 5
    assert (found.networks, found.averages, found.period, found.exchange) == (16, True, (4, 4), 0)
    assert found.score == pytest.approx(1)
    assert "16 independent, interleaved, joined only by averages over the image" in str(found)
    assert found.repairs == ()


def test_the_grid_is_in_a_change_of_one_phase():
    """What the count means, without any of the code that counts: a change of one phase stays on it."""
    network = Pyramid((2, 4), (6,)).eval()
    image = torch.randn(1, 3, 41, 41, generator=torch.Generator().manual_seed(1))
    maps = network.stem(image).detach()
    changed = maps.clone()
    changed[..., 1::2, ::2] += 1

    def logits(x):
        return network.branches(network.stage(x))

    moved = (logits(changed) - logits(maps)).detach().abs().amax((0, 1)) > 0
    assert moved[1::2, ::2].any()
    moved[1::2, ::2] = False
    assert not moved.any()


@pytest.mark.parametrize(
    ("operator", "options", "scores"),
    [
        ("average", {}, (1, 0.0519)),
        ("gaussian", {}, (1, 0.0673)),
        ("ssc", {}, (1, 1)),
        ("gi", {}, (1, 1)),
        ("tent", {}, (0, 0)),
        ("average", {"size": 3}, (0.0782, 0.0519)),
    ],
)
def test_layers_have_the_scores_of_the_table(operator, options, scores):
    network = Pyramid((2, 4), (6,))
    degrid.smooth_dilated_convs(network.stage, operator, **options)
    found = degrid.gridding(network, size=41, runs=1, repairs=False)
    assert [layer.score for layer in found.layers] == pytest.approx([*scores, 1], abs=6e-5)
    assert [layer.operator for layer in found.layers] == [operator, operator, None]
    # A smoothed layer of rate 4 joins them; with gi and ssc only once they have learned something.
    assert (found.networks, found.networks_by_shape) == (4 if operator in ("gi", "ssc") else 1, 1)


def test_checkerboard_of_logits_of_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).resize((320, 256), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    network = Pyramid((2, 2), (2,))
    found = degrid.gridding(network, [str(tmp_path)], size=(129, 161), runs=2, repairs=False)
    assert 0 < found.checkerboard < 20
    assert "checkerboard" in str(found)
    small = degrid.gridding(network, [str(tmp_path)], size=(17, 17), runs=1, repairs=False)
    assert small.checkerboard is None
    assert "not measured: a grid of period 2 needs maps of at least 16 pixels, got 9x9; give larger" in str(small)
    gridded = Pyramid((2, 2), (2,))
    with torch.no_grad():  # one phase of the map before is louder
        gridded.stem.register_forward_hook(lambda module, args, y: y * _board(y))
    louder = degrid.gridding(gridded, [str(tmp_path)], size=(129, 161), runs=2)
    assert louder.checkerboard > 5 * found.checkerboard
    tent = louder.repairs[0]  # its filters take away what one phase has more
    assert tent.checkerboard < louder.checkerboard / 3
    assert f"score {tent.score:.4f}, checkerboard {tent.checkerboard:.2f}; +0 parameters" in str(louder)


def _board(y):
    factor = torch.ones(y.shape[-2:])
    factor[::2, ::2] = 4
    return factor


def test_the_command_prints_what_the_function_gives(v2, monkeypatch):
    monkeypatch.setattr(degrid, "gridding", lambda *args, **settings: seen.append((args, settings)) or v2[1])
    seen = []
    words = ["gridding", "some/model", "--images", "photos", "--size", "64x96", "--runs", "3", "--random", "5"]
    result = CliRunner().invoke(app, words)
    assert result.stdout == f"{v2[1]}\n"
    ((args, settings),) = seen
    settings.pop("progress")
    assert args == ("some/model", ["photos"])
    assert settings == {"size": (64, 96), "runs": 3, "random_weights": 5, "repairs": True}
    result = CliRunner().invoke(app, [*words, "--json", "--no-repairs"])
    assert json.loads(result.stdout) == json.loads(json.dumps(v2[1].to_dict()))
    assert seen[1][1]["repairs"] is False


def test_networks_without_a_grid():
    with pytest.raises(UserError, match=r"calls no dilated convolution of maps \[N,C,H,W\], so it has no grid"):
        degrid.gridding(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), size=17)
    silent = Pyramid((2,), (4,))
    nn.init.zeros_(silent.stage[0][0].weight)
    with pytest.raises(UserError, match="with these weights .* does not depend on the input of the part"):
        degrid.gridding(silent, size=41, runs=1)
    joined = degrid.gridding(Pyramid((1, 2, 3), (4,)), size=41, runs=1)
    assert (joined.networks, joined.period) == (1, (2, 2))
    assert [layer.divisor for layer in joined.layers] == [(2, 2), (1, 1), (1, 1)]
    assert 0.5 < joined.exchange <= 0.9
    assert joined.score < 0.1


def test_parts_of_networks_that_write_into_their_input():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=2, dilation=2)

        def forward(self, x):
            return self.conv(x.mul_(2)).relu_()

    part, image = Part(Writing(), "", ""), torch.randn(1, 3, 9, 9)
    before = image.clone()
    with part.open():
        x, y = part.run(image)
        assert torch.equal(image, before)
        assert torch.equal(x, before)
        assert torch.equal(part.again(image, x.detach()), y)


def test_other_rates_are_those_of_hybrid_dilated_convolution():
    assert _sawtooth([2] * 7 + [4, 4, 4, 12, 24]) == [1, 2, 3, 1, 2, 3, 2, 3, 4, 5, 12, 24]
    assert _sawtooth([2, 4, 8]) == [3, 4, 8]
    assert _sawtooth([]) == []


class Padded(nn.Module):
    """As a layer of transformers' MobileNetV2: a function pads the map, the convolution does not."""

    def __init__(self, channels, rate):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, dilation=rate, groups=channels, bias=False)
        self.normalization = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x):
        side = 2 * self.convolution.dilation[0]
        x = nn.functional.pad(x, (side // 2, side - side // 2) * 2, "constant", 0.0)
        return nn.functional.relu6(self.normalization(self.convolution(x)))


class Output(OrderedDict):
    """As transformers' ModelOutput: a dictionary whose fields are attributes, and None what was not asked for."""

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class LikeLibraries(nn.Module):
    """What smp and transformers put around dilated layers: lists of features, pooling that is stretched, and a 3x3
    convolution after ASPP (smp) or a dictionary as the result (transformers)."""

    def __init__(self, smp):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1))
        self.layer = nn.ModuleList(Padded(6, rate) for rate in (2, 2, 4))
        self.project = nn.Conv2d(12, 6, 1)
        self.after = nn.Conv2d(6, 6, 3, padding=1) if smp else None
        self.classifier = nn.Conv2d(6, 3, 1)

    def forward(self, pixel_values, labels=None):
        features = [pixel_values, self.stem(pixel_values)]
        for layer in self.layer:
            features.append(layer(features[-1]))
        x = features[-1]
        pooled = nn.functional.interpolate(nn.functional.adaptive_avg_pool2d(x, 1), x.shape[-2:], mode="bilinear")
        x = self.project(torch.cat([pooled, x], 1))
        if self.after is None:
            return Output(loss=None, logits=self.classifier(x), hidden_states=None)
        return nn.functional.interpolate(self.classifier(self.after(x)), scale_factor=4, mode="bilinear")


@pytest.mark.slow
@pytest.mark.parametrize(("smp", "networks"), [(True, 1), (False, 4)])
def test_networks_built_as_other_libraries_build_them(smp, networks):
    torch.manual_seed(0)
    network = LikeLibraries(smp)
    found = degrid.gridding(network, size=128, runs=1, random_weights=0, repairs=False)
    assert [layer.divisor for layer in found.layers] == [(2, 2)] * 3
    assert (found.layers[-1].networks, found.networks, found.networks_by_shape) == (4, networks, networks)
    assert (found.exchange == 0, found.averages) == (networks > 1, networks > 1)
    assert found.opaque == ()
    assert degrid.erf(network, size=128, runs=1, random_weights=0).field.shape == (127, 127)


def library_networks(name):
    """A network of another library: of torchvision, timm, segmentation_models.pytorch and transformers."""
    if name == "torchvision":
        from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

        return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    if name == "timm":
        import timm

        return timm.create_model("mobilenetv2_100", features_only=True, output_stride=8)
    if name == "smp":
        return pytest.importorskip("segmentation_models_pytorch").DeepLabV3("resnet18", encoder_weights=None)
    transformers = pytest.importorskip("transformers")
    return transformers.MobileNetV2ForSemanticSegmentation(transformers.MobileNetV2Config(output_stride=8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "so_far", "networks"),
    [("torchvision", 4, 1), ("timm", 4, 4), ("smp", 4, 1), ("transformers", 4, 4)],
)
def test_networks_of_other_libraries(name, so_far, networks):
    network = library_networks(name)
    found = degrid.gridding(network, size=256, runs=1, random_weights=0, repairs=False)
    assert (found.layers[-1].networks, found.networks, found.networks_by_shape) == (so_far, networks, networks)
    assert (found.exchange == 0) == (networks > 1)
    assert found.opaque == ()
    assert degrid.erf(network, size=128, runs=1, random_weights=0).field.shape == (127, 127)
