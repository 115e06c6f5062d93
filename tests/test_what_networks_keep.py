"""Networks that count, keep maps, ask for gradients or depend on the layout predict, and train on, as by themselves."""

import io
import itertools
import random
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import degrid
from degrid import Predictor
from degrid.acceleration.fold import fold_batch_norm
from degrid.models import freeze_batch_norm

COUNTS = {"images": 0}


class Net(nn.Module):
    """Convolution, batch norm, convolution; variants override `middle`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.3, 2)

    def middle(self, y):
        return y

    def forward(self, x):
        return self.head(self.middle(self.norm(self.conv(x.float() / 255)).relu()))


class RawStrides(Net):
    """Reads the memory of a map as if the channels came first."""

    def middle(self, y):
        channels, height, width = y.shape[1:]
        strides = (channels * height * width, height * width, width, 1)
        return torch.as_strided(y, y.shape, strides)


class Flat(Net):
    """Does not run with the channels last."""

    def middle(self, y):
        return y * y.view(len(y), -1).mean(1).view(-1, 1, 1, 1)


class SeededNoise(Net):
    """Dropout that always drops the same entries of the memory."""

    def middle(self, y):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return F.dropout(y, 0.5, True)


class DescendsItsEnergy(Net):
    """A step against the gradient of something that it computes."""

    def middle(self, y):
        with torch.enable_grad():
            moved = y.detach().requires_grad_()
            (step,) = torch.autograd.grad(self.norm(moved).square().mean(), moved)
        return y - 10 * step


class Counts(Net):
    """Every fifth image is treated in another way; the number of images is kept in one of several places."""

    images = 0

    def __init__(self, place):
        super().__init__()
        self.place = place
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("of_each_kind", torch.zeros(2, dtype=torch.long))
        self.array, self.scalar, self.fraction = np.zeros(1, int), np.int64(0), Fraction(0)

    def middle(self, y):
        if self.place == "class":
            count = type(self).images = type(self).images + 1
        elif self.place == "module":
            count = COUNTS["images"] = COUNTS["images"] + 1
        elif self.place == "buffer":
            self.seen += 1
            count = int(self.seen)
        elif self.place == "buffer of two":
            self.of_each_kind[1] += 1
            count = int(self.of_each_kind[1])
        elif self.place == "array":
            self.array[0] += 1
            count = int(self.array[0])
        elif self.place == "scalar":
            count = self.scalar = self.scalar + np.int64(1)
        elif self.place == "fraction":
            count = self.fraction = self.fraction + 1
        else:
            count = self.images = self.images + 1
        return y * 2 if count % 5 == 0 else y


class Slots:
    __slots__ = ("mean",)

    def __init__(self):
        self.mean = 0.0


class Remembers(Net):
    """The image before counts; how it is kept is no attribute of the network's own."""

    def __init__(self, how):
        super().__init__()
        self.how, self.slots, self.sizes = how, Slots(), set()
        self.other, self.random = nn.Conv2d(8, 4, 1), np.random.default_rng(0)
        means = [0.0]

        def last_mean(y):
            before, means[0] = means[0], float(y.mean())
            return before

        self.last_mean = last_mean

    def middle(self, y):
        size = tuple(y.shape[-2:])
        if self.how == "slots":
            before, self.slots.mean = self.slots.mean, float(y.mean())
        elif self.how == "closure":
            before = self.last_mean(y)
        elif self.how == "sizes":
            before = float(size in self.sizes)
            self.sizes.add(size)
        elif self.how == "generator":
            before = float(self.random.random())
        else:
            before, self.head, self.other = 0.0, self.other, self.head
        return y * (1 + before)


HOWS = ("slots", "closure", "sizes", "generator", "layers")
MAKES = [RawStrides, Flat, SeededNoise, DescendsItsEnergy]
MAKES += [
    pytest.param(lambda place=place: Counts(place), id=place)
    for place in ("object", "class", "module", "buffer", "buffer of two", "array", "scalar", "fraction")
]
MAKES += [pytest.param(lambda how=how: Remembers(how), id=how) for how in HOWS]


def images():
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 56), (33, 47), (40, 56), (64, 48), (40, 56), (33, 47)]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", MAKES)
def test_each_image_is_seen_as_by_the_network_alone(make, precision, caplog):
    Counts.images = COUNTS["images"] = 0
    alone, expected = make().eval(), []
    for pixels in images():
        with torch.no_grad():
            expected.append(alone(pixels[None]))
    Counts.images = COUNTS["images"] = 0
    predictor = Predictor(make().eval(), "cpu", precision)
    allowed = 1e-4 if predictor.network.precision == "float32" else 0.05
    for pixels, exact in zip(images(), expected, strict=True):
        error = (predictor.scores(pixels) - exact).abs().mean() / exact.abs().mean()
        assert float(error) <= allowed
    keeps = isinstance(alone, Counts | Remembers)
    words = ["keeps state from one image to the next"] if keeps else [" that does not compute "]
    assert [word for word in words if word in caplog.text] == (words if make is not DescendsItsEnergy else [])


class OneResult(Net):
    """All results of a size are in the same memory."""

    def __init__(self):
        super().__init__()
        self.results = {}

    def forward(self, x):
        y = super().forward(x)
        return self.results.setdefault(y.shape, torch.empty_like(y)).copy_(y)


def test_results_that_share_memory_are_kept_and_fused():
    options = degrid.InferenceOptions(scales=(1.0, 0.75), flip=True, fusion="max")
    for each in (None, options):
        one, fresh = (Predictor(make().eval(), "cpu", "float32", each) for make in (OneResult, Net))
        found, expected = ([predictor.predict(pixels).logits for pixels in images()] for predictor in (one, fresh))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


class KeepsItsGrid(Net):
    """The map of positions of each size is made once."""

    def __init__(self):
        super().__init__()
        self.grids = {}

    def middle(self, y):
        size = tuple(y.shape[-2:])
        if size not in self.grids:
            self.grids[size] = torch.linspace(0, 1, size[0] * size[1]).view(1, 1, *size)
        return y * self.grids[size]


def test_what_is_made_while_predicting_serves_training():
    model, pixels = KeepsItsGrid(), images()[0]
    Predictor(model, "cpu", "float32").scores(pixels)
    kept = dict(model.grids)

    class One:
        labels = degrid.LabelSpace.of_size(4)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return degrid.Sample(images()[1], torch.zeros(33, 47, dtype=torch.uint8), "a")

    degrid.evaluate(model, One(), device="cpu")
    model.train()
    for each in images()[:2]:
        model(each[None]).mean().backward()
    assert kept[40, 56] is model.grids[40, 56]
    assert sorted(model.grids) == [(33, 47), (40, 56)]
    assert all(bool(each.grad.isfinite().all()) for each in model.parameters())


class AsksItsLayers(Net):
    """What it does depends on what its layers are, or have."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def middle(self, y):
        if self.how == "class":
            return y if isinstance(self.norm, nn.BatchNorm2d) else -y
        return y * (1 + self.norm.eps)


class DrawsItsGrid(KeepsItsGrid):
    """One map of positions, of the size of the first image, and how often it was used."""

    def __init__(self):
        super().__init__()
        self.grid, self.uses, self.sizes = None, 0, deque()

    def middle(self, y):
        if self.grid is None:
            self.grid = torch.rand(1, 1, *y.shape[-2:])
        self.uses += 1
        self.sizes.append(y.shape)
        return super().middle(y) + F.interpolate(self.grid, y.shape[-2:])


@pytest.mark.parametrize(
    ("make", "pairs"),
    [(lambda: AsksItsLayers("class"), 0), (lambda: AsksItsLayers("eps"), 0), (DrawsItsGrid, 1)],
)
def test_what_is_folded_computes_the_same_and_has_not_run_before(make, pairs):
    model, alone, pixels = make().eval(), make().eval(), images()[0][None]
    torch.manual_seed(0)
    found = fold_batch_norm(model)
    assert len(found.pairs) == pairs
    assert found.left == (() if pairs else (("norm", "the folded network computes something else"),))
    with torch.no_grad():
        torch.manual_seed(0)
        expected = alone(pixels)
        torch.manual_seed(0)
        torch.testing.assert_close(found.model(pixels), expected, rtol=1e-4, atol=1e-4)
    for network in (model, found.model):
        kept = [len(value) for name, value in vars(network).items() if name in ("grids", "sizes")]
        assert kept == ([] if not pairs else [0, 0] if network is model else [1, 1])


CYCLE, DRAWN = itertools.cycle([0.0, 0.003, 0.001]), random.Random(0)


def from_outside():
    return next(CYCLE) + DRAWN.random() * 0.001


def numbers():
    count = 0
    while True:
        count += 1
        yield count % 3 * 0.002


class DrawsFrom(Net):
    """A number from somewhere at each image, within the rounding of bfloat16."""

    everybody = itertools.count()

    def __init__(self, source):
        super().__init__()
        inside = itertools.cycle([0.0, 0.003])
        self.source = source
        self.held = {
            "cycle": itertools.cycle([0.0, 0.003]),
            "zip": zip(itertools.count(), itertools.cycle([0.0, 0.003]), strict=False),
            "list": iter([0.001 * number for number in range(40)]),
            "function": numbers(),
            "called": iter(lambda: next(inside), -1),
            "file": io.StringIO("0.0\n0.003\n0.001\n" * 20),
            "Python": random.Random(0),
            "NumPy": np.random.RandomState(0),
        }.get(source)
        self.inside = lambda: next(inside)

    def drawn(self):
        if self.source == "outside":
            return from_outside()
        if self.source == "closure":
            return self.inside()
        if self.source == "class":
            return next(type(self).everybody) * 0.002 % 0.005
        if self.source in ("Python", "NumPy"):
            return float(self.held.random_sample() if self.source == "NumPy" else self.held.random()) * 0.005
        if self.source == "zip":
            return next(self.held)[1]
        if self.source == "random":
            return random.random() * 0.005
        if self.source == "numpy.random":
            return np.random.rand() * 0.005
        if self.source == "torch":
            return float(torch.rand(())) * 0.005
        return float(next(self.held))

    def middle(self, y):
        return y + self.drawn()

    @classmethod
    def begin(cls):
        global CYCLE
        cls.everybody, CYCLE = itertools.count(), itertools.cycle([0.0, 0.003, 0.001])
        for seed in (DRAWN.seed, random.seed, np.random.seed, torch.manual_seed):
            seed(5)


CHANCE = ("random", "numpy.random", "torch")
SOURCES = ("cycle", "zip", "list", "function", "called", "file", "Python", "NumPy", "closure", "class", "outside")
SOURCES += CHANCE


@pytest.mark.parametrize("precision", ["float32", "auto"])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_drawn_at_each_image_is_drawn_once(source, precision, caplog, monkeypatch):
    monkeypatch.setattr("degrid.engine.device._multiplies_bfloat16", lambda device: True)
    model = DrawsFrom(source).eval()
    DrawsFrom.begin()
    with torch.no_grad():
        expected = [model(pixels[None]) for pixels in images()]
    model = DrawsFrom(source).eval()
    DrawsFrom.begin()
    predictor = Predictor(model, "cpu", precision)
    for pixels, exact in zip(images(), expected, strict=True):
        torch.testing.assert_close(predictor.scores(pixels), exact, rtol=1e-5, atol=1e-5)
    reason = "draws random numbers" if source in CHANCE else "keeps state from one image to the next"
    assert caplog.messages == [f"DrawsFrom {reason}; it now runs as it is"]


def test_choosing_a_precision_for_an_evaluation_counts_no_image(monkeypatch):
    monkeypatch.setattr("degrid.engine.device._multiplies_bfloat16", lambda device: True)

    class Data:
        labels = degrid.LabelSpace.of_size(4)

        def __len__(self):
            return len(images())

        def __getitem__(self, index):
            return degrid.Sample(images()[index], torch.zeros(images()[index].shape[1:], dtype=torch.uint8), str(index))

    model = DrawsFrom("cycle").eval()
    predictor = Predictor(model, "cpu", "auto")
    predictor.settle(Data())
    assert predictor.network.counts_runs
    assert model.drawn() == 0


@pytest.mark.parametrize("source", ["cycle", "zip", "list", "file", "Python", "NumPy", *CHANCE])
def test_freezing_and_folding_draw_nothing(source):
    """A generator function cannot be put back, nor what functions and classes hold."""
    drawn = []
    for freeze in (False, True):
        model = DrawsFrom(source).eval()
        DrawsFrom.begin()
        if freeze:
            fold_batch_norm(model)
            freeze_batch_norm(model)
        drawn.append([model.drawn() for _ in range(4)])
    assert drawn[0] == drawn[1]


class DrawsItsWeights(Net):
    """Random numbers at the first image alone."""

    def middle(self, y):
        if not hasattr(self, "drawn"):
            self.drawn = nn.Conv2d(8, 8, 1)
        return self.drawn(y)


def test_layers_made_at_the_first_image_are_no_chance(caplog):
    predictor = Predictor(DrawsItsWeights().eval(), "cpu", "float32")
    for pixels in images():
        predictor.scores(pixels)
    assert caplog.messages == []
