"""Inference computes what the network computes, whatever the network does."""

import copy
import logging
import threading

import pytest
import torch
import torchvision
from torch import nn

import degrid
from degrid import Predictor, UserError
from degrid.acceleration.fold import fold_batch_norm
from degrid.engine.inference.adapted import Adapted, adapted
from degrid.models import freeze_batch_norm
from degrid.models.batch_norm import conv_bn_pairs


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


def test_a_copy_that_computes_something_else_is_given_up_and_that_is_said(caplog):
    model = shaken(BySize())
    with caplog.at_level(logging.WARNING, "degrid"):
        assert_exact(model, image(64, 64), image(64, 150))
    assert caplog.messages == [
        "the fast copy of BySize does not compute what the network does; it now runs with its layers exchanged",
    ]


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
        return forms[self.form]


@pytest.mark.parametrize("form", ["plain", "out", "logits", "tuple", "list"])
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
