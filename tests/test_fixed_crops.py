"""Crops that are drawn once: training on what the frozen stages made of them is training on the crops themselves."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import degrid
from degrid.config import ModelConfig, RunConfig, override
from degrid.data import Share, SyntheticScenes, batches_by_number
from degrid.engine.training.loop import Training, train_step
from degrid.engine.training.losses import make_losses
from degrid.engine.training.objective import Objective
from degrid.networks import build_model
from degrid.types import Batch, UserError
from degrid.verbs import fixed_crops as module
from degrid.verbs.fixed_crops import FixedCrops, Replay, check_fixed_crops, fixed_crops, freeze_stages, frozen_stages
from degrid.verbs.run_settings import transform_of

SCENES = SyntheticScenes("train", 4)
SMALL = {"data.path": "synthetic:4", "data.crop": (48, 64), "train.fixed_crops": 4, "train.seed": 3}


def config(**changes):
    settings = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    return override(RunConfig(), settings)


def network(encoder="timm:resnet10t", operator="regular", head="deeplabv3plus"):
    """A small network with its early stages frozen; the same weights for every operator."""
    torch.manual_seed(0)
    smoothing = degrid.config.SmoothingConfig(operator)
    wanted = ModelConfig(head, encoder, False, 8, channels=8, low_level_channels=4, smoothing=smoothing)
    model = build_model(wanted, SCENES.labels)
    freeze_stages(model)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network, the folder of its features, and what `fixed_crops` gives."""
    folder = tmp_path_factory.mktemp("features")
    model = network(operator="ssc")
    settings = config(train__features=str(folder))
    return model, folder, settings, fixed_crops(settings, SCENES, model, folder, lambda _: None)


def steps(model, forward, batches):
    """The losses of a few steps, with the same dropout each time."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.05, momentum=0.9)
    state = Training(model, optimizer, forward=forward)
    objective = Objective(make_losses("cross_entropy"), "label", None, model.resize)
    return [train_step(state, [batch], objective) for batch in batches]


def test_training_on_kept_features_is_training_on_the_crops(made):
    model, _, settings, (replay, crops) = made
    stream = crops.batches(2, 0)
    kept = [next(stream) for _ in range(4)]
    draw = batches_by_number(SCENES, transform_of(settings.data), Share.of(1, 1), 3)
    drawn = [draw(number) for number in range(4)]
    place = {batch.names[0]: batch for batch in drawn}  # one pass over four images
    images = [Batch(torch.cat([place[name].image for name in batch.names]), batch.label, batch.names) for batch in kept]
    for batch in kept:
        assert torch.equal(batch.label, torch.cat([place[name].label for name in batch.names]))
    other, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    whole = steps(other, None, images)
    assert steps(model, replay, kept) == pytest.approx(whole, rel=1e-5)
    wanted = other.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
    early = nn.ModuleList(frozen_stages(model.encoder)[0])
    frozen = {id(each) for each in early.state_dict(keep_vars=True).values()}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in frozen:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.encoder.net.layer4[0].conv1.weight, before["encoder.net.layer4.0.conv1.weight"])


@pytest.mark.parametrize("encoder", ["timm:mobilenetv2_035", "slim:resnet_v2_50", "caffe:resnet50"])
def test_every_encoder_with_stages_can_be_replayed(encoder):
    model = network(encoder, head="deeplabv2_largefov").eval()
    image = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    replay = Replay(model, image[:1])
    with torch.no_grad():
        (found,) = replay(replay.features(image))
        torch.testing.assert_close(found, model(image), rtol=1e-4, atol=1e-5)
        assert torch.equal(model(image), model(image))  # nothing is left replaced


def test_every_pass_has_each_crop_once_in_an_order_of_its_own():
    count = 12
    crops = FixedCrops(np.arange(count, dtype=np.float32)[:, None], np.zeros((count, 1, 1), np.uint8), ("",) * count, 5)
    stream = crops.batches(3, 0)
    batches = [next(stream).image.flatten().tolist() for _ in range(8)]
    first, second = np.reshape(batches, (2, count)).tolist()
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second
    again = crops.batches(3, 5)
    assert [next(again).image.flatten().tolist() for _ in range(3)] == batches[5:]
    other = FixedCrops(crops.features, crops.labels, crops.names, 6).batches(3, 0)
    assert next(other).image.flatten().tolist() != batches[0]


def test_what_was_kept_is_used_by_other_operators_only(made, monkeypatch):
    _, folder, settings, (_, crops) = made
    monkeypatch.setattr(module, "_compute", lambda *_: pytest.fail("computed again"))
    _, found = fixed_crops(settings, SCENES, network(operator="tent"), folder, lambda _: None)
    assert np.array_equal(found.features, crops.features)
    for changed in (config(train__features=str(folder), train__seed=4), config(data__flip=0.0)):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            fixed_crops(changed, SCENES, network(), folder, lambda _: None)


def test_other_images_under_the_same_name_are_noticed(made):
    _, folder, settings, _ = made
    with pytest.raises(UserError, match="was made from images other than those now in synthetic:4; remove that folder"):
        fixed_crops(settings, SyntheticScenes("train", 4, seed=1), network(), folder, lambda _: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__fixed_crops": -1}, "expected 0 .off. or more, got -1"),
        ({"train__fixed_crops": 0, "train__features": "x"}, "without train.fixed_crops every step draws new ones"),
        ({"train__cyclic": True}, "does not go with train.cyclic=true; set train.cyclic=false"),
        ({"train__compile": True}, "does not go with train.compile=true"),
        ({"train__asynchronous__workers": 2}, "does not go with train.asynchronous"),
        ({"model__scales": (0.5,)}, "does not go with model.scales"),
        ({"data__repeat_rare": 0.5}, "does not go with data.repeat_rare"),
        ({"data__shuffle_buffer": 9}, "does not go with data.shuffle_buffer"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        check_fixed_crops(config(**changes))


def test_an_encoder_without_dilation():
    model = build_model(ModelConfig("deeplabv2_largefov", "timm:resnet10t", False, 32), SCENES.labels)
    with pytest.raises(UserError, match=r"no stage of this encoder comes before a dilated one; use a smaller"):
        freeze_stages(model)


class Twice(nn.Module):
    """An encoder that runs its first stage twice."""

    preprocess = degrid.types.Preprocess((0.0,) * 3, (1.0,) * 3)
    channels, reductions = (3,), (1,)

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=2, dilation=2)

    def forward(self, image):
        return [self.second(self.first(self.first(image)))]


def test_an_encoder_whose_stages_do_not_follow_one_another():
    encoder = Twice()
    model = degrid.models.Segmenter(encoder, nn.Identity(), SCENES.labels, 1)
    model.head.forward = lambda features: features[-1]
    freeze_stages(model)
    with pytest.raises(UserError, match="do not run one after the other, each once"):
        Replay(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_a_run_with_fixed_crops_can_be_repeated_and_resumed(tmp_path):
    settings = {"model.channels": 8, "data.crop": [48, 48], "train.batch_size": 2, "train.steps": 3, "data.val": ""}
    settings |= {"train.class_weights": "none", "train.fixed_crops": 3, "train.ema": 0.5, "train.save_every": 1}
    settings |= {"train.keep_checkpoints": True, "train.eval_every": 2, "train.features": str(tmp_path / "kept")}
    runs = [
        degrid.train("synthetic", data="synthetic:3", settings=settings, out=tmp_path / name) for name in ("a", "b")
    ]
    once, again = (degrid.load(run.folder).state_dict() for run in runs)
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    degrid.train(resume=tmp_path / "b", start_iteration=1)
    resumed = degrid.load(tmp_path / "b").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in once.items())
    assert len(list((tmp_path / "kept").glob("seed_0_*/features.npy"))) == 1
