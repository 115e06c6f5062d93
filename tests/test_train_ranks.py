"""Training by several processes: real ones, with torch.distributed over Gloo."""

import copy
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import in_processes
from torch import nn

from degrid import UserError
from degrid.config import OptimConfig, RunConfig, TrainConfig
from degrid.contracts import MultiScaleNetwork
from degrid.data import Share, training_batches
from degrid.engine.ranks import as_any_sees, check_same, gathered, together
from degrid.engine.training.loop import FORMAT, Training, load_state, train_step
from degrid.engine.training.losses import LOSSES, make_losses
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import OPTIMIZERS, set_learning_rate
from degrid.engine.training.sharding import own_part
from degrid.models import freeze_batch_norm, synchronise_batch_norm
from degrid.types import IGNORE_INDEX, LabelSpace, Sample
from degrid.verbs.run import _check_in_step
from degrid.verbs.run_settings import make_state

WORLDS = (2, 3)
STEPS = 10


class Net(MultiScaleNetwork):
    """Two convolutions with a batch norm; the last one is used by no step."""

    def __init__(self, scales=()):
        super().__init__()
        torch.manual_seed(0)
        self.scales = scales
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, 1, 2, 2))
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, image):
        return self.body(image.float() / 255 - 0.5)

    def scale_logits(self, image, sizes=None):
        return [self(image.float()), self(image[..., ::2, ::2].float())]

    def fused(self, logits):
        size = logits[0].shape[-2:]
        return torch.stack([nn.functional.interpolate(each, size) for each in logits]).amax(0)


class Unit(nn.Module):
    """A residual unit."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 5, 3, 1, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, 1, 2, 2, bias=False))

    def forward(self, image):
        return image + self.layers(image)


class Deep(Net):
    """With residual units; some parameters have fewer rows than there are processes."""

    def __init__(self, scales=()):
        super().__init__(scales)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), Unit(), Unit(), nn.Conv2d(6, 4, 1))


class Noise:
    """Images of noise whose labels are void in very different shares."""

    labels = LabelSpace.of_size(4)

    def __len__(self):
        return 7

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = rng.integers(0, 4, (16, 16), dtype=np.uint8)
        label[: 2 * index] = IGNORE_INDEX
        image = rng.integers(0, 256, (3, 16, 16), dtype=np.uint8)
        return Sample(torch.from_numpy(image), torch.from_numpy(label), f"{index}")


def squares(logits, label):
    """A loss of one's own, which is no sum over pixels."""
    return (logits.mean((0, 2, 3)) - (label == IGNORE_INDEX).float().mean()).square().sum()


@dataclass(frozen=True)
class Case:
    """A training of STEPS steps on steps of 6 * `accumulate` images over all processes."""

    loss: str = "cross_entropy"
    accumulate: int = 1
    scales: tuple = ()
    batch_norm: str = "frozen"
    clip: float = 0.0


CASES = {
    **{name: Case(name) for name in LOSSES},
    "sum of losses, accumulated": Case("cross_entropy+0.5*dice+ohem", accumulate=2),
    "your own": Case("test_train_ranks:squares", accumulate=2),
    "multi-scale, accumulated": Case(scales=(0.5,), accumulate=2, clip=0.5),
    "synchronised": Case(batch_norm="synchronised"),
}


def trained(case, rank, world):
    """The state and the losses after some steps, as one of several processes or alone on all images."""
    model = Net(case.scales)
    if case.batch_norm == "frozen":
        freeze_batch_norm(model, fold=False)
    else:
        synchronise_batch_norm(model)
    state = Training(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9))
    objective = Objective(make_losses(case.loss, 0.0, 2.0, 0.25, {}))
    processes = world if dist.is_initialized() else 1
    share = Share.of(6 * case.accumulate, 6 // processes, rank, processes)
    batches = training_batches(Noise(), lambda sample, rng: sample, share, seed=1)
    losses = []
    for _ in range(STEPS):
        micro = list(itertools.islice(batches, share.pieces))
        losses.append(train_step(state, micro, objective, clip_norm=case.clip))
    return state, losses


def large(optimizer):
    """The state of a training in which each process keeps a part of everything, before it begins."""
    model = Deep((0.5,)).to(memory_format=torch.channels_last)
    freeze_batch_norm(model, fold=False)
    # With its usual eps AdamW makes large steps of gradients that are rounding errors.
    options = {"eps": 0.01} if optimizer == "adamw" else {}
    optim = OptimConfig(optimizer, lr=0.02, momentum=0.9, weight_decay=0.01, options=options)
    return make_state(RunConfig(optim=optim, train=TrainConfig(sharding="fsdp2", ema=0.9, fast=False)), model)


def large_steps(state, steps, rank=0, world=1):
    """The losses of some steps of two micro-batches, with several scales and clipped gradients."""
    share = Share.of(12, 6 // world, rank, world)
    batches = training_batches(Noise(), lambda sample, rng: sample, share, 1, state.step * share.pieces)
    objective = Objective(make_losses("cross_entropy+dice"))
    losses = []
    for _ in range(steps):
        set_learning_rate(state.optimizer, 0.02)
        losses.append(train_step(state, list(itertools.islice(batches, share.pieces)), objective, clip_norm=0.5))
        state.step += 1
    return losses


def sharded(optimizer, rank, world, folder):
    """Losses, the numbers that this process keeps of the weights, and whether a run goes on from its checkpoint."""
    state = large(optimizer)
    losses = large_steps(state, STEPS, rank, world)
    file = folder / f"{optimizer}{world}.ckpt"
    state.save(file)
    dist.barrier()
    own = sum(own_part(each).numel() for each in state.model.parameters())
    other = large(optimizer)
    other.restore(file)
    again = [large_steps(each, 2, rank, world) for each in (state, other)]
    networks = [each.network().state_dict() for each in (state, other)]
    same = again[0] == again[1] and all(torch.equal(networks[1][name], value) for name, value in networks[0].items())
    return losses, own, same


def work(rank, folder):
    """What each process does in worlds of 2 and 3; what it found is written down."""
    torch.set_num_threads(1)
    found = {}
    for world in WORLDS:
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
        for name, case in CASES.items():
            state, losses = trained(case, rank, world)
            found[world, name] = losses, copy.deepcopy(state.model.state_dict())
        for optimizer in OPTIMIZERS:
            found[world, optimizer] = sharded(optimizer, rank, world, folder)
        found[world, "errors"] = errors(rank)
        state.save(folder / f"state{world}.ckpt")
        found[world, "older"] = older(state, rank, folder / f"state{world}.ckpt")
        dist.destroy_process_group()
    torch.save(found, folder / f"rank{rank}.pt")


def errors(rank):
    """The messages of what goes wrong in one process or between them."""
    told = []
    uneven = Share.of(2 * dist.get_world_size() - 1, 1, rank, dist.get_world_size())
    _check_in_step(uneven, TrainConfig())
    for attempt in (
        _one_fails,
        lambda rank: _check_in_step(uneven, TrainConfig(batch_norm="synchronised")),
        lambda rank: _check_in_step(uneven, TrainConfig(loss="cross_entropy+0.5*dice")),
        lambda rank: check_same({"train.steps": 10, "optim.lr": 0.1 * (1 + rank)}),
        _one_fails_before_an_exchange,
        lambda rank: as_any_sees(lambda: rank != 1, "a file", 2),
    ):
        try:
            attempt(rank)
        except UserError as error:
            told.append((type(error).__name__, str(error)))
    seen = iter([False, False, True])  # at first not by process 1
    late = as_any_sees(lambda: rank != 1 or next(seen), "a file", 20)
    return [*told, (late, as_any_sees(lambda: False, "a file", 20)), gathered(rank)]


def older(state, rank, file):
    """What is said where process 1 still sees the file that was there before."""
    if rank == 1:
        file = file.with_name("older.ckpt")
        torch.save({"format": FORMAT, "step": 7}, file)
    dist.barrier()
    with pytest.raises(UserError) as told:
        state.restore(file)
    return str(told.value)


def _one_fails(rank):
    with together(), together():
        if rank == 1:
            raise UserError("image 1 is damaged")


def _one_fails_before_an_exchange(rank):
    with together(), together():
        if rank == 1:
            raise UserError("image 1 is damaged")
        gathered(rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    in_processes(work, folder, max(WORLDS))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(max(WORLDS))]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_processes_train_as_one_on_all_their_images(found, world, name):
    state, losses = trained(CASES[name], 0, world)
    alone = state.model.state_dict()
    assert losses[-1] != losses[0]
    for rank in range(world):
        others, weights = found[rank][world, name]
        assert others == pytest.approx(losses, rel=1e-5)
        for key, value in alone.items():
            torch.testing.assert_close(weights[key].float(), value.float(), rtol=1e-5, atol=1e-5, msg=f"{key} {rank}")
            assert torch.equal(weights[key], found[0][world, name][1][key]), "processes drift apart"


def test_the_whole_batch_differs_from_its_parts_where_void_pixels_are_spread_unevenly():
    """Else the test above could not tell a sum over all valid pixels from a mean of means."""
    per_part = []
    for rank in (0, 1):
        share = Share.of(6, 3, rank, 2)
        batch = next(training_batches(Noise(), lambda sample, rng: sample, share, seed=1))
        per_part.append(int((batch.label != IGNORE_INDEX).sum()))
    assert max(per_part) > 1.2 * min(per_part)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_processes_that_keep_parts_train_as_one(found, folder, optimizer, world):
    """Weights, average and moments, which one process reads from the checkpoint; it goes on, too."""
    alone, read = large(optimizer), large(optimizer)
    losses = large_steps(alone, STEPS)
    read.restore(folder / f"{optimizer}{world}.ckpt")
    for expected, value in (
        (alone.model.state_dict(), read.model.state_dict()),
        (alone.average.state_dict(), read.average.state_dict()),
        *zip(alone.optimizer.state.values(), read.optimizer.state.values(), strict=True),
    ):
        for key in expected:
            torch.testing.assert_close(value[key], expected[key], rtol=1e-5, atol=1e-5)
    whole = sum(each.numel() for each in alone.model.parameters())
    parts = [found[rank][world, optimizer][1] for rank in range(world)]
    assert sum(parts) == whole
    assert max(parts) < whole  # each has less than all
    for rank in range(world):
        others, _, same = found[rank][world, optimizer]
        assert others == pytest.approx(losses, rel=1e-5)
        assert same, "a run that was resumed goes on as if it had not been stopped"
    assert large_steps(read, 2) == pytest.approx(large_steps(alone, 2), rel=1e-4)


@pytest.mark.parametrize("world", WORLDS)
def test_a_failure_and_other_settings_are_told_to_all(found, world):
    for rank in range(world):
        failed, uneven, whole, differ, earlier, *unseen, seen, order = found[rank][world, "errors"]
        assert earlier == failed
        assert failed == (
            ("UserError", "image 1 is damaged")
            if rank == 1
            else ("OtherProcessError", "process 1 failed: image 1 is damaged")
        )
        assert f"a step's {2 * world - 1} images into 1, 2" in uneven[1]
        assert whole[1].startswith("train.loss=cross_entropy+0.5*dice: ")
        assert "optim.lr differ: optim.lr is 0.1 in process 0 and 0.2 in process 1" in differ[1]
        assert [text[: text.index(" was")] for _, text in unseen] == ["a file is there for another process, but"] * (
            rank == 1
        )
        assert seen == (True, False)
        assert order == list(range(world))


@pytest.mark.parametrize("world", WORLDS)
def test_a_checkpoint_that_is_older_for_one_process_is_refused_by_all(found, world):
    """As on a network disk whose clients keep what they have seen."""
    steps = ", ".join("7" if rank == 1 else "0" for rank in range(world))
    for rank in range(world):
        assert f".ckpt, {steps}: a network disk" in found[rank][world, "older"]


@pytest.mark.parametrize("world", WORLDS)
def test_a_state_goes_on_with_other_processes(folder, world):
    path = folder / f"state{world}.ckpt"
    generators = load_state(path)["other_generators"]
    assert len(generators) == world - 1
    state, _ = trained(Case(batch_norm="synchronised"), 0, 2)
    state.restore(path)
    assert torch.equal(torch.get_rng_state(), load_state(path)["rng"])


@pytest.mark.parametrize(
    ("total", "size", "processes"), [(12, 3, 1), (12, 3, 4), (12, 3, 2), (12, 3, 3), (7, 2, 3), (4, 1, 3)]
)
def test_a_step_has_the_same_images_however_many_share_them(total, size, processes):
    shares = [Share.of(total, size, rank, processes) for rank in range(processes)]
    for step in (0, 5):
        batches = [
            list(share.positions(step * share.pieces + piece)) for share in shares for piece in range(share.pieces)
        ]
        assert sorted(itertools.chain(*batches)) == list(range(step * total, (step + 1) * total))
        assert all(1 <= len(batch) <= size for batch in batches)
    with pytest.raises(UserError, match=f"{total} images, fewer than the {total + 1} processes"):
        Share.of(total, size, 0, total + 1)
