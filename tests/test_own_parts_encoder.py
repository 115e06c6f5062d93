"""An encoder and a network from outside the package, each in one class or function, through the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.config import ModelConfig
from degrid.lookup import lookup
from degrid.models import ENCODERS, EncoderSettings, build_encoder
from degrid.networks import build_model
from degrid.types import Preprocess, UserError

MODULE = """
from torch import nn
from degrid.types import Preprocess

class Small(nn.Module):
    channels, reductions = (8, 16), (4, 16)

    def __init__(self, output_stride=16, uniform_rates=False, multi_grid=None, preprocess=None):
        super().__init__()
        self.preprocess = preprocess or Preprocess()
        rate = 2 if uniform_rates else 1
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(
            nn.Conv2d(8, 16, 4, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=rate, dilation=rate)
        )

    def forward(self, x):
        fine = self.stem(x)
        return [fine, self.deep(fine)]

class Fixed(Small):
    def __init__(self):
        super().__init__()

class Everything(Small):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

def linear_head(encoder, num_classes, settings):
    return LastFeature(encoder.channels[-1], num_classes), encoder.reductions[-1]

class LastFeature(nn.Conv2d):
    def __init__(self, channels, num_classes):
        super().__init__(channels, num_classes, 1)

    def forward(self, features):
        return super().forward(features[-1])

def no_head(encoder, num_classes, settings):
    return LastFeature(encoder.channels[-1], num_classes)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_parts", raising=False)


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def train(*settings):
    fast = [
        "data.path=synthetic:8",
        "train.steps=2",
        "train.eval_every=2",
        "train.batch_size=2",
        "data.crop=64,64",
        "train.device=cpu",
    ]
    options = [part for setting in (*settings, *fast) for part in ("--set", setting)]
    return run("train", "synthetic", "-o", "runs/own", "--quiet", *options)


def test_own_encoder_and_network_from_training_to_mask(tmp_path, drawn):
    train("model.encoder=my_parts:Small", "model.network=my_parts:linear_head", "model.uniform_rates=true",
          "model.output_stride=16", "model.smoothing.operator=ssc")  # fmt: skip
    config = json.loads((tmp_path / "runs/own/model/config.json").read_text())
    assert config["model"]["encoder"] == "my_parts:Small"
    model = degrid.load("runs/own")
    assert type(model.encoder).__name__ == "Small"
    assert model.encoder.deep[3].dilation == (2, 2)  # uniform_rates reached it
    assert model.encoder.deep[3].smoothing.name == "ssc"
    assert type(model.head).__name__ == "LastFeature"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save("photo.png")
    run("predict", "runs/own", "photo.png", "-o", "masks", "--device", "cpu")
    with Image.open("masks/photo.png") as mask:
        assert mask.size == (64, 48)


def test_own_encoder_below_a_head_of_ours():
    train("model.encoder=my_parts:Small", "model.output_stride=16", "model.network=deeplabv3plus", "model.channels=8")
    assert degrid.load("runs/own")(torch.zeros(1, 3, 32, 32)).shape[-2:] == (8, 8)


def test_every_setting_reaches_an_encoder_that_takes_it():
    settings = EncoderSettings(8, "file", (1, 2), True, Preprocess(bgr=True), True)
    assert build_encoder("my_parts:Everything", settings).settings == vars(settings)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (EncoderSettings(output_stride=8), "model.output_stride"),
        (EncoderSettings(pretrained="weights.pth"), "model.pretrained"),
        (EncoderSettings(multi_grid=(1, 2, 4)), "model.multi_grid"),
        (EncoderSettings(uniform_rates=True), "model.uniform_rates"),
        (EncoderSettings(preprocess=Preprocess(bgr=True)), "model.mean"),
        (EncoderSettings(legacy=True), "model.legacy"),
    ],
)
def test_a_setting_that_an_encoder_does_not_take_is_refused(setting, name):
    with pytest.raises(UserError, match=f'"my_parts:Fixed" has no parameter .*, so {name} would be lost'):
        build_encoder("my_parts:Fixed", setting)


def test_defaults_need_no_parameters():
    for pretrained in (True, False):
        build_encoder("my_parts:Fixed", EncoderSettings(pretrained=pretrained, preprocess=Preprocess()))


@pytest.mark.parametrize("family", ENCODERS)
def test_rows_of_ours_take_every_setting(family):
    """So that none is lost: each class has the parameters that its callers give."""
    import inspect

    row = ENCODERS[family]
    made = lookup({}, row, "encoder") if isinstance(row, str) else row
    for each in set(made.values()) if isinstance(made, dict) else {made}:
        taken = inspect.signature(each).parameters
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
            assert set(vars(EncoderSettings())) <= set(taken)


def test_a_function_that_makes_no_head_is_named():
    with pytest.raises(UserError, match='network "my_parts:no_head": expected a function that returns a module'):
        build_model(ModelConfig("my_parts:no_head", "my_parts:Small"), degrid.LabelSpace.of_size(2))


def test_torchvision_has_no_download_either():
    with pytest.raises(UserError, match="there is no download for torchvision:mobilenet_v3_large: give"):
        build_encoder("torchvision:mobilenet_v3_large", EncoderSettings(16, pretrained=True))


def test_an_own_operator_is_asked_for_its_options_only(tmp_path):
    (tmp_path / "my_operators.py").write_text(
        "from degrid.smoothing import Operator\n"
        "class Scaled(Operator):\n"
        "    def __init__(self, rate, factor=1.0, legacy=False):\n"
        "        super().__init__(rate)\n"
        "        self.factor, self.legacy = factor, legacy\n"
        "    def forward(self, x, convolve):\n"
        "        return self.factor * convolve(x, self.rate)\n"
    )
    model = degrid.deeplabv3("timm:resnet10t", 2, operator="my_operators:Scaled", operator_options={"factor": 2.0})
    assert {conv.smoothing for conv in degrid.describe(model, size=(32, 32)).dilated} == {"Scaled", None}
    for legacy in (False, True):
        layer = torch.nn.Conv2d(3, 3, 3, padding=2, dilation=2)
        degrid.smooth_dilated_convs(layer, "my_operators:Scaled", legacy=legacy)
        assert layer.smoothing.legacy is legacy
    with pytest.raises(UserError, match='operator "my_operators:Scaled" has no option "fctor". Did you mean "factor"'):
        degrid.deeplabv3("timm:resnet10t", 2, operator="my_operators:Scaled", operator_options={"fctor": 2.0})
