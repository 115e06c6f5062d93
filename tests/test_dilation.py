"""Dilation in place of strides: the features that a network had, and those between them."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from torch import nn

import degrid
from degrid.types import UserError


def conv(channels_in, channels, kernel=3, stride=1, **options):
    return nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2 if kernel % 2 else 0, **options)


class Squeezed(nn.Module):
    """A gate from the mean over the map."""

    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Unit(nn.Module):
    """A residual unit whose shortcut lowers the resolution in its own way."""

    def __init__(self, shortcut, main):
        super().__init__()
        self.shortcut, self.main = shortcut, main

    def forward(self, x):
        return self.shortcut(x) + self.main(x)


class Doubled(nn.Module):
    """No window moves over the map, whatever the attributes are called."""

    def __init__(self, **attributes):
        super().__init__()
        vars(self).update(attributes)

    def forward(self, x):
        return 2 * x


class Features(nn.Module):
    """The feature before a stage, and that after it."""

    def __init__(self, *stage):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 6, stride=2), nn.ReLU(), conv(6, 6, stride=2), nn.ReLU())
        self.stage = nn.Sequential(*stage)

    def forward(self, x):
        fine = self.stem(x)
        return [fine, self.stage(fine)]


class ChannelsLast(Features):
    def forward(self, x):
        return [feature.movedim(1, -1) for feature in super().forward(x)]


STAGES = {
    "a plain shortcut": lambda: [Unit(conv(6, 6, 1, 2), conv(6, 6, 3, 2)), conv(6, 6)],
    "an average in the shortcut": lambda: [
        Unit(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), conv(6, 6, 3, 2)),
        Unit(nn.AvgPool2d(2, 2), nn.Sequential(conv(6, 6), conv(6, 6, 5, 2))),
    ],
    "an average with padding that counts": lambda: [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), conv(6, 6)],
    "an average with padding that does not": lambda: [
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(6, 6)
    ],
    "maxima": lambda: [nn.MaxPool2d(2, 2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1, 1), conv(6, 6)],
    "a maximum over part of a window": lambda: [nn.MaxPool2d(3, 2, ceil_mode=True), conv(6, 6, 3, 2), conv(6, 6)],
    "even kernels": lambda: [conv(6, 6, 2, 2), conv(6, 6, 7, groups=6), conv(6, 6, 2, 2), conv(6, 6)],
    "a patch of four": lambda: [conv(6, 6, 4, 4), conv(6, 6)],
    "rates of its own": lambda: [
        conv(6, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=3, dilation=3), nn.Conv2d(6, 6, (1, 7), padding=(0, 3))
    ],
    "a blur": lambda: [conv(6, 6), BlurPool2d(6, pad_mode="constant"), conv(6, 6), BlurPool2d(pad_mode="constant")],
    "a gate": lambda: [conv(6, 6, 3, 2), Squeezed(6), conv(6, 6)],
    "group norm": lambda: [conv(6, 6, 3, 2), nn.GroupNorm(2, 6), conv(6, 6)],
    "attributes of other meanings": lambda: [
        conv(6, 6, 3, 2), Doubled(stride=4), Doubled(stride=(4, 8), kernel_size=None), Doubled(dilation="d", weight=1),
        Doubled(stride="a", kernel_size="b", padding="c", dilation=1), Doubled(stride=torch.zeros(2)), conv(6, 6)
    ],
    "a layer used twice": lambda: [conv(6, 6, 3, 2), *[conv(6, 6)] * 2],
}  # fmt: skip


def made(stage):
    torch.manual_seed(0)
    return Features(*STAGES[stage]()).eval()


def on(net, image):
    with torch.inference_mode():
        return net(image)


def on_every_second_pixel(net):
    """Let gates and group norms see only the pixels that they saw before."""
    for module in net.modules():
        if isinstance(module, Squeezed):
            module.forward = lambda x, of=module: x * of.gate(x[..., ::2, ::2].mean((2, 3), keepdim=True)).sigmoid()
        if isinstance(module, nn.GroupNorm):
            module.forward = normed_by_every_second_pixel


def normed_by_every_second_pixel(x):
    seen = x[..., ::2, ::2].unflatten(1, (2, 3)).flatten(2)
    mean, variance = seen.mean(2), seen.var(2, correction=0)
    grouped = (x.unflatten(1, (2, 3)) - mean[..., None, None, None]) / (variance + 1e-5).sqrt()[..., None, None, None]
    return grouped.flatten(1, 2)


@pytest.mark.parametrize("stage", STAGES)
def test_the_features_are_those_that_there_were_and_more_between_them(stage):
    before = made(stage)
    after = copy.deepcopy(before)
    names = list(before.state_dict())
    report = degrid.dilate(after, 4)
    assert (report.strides, list(after.state_dict())) == ((4, 4), names)
    on_every_second_pixel(after)
    image = torch.randn(2, 3, 64, 96)
    (fine, old), (same, new) = on(before, image), on(after, image)
    assert torch.equal(fine, same)
    assert new.shape[-2:] == (16, 24)
    step = 16 // old.shape[-2]
    torch.testing.assert_close(new[..., ::step, ::step], old)
    assert on(after, torch.randn(1, 3, 65, 97))[1].numel() > 0


def test_maps_with_the_channels_last():
    torch.manual_seed(0)
    net = ChannelsLast(conv(6, 6, 3, 2), conv(6, 6)).eval()
    before = copy.deepcopy(net)
    assert degrid.dilate(net, 4).strides == (4, 4)
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(on(net, image)[1][:, ::2, ::2], on(before, image)[1])


def test_the_report_tells_what_changed():
    net = made("rates of its own")
    report = degrid.dilate(net, 4)
    assert report.stopped == ("stage.0",)
    assert report.rates == (("stage.1", 6), ("stage.2", 2))
    assert str(report) == (
        "features at strides 4, 4: 1 layers no longer lower the resolution, 2 are dilated (rates 2, 6)"
    )
    assert net.stage[2].padding == (0, 6)
    again = degrid.dilate(net, 4)
    assert (again.stopped, again.rates) == ((), ())


def test_a_stride_that_is_only_lowered():
    net = made("a patch of four")
    before = copy.deepcopy(net)
    assert degrid.dilate(net, 8).strides == (4, 8)
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(on(net, image)[1][..., ::2, ::2], on(before, image)[1])


@pytest.mark.parametrize(("name", "output_stride"), [("resnet18", 8), ("mobilenetv3_small_050", 16)])
def test_it_does_what_timm_does(name, output_stride):
    torch.manual_seed(0)
    ours = timm.create_model(name, features_only=True).eval()
    theirs = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    theirs.load_state_dict(ours.state_dict())
    degrid.dilate(ours, output_stride)
    image = torch.randn(1, 3, 65, 96)
    for mine, other in zip(on(ours, image), on(theirs, image), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_dilated_network_is_copied_saved_smoothed_and_trained():
    net = made("even kernels")
    degrid.dilate(net, 4)
    image = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(on(twin, image)[1], on(net, image)[1])
    report = degrid.smooth_dilated_convs(net, "tent")
    assert [rate for _, rate in report.replaced] == [2, 4]
    net.train()(image)[1].sum().backward()
    assert all(value.grad is not None for value in net.parameters())


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2)
        return (tokens @ (tokens.mT @ tokens).softmax(1)).reshape(x.shape)


class Sliced(nn.Module):
    def forward(self, x):
        return x[..., ::2, ::2]


class Twice(nn.Module):
    """One convolution at two strides."""

    def __init__(self):
        super().__init__()
        self.conv = conv(6, 6, 3, 2)

    def forward(self, x):
        return self.conv(self.conv(x))


class OneSize(nn.Module):
    def forward(self, x):
        return x + x.new_zeros(7, 7)


def smoothed(channels):
    layer = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
    degrid.smooth_dilated_convs(layer, "tent")
    return layer


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ([conv(6, 6, 3, 2), Attention()], "to output stride 4: its features would not keep their values, since a posi"),
        ([Sliced(), conv(6, 6)], "a feature of a 64x128 image is 8x16 for 16x32, so it does not only lower the resol"),
        ([nn.LPPool2d(2, 2), conv(6, 6)], "a feature of a 64x128 image is 8x16 for 16x32, so it does not only lower"),
        ([Twice()], "features would not keep their values"),
        ([conv(6, 6, 3, 2), smoothed(6)], "convolutions of it are smoothed for the rates that they have; dilate it"),
        ([conv(6, 6, 3, 2), nn.ConvTranspose2d(6, 6, 2, 2)], "stage.1 is a ConvTranspose2d, which it cannot dilate"),
        ([OneSize()], r"it does not run on an image of 3x128x192 \(RuntimeError: The size of tensor a"),
    ],
)
def test_what_cannot_be_dilated_is_left_as_it_was(stage, message):
    net = Features(*stage)
    before = {name: repr(module) for name, module in net.named_modules()}
    with pytest.raises(UserError, match=message):
        degrid.dilate(net, 4)
    assert {name: repr(module) for name, module in net.named_modules()} == before
    assert net.training


def test_the_stride_has_to_be_a_power_of_2():
    with pytest.raises(UserError, match="output stride 12: expected a power of 2, such as 8 or 16"):
        degrid.dilate(made("maxima"), 12)
