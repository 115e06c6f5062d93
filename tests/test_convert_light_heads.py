"""Networks of other projects without dilated branches: FCN and Lite R-ASPP, their logits and what is said of them."""

from types import SimpleNamespace

import numpy as np
import peers
import pytest
import torch
import torchvision
from test_convert_peers import converted

import degrid
from degrid.checkpoints.systems.plan import planned
from degrid.checkpoints.systems.table import SYSTEMS
from degrid.config import ModelConfig, from_dict
from degrid.models import NETWORKS, HeadSettings
from degrid.networks import build_model
from degrid.resize import resize
from degrid.types import LabelSpace, UserError
from degrid.verbs.convert import fill


def in_torchvision(name, **settings):
    """A network of torchvision with batch norms that have seen something."""
    torch.manual_seed(0)
    net = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5, **settings)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lraspp_mobilenet_v3_large", {}),
        pytest.param("fcn_resnet50", {"aux_loss": True}, marks=pytest.mark.slow),
    ],
)
def test_same_logits_as_torchvision(name, settings):
    theirs = in_torchvision(name, **settings)
    tensors = {key: value.numpy() for key, value in theirs.state_dict().items()}
    plan = planned(SYSTEMS["torchvision"], tensors, {}, name)
    assert not plan.unexpected
    model = build_model(from_dict(ModelConfig, {"pretrained": False, **plan.model}), LabelSpace.of_size(5)).eval()
    fill(model, plan, name)
    for height, width in ((65, 97), (64, 96)):
        image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        with torch.inference_mode():
            expected = theirs((image - model.mean) / model.std)["out"]
            found = resize(model(image), (height, width), model.resize)
        assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


@pytest.mark.parametrize(
    ("name", "size"), [("tf_deeplab_mobilenet_v3_large", (33, 65)), ("tf_deeplab_mobilenet_v3_small_plus", None)]
)
def test_same_logits_as_research_deeplab_on_mobilenet_v3(name, size):
    """The image pooling of the first sees two rows and three columns of the map of three and four."""
    plan, model = converted(name, "google_deeplab", **({"pooling_size": size} if size else {"output_stride": 16}))
    with torch.inference_mode():
        logits = model(peers.image(name))[0].numpy()
    expected = peers.logits(name)
    assert logits.shape == expected.shape
    assert abs(logits - expected).max() <= 2e-5 * abs(expected).max()
    assert plan.assumed[0] == "output_stride"


def test_gates_from_windows_at_every_fourth_row_and_fifth_column():
    settings = {"pooling_size": (64, 96), "pretrained": False, "network": "lraspp_google", "output_stride": 32}
    model = build_model(ModelConfig(encoder="google:mobilenetv3_small", **settings), LabelSpace.of_size(3)).eval()
    x = torch.randn(1, 288, 7, 9)
    with torch.inference_mode():
        means = torch.stack([x[..., row : row + 2, col : col + 3].mean((2, 3)) for row in (0, 4) for col in (0, 5)], -1)
        factors = resize(model.head.scale(means.reshape(1, 288, 2, 2)), (7, 9), "half_pixel")
        torch.testing.assert_close(model.head._factors(x), factors)


def test_a_head_that_needs_a_feature_at_stride_8_says_so():
    encoder = SimpleNamespace(channels=(16, 32, 64), reductions=(2, 4, 8))
    with pytest.raises(UserError, match="lraspp needs a feature at stride 8 before its last.*strides 2, 4, 8$"):
        NETWORKS["lraspp"](encoder, 3, HeadSettings())


def test_both_classifiers_of_one_logit_become_two_classes(tmp_path):
    theirs = in_torchvision("lraspp_mobilenet_v3_large")
    state = {key: value[:1] if "_classifier." in key else value for key, value in theirs.state_dict().items()}
    torch.save({"model": state, "epoch": np.int64(3)}, tmp_path / "model_3.pth")
    degrid.convert(tmp_path / "model_3.pth", tmp_path / "m")
    model = degrid.load(tmp_path / "m").eval()
    assert model.labels.names == ("background", "foreground")
    image = torch.randint(0, 256, (1, 3, 65, 97), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs((image - model.mean) / model.std)["out"][:, :1]
        found = resize(model(image), (65, 97), model.resize)
    assert not found[:, 0].any()
    torch.testing.assert_close(found[:, 1:], expected, rtol=1e-4, atol=1e-5)
