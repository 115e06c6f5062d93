"""int8: which layers lose most, and that they stay in float32 where the others are not enough."""

import pytest
import torch
from test_export import LABELS, Labelled, ids_of
from torch import nn

import degrid
from degrid.exporters.graph import ExportGraph, example_image
from degrid.exporters.openvino import OpenVino
from degrid.exporters.sensitivity import LayerLoss, by_loss
from degrid.types import Sample, UserError


class Pair(nn.Module):
    """Two 1x1 convolutions of three channels: int8 is exact in the first for pixels of 0 to 255, not in the second."""

    def __init__(self):
        super().__init__()
        self.exact = nn.Conv2d(3, 3, 1, bias=False)
        self.lossy = nn.Conv2d(3, 2, 1, bias=False)
        self.exact.weight.data = torch.eye(3)[:, :, None, None]
        self.lossy.weight.data = torch.tensor([[1, 0.003, 0], [0, 0, 1]])[:, :, None, None]

    def forward(self, image):
        return self.lossy(self.exact(image))


def test_the_layer_that_loses_most_by_hand():
    image = torch.tensor([[[[0.0, 255.0]], [[100.0, 200.0]], [[3.0, 4.0]]]])
    model = Pair().eval()
    found = by_loss(ExportGraph(model, "logits").eval(), [image])
    # 0.003 is less than half a step of 1/127, so that the second channel is lost: changes of 0.3 and 0.6.
    logits = torch.tensor([0 + 0.3, 255 + 0.6, 3, 4])
    loss = (0.3**2 + 0.6**2) ** 0.5 / logits.norm().item()
    assert [layer.name for layer in found] == ["lossy", "exact"]
    assert [layer.loss for layer in found] == pytest.approx([loss, 0], abs=1e-7)
    assert str(found[0]) == f"lossy ({100 * loss:.2g} %)"
    assert torch.equal(model.lossy.weight.data.flatten()[1], torch.tensor(0.003))


class Uneven(nn.Module):
    """One channel is 10,000 times as large as the others: no step of int8 fits both, in the layer that reads them."""

    resize = "half_pixel"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.reader = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Conv2d(8, len(LABELS.names), 1)
        self.register_buffer("scale", torch.tensor([1e4] + [1] * 7).reshape(1, 8, 1, 1))
        with torch.no_grad():
            self.reader.weight[:, 0] *= 1e-6

    def forward(self, image):
        features = self.stem(image.float() / 255).sigmoid() * self.scale
        return self.classifier(self.reader(features).relu())


def labelled(model):
    """Four pictures, of which the model knows every pixel."""
    pictures = [example_image((1, 3, 64, 80), seed=seed)[0] for seed in range(4)]
    return Labelled([Sample(picture, ids_of(model, picture[None])[0].byte(), "") for picture in pictures])


FILES = {"onnx": "m.onnx", "openvino": "m.xml"}


@pytest.mark.slow
def test_the_layer_that_loses_most_stays_in_float32(tmp_path):
    model, told = Uneven().eval(), []
    int8 = degrid.Int8(labelled(model), max_drop=10, float_layers=1)
    found = degrid.export(model, tmp_path / "m.onnx", labels=LABELS, int8=int8, tell=told.append)
    assert [layer.name for layer in found.int8.float_layers] == ["reader"]
    assert found.int8.drop <= 10
    assert "in float32 (and the change of the logits that int8 in it makes): reader" in str(found.int8)
    assert told[-1].endswith("points of mIoU; 1 layer in float32")


@pytest.mark.slow
def test_a_layer_stays_in_float32_in_openvino(tmp_path):
    """OpenVINO makes the scale a part of the weight, and so loses nothing: the layer is named here."""
    degrid.export(Uneven().eval(), tmp_path / "m.xml", format="openvino", labels=LABELS)
    image = example_image((1, 3, 64, 80)).numpy()
    OpenVino().quantize(tmp_path / "m.xml", tmp_path / "n.xml", [image], ["reader"])
    text = (tmp_path / "n.xml").read_text()
    assert "reader/WithoutBiases/fq_weights" not in text
    assert "stem/WithoutBiases/fq_weights" in text


OPERATORS = ("regular", "decompose", "gi", "ssc", "average", "gaussian", "aggregation", "tent")


class Operators(nn.Module):
    """A dilated convolution for every operator, one after the other."""

    resize = "half_pixel"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        layers = []
        for operator in OPERATORS:
            layer = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.BatchNorm2d(8), nn.ReLU())
            degrid.smooth_dilated_convs(layer, operator)
            layers.append(layer)
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(8, len(LABELS.names), 1)

    def forward(self, image):
        return self.classifier(self.layers(self.stem(image.float() / 255)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_int8_of_every_operator(tmp_path, kind):
    model = Operators().eval()
    int8 = degrid.Int8(labelled(model), max_drop=10, float_layers=0)
    found = degrid.export(model, tmp_path / FILES[kind], format=kind, labels=LABELS, int8=int8)
    assert all(comparison.agreement > 0.9 for comparison in found.comparisons)


def test_numbers_of_layers():
    with pytest.raises(UserError, match="float_layers: expected a number of convolutions, or None, got -1"):
        degrid.Int8("synthetic:4", float_layers=-1)
    assert str(LayerLoss("a.b", 0.125)) == "a.b (12 %)"
