"""Blocks that are computed again in the backward pass: the same step to the last bit, with fewer maps kept."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import degrid
from degrid.models import EncoderSettings, HeadSettings, build_network, freeze_batch_norm
from degrid.models.activation_checkpointing import blocks, checkpoint_activations
from degrid.types import LabelSpace, UserError


class Unit(nn.Module):
    """A residual unit with batch norm and dropout."""

    def __init__(self, channels=4, momentum=0.1):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, momentum=momentum)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.runs = 0

    def forward(self, x, *, gain=1.0):
        self.runs += 1
        return x + gain * self.second(self.dropout(self.norm(self.first(x)).relu()))


def step(model, image, seed=0):
    """One training step; loss, gradients and the state afterwards, and the random number that comes next."""
    torch.manual_seed(seed)
    loss = model.train()(image).square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()], list(model.state_dict().items()), torch.rand(1)


def assert_same_step(found, expected):
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
    for (name, ours), (expected_name, theirs) in zip(found[2], expected[2], strict=True):
        assert name == expected_name
        assert torch.equal(ours, theirs), name
    assert torch.equal(found[3], expected[3])


@pytest.mark.parametrize("momentum", [0.1, None])  # None: the mean over all batches
def test_a_step_is_the_same_to_the_last_bit(momentum):
    torch.manual_seed(0)
    plain = nn.Sequential(Unit(momentum=momentum), Unit(momentum=momentum), nn.Conv2d(4, 2, 1))
    saving = copy.deepcopy(plain)
    assert checkpoint_activations(saving) == 2
    for seed in range(3):
        image = torch.randn(2, 4, 8, 8)
        assert_same_step(step(saving, image, seed), step(plain, image, seed))
    assert [unit.runs for unit in saving[:2]] == [6, 6]
    assert [unit.runs for unit in plain[:2]] == [3, 3]
    assert int(saving[0].norm.num_batches_tracked) == 3
    assert saving[0].norm.momentum == momentum


NETWORKS = [
    ("deeplabv3", "timm:resnet18", 8),
    ("deeplabv3plus", "timm:mobilenetv2_100", 17),
    pytest.param("deeplabv3", "caffe:resnet50", 16, marks=pytest.mark.slow),
    ("deeplabv3", "torchvision:mobilenet_v3_large", 15),
    ("deeplabv3", "timm:regnetx_002", 13),
]


@pytest.mark.parametrize(("network", "encoder", "count"), NETWORKS)
@pytest.mark.parametrize("frozen", [False, True])
def test_networks(network, encoder, count, frozen):
    torch.manual_seed(0)
    plain = build_network(network, encoder, LabelSpace.of_size(3), EncoderSettings(16), HeadSettings(channels=8))
    if frozen:
        freeze_batch_norm(plain)
    saving = copy.deepcopy(plain)
    assert checkpoint_activations(saving) == count
    image = 255 * torch.rand(2, 3, 33, 35)
    assert_same_step(step(saving, image), step(plain, image))
    assert_same_step(step(saving, image, 1), step(plain, image, 1))


def test_bfloat16_and_smoothing():
    torch.manual_seed(0)
    plain = degrid.deeplabv3("timm:test_resnet", 3, output_stride=8, channels=8, operator="ssc")
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    image = 255 * torch.rand(1, 3, 33, 33)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = step(saving, image), step(plain, image)
    assert_same_step(found, expected)


def test_only_inputs_are_kept():
    model = nn.Sequential(*(Unit() for _ in range(3)))
    image = torch.randn(1, 4, 16, 16)
    counts = []
    for _ in range(2):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            model.train()(image)
        counts.append(sum(tensor.numel() == image.numel() for tensor in kept))
        if len(counts) == 1:
            checkpoint_activations(model)
    assert counts[0] >= 3 * 4
    assert counts[1] == 3


def test_without_gradients_nothing_is_different():
    model = nn.Sequential(Unit(), Unit()).eval()
    image = torch.randn(1, 4, 8, 8)
    expected = model(image)
    checkpoint_activations(model)
    with torch.no_grad():
        assert torch.equal(model(image), expected)
    with torch.inference_mode():
        assert torch.equal(model(image), expected)
    assert torch.equal(copy.deepcopy(model)(image), expected)
    assert torch.equal(model[0](image, gain=0.0), image)


def test_what_is_a_block():
    pair = [nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)]
    assert blocks(nn.Sequential(*pair, nn.Sequential(*pair))) == []
    inner = nn.ModuleDict({"left": Unit(), "right": Unit()})
    assert blocks(nn.Sequential(inner)) == list(inner.values())
    alone = nn.Module()
    alone.unit = Unit()
    assert blocks(alone) == []
    alone.other = Unit()
    assert blocks(alone) == [alone.unit, alone.other]
    alone.unit.first.register_forward_hook(lambda *_: None)  # it would see everything twice
    assert blocks(alone) == [alone.other]
    assert checkpoint_activations(alone) == 1
    with pytest.raises(UserError, match="no blocks to checkpoint in this Conv2d"):
        checkpoint_activations(pair[0])


def test_an_input_that_changes_afterwards_is_an_error():
    class Spoiler(Unit):
        def forward(self, x):
            return self.first(x * 1) + self.second(x.relu_())

    model = nn.Sequential(nn.Conv2d(4, 4, 1), Spoiler(), nn.Conv2d(4, 4, 1))
    checkpoint_activations(model)
    # The backward pass that fails leaves its queue to the thread, with maps that only Python can free: freed when
    # Python has ended, they would end the tests by a crash.
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError, match="modified by an inplace operation"):
        thread.submit(lambda: model(torch.randn(1, 4, 8, 8)).sum().backward()).result()
