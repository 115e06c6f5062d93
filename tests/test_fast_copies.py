"""Inference computes what the network computes, whatever the network does."""

import copy
import logging
import threading
from collections import deque, namedtuple
from dataclasses import make_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import degrid
from degrid import Predictor, UserError
from degrid.acceleration.fold import fold_batch_norm
from degrid.dispatch import DispatchMode
from degrid.engine import device as device_module
from degrid.engine.inference.adapted import Adapted, adapted
from degrid.engine.inference.predictor import predictor_of
from degrid.models import freeze_batch_norm
from degrid.models.batch_norm import conv_bn_pairs
from degrid.types import Sample


def shaken(model):
    """Weights and statistics as after a training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                size = module.running_mean.shape
                module.running_mean.copy_(torch.randn(size, generator=generator))
                module.running_var.copy_(torch.rand(size, generator=generator) * 2 + 0.3)
                module.weight.copy_(torch.rand(size, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(size, generator=generator))
    return model.eval()


def image(height=64, width=64, low=0, high=256):
    generator = torch.Generator().manual_seed(height)
    return torch.randint(low, high, (3, height, width), dtype=torch.uint8, generator=generator)


def assert_exact(model, *images, precision="float32"):
    predictor = Predictor(copy.deepcopy(model), "cpu", precision)
    for pixels in images:
        with torch.no_grad():
            expected = adapted(model)(pixels[None])
        torch.testing.assert_close(predictor.scores(pixels), expected, rtol=1e-4, atol=1e-4)
    return predictor


class Net(nn.Module):
    """Convolution, batch norm, convolution; variants override `middle`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def middle(self, y, x):
        return self.norm(y)

    def forward(self, x):
        x = x.float() / 255
        return self.head(self.middle(self.conv(x), x).relu())


class Sliced(nn.Module):
    """Parts of a known encoder, registered a second time in stages of one's own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torchvision.models.resnet18()
        e = self.encoder
        self.stem, self.layer1 = nn.Sequential(e.conv1, e.bn1, e.relu, e.maxpool), e.layer1
        self.head = nn.Conv2d(64, 5, 1)

    def forward(self, x):
        return self.head(self.layer1(self.stem(x.float() / 255)))


class Unregistered(Net):
    """The batch norm is called through a list, which PyTorch does not look into."""

    def __init__(self):
        super().__init__()
        self.steps = [self.norm]

    def middle(self, y, x):
        return self.steps[0](y)


@pytest.mark.parametrize("make", [Sliced, Unregistered])
def test_layers_that_are_held_in_several_places(make):
    model = shaken(make())
    found = fold_batch_norm(model)
    assert len(found.pairs) >= 1
    with torch.no_grad():
        expected = model(image()[None])
        torch.testing.assert_close(found.model(image()[None]), expected, rtol=1e-4, atol=1e-4)
    assert_exact(model, image())


def hooked(where, kind, hook):
    model = shaken(Net())
    getattr(getattr(model, where), f"register_{kind}_hook")(hook)
    return model


@pytest.mark.parametrize(
    "model",
    [
        hooked("conv", "forward", lambda module, args, out: out * 2),
        hooked("conv", "forward_pre", lambda module, args: (args[0] * 2,)),
        hooked("norm", "forward", lambda module, args, out: out * 2),
        hooked("norm", "forward_pre", lambda module, args: (args[0] * 2,)),
        hooked("head", "forward", lambda module, args, out: -out),
    ],
    ids=["conv", "before-conv", "norm", "before-norm", "head"],
)
def test_hooks_that_change_something(model):
    assert_exact(model, image())
    frozen = copy.deepcopy(model)
    freeze_batch_norm(frozen)
    with torch.no_grad():
        torch.testing.assert_close(frozen(image()[None]), model(image()[None]), rtol=1e-4, atol=1e-4)


def test_hooks_that_read_see_what_they_always_see():
    seen = []
    model = hooked("norm", "forward", lambda module, args, out: seen.append(out.clone()))
    predictor = Predictor(model, "cpu", "float32")
    predictor.scores(image())
    del seen[:]
    predictor.scores(image())
    with torch.no_grad():
        model(image()[None])
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)


def test_a_hook_on_a_layer_that_would_be_computed_by_taps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 256, 1), nn.Conv2d(256, 21, 3, padding=12, dilation=12))
    model[1].register_forward_hook(lambda module, args, out: -out)
    assert_exact(model, image())


class StaysInTraining(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class AtTestTime(Net):
    """Statistics of the image itself."""

    def __init__(self):
        super().__init__()
        self.norm = StaysInTraining(8)


class BySize(Net):
    def middle(self, y, x):
        return self.norm(y) if x.shape[-1] <= 128 else y


class ByContent(Net):
    def middle(self, y, x):
        return self.norm(y) if x.mean() < 0.5 else y


class ReadsWeight(Net):
    def middle(self, y, x):
        return self.norm(y) + self.conv.weight.sum()


class ReadsBias(Net):
    def middle(self, y, x):
        return self.norm(y) - self.conv.bias[:, None, None]


class ReadsStatistics(Net):
    def middle(self, y, x):
        return self.norm(y) + self.norm.running_mean.sum()


@pytest.mark.parametrize("make", [AtTestTime, BySize, ByContent, ReadsWeight, ReadsBias, ReadsStatistics])
def test_what_a_single_run_on_a_corner_does_not_show(make):
    model = shaken(make())
    assert_exact(model, image(64, 64, 0, 60), image(40, 160, 190, 256), image(64, 64, 190, 256))


VALUES = {
    "tolist": lambda x: sum(x.mean((1, 2, 3)).tolist()) > 0.4,
    "numpy": lambda x: x.detach().numpy().mean() > 0.4,
    "asarray": lambda x: np.asarray(x).mean() > 0.4,
    "dlpack": lambda x: np.from_dlpack(x).mean() > 0.4,
    "nonzero": lambda x: len((x > 0.7).nonzero()) > 0.2 * x.numel(),
    "select": lambda x: x.masked_select(x > 0.7).numel() > 0.2 * x.numel(),
    "mask": lambda x: len(x[x > 0.7]) > 0.2 * x.numel(),
    "where": lambda x: len(torch.where(x > 0.7)[0]) > 0.2 * x.numel(),
}
"""Whether an image is bright, in ways that read no single value."""


class WithoutAnItem(Net):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def middle(self, y, x):
        return y if VALUES[self.kind](x) else self.norm(y)


@pytest.mark.parametrize("kind", VALUES)
def test_paths_that_a_later_image_takes(kind):
    model = shaken(WithoutAnItem(kind))
    assert_exact(model, image(60, 64, 0, 60), image(60, 64, 190, 256))
    assert conv_bn_pairs(model) == []


class ByRange(Net):
    def middle(self, y, x):
        return self.norm(y) if 20 < x.shape[-1] < 200 else y


class EvensOut(Net):
    """Pads maps before the norm where a stride leaves odd sides, as decoders do to fit the maps of encoders."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def middle(self, y, x):
        height, width = (-(-side // self.stride) % 2 for side in x.shape[-2:])
        return self.norm(F.pad(y, (0, width, 0, height)) if height or width else y)


@pytest.mark.parametrize("stride", [2, 8, 32])
def test_maps_that_are_odd_at_some_stride_only(stride):
    """The last sizes lie between those that the copy was compared at."""
    model = shaken(EvensOut(stride))
    assert_exact(model, image(64, 64), image(128, 192), image(128, 128), image(96, 120), image(113, 100))
    assert conv_bn_pairs(model) == []


def test_images_larger_or_smaller_than_all_before_are_compared_too():
    images = [image(64, width) for width in (64, 70, 76)]
    for width in (210, 16):
        assert_exact(shaken(ByRange()), *images, image(64, width))


class HoldsAFunction(Net):
    """A copy holds the same function, which calls the layer of the network that was copied."""

    def __init__(self):
        super().__init__()
        self.function = lambda y: self.norm(y)

    def middle(self, y, x):
        return self.function(y)


def test_functions_that_call_layers_find_them_in_evaluation_mode():
    model, alone = shaken(HoldsAFunction()).train(), shaken(HoldsAFunction())
    predictor = Predictor(model, "cpu", "float32")
    for pixels in IMAGES:
        with torch.no_grad():
            expected = alone(pixels[None])
        torch.testing.assert_close(predictor.scores(pixels), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.norm.running_mean, alone.norm.running_mean)
    assert model.norm.training


class MakesItsWeights(nn.Module):
    """Weights that depend on the image, by a way that PyTorch does not count."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.wide = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1)
        self.head, self.start = nn.Conv2d(64, 4, 1), self.wide.weight.detach().clone()

    def forward(self, x):
        x = x.float() / 255
        self.wide.weight.data.copy_(self.start * x.mean())
        return self.head(self.wide(self.stem(x).relu()))


def test_weights_that_the_network_makes_at_every_image():
    sizes = (128, 128)
    assert_exact(MakesItsWeights().eval(), image(*sizes), image(*sizes, 0, 60), image(*sizes, 190, 256))


def test_a_copy_that_computes_something_else_is_given_up_and_that_is_said(caplog):
    model = shaken(BySize())
    with caplog.at_level(logging.WARNING, "degrid"):
        assert_exact(model, image(64, 64), image(64, 150))
    assert caplog.messages == [
        "BySize has a fast copy that does not compute what it does; it now runs with its layers exchanged",
    ]


def test_a_copy_of_a_network_that_enlarges_rounding_is_kept(caplog):
    """1000 is added and taken away again, which in bfloat16 leaves nothing of the logits."""

    class Enlarging(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
            self.norm = nn.BatchNorm2d(16)
            self.first.bias.data += 1000

        def forward(self, x):
            return self.last(self.norm(self.first(x / 255)) - 1000)

    with caplog.at_level(logging.WARNING, "degrid"):
        predictor = Predictor(Enlarging().eval(), "cpu", "bfloat16")
        predictor(image(64, 64).permute(1, 2, 0).numpy())
    assert (caplog.messages, predictor.network._way, predictor.network.precision) == ([], 0, "bfloat16")


class Island(nn.Module):
    """A head in float32, as training codes have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.body(x.float() / 255).relu()
        with torch.autocast("cpu", enabled=False):
            return self.head(y.float())


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_a_head_in_float32(precision):
    model = Island()
    found = Predictor(model, "cpu", precision).scores(image())
    with torch.no_grad():
        torch.testing.assert_close(found, model(image()[None]), rtol=0.05, atol=0.05)


def test_a_network_that_cannot_be_copied():
    with pytest.warns(FutureWarning, match="weight_norm"):
        conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
    model = nn.Sequential(conv)
    model(torch.rand(1, 3, 8, 8))  # leaves a weight with gradients behind
    predictor = Predictor(model, "cpu", "float32")
    with torch.no_grad():
        torch.testing.assert_close(predictor.scores(image()), model(image()[None].float()), rtol=1e-3, atol=1e-3)


class Forms(nn.Module):
    """Logits alone or among other things, from floats alone."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.form = nn.Conv2d(3, 4, 3, padding=1), form

    def forward(self, x):
        y = self.conv(x)
        forms = {"plain": y, "out": {"aux": -y, "out": y}, "logits": {"logits": y}, "tuple": (y, -y), "list": [y]}
        forms |= {"named tuple": NamedTuple(-y, y), "dataclass": DataClass(-y, y)}
        return forms[self.form]


NamedTuple = namedtuple("NamedTuple", ("aux", "logits"))
DataClass = make_dataclass("DataClass", ("aux", "logits"))


@pytest.mark.parametrize("form", ["plain", "out", "logits", "tuple", "list", "named tuple", "dataclass"])
def test_forms_of_output_and_floats(form):
    model, pixels = Forms(form), image()
    with torch.no_grad():
        expected = model.conv(pixels[None].float())
    torch.testing.assert_close(Predictor(model, "cpu", "float32").scores(pixels), expected, rtol=1e-4, atol=1e-3)
    labels = degrid.LabelSpace.of_size(4)
    ids = expected.argmax(1)[0].to(torch.uint8)

    class One:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return degrid.Sample(pixels, ids, "one")

    One.labels = labels
    assert degrid.evaluate(model, One(), device="cpu").miou == 1


def test_no_logits_are_refused_in_one_sentence():
    class Boxes(nn.Module):
        def forward(self, x):
            return {"boxes": x, "labels": x}

    with pytest.raises(UserError, match="Boxes gives a dict with boxes, labels; expected logits"):
        Adapted(Boxes())(torch.zeros(1, 3, 4, 4))


def test_a_network_whose_memory_cannot_be_told_takes_large_images_whole():
    model = shaken(ByContent())
    predictor = Predictor(model, "cpu", "float32")
    assert predictor.options_for((2000, 2000)).window is None
    limited = Predictor(model, "cpu", "float32", degrid.InferenceOptions(memory=1 << 20))
    with pytest.raises(UserError, match="cannot tell how much memory"):
        limited.options_for((2000, 2000))


def test_an_exported_program_is_predicted_with_as_it_is():
    """What torch.export makes has one mode, and refuses to be asked for another."""
    model = shaken(Net())
    pixels = image(40, 48)
    program = torch.export.export(model, (pixels[None],)).module()
    with torch.no_grad():
        expected = model(pixels[None])
    torch.testing.assert_close(Predictor(program, "cpu", "float32").scores(pixels), expected, rtol=1e-4, atol=1e-4)
    with predictor_of(program, "cpu", "float32") as predictor:
        torch.testing.assert_close(predictor.scores(pixels), expected, rtol=1e-4, atol=1e-4)


class Coarse(nn.Module):
    """In bfloat16 the classes of a textured image are others, those of a flat one are not."""

    def forward(self, x):
        y = x.float() * 1.001
        if torch.is_autocast_enabled("cpu"):
            y = y.round(decimals=-2)
        return torch.cat([y[:, :1] - 120, 130 - y[:, :1]], 1)


FLAT = torch.full((3, 64, 64), 200, dtype=torch.uint8)
TEXTURED = image(64, 64)


@pytest.fixture
def bfloat16_hardware(monkeypatch):
    monkeypatch.setattr(device_module, "_multiplies_bfloat16", lambda device: True)


def test_precision_is_decided_on_images_not_on_their_views(bfloat16_hardware):
    options = degrid.InferenceOptions(scales=(0.5, 0.75, 1.0, 1.25, 1.5), flip=True)
    predictor = Predictor(Coarse(), "cpu", "auto", options)
    for _ in range(2):
        predictor.scores(FLAT)
        assert predictor.network.precision == "bfloat16"
    exact = Predictor(Coarse(), "cpu", "float32", options)
    assert torch.equal(predictor.scores(TEXTURED), exact.scores(TEXTURED))  # the third image: refused, and done anew
    assert predictor.network.precision == "float32"
    late = Predictor(Coarse(), "cpu", "auto", degrid.InferenceOptions(window=(32, 32)))
    for _ in range(3):
        assert not late.network.is_decided
        late.class_ids(FLAT)
    late.class_ids(TEXTURED)
    assert (late.network.precision, late.network.is_decided) == ("bfloat16", True)


def test_an_image_whose_later_windows_are_refused_is_done_anew(bfloat16_hardware):
    pixels = torch.cat([FLAT, TEXTURED], 2)
    options = degrid.InferenceOptions(window=(64, 64))
    predictor = Predictor(Coarse(), "cpu", "auto", options)
    assert torch.equal(predictor.class_ids(pixels), Predictor(Coarse(), "cpu", "float32", options).class_ids(pixels))
    assert predictor.network.precision == "float32"


def test_an_evaluation_is_of_one_precision(bfloat16_hardware):
    """The first image alone would do in bfloat16, the second one is refused."""

    class Data:
        labels = degrid.LabelSpace.of_size(2)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            picture = FLAT if index == 0 else TEXTURED
            return Sample(picture, (picture[0] > 125).to(torch.uint8), str(index))

    found = degrid.evaluate(Coarse(), Data(), device="cpu", precision="auto")
    exact = degrid.evaluate(Coarse(), Data(), device="cpu")
    assert found.confusion == exact.confusion
    assert found.precision.startswith("float32 (bfloat16 gave only")
    assert found.num_images == 3


def test_threads_share_a_predictor():
    model = shaken(Net())
    images = [image(40 + 3 * k, 50) for k in range(8)]
    with torch.no_grad():
        expected = [model(pixels[None]) for pixels in images]
    for precision in ("float32", "auto"):
        predictor, wrong = Predictor(model, "cpu", precision), []

        def work(k, predictor=predictor, wrong=wrong, precision=precision):
            found = predictor.scores(images[k])
            close = 1e-3 if precision == "float32" else 0.1
            if float((found - expected[k]).abs().max()) > close:
                wrong.append(k)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class Auxiliary(Net):
    """Reads what is between convolution and batch norm, in training alone."""

    def middle(self, y, x):
        normed = self.norm(y)
        return normed + y if self.training else normed


def test_freezing_looks_at_what_training_does():
    model = shaken(Auxiliary())
    assert conv_bn_pairs(model) == []
    state = torch.get_rng_state()
    frozen = copy.deepcopy(model)
    freeze_batch_norm(frozen)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    for each in (model, frozen):
        each.train()
    model.norm.eval()
    with torch.no_grad():
        torch.testing.assert_close(frozen(image()[None]), model(image()[None]), rtol=1e-4, atol=1e-4)


class Stateful(Net):
    """What it saw before counts; variants say how it is kept."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.seen, self.bank = kind, None, []
        self.register_buffer("average", torch.zeros(()))

    def middle(self, y, x):
        mean = x.mean()
        if self.kind == "buffer":
            self.average.mul_(0.9).add_(0.1 * mean)
            return self.norm(y) - self.average
        if self.kind == "attribute":
            self.seen = mean if self.seen is None else 0.5 * self.seen + 0.5 * mean
            return self.norm(y) - self.seen
        if self.kind == "list":
            self.bank.append(mean)
            return self.norm(y) - sum(self.bank) / len(self.bank)
        self.seen = self.norm(y)  # kept for others to look at
        return self.seen


IMAGES = [image(64, 64), image(64, 64, 0, 60), image(40, 150, 190, 256), image(33, 47), image(64, 64, 190, 256)]


def assert_as_one_by_one(make, images=IMAGES):
    """Each image is seen once, in order, as by the network alone."""
    alone, model = shaken(make()), shaken(make())
    predictor = Predictor(model, "cpu", "float32")
    for pixels in images:
        given = pixels.clone()
        with torch.no_grad():
            expected = adapted(alone)(pixels[None]).float()
        torch.testing.assert_close(predictor.scores(given), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(given, pixels)
    return predictor, model, alone


@pytest.mark.parametrize("kind", ["buffer", "attribute", "list"])
def test_networks_that_keep_state_run_once_per_image(kind, caplog):
    predictor, model, alone = assert_as_one_by_one(lambda: Stateful(kind))
    assert caplog.messages == ["Stateful keeps state from one image to the next; it now runs as it is"]
    assert predictor.network.is_decided
    torch.testing.assert_close(model.average, alone.average)
    assert len(model.bank) == len(alone.bank)


def test_what_is_kept_but_not_read_costs_nothing(caplog):
    predictor, _, _ = assert_as_one_by_one(lambda: Stateful("shown"))
    assert (predictor.network._way, caplog.messages) == (0, [])


@pytest.mark.parametrize("kind", ["buffer", "attribute", "list"])
def test_freezing_leaves_what_the_network_keeps(kind):
    model = shaken(Stateful(kind))
    freeze_batch_norm(model)
    assert (float(model.average), model.seen, model.bank) == (0, None, [])


class StatefulInside(Net):
    """Half a percent of the image before is added, within the rounding of bfloat16."""

    def __init__(self, kind):
        super().__init__()
        self.kind, zero = kind, torch.zeros(())
        self.kinds = {
            "dictionary": {"mean": zero},
            "queue": deque([zero], maxlen=1),
            "object": SimpleNamespace(mean=zero),
            "nested": [[zero]],
            "array": np.zeros((), np.float32),
        }

    def middle(self, y, x):
        kept, mean = self.kinds[self.kind], x.mean()
        if self.kind == "dictionary":
            before, kept["mean"] = kept["mean"], mean
        elif self.kind == "queue":
            before = kept[0]
            kept.append(mean)
        elif self.kind == "object":
            before, kept.mean = kept.mean, mean
        elif self.kind == "nested":
            before, kept[0][0] = kept[0][0], mean
        else:
            before = float(kept)
            kept[...] = mean
        return self.norm(y) + 0.005 * before


@pytest.mark.parametrize("kind", ["dictionary", "queue", "object", "nested", "array"])
def test_state_is_found_inside_of_what_a_network_holds(kind, caplog):
    for precision in ("float32", "bfloat16"):
        caplog.clear()
        Predictor(shaken(StatefulInside(kind)), "cpu", precision).scores(image())
        assert caplog.messages == ["StatefulInside keeps state from one image to the next; it now runs as it is"]


ACTIVATIONS = {}


class StoredByHook(Net):
    """A hook keeps what a layer gave, and the network reads it; as a copy has the same function, its hook writes there,
    too."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.maps, self.last = kind, {}, None
        if kind == "global":
            self.maps = ACTIVATIONS
        hooks = {
            "closure": lambda layer, args, output: self.maps.__setitem__("conv", output),
            "attribute": lambda layer, args, output: setattr(self, "last", output),
            "default": lambda layer, args, output, maps=self.maps: maps.__setitem__("conv", output),
            "global": lambda layer, args, output: ACTIVATIONS.__setitem__("conv", output),
            "method": self.keep,
        }
        self.conv.register_forward_hook(hooks[kind])

    def keep(self, layer, args, output):
        self.maps["conv"] = output

    def middle(self, y, x):
        return self.norm(y) + (self.last if self.kind == "attribute" else self.maps["conv"])


@pytest.mark.parametrize("kind", ["closure", "attribute", "default", "global", "method"])
def test_hooks_that_write_what_the_network_reads(kind, caplog):
    assert_as_one_by_one(lambda: StoredByHook(kind), [image(64, 64), image(64, 64, 0, 60), image(64, 64, 190, 256)])
    said = ["StoredByHook has hooks that write where a copy of it does not read; it now runs as it is"]
    assert caplog.messages == ([] if kind == "method" else said)


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.add_(57))


class WantsFloats(Net):
    """Refuses bytes with an error of its own."""

    def forward(self, x):
        if not x.is_floating_point():
            raise ValueError("expected floats")
        return super().forward(x)


class ByName(Net):
    """A convolution called with its input by name."""

    def forward(self, x):
        x = x.float() / 255
        return self.head(input=self.norm(input=self.conv(input=x)).relu())


def patched(layer):
    """A function in place of the forward of one layer, as programs that place layers on several devices do it."""
    model = Net()
    own = getattr(model, layer)
    before = own.forward
    own.forward = lambda x: before(x) * 0.5
    return model


def short():
    """All in bfloat16, which bytes and float32 do not suit."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).to(torch.bfloat16)


KIN = [InPlace, WantsFloats, ByName, lambda: patched("conv"), lambda: patched("norm"), short]


@pytest.mark.parametrize("make", KIN, ids=["in-place", "floats", "by-name", "patched-conv", "patched-norm", "short"])
def test_ways_of_calling_and_being_called(make):
    _, model, alone = assert_as_one_by_one(make)
    pixels = image()[None].to(next(model.parameters()).dtype)
    freeze_batch_norm(model, example=pixels)
    with torch.no_grad():
        found, expected = model(pixels.clone()).float(), alone(pixels.clone()).float()
    close = 0.02 if pixels.dtype == torch.bfloat16 else 1e-5
    assert float((found - expected).abs().max()) <= close * float(expected.abs().max())


def test_a_network_that_cannot_run_in_bfloat16_says_so():
    class Exact(Net):
        def middle(self, y, x):
            if y.dtype == torch.bfloat16:
                raise RuntimeError("not implemented for BFloat16")
            return self.norm(y)

    with pytest.raises(UserError, match="Exact cannot run in bfloat16 .not implemented.*take precision float32"):
        Predictor(Exact().eval(), "cpu", "bfloat16").scores(image())
    assert Predictor(Exact().eval(), "cpu", "auto").scores(image()).shape == (1, 4, 64, 64)


def test_a_compiled_network_is_looked_at_as_it_was_written():
    """What looks at the operations of a network is not compiled with it, which PyTorch would do again and again."""
    compiled, seen = torch.compile(shaken(Net()), backend="eager"), []

    class Seen(DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((str(func), torch.compiler.is_compiling()))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Seen():
        compiled(image()[None])
    assert "aten.convolution.default" in dict(seen)
    assert not any(dict(seen).values())
    assert len(conv_bn_pairs(compiled)) == 1
    assert_exact(compiled, image(), image(40, 48))
