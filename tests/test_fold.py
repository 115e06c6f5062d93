"""Batch norms folded into convolutions."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn

import degrid
from degrid.acceleration.fold import fold_batch_norm, folded
from degrid.models import freeze_batch_norm
from degrid.smoothing import smooth_dilated_convs


def shaken(model, seed=0):
    """Statistics, factors and shifts as after a training: none of them 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            size = module.running_mean.shape
            module.running_mean.copy_(torch.randn(size, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            if module.weight is not None:
                with torch.no_grad():
                    module.weight.copy_(torch.rand(size, generator=generator) + 0.5)
                    module.bias.copy_(torch.randn(size, generator=generator) * 0.2)
    return model.eval()


def assert_same(model, made, x, tolerance=2e-5):
    with torch.no_grad():
        ours, theirs = made(x), model(x)
    ours, theirs = (y if isinstance(y, list) else [y] for y in (ours, theirs))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def image(*size, seed=0):
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def norms_of(model):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_one_pair_against_the_formula():
    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1)))
    conv, norm = net
    found = fold_batch_norm(net)
    assert found.pairs == (("0", "1"),)
    assert found.left == ()
    factor = norm.weight / torch.sqrt(norm.running_var + 0.1)
    torch.testing.assert_close(found.model[0].weight, conv.weight * factor[:, None, None, None])
    torch.testing.assert_close(found.model[0].bias, (conv.bias - norm.running_mean) * factor + norm.bias)
    assert isinstance(found.model[1], nn.Identity)
    assert str(found) == "1 batch norms folded into convolutions"


# Batch norms that stay come before the convolution: in slim v2 the first of each of 16 units, and the last.
@pytest.mark.parametrize(
    ("make", "stay"),
    [
        (lambda: degrid.deeplabv3plus("timm:mobilenetv2_100", 5, channels=16, separable=True), 0),
        (lambda: degrid.deeplabv3("timm:test_resnet", 5, channels=16, output_stride=8), 0),
        (lambda: degrid.deeplabv2("timm:test_resnet", 5, scales=(0.75, 0.5)), 0),
        pytest.param(lambda: degrid.deeplabv2("caffe:resnet50", 5, legacy=True), 0, marks=pytest.mark.slow),
        (lambda: degrid.deeplabv3("slim:resnet_v2_50", 5, channels=16), 17),
        (lambda: degrid.deeplabv3("timm:tf_efficientnet_lite0", 5, channels=16), 0),
    ],
    ids=["mobilenetv2", "test_resnet", "multi-scale", "caffe-legacy", "slim-v2", "same-padding"],
)
def test_whole_networks_compute_the_same(make, stay):
    torch.manual_seed(0)
    model = shaken(make()).double()
    before = copy.deepcopy(model.state_dict())
    found = fold_batch_norm(model)
    assert len(found.left) == stay
    assert len(found.pairs) == norms_of(model) - stay
    assert norms_of(found.model) == stay
    for size in ((65, 65), (48, 81)):
        assert_same(model, found.model, image(*size), 1e-12)
    after = model.state_dict()  # the original is untouched
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("operator", ["decompose", "gi", "ssc", "average", "gaussian", "aggregation", "tent"])
@pytest.mark.parametrize("bias", [False, True])
def test_smoothed_convolutions_with_and_without_bias(operator, bias):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=4, dilation=4, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    smooth_dilated_convs(net, operator)
    with torch.no_grad():
        for parameter in net[0].smoothing.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    found = fold_batch_norm(shaken(net))
    assert len(found.pairs) == 1
    assert_same(net, found.model, torch.rand(2, 3, 19, 22))


class Sums(nn.Module):
    """Convolution and batch norm, with a way out for what is between them."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), how

    def forward(self, x):
        y = self.conv(x)
        if self.how == "added":
            return self.norm(y) + y
        if self.how == "viewed":
            return self.norm(y) + y[:, :1]
        if self.how == "given":
            return [y, self.norm(y)]
        if self.how == "twice":
            return self.norm(y) + self.norm(x)
        if self.how == "again":
            return self.norm(self.conv(F.relu(self.norm(y))))
        return self.norm(y * 2)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("added", "used elsewhere"),
        ("viewed", "used elsewhere"),
        ("given", "used elsewhere"),
        ("twice", "not the output of one convolution"),
        ("scaled", "not the output of one convolution"),
    ],
)
def test_what_is_between_is_seen(how, reason):
    net = shaken(Sums(how))
    found = fold_batch_norm(net)
    assert not found.pairs
    assert reason in found.left[0][1]
    assert reason in str(found)
    assert_same(net, found.model, torch.rand(2, 3, 9, 9))


def test_a_pair_that_is_called_twice_is_folded_once():
    net = shaken(Sums("again"))
    found = fold_batch_norm(net)
    assert found.pairs == (("conv", "norm"),)
    assert_same(net, found.model, torch.rand(2, 3, 9, 9))


def test_a_convolution_shared_by_two_batch_norms_stays():
    conv = nn.Conv2d(3, 3, 1)
    net = shaken(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)))
    found = fold_batch_norm(net)
    assert len(found.left) == 2
    assert_same(net, found.model, torch.rand(1, 3, 5, 5))


def test_tied_weights_are_told_apart():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    net[2].weight = net[0].weight
    made = folded(shaken(net))
    torch.testing.assert_close(made[2].weight, net[2].weight)
    assert_same(net, made, torch.rand(1, 3, 5, 5))


def test_weights_that_are_computed_stay():
    torch.manual_seed(2)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    net = shaken(nn.Sequential(normed, nn.BatchNorm2d(4), StdConv2d(4, 4, 3), nn.BatchNorm2d(4)))
    found = fold_batch_norm(net)
    assert [reason for _, reason in found.left] == [
        "the convolution's weight is computed, not stored",
        "StdConv2d is not linear in its weight",
    ]
    assert_same(net, found.model, torch.rand(1, 3, 9, 9))


def test_kinds_of_batch_norm():
    """timm's with an activation; frozen; without factors; without statistics; and one never used."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        BatchNormAct2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, affine=False),
    )
    shaken(net)
    for fold in (False, True):
        frozen = copy.deepcopy(net)
        freeze_batch_norm(frozen, fold=fold)
        found = fold_batch_norm(frozen)
        assert len(found.pairs) == 3
        assert {type(module) for module in found.model if isinstance(module, nn.Conv2d)} == {nn.Conv2d}
        assert_same(net, found.model, torch.rand(1, 3, 9, 9))
    net.append(nn.Conv2d(4, 4, 1)).append(nn.BatchNorm2d(4, track_running_stats=False))
    net[0].spare = nn.BatchNorm2d(3)
    left = dict(fold_batch_norm(net.eval()).left)
    assert left == {"7": "it keeps no running statistics", "0.spare": "not used in the forward"}


def test_modes_dtypes_and_layouts_are_kept():
    net = shaken(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))).double().train()
    net = net.to(memory_format=torch.channels_last)
    made = folded(net)
    assert net.training
    assert not made.training
    assert made[0].weight.dtype == torch.float64
    assert made[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(net.eval(), made, torch.rand(1, 3, 9, 9, dtype=torch.float64), 1e-13)


def test_another_input_can_be_given():
    net = shaken(nn.Sequential(nn.Conv2d(7, 4, 3), nn.BatchNorm2d(4)))
    found = fold_batch_norm(net, torch.rand(1, 7, 8, 8))
    assert len(found.pairs) == 1


def test_a_network_may_give_class_ids_and_truth_values():
    class Ids(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))

        def forward(self, x):
            logits = self.body(x)
            return {"ids": logits.argmax(1).byte(), "sure": logits.amax(1) > 0, "number": len(logits)}

    net = Ids().eval()
    found, image = fold_batch_norm(net), torch.rand(1, 3, 9, 9)
    assert len(found.pairs) == 1
    for name in ("ids", "sure"):
        assert torch.equal(found.model(image)[name], net(image)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "densenet121", "mobilenetv3_large_100"])
def test_networks_of_timm(name):
    torch.manual_seed(0)
    net = shaken(timm.create_model(name, features_only=True, pretrained=False))
    found = fold_batch_norm(net)
    assert found.pairs
    assert_same(net, found.model, torch.rand(1, 3, 64, 96), 1e-4)
