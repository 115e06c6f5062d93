"""Recipes of published experiments: the numbers of their sources, and one step of each."""

import dataclasses

import numpy as np
import pytest
import torch

from degrid import config, recipes
from degrid.data import SyntheticScenes, TrainTransform, training_batches
from degrid.engine.training.loop import Training, train_step
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import make_optimizer, parameter_groups, schedule, set_learning_rate
from degrid.models import freeze_batch_norm
from degrid.networks import build_model
from degrid.types import UserError

PUBLISHED = [name for name in recipes.RECIPES if name not in ("folder", "synthetic", "camvid")]
WITH_CODE = ["eth_voc12", "eth_cityscapes", "kdd_voc12", "zw_voc12", "zw_voc12_msc", "ds_voc12", "nd_voc12", "st_voc12"]
WITH_CODE.append("is_voc12_msc")


def step_once(run, crop=(49, 49)):
    """One optimiser step of a recipe's own network on built-in scenes; gives the loss, and how the weights moved."""
    scenes = SyntheticScenes("train", 2, (64, 80))
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(run.model, pretrained=False), scenes.labels)
    if run.train.batch_norm == "frozen":
        freeze_batch_norm(model)
    optim = run.optim
    groups = parameter_groups(model, optim.weight_decay, optim.head_factor, optim.head_bias_factor)
    state = Training(model, make_optimizer(optim.name, groups, optim.lr, optim.momentum))
    set_learning_rate(
        state.optimizer, schedule(optim.schedule, optim.lr, run.train.steps, power=optim.power, warmup=optim.warmup)(0)
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    data = run.data
    batches = training_batches(scenes, TrainTransform(crop, data.scale, data.flip, data.jitter), 2, 0)
    micro = [next(batches) for _ in range(min(2, run.train.accumulate))]
    loss = train_step(state, micro, Objective(size=run.train.loss_size, convention=model.resize))
    moved = {name: float((value - before[name]).detach().abs().max()) for name, value in model.named_parameters()}
    return model, loss, moved


def check_step(run):
    model, loss, moved = step_once(run)
    assert np.isfinite(loss)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # From both ends of the network; in between residual branches start at zero and pass no gradient yet.
    watched = {name for name in trained if name.startswith(("head.", "encoder.net.conv1.", "encoder.conv1."))}
    assert len(watched) >= 9
    assert {name for name in watched if moved[name] == 0} == set()
    assert all(moved[name] == 0 for name in moved if name not in trained)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_is_kept_whole(name):
    run = recipes.load(name)
    assert run.name == name
    assert not run.model.legacy
    assert config.from_dict(config.RunConfig, config.to_dict(run)) == run


# Their networks, and the way they are trained, are those of others but for sizes, rates, resizing or the smaller
# images beside each.
LIKE_OTHERS = {"deeplabv2_voc12", "is_voc12_msc", "zw_voc12_msc", "ds_voc12", "eth_cityscapes", "deeplabv3_cityscapes"}
LIKE_OTHERS.add("deeplabv3_voc12_stage2")  # test_run trains such a second stage: output stride 8, frozen


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_OTHERS)) for name in PUBLISHED]
)
def test_every_recipe_takes_a_step(name):
    check_step(recipes.load(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CODE)
def test_every_compatible_recipe_takes_a_step(name):
    check_step(recipes.load(name, compat=True))


def test_compat_is_the_original_code():
    for name in WITH_CODE:
        meant, coded = recipes.load(name), recipes.load(name, compat=True)
        assert coded.compat
        assert not meant.compat
        assert coded.model.legacy == (name != "is_voc12_msc")
        assert meant != dataclasses.replace(coded, compat=False)
    assert recipes.load("ds_voc12", compat=True).data.flip == 0
    assert recipes.load("st_voc12", compat=True).optim.weight_decay == 0
    assert [recipes.load("st_voc12", compat=code).data.centred for code in (False, True)] == [False, True]
    assert recipes.load("is_voc12_msc", compat=True).train.steps == 2000
    with pytest.raises(UserError, match=r"deeplabv3_voc12.*these do: eth_voc12"):
        recipes.load("deeplabv3_voc12", compat=True)


def test_numbers_of_the_sources():
    """Learning rate, weight decay, images per step, crop, steps: source_systems and the papers."""
    expected = {
        "eth_voc12": (2e-3, 1e-4, 10, 321, 20_000),
        "eth_cityscapes": (1e-4, 1e-4, 3, 719, 80_000),
        "kdd_voc12": (1e-3, 5e-4, 10, 321, 20_000),
        "zw_voc12": (2.5e-4, 5e-4, 10, 321, 20_000),
        "zw_voc12_msc": (2.5e-4, 5e-4, 10, 321, 20_000),
        "ds_voc12": (2.5e-4, 5e-4, 10, 321, 20_000),
        "deeplabv2_voc12": (2.5e-4, 5e-4, 10, 321, 20_000),
        "is_voc12_msc": (2.5e-4, 5e-4, 10, 321, 20_000),
        "nd_voc12": (0.01, 1e-4, 4, 513, 600_000),
        "st_voc12": (1e-5, 1e-4, 8, 513, 100_000),
        "deeplabv3_voc12": (0.007, 1e-4, 16, 513, 30_000),
        "deeplabv3_voc12_stage2": (0.001, 1e-4, 16, 513, 30_000),
        "deeplabv3_cityscapes": (0.007, 1e-4, 16, 769, 90_000),
        "deeplabv3plus_voc12": (0.007, 1e-4, 16, 513, 30_000),
    }
    assert set(expected) == set(PUBLISHED)
    for name, numbers in expected.items():
        run = recipes.load(name)
        images = run.train.batch_size * run.train.accumulate
        found = (run.optim.lr, run.optim.weight_decay, images, run.data.crop[0], run.train.steps)
        assert found == numbers, name


def test_multi_scale_loss_equals_a_direct_computation():
    """Gradients of the four terms, over two micro-batches with different void pixels, at both loss sizes."""
    import torch.nn.functional as F

    import degrid
    from degrid.resize import resize
    from degrid.types import IGNORE_INDEX, Batch

    torch.manual_seed(0)
    model = degrid.deeplabv2("timm:resnet10t", 3, scales=(0.75, 0.5))
    freeze_batch_norm(model)
    images = torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8)
    labels = torch.randint(0, 3, (4, 40, 48))
    labels[0, :30] = IGNORE_INDEX
    micro = [Batch(images[i : i + 2], labels[i : i + 2], ("a", "b")) for i in (0, 2)]
    for size in ("label", "logits"):
        state = Training(model, torch.optim.SGD(model.parameters(), lr=0.0))
        loss = train_step(state, micro, Objective(size=size))
        ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        x = (images.float() - model.mean) / model.std
        maps = []
        for scale in (None, (30, 36), (20, 24)):
            scaled = x if scale is None else F.interpolate(x, scale, mode="bilinear", align_corners=False)
            maps.append(model.head(model.encoder(scaled)))
        maps.append(torch.stack([resize(m, maps[0].shape[-2:]) for m in maps]).max(0).values)
        total = 0
        for each in maps:
            if size == "label":
                each, target = F.interpolate(each, (40, 48), mode="bilinear", align_corners=False), labels
            else:
                target = F.interpolate(labels[:, None].float(), each.shape[-2:], mode="nearest-exact")[:, 0].long()
            total = total + F.cross_entropy(each, target, ignore_index=IGNORE_INDEX)
        total.backward()
        assert loss == pytest.approx(float(total.detach()), rel=1e-5)
        for a, b in zip(ours, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
