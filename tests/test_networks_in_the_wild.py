"""A user's network is never mistaken for one of degrid's, whatever its attributes are called."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import degrid
from degrid.acceleration.fold import fold_batch_norm
from degrid.acceleration.winograd_layer import use_winograd
from degrid.contracts import ExchangeableConv2d, MultiScaleNetwork, SegmentationNetwork, convention_of
from degrid.data.synthetic import SyntheticScenes
from degrid.engine.inference.fast_network import FastNetwork
from degrid.engine.training.loop import Training, train_step
from degrid.engine.training.objective import Objective
from degrid.exporters.graph import ExportGraph
from degrid.model_folder import open_model
from degrid.models import freeze_batch_norm
from degrid.smoothing import PreFilter
from degrid.types import Batch, LabelSpace, UserError

# Names that degrid's own networks and layers have, and names that networks in the field have.
NAMES = [
    *("output", "scales", "scale_logits", "fused", "resize", "labels", "encoder", "head", "classifier", "normalise"),
    *("preprocess", "stride", "reductions", "output_stride", "logit_stride", "config", "num_classes", "facts"),
    *("convolve", "geometry", "exchange", "smoothing", "take_apart", "folded_norm", "frozen_batch_norm"),
    *("checkpointed", "is_identity", "kernel", "mixing", "backbone", "decoder", "drop", "act", "model", "net"),
]
KINDS = {
    "tensor": lambda: torch.arange(3.0),
    "string": lambda: "ids",
    "scales": lambda: (0.5, 0.75),
    "module": lambda: nn.Conv2d(3, 3, 1),
    "function": lambda: lambda *arguments: None,
}
CLASSES = LabelSpace(("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


class OwnConv2d(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return super().forward(x)


class Wild(nn.Module):
    """Two convolutions with batch norm, one of them of the user's own class, a third one, and a layer of logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.wide = OwnConv2d(64, 64, 3, padding=2, dilation=2, bias=False)
        self.norm2 = nn.BatchNorm2d(64)
        self.plain = nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Conv2d(64, 3, 1)
        for norm in (self.norm, self.norm2):
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, image):
        x = F.relu(self.norm(self.stem(image / 255)))
        return self.last(self.plain(F.relu(self.norm2(self.wide(x)))))


def wild(kind=None):
    """The network, with all names as attributes of one kind on it and on its convolution; or without."""
    net = Wild().eval()
    for name in NAMES if kind else ():
        value = KINDS[kind]()
        setattr(net, name, value)
        for layer in (net.wide, net.norm2):
            if kind != "module" and not hasattr(layer, name):  # a module in a layer would be one layer more
                setattr(layer, name, value)
    return net


@pytest.fixture(params=KINDS)
def net(request):
    return wild(request.param)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize(
    "options",
    [None, degrid.InferenceOptions(scales=(1.0, 1.5), flip=True), degrid.InferenceOptions(window=(32, 32))],
    ids=["plain", "scales", "windows"],
)
def test_predictions_are_those_of_the_same_network_without_the_names(net, image, precision, options):
    expected = degrid.Predictor(wild(), "cpu", precision, options)
    found = degrid.Predictor(net, "cpu", precision, options)
    a, b = expected.predict(image), found.predict(image)
    np.testing.assert_array_equal(a.ids, b.ids)
    if a.logits is not None:
        np.testing.assert_array_equal(a.logits, b.logits)
    assert str(found.network) == str(expected.network)
    assert "exported" not in str(found.network)
    assert (found.stride, found.resize, found.num_classes) == (1, "half_pixel", 3)


def test_scores_are_those_of_the_same_network_without_the_names(net):
    data = SyntheticScenes("val", 2)
    for each in (net, plain := wild()):
        each.last = nn.Conv2d(64, len(data.labels), 1, bias=False)
        nn.init.constant_(each.last.weight, 0.01)
        nn.init.uniform_(each.last.weight, generator=torch.Generator().manual_seed(1))
    assert degrid.evaluate(net, data, device="cpu") == degrid.evaluate(plain, data, device="cpu")


def test_it_is_folded_and_made_fast(net):
    folding = fold_batch_norm(net)
    assert folding.pairs == (("stem", "norm"), ("wide", "norm2"))
    assert use_winograd(folding.model) == use_winograd(fold_batch_norm(wild()).model) == 1
    fast = FastNetwork(net, torch.device("cpu"), "float32", "half_pixel")
    fast(torch.zeros(1, 3, 32, 32))
    prepared = fast._network
    assert not [module for module in prepared.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_training_step_is_that_of_the_same_network_without_the_names(net, image):
    losses = []
    for each in (net, wild()):
        freeze_batch_norm(each)
        state = Training(each, torch.optim.SGD(each.parameters(), 0.1), 0, 0.0)
        batch = Batch(torch.from_numpy(image).permute(2, 0, 1)[None], torch.ones(1, 40, 56, dtype=torch.long), ("a",))
        losses += [train_step(state, [batch], Objective()) for _ in range(2)]
    assert losses[:2] == losses[2:]


def test_it_is_exported_as_the_same_network_without_the_names(net, image):
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    for output in ("ids", "logits"):
        found, expected = ExportGraph(net, output), ExportGraph(wild(), output)
        assert found.folded == expected.folded == 2
        assert found.fixed == 0
        assert torch.equal(found(pixels), expected(pixels))


class LateActivation(nn.BatchNorm2d):
    """A batch norm with attributes as timm's has them, used in another way."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return -self.act(super().forward(x))


def test_a_batch_norm_that_only_resembles_timms_is_left():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), LateActivation(8)).eval()
    folding = fold_batch_norm(net)
    assert folding.left == (("1", "LateActivation does something else besides"),)
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(folding.model(x), net(x))


class Declared(SegmentationNetwork):
    """A user's network that says what it is."""

    labels, resize = CLASSES, "align_corners"

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 3, 3, stride=2)

    @property
    def stride(self):
        return 2

    def forward(self, image):
        return self.last(image.float())


def test_a_network_that_derives_from_the_contract_is_believed():
    predictor = degrid.Predictor(Declared(), "cpu", "float32")
    assert (predictor.stride, predictor.resize) == (2, "align_corners")
    compiled = torch.compile(Declared())  # nothing is compiled before it runs
    assert convention_of(compiled) == "align_corners"


class TwoScales(MultiScaleNetwork):
    """A user's multi-scale network."""

    labels, resize, scales = CLASSES, "half_pixel", (0.5,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Conv2d(3, 3, 1)

    def scale_logits(self, image, sizes=None):
        x = image.float() / 255
        small = sizes[0] if sizes else tuple(side // 2 for side in x.shape[-2:])
        return [self.last(x), self.last(F.interpolate(x, small, mode="bilinear"))]

    def fused(self, logits):
        return logits[0] + F.interpolate(logits[1], logits[0].shape[-2:], mode="bilinear")

    def forward(self, image):
        return self.fused(self.scale_logits(image))


def test_a_multi_scale_network_of_the_users_own_trains_at_all_scales_and_is_exported(image):
    net = TwoScales()
    state = Training(net, torch.optim.SGD(net.parameters(), 0.1), 0, 0.0)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    label = torch.ones(1, 40, 56, dtype=torch.long)
    with torch.no_grad():
        maps = [*net.scale_logits(pixels), net(pixels)]
        enlarged = [F.interpolate(each, (40, 56), mode="bilinear") for each in maps]
        expected = sum(F.cross_entropy(each, label).item() for each in enlarged)
    found = train_step(state, [Batch(pixels, label, ("a",))], Objective())
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(ExportGraph(net, "logits")(pixels), net(pixels), atol=1e-6)


class Doubled(ExchangeableConv2d):
    """A user's layer whose convolution may be exchanged."""

    def forward(self, x):
        return 2 * self.convolve(x, self.dilation[0])


def test_a_layer_that_derives_from_the_contract_goes_by_winograd_and_folds():
    torch.manual_seed(0)
    net = nn.Sequential(Doubled(64, 64, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(64)).eval()
    nn.init.uniform_(net[1].running_mean)
    folding = fold_batch_norm(net, torch.rand(1, 64, 33, 33))
    assert folding.left  # twice the bias of batch norm is not what it computes
    fast = copy.deepcopy(net)
    assert use_winograd(fast) == 1
    x = torch.rand(1, 64, 129, 129)
    with torch.no_grad():
        assert torch.allclose(fast(x), net(x), atol=1e-4)


class OwnFilter(PreFilter):
    """A user's operator that is a filter before the convolution, and says nothing else."""

    def kernel(self):
        return torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]])


class Doubling(nn.Module):
    """A user's operator that derives from nothing, with attributes as ours have them."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.name = rate, 7

    def kernel(self):
        return torch.ones(3, 3)

    mixing = is_identity = kernel

    def forward(self, x, convolve):
        return 2 * convolve(x, self.rate)


@pytest.mark.parametrize(("operator", "fixed"), [(OwnFilter, 1), (Doubling, 0)])
def test_operators_of_the_users_own_are_exported_as_what_they_are(operator, fixed, image):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=2, dilation=2)).eval()
    degrid.smooth_dilated_convs(net, operator)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    graph = ExportGraph(net, "logits")
    assert graph.fixed == fixed
    torch.testing.assert_close(graph(pixels), net(pixels), rtol=1e-5, atol=1e-3)


def test_the_verbs_take_it_for_what_it_is(net, tmp_path, image):
    Image.fromarray(image).save(tmp_path / "a.png")
    (name, ids), (other, expected) = (
        next(degrid.predict_each(each, tmp_path, device="cpu", precision="float32")) for each in (net, wild())
    )
    assert name == other == "a"
    np.testing.assert_array_equal(ids, expected)
    found = degrid.predict(net, tmp_path / "a.png", tmp_path / "out", device="cpu", precision="float32")
    assert (found.images, found.precision) == (1, "float32")


class OneLogit(nn.Module):
    """A network for two classes as many write it: one logit, positive on the second."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image):
        return self.last(image.float() - 127)


def test_one_logit_is_two_classes_by_its_sign(tmp_path):
    network = OneLogit().eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    with torch.no_grad():
        logit = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0, 0].numpy()
    sure = abs(logit) > 1e-2
    assert 0.2 < (logit > 0).mean() < 0.8
    assert sure.mean() > 0.99
    predictor = degrid.Predictor(network, precision="float32")
    found = predictor.predict(image)
    assert predictor.num_classes == 2
    assert np.array_equal(found.ids[sure], logit[sure] > 0)
    assert predictor.confidence(found) == pytest.approx(1 / (1 + np.exp(-abs(logit))), abs=1e-4)
    two = LabelSpace(("background", "foreground"), ((0, 0, 0), (255, 0, 0)))
    degrid.export(network, tmp_path / "one.onnx", labels=two)
    exported = degrid.Predictor(open_model(tmp_path / "one.onnx"))
    assert np.array_equal(exported(image)[sure], logit[sure] > 0)
    assert torch.equal(network.last.weight, OneLogit().last.weight)


def test_as_many_classes_are_named_as_an_exported_network_gives(tmp_path):
    with pytest.raises(UserError, match="the network gives 2 classes, and 3 are named"):
        degrid.export(OneLogit().eval(), tmp_path / "one.onnx", labels=CLASSES)
    assert not (tmp_path / "one.onnx").exists()
