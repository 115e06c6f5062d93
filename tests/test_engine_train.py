"""The loop on a small network and random images: resume, accumulation, faults."""

import itertools
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from degrid.engine.device import arithmetic, on_device, read_later
from degrid.engine.training.log import RunLog, StepRecord, read_metrics
from degrid.engine.training.loop import FORMAT, Plan, Stopped, Training, in_this_process, load_state, train
from degrid.engine.training.losses import LOSSES, make_losses
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import (
    make_optimizer,
    moving_average,
    parameter_groups,
    schedule,
    set_learning_rate,
)
from degrid.types import IGNORE_INDEX, Batch, LabelSpace, Scores, UserError


class Net(nn.Module):
    """Two convolutions with batch norm and dropout: everything whose state a resume must bring back."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, image):
        return self.head(self.encoder(image.float() / 255))


def batch(k):
    rng = np.random.default_rng(k)
    image = torch.from_numpy(rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8))
    label = torch.from_numpy(rng.integers(0, 3, (2, 8, 8)))
    label[:, 0, : k % 5] = IGNORE_INDEX
    return Batch(image, label, ("a", "b"))


def batches(start=0):
    k = start
    while True:
        yield batch(k)
        k += 1


def new_state(ema=0.9, optimizer="sgd", lr=0.1):
    torch.manual_seed(3)
    model = Net()
    groups = parameter_groups(model, weight_decay=1e-3, head_factor=2, head_bias_factor=4)
    average = moving_average(model, ema) if ema else None
    return Training(model, make_optimizer(optimizer, groups, lr, 0.9), average)


def go(state, folder, steps, source=batches, validate=None, publish=lambda model: None, tell=None, **plan):
    chosen = Plan(steps, schedule("poly", 0.1, 20, warmup=2), **plan)
    with RunLog(folder, steps, state.step, tell=tell) as log:
        first = source(state.step * chosen.accumulate)
        train(
            state, in_this_process(first, Objective(), chosen), folder, log, chosen, validate=validate, publish=publish
        )


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def tensors(state):
    return [
        *state.model.state_dict().values(),
        *(state.average.state_dict().values() if state.average else []),
    ]


@pytest.mark.parametrize(("optimizer", "ema", "accumulate"), [("sgd", 0.9, 1), ("adamw", 0.0, 3)])
def test_resume_equals_never_having_stopped(tmp_path, optimizer, ema, accumulate):
    whole, first, second = (new_state(ema, optimizer) for _ in range(3))
    torch.manual_seed(7)
    go(whole, tmp_path / "whole", 12, accumulate=accumulate)
    torch.manual_seed(7)
    go(first, tmp_path / "parts", 5, accumulate=accumulate)
    torch.manual_seed(99)  # whatever state the new process has
    second.restore(tmp_path / "parts" / "last.ckpt")
    go(second, tmp_path / "parts", 12, accumulate=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(second), strict=True))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(losses(tmp_path / "whole")) == 12


def test_golden_loss_curve(tmp_path):
    """A refactor must not change these numbers; a change of numerics updates them and says so."""
    go(new_state(), tmp_path, 20)
    golden = [
        1.2095, 1.1724, 1.1576, 1.1017, 1.1409, 1.1096, 1.1338, 1.1543, 1.1262, 1.1163,
        1.1060, 1.1058, 1.1152, 1.0970, 1.1000, 1.0884, 1.1079, 1.0987, 1.1014, 1.1078,
    ]  # fmt: skip
    assert losses(tmp_path) == pytest.approx(golden, abs=2e-4)


def test_accumulation_equals_one_large_batch(tmp_path):
    """The mean runs over all valid pixels, though the micro-batches hold different numbers of them."""

    def no_noise():
        state = new_state(ema=0)
        state.model.encoder[1] = nn.Identity()  # batch statistics differ between small and large batches
        state.model.encoder[3] = nn.Identity()
        state.optimizer = make_optimizer("sgd", parameter_groups(state.model, 1e-3), 0.1, 0.9)
        return state

    def large(start):
        for k in range(start, 100):
            parts = [batch(2 * k), batch(2 * k + 1)]
            yield Batch(torch.cat([p.image for p in parts]), torch.cat([p.label for p in parts]), ())

    small_steps, large_steps = no_noise(), no_noise()
    go(small_steps, tmp_path / "small", 4, accumulate=2)
    go(large_steps, tmp_path / "large", 4, source=large)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), rel=1e-5)
    for a, b in zip(tensors(small_steps), tensors(large_steps), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_losses_looked_at_later_are_those_of_their_steps(tmp_path):
    """As on a GPU, where no step waits for its loss."""
    for name, lag in (("at once", 0), ("later", 3)):
        torch.manual_seed(7)
        go(new_state(), tmp_path / name, 11, lag=lag, eval_every=7, save_every=5)
    at_once, later = (read_metrics(tmp_path / name) for name in ("at once", "later"))
    for one, other in zip(at_once, later, strict=True):
        assert other.pop("images_per_second") > 0
        assert one.pop("images_per_second") > 0
        assert other == one
    first, second = (load_state(tmp_path / name / "last.ckpt")["model"] for name in ("at once", "later"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("bad", [6, 7, 8])
def test_a_loss_that_is_seen_later_stops_before_anything_is_saved(tmp_path, bad):
    """Step 7 of the poisoned batch is seen when step 10 is on its way, or before the checkpoint after step 9."""

    def poisoned(start):
        for number, each in enumerate(batches(start)):
            yield each if number != bad else Batch(each.image.double() * torch.nan, each.label, each.names)

    with pytest.raises(UserError, match=rf"the loss is nan at step {bad + 1} "):
        go(new_state(), tmp_path, 20, poisoned, lag=3, save_every=3)
    assert len(losses(tmp_path)) == bad
    good = load_state(tmp_path / "last.ckpt")
    assert good["step"] == bad // 3 * 3
    assert all(torch.isfinite(value).all() for value in good["model"].values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu_one_ahead():
    device, asked = torch.device("cuda"), []

    def noted():
        for number in range(4):
            asked.append(number)
            yield batch(number)

    for number, found in enumerate(on_device(noted(), device)):
        assert asked[-1] == min(3, number + 1)
        assert found.image.is_cuda
        assert torch.equal(found.image.cpu(), batch(number).image)
        assert torch.equal(found.label.cpu(), batch(number).label)
        assert read_later(found.label.float().sum()[None])() == (float(batch(number).label.sum()),)


def test_deterministic_algorithms_only_while_training():
    cpu = torch.device("cpu")
    assert next(on_device(iter([batch(0)]), cpu)).names == batch(0).names
    assert read_later(torch.tensor([1.5, 2.0]))() == (1.5, 2.0)
    with arithmetic(cpu, True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("loss", LOSSES)
def test_deterministic_losses_are_the_same(loss):
    logits, label = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)), batch(0).label[:, :5, :6] % 4
    label = torch.where(torch.arange(6) == 2, 255, label)
    weights = torch.tensor([0.5, 1, 2, 3])
    (part,) = make_losses(loss, 0.1 if loss in ("cross_entropy", "ohem") else 0.0, 2.0, 0.25, {})
    found = []
    for deterministic in (False, True):
        own = logits.clone().requires_grad_()
        with arithmetic(torch.device("cpu"), deterministic):
            total = part.total(own, label, weights)
            total.backward()
        found.append((total.detach(), own.grad))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1].abs().max() > 0


def test_optimisers_are_fused_unless_told_otherwise():
    def made(name, options):
        return make_optimizer(name, parameter_groups(new_state().model, 0), 0.1, 0.9, options).param_groups[0]

    assert made("sgd", {})["fused"]
    assert made("adamw", {})["fused"]
    assert not made("sgd", {"foreach": True})["fused"]
    assert not made("torch.optim:RMSprop", {}).get("fused")


class Compiled(nn.Module):
    """Has neither length nor truth value, as what `torch.compile` returns."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, image):
        return self.module(image)

    def __len__(self):
        raise TypeError("Maps does not support len()")


def test_a_compiled_network_trains_as_any(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or Compiled(module))
    state, other = new_state(), new_state()
    state.compiled = True
    for each, name in ((state, "a"), (other, "b")):
        torch.manual_seed(7)
        go(each, tmp_path / name, 2)
    assert [type(module).__name__ for module in compiled] == ["Maps"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_overfits_one_batch(tmp_path):
    state = new_state(ema=0)
    state.model.encoder = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU())
    state.model.head = nn.Conv2d(64, 3, 1)
    state.optimizer = make_optimizer("adamw", parameter_groups(state.model, 0, 1, 1), 0.1, 0.9)

    def same(start):
        while True:
            yield batch(0)

    plan = Plan(300, lambda step: 0.01, eval_every=10**6)
    with RunLog(tmp_path, 300) as log:
        train(state, in_this_process(same(0), Objective(), plan), tmp_path, log, plan)
    assert losses(tmp_path)[-1] < 0.05


def test_all_void_batch_does_no_harm(tmp_path):
    def void(start):
        while True:
            yield Batch(batch(0).image, torch.full((2, 8, 8), IGNORE_INDEX), ())

    state = new_state(ema=0)
    before = [p.clone() for p in state.model.head.parameters()]
    state.optimizer = make_optimizer("sgd", parameter_groups(state.model, 0), 0.1, 0.9)
    go(state, tmp_path, 2, source=void)
    assert losses(tmp_path) == [0, 0]
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.head.parameters(), strict=True))


def test_non_finite_loss_stops_with_the_step_named_and_keeps_the_checkpoint(tmp_path):
    state = new_state()

    def poisoned(start):
        for k in range(start, 100):
            if k == 3:
                with torch.no_grad():
                    state.model.head.bias[0] = float("nan")
            yield batch(k)

    with pytest.raises(UserError, match=r"the loss is nan at step 4 .*last\.ckpt.*lower optim\.lr"):
        go(state, tmp_path, 10, source=poisoned, save_every=1)
    good = load_state(tmp_path / "last.ckpt")
    assert good["step"] == 3
    assert all(torch.isfinite(value).all() for value in good["model"].values())


@pytest.mark.parametrize(("apart", "step"), [(0.0, 5), (9.0, None)])
def test_two_signals_at_once_are_one(tmp_path, monkeypatch, request, apart, step):
    """As `timeout` sends them, to a process and to its group; a second one later stops at once, without saving."""
    # Shells start programs in the background with this signal ignored, which Python leaves so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    state, now = new_state(), itertools.count(step=apart)
    monkeypatch.setattr("degrid.engine.training.loop.time.monotonic", lambda: next(now))

    def interrupted():
        for k in range(100):
            if k == 4:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0)  # where Python calls the handler, so that the two are not one already
                os.kill(os.getpid(), signal.SIGINT)
            yield batch(k)

    with pytest.raises(KeyboardInterrupt if step is None else Stopped):
        go(state, tmp_path, 10, source=lambda start: interrupted())
    assert (tmp_path / "last.ckpt").exists() == (step is not None)
    if step:
        assert load_state(tmp_path / "last.ckpt")["step"] == step


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    state = new_state()

    def interrupted(start):
        for k in range(start, 100):
            if k == 4:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch(k)

    before, told = signal.getsignal(signal.SIGINT), []
    with pytest.raises(Stopped, match=f"continue with: degrid train --resume {tmp_path}"):
        go(state, tmp_path, 10, source=interrupted, tell=told.append)
    assert told == ["stopping after this step, and saving; once more stops at once, without saving"]
    assert signal.getsignal(signal.SIGINT) is before
    again = new_state()
    again.restore(tmp_path / "last.ckpt")
    assert again.step == 5
    go(again, tmp_path, 10)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 11))


def test_trains_in_another_thread_too(tmp_path):
    thread = threading.Thread(target=go, args=(new_state(), tmp_path, 2))
    thread.start()
    thread.join()
    assert len(losses(tmp_path)) == 2


def scores_of(values):
    """A validation that finds these mIoUs in turn."""
    found = iter(values)

    def validate(model, step):
        value = next(found)
        return Scores(value, value, value, value, None, ("a",), (value,), (value,), None, (1,), 1, 1, ((1,),))

    return validate


def test_best_is_kept_and_last_moves_on(tmp_path):
    published = []
    go(
        new_state(),
        tmp_path,
        6,
        eval_every=2,
        validate=scores_of([0.3, 0.5, 0.4]),
        publish=lambda m: published.append(m.head.weight.detach().clone()),
    )
    best, last = (load_state(tmp_path / name) for name in ("best.ckpt", "last.ckpt"))
    assert (best["step"], last["step"], best["best_miou"], last["best_miou"]) == (4, 6, 0.5, 0.5)
    assert len(published) == 2
    # What is published is the moving average, not the raw weights.
    assert torch.equal(published[-1], best["average"]["module.head.weight"])
    assert not torch.equal(published[-1], best["model"]["head.weight"])


def test_patience_ends_training_and_is_kept_over_a_resume(tmp_path):
    state = new_state()
    go(state, tmp_path, 20, eval_every=2, patience=3, validate=scores_of([0.3, 0.5, 0.4, 0.5, 0.2]))
    assert (state.step, state.since_best, state.best_miou) == (10, 3, 0.5)
    assert "stopped after step 10: 3 validations in a row were not better" in (tmp_path / "log.txt").read_text()
    again = new_state()
    again.restore(tmp_path / "last.ckpt")
    go(again, tmp_path, 20, eval_every=2, patience=3, validate=scores_of([]))
    assert again.step == 10
    go(again, tmp_path, 16, eval_every=2, patience=4, validate=scores_of([0.6, 0.1, 0.1]))
    assert (again.step, again.since_best) == (16, 2)


def test_a_large_gradient_is_scaled_down(tmp_path):
    def step(clip_norm):
        state = new_state(ema=0)
        state.optimizer = make_optimizer("sgd", parameter_groups(state.model, 0, 1, 1), 1.0, 0.0)
        before = [each.detach().clone() for each in state.model.parameters()]
        torch.manual_seed(1)  # of dropout
        go(state, tmp_path / str(clip_norm), 1, clip_norm=clip_norm)
        return [a - b.detach() for a, b in zip(before, state.model.parameters(), strict=True)]

    free, clipped, loose = step(0.0), step(0.01), step(1e6)
    norm = torch.stack([each.norm() for each in free]).norm()
    rate = torch.stack([each.norm() for each in clipped]).norm() / 0.01
    for a, b, c in zip(free, clipped, loose, strict=True):
        torch.testing.assert_close(b, a * (0.01 * rate / norm), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(c, a)


def test_moving_average_by_hand():
    model = nn.Conv2d(1, 1, 1, bias=False)
    average = moving_average(model, 0.9)
    expected = None
    for n, value in enumerate([1.0, 2.0, 4.0]):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        keep = min(0.9, (1 + n) / (10 + n))
        expected = value if expected is None else keep * expected + (1 - keep) * value
    assert float(average.module.weight.detach()) == pytest.approx(expected)


def test_groups_and_schedule():
    model = Net()
    groups = {g["name"]: g for g in parameter_groups(model, 0.5, head_factor=10, head_bias_factor=20)}
    assert [id(p) for p in groups["encoder weights"]["params"]] == [id(model.encoder[0].weight)]
    assert {id(p) for p in groups["encoder rest"]["params"]} == {
        id(model.encoder[0].bias),
        id(model.encoder[1].weight),
        id(model.encoder[1].bias),
    }
    assert [(g["factor"], g["weight_decay"]) for g in groups.values()] == [
        (1, 0.5),
        (1, 0),
        (10, 0.5),
        (20, 0),
    ]
    optimizer = make_optimizer("sgd", groups.values(), 1.0, 0.9)
    at = schedule("poly", 0.02, 100, power=0.9, warmup=4)
    assert at(0) == pytest.approx(0.02 / 5)
    assert at(50) == pytest.approx(0.02 * 0.5**0.9)
    assert at(100) == 0
    set_learning_rate(optimizer, at(50))
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([at(50), at(50), 10 * at(50), 20 * at(50)])
    with pytest.raises(UserError, match='unknown optimiser "adam"'):
        make_optimizer("adam", groups.values(), 1.0, 0.9)


def test_schedules_by_hand():
    poly, constant = schedule("poly", 0.1, 10), schedule("poly", 0.1, 10, power=0)
    assert [poly(0), poly(5), poly(10)] == pytest.approx([0.1, 0.1 * 0.5**0.9, 0])
    assert [constant(0), constant(9)] == [0.1, 0.1]
    restarts = schedule("cosine_restarts", 0.1, 14, options={"least": 0.02})  # descents of 2, 4 and 8 steps
    assert [restarts(step) for step in (0, 1, 2, 4, 6, 10, 14)] == pytest.approx(
        [0.1, 0.06, 0.1, 0.06, 0.1, 0.06, 0.02]
    )
    even = schedule("cosine_restarts", 0.1, 12, options={"period": 4, "growth": 1})
    assert [even(step) for step in (0, 2, 4, 6, 8, 12)] == pytest.approx([0.1, 0.05, 0.1, 0.05, 0.1, 0])
    with pytest.raises(UserError, match="expects a period of at least 1 step, a growth of at least 1"):
        schedule("cosine_restarts", 0.1, 10, options={"growth": 0.5})
    cosine = schedule("cosine", 0.1, 10)
    assert [cosine(0), cosine(5), cosine(10)] == pytest.approx([0.1, 0.05, 0])
    step = schedule("step", 0.1, 10, step_every=4, step_factor=0.1)
    assert [step(3), step(4), step(8)] == pytest.approx([0.1, 0.01, 0.001])
    warm = schedule("step", 0.1, 10, step_every=4, step_factor=0.1, warmup=1)
    assert [warm(0), warm(1)] == pytest.approx([0.05, 0.1])
    with pytest.raises(UserError, match='unknown schedule "poli". Did you mean "poly"'):
        schedule("poli", 0.1, 10)


def test_smoothing_parameters_learn_at_the_encoders_rate_without_decay():
    from degrid.smoothing import smooth_dilated_convs

    model = Net()
    model.encoder.append(nn.Conv2d(6, 6, 3, dilation=2, padding=2, bias=False))
    smooth_dilated_convs(model, "ssc")
    groups = {g["name"]: g for g in parameter_groups(model, 0.5)}
    residual = model.encoder[-1].smoothing.residual
    [home] = [name for name, group in groups.items() if any(p is residual for p in group["params"])]
    assert home == "smoothing"
    assert (groups[home]["factor"], groups[home]["weight_decay"]) == (1.0, 0.0)
    assert any(p is model.encoder[-1].weight for p in groups["encoder weights"]["params"])


def test_smoothing_parameters_of_the_head_have_their_own_rate():
    from degrid.smoothing import smooth_dilated_convs
    from degrid.smoothing.retrofit import rate_at_most

    model = Net()
    model.head = nn.Sequential(model.head, nn.Conv2d(3, 3, 3, dilation=12, padding=12))
    smooth_dilated_convs(model, "ssc", where=rate_at_most(36))
    groups = {g["name"]: g for g in parameter_groups(model, 0.5, head_bias_factor=20, smoothing_factor=2)}
    assert [id(p) for p in groups["smoothing"]["params"]] == [id(model.head[-1].smoothing.residual)]
    assert (groups["smoothing"]["factor"], groups["smoothing"]["weight_decay"]) == (2, 0)
    assert any(p is model.head[-1].weight for p in groups["head weights"]["params"])
    assert any(p is model.head[-1].bias for p in groups["head biases"]["params"])


def test_disk_full_while_saving_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    state = new_state()
    state.save(tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    state.step = 5
    with pytest.raises(UserError, match="the disk is full; what was there before is unchanged"):
        state.save(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_checkpoint_on_a_really_full_disk(small_disk):
    """Wherever in the file it ends; when there is room again, the next one is written."""
    (disk, leave), state = small_disk, new_state()
    state.save(disk / "last.ckpt")
    size = (disk / "last.ckpt").stat().st_size
    state.step = 5
    for free in (0, size // 2):
        leave(free // 4096 * 4096)
        with pytest.raises(UserError, match=r"could not write .*last.ckpt: the disk is full; what was there before is"):
            state.save(disk / "last.ckpt")
        assert load_state(disk / "last.ckpt")["step"] == 0
    leave(2 * size // 4096 * 4096)
    state.save(disk / "last.ckpt")
    assert load_state(disk / "last.ckpt")["step"] == 5


def record(log, steps):
    for step in steps:
        log.step(StepRecord(step, 1.0, 0.1, 1.0))
        log.image(step, "train/preview", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("free", [0, 4096, 16384])
def test_the_log_on_a_really_full_disk(small_disk, free):
    """Whoever finds no room first, the record or TensorBoard; it says what to do, and can be closed."""
    disk, leave = small_disk
    message = rf"could not write {disk}: the disk is full; .* go on with: degrid train --resume {disk}"
    log = RunLog(disk, 100)
    log.say("begun")
    leave(free)
    with pytest.raises(UserError, match=message), log:
        record(log, range(1, 300))
    assert len(read_metrics(disk)) < 299
    leave(204800)
    with RunLog(disk, 100, start=0) as log:
        record(log, [1])
    assert [each["step"] for each in read_metrics(disk)] == [1]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "model": Evil()}, "evil.ckpt")
    with pytest.raises(UserError, match="refused to load .*could run code"):
        load_state(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()
    torch.load("evil.ckpt", weights_only=False)  # the trap works: loaded carelessly, it does run code
    assert (tmp_path / "executed").exists()


def test_damaged_and_foreign_checkpoints(tmp_path):
    file = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match="no checkpoint at"):
        load_state(file)
    new_state().save(file)
    whole = file.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="damaged or not a checkpoint|refused to load"):
            load_state(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(UserError, match="is not a training state of degrid"):
        load_state(file)


def test_state_of_another_model_is_named(tmp_path):
    state = new_state()
    state.save(tmp_path / "last.ckpt")
    other = new_state()
    other.model.head = nn.Conv2d(6, 5, 1)
    other.model.extra = nn.Conv2d(1, 1, 1)
    with pytest.raises(UserError, match=r"another model: 2 missing \(extra\.weight.*head\.weight is \[3, 6, 1, 1\]"):
        other.restore(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"another train\.ema setting"):
        new_state(ema=0).restore(tmp_path / "last.ckpt")


def test_records_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    lines = [{"step": k, "loss": float(k)} for k in range(1, 6)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    with RunLog(tmp_path, 10, start=3) as log:
        log.step(StepRecord(4, 9.0, 0.1, 1.0))
    assert losses(tmp_path) == [1, 2, 3, 9]


def test_tensorboard_holds_everything(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    labels = LabelSpace(("sky", "pole"), ((0, 0, 0), (255, 255, 255)))
    found = Scores(
        0.5, 0.75, 0.6, 0.7, None, labels.names, (0.4, 0.6), (0.5, 0.7), None, (1, 1), 2, 1, ((1, 0), (0, 1))
    )
    with RunLog(tmp_path, 10) as log:
        log.step(StepRecord(1, 2.0, 0.1, 1.0))
        log.validation(1, found)
        log.image(1, "val/picture", np.zeros((4, 6, 3), np.uint8))
    events = {part: EventAccumulator(str(tmp_path / "log" / part)).Reload() for part in ("train", "val")}
    values = {part: {tag: e.Scalars(tag)[0].value for tag in e.Tags()["scalars"]} for part, e in events.items()}
    assert values["train"] == pytest.approx({"loss": 2.0, "learning rate": 0.1})
    assert values["val"] == pytest.approx(
        {
            "mIoU": 0.5,
            "pixel accuracy": 0.75,
            "mean accuracy": 0.6,
            "IoU class sky": 0.4,
            "IoU class pole": 0.6,
        }
    )
    assert events["val"].Tags()["images"] == ["val/picture"]
    assert "val mIoU 50.00 %" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_runs_do_not_depend_on_the_number_of_workers(tmp_path):
    """Dropout draws from the generator of the process, which loading must not touch; also where a run is resumed."""
    from degrid.data import SyntheticScenes, TrainTransform, training_batches

    def finished(name, workers, resumed_with=None):
        def source(start, workers=workers):
            return training_batches(
                SyntheticScenes("train", 3, (64, 64)), TrainTransform((24, 24)), 2, 5, start, workers
            )

        state = new_state()
        state.model.head = nn.Conv2d(6, len(SyntheticScenes.labels), 1)
        state.optimizer = make_optimizer("sgd", parameter_groups(state.model, weight_decay=0.0), 0.1, 0.9)
        state.average = None
        torch.manual_seed(7)
        if resumed_with is not None:
            go(state, tmp_path / name, 2, source)
            torch.manual_seed(1)
            state.restore(tmp_path / name / "last.ckpt")
            go(state, tmp_path / name, 4, lambda start: source(start, resumed_with))
        else:
            go(state, tmp_path / name, 4, source)
        return [*tensors(state), torch.get_rng_state()]

    expected = finished("none", 0)
    for name, found in (
        ("one", finished("one", 1)),
        ("two", finished("two", 2)),
        ("resumed", finished("resumed", 2, 1)),
        ("alone", finished("alone", 0, 2)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), name
        assert losses(tmp_path / name) == losses(tmp_path / "none")
