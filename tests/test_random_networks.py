"""Random small networks: inference, evaluation and frozen training compute what PyTorch computes.

`DEGRID_NETWORKS=2000` runs more of them than the 100 of the usual suite, `DEGRID_NETWORKS_FROM=2000` others.
"""

import copy
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import degrid
from degrid import Predictor
from degrid.engine.inference.adapted import adapted
from degrid.models import freeze_batch_norm

NUMBER = int(os.environ.get("DEGRID_NETWORKS", "100"))
FIRST = int(os.environ.get("DEGRID_NETWORKS_FROM", "0"))
SEEDS = range(FIRST, FIRST + NUMBER)
CLASSES = 3


class Random(nn.Module):
    """Layers in random order, some shared, hooked, sliced, read elsewhere, in place, branching or in float32."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.width = int(self.rng.choice([4, 8, 64]))
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.stem = nn.Conv2d(3, self.width, 3, padding=1, bias=bool(self.rng.integers(2)))
        self.plan = [self._step() for _ in range(self.rng.integers(1, 6))]
        self.head = nn.Conv2d(self.width, CLASSES, int(self.rng.choice([1, 3])), padding="same")
        self.stages = nn.ModuleList([nn.Sequential(*self.convs[:1], *self.norms[:1])])  # second names of layers
        self.form = str(self.rng.choice(["plain", "out", "tuple"]))
        self.floats = bool(self.rng.integers(2))
        if self.rng.random() < 0.2:
            layer = self.rng.choice(np.array([self.stem, *self.convs, *self.norms], dtype=object))
            layer.register_forward_hook(lambda module, args, out: out * 1.5)
        self._shake()

    def _step(self):
        rate = int(self.rng.choice([1, 2, 3]))
        groups = int(self.rng.choice([1, 1, 1, self.width]))
        mode = str(self.rng.choice(["zeros", "zeros", "reflect"]))
        again = len(self.convs) and self.rng.random() < 0.2
        if not again:
            conv = nn.Conv2d(self.width, self.width, 3, 1, rate, rate, groups, bool(self.rng.integers(2)), mode)
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm2d(self.width, affine=bool(self.rng.integers(4))))
        kinds = ["plain", "skip", "before", "relu", "inplace", "scaled", "two", "size", "value", "weight", "island"]
        return len(self.convs) - 1, str(self.rng.choice(kinds)), int(self.rng.integers(len(self.norms)))

    def _shake(self):
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.5)
                    module.running_var.uniform_(0.3, 2)
                    if module.affine:
                        module.weight.uniform_(0.5, 1.5)
                        module.bias.normal_(0, 0.3)

    def _apply_step(self, x, conv, kind, norm):
        if kind == "before":
            return conv(norm(x).relu())
        if kind == "island":
            with torch.autocast("cpu", enabled=False):
                return norm(conv(x.float()))
        y = conv(x)
        if kind == "relu":
            return norm(y.relu())
        if kind == "inplace":
            return F.relu_(norm(y))
        if kind == "scaled":
            return norm(y * 0.5)
        if kind == "skip":
            return norm(y) + y
        if kind == "two":
            return norm(y) + norm(x)
        if kind == "size":
            return norm(y) if x.shape[-1] < 40 else y
        if kind == "value":
            return norm(y) if float(x.detach().mean()) > 0.1 else y
        if kind == "weight":
            return norm(y) + conv.weight.mean()
        return norm(y).relu()

    def forward(self, x):
        if not self.floats:
            x = x.float()
        y = self.stem(x / 255 if self.floats else x.div(255))
        for conv, kind, norm in self.plan:
            y = self._apply_step(y, self.convs[conv], kind, self.norms[norm])
        y = self.head(y)
        return {"plain": y, "out": {"out": y}, "tuple": (y, y * 2)}[self.form]


def pictures(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(24, 30), (33, 47), (24, 30)]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("seed", SEEDS)
def test_inference_and_evaluation(seed):
    model = Random(seed).eval()
    images = pictures(seed)
    with torch.no_grad():
        expected = [adapted(model)(each[None]) for each in images]
    predictor = Predictor(copy.deepcopy(model), "cpu", "float32")
    for pixels, exact in zip(images, expected, strict=True):
        found = predictor.scores(pixels)
        assert float((found - exact).abs().max()) <= 1e-3 * float(exact.abs().max()), model.plan

    class Data:
        labels = degrid.LabelSpace.of_size(CLASSES)

        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return degrid.Sample(images[index], expected[index].argmax(1)[0].to(torch.uint8), str(index))

    # Rounding may change the class where two are equal.
    assert degrid.evaluate(model, Data(), device="cpu").pixel_accuracy > 0.999


@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_of_frozen_training(seed):
    plain, frozen = Random(seed), Random(seed)
    plain.floats = frozen.floats = True
    pixels = pictures(seed)[0][None].float()
    freeze_batch_norm(frozen, example=pixels)
    frozen.train()
    plain.train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
    outputs = []
    for model in (plain, frozen):
        y = adapted(model)(pixels)
        y.square().mean().backward()
        outputs.append(y.detach())
    assert float((outputs[0] - outputs[1]).abs().max()) <= 1e-4 * float(outputs[0].abs().max()), plain.plan
    for (name, mine), theirs in zip(plain.named_parameters(), frozen.parameters(), strict=True):
        if mine.grad is not None:
            size = float(mine.grad.abs().max())
            assert float((mine.grad - theirs.grad).abs().max()) <= 1e-3 * size + 1e-7, (name, plain.plan)
