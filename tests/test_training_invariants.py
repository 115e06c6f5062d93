"""What must hold in every training step and every look at an image, on real networks: exact, or to 1e-6.

Networks compute in double precision here, so that what is left is rounding of the loss in single precision.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import degrid
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.inference.predictor import Predictor
from degrid.engine.training.log import RunLog
from degrid.engine.training.loop import Plan, Training, in_this_process, train, train_step
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import make_optimizer, moving_average, parameter_groups
from degrid.models import Segmenter, freeze_batch_norm
from degrid.resize import RESIZES, resize, scaled_size
from degrid.types import IGNORE_INDEX, MSC_SCALES, Batch, LabelSpace, Sample

CLASSES = 3
SIZE = (40, 48)


def network(kind):
    """Tiny networks with random batch norm statistics, so that freezing them means something."""
    torch.manual_seed(0)
    model = {
        "one scale": lambda: degrid.deeplabv3("timm:test_resnet", CLASSES, channels=8, dropout=0.0),
        "many scales": lambda: degrid.deeplabv2("timm:test_resnet", CLASSES, scales=MSC_SCALES),
        "smoothed": lambda: degrid.deeplabv3plus(
            "timm:test_resnet", CLASSES, output_stride=8, channels=8, dropout=0.0, operator="ssc"
        ),
    }[kind]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.double()


def images_and_labels(number=6):
    """Void is spread unevenly: one image holds nothing else, one next to nothing else, one none."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (number, 3, *SIZE), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, CLASSES, (number, *SIZE), generator=generator)
    label[0] = IGNORE_INDEX
    label[1, 1:] = IGNORE_INDEX
    for k in range(2, number - 1):
        label[k, :, : 7 * k] = IGNORE_INDEX
    return image, label


def split(image, label, parts):
    per = len(image) // parts
    return [Batch(i, y, ("",) * per) for i, y in zip(image.split(per), label.split(per), strict=True)]


def one_step(model, micro, loss_size="label", class_weights=None):
    """Loss, gradients and parameters after one step of a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = make_optimizer("sgd", parameter_groups(model, 1e-2, 10, 20), 0.05, 0.9)
    state = Training(model, optimizer)
    objective = Objective(size=loss_size, class_weights=class_weights, convention=model.resize)
    loss = train_step(state, micro, objective)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, grads, {name: value.clone() for name, value in model.state_dict().items()}


def close(a, b):
    """Tensors by name, to 1e-6 of the largest value of each."""
    assert a.keys() == b.keys()
    for name in a:
        bound = 1e-6 * max(1e-3, float(b[name].double().abs().max()))
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")


# ---- accumulation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one scale", "many scales", "smoothed"])
@pytest.mark.parametrize("settings", [{}, {"loss_size": "logits", "class_weights": torch.tensor([0.5, 2.0, 1.0])}])
def test_micro_batches_add_up_to_one_batch(kind, settings):
    """Whatever the division, though one micro-batch may hold nothing but void: loss, gradients and parameters."""
    model = network(kind)
    freeze_batch_norm(model)
    image, label = images_and_labels()
    whole_loss, whole_grads, whole_state = one_step(model, split(image, label, 1), **settings)
    assert whole_loss > 0.1
    assert max(float(grad.abs().max()) for grad in whole_grads.values()) > 1e-3
    for parts in (2, 3, 6):
        loss, grads, state = one_step(model, split(image, label, parts), **settings)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        close(grads, whole_grads)
        close(state, whole_state)


def test_the_mean_of_the_means_is_something_else():
    """The invariant is not trivial: with void spread unevenly a mean per micro-batch gives another gradient."""
    model = network("one scale")
    freeze_batch_norm(model)
    micro = split(*images_and_labels(), 3)
    grad = one_step(model, micro)[1]["head.classifier.weight"]
    means = [one_step(model, [each])[1]["head.classifier.weight"] for each in micro]
    assert float((sum(means) / 3 - grad).norm() / grad.norm()) > 0.1


# ---- frozen batch norm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one scale", "many scales", "smoothed"])
@pytest.mark.parametrize(("optimizer", "fold"), [("sgd", True), ("adamw", False)])
def test_frozen_batch_norm_keeps_every_bit_in_real_steps(tmp_path, kind, optimizer, fold):
    model = network(kind)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze_batch_norm(model, fold=fold)
    groups = parameter_groups(model, 0.1, 10, 20, decay_all=True)
    state = Training(model, make_optimizer(optimizer, groups, 0.1, 0.9), moving_average(model, 0.9))
    batches = iter(split(*images_and_labels(), 6))
    plan = Plan(3, lambda step: 0.01, accumulate=2, eval_every=2)
    with RunLog(tmp_path, 3) as log:
        train(state, in_this_process(batches, Objective(convention=model.resize), plan), tmp_path, log, plan)
    after, average = model.state_dict(), state.average.module.state_dict()
    assert after.keys() == before.keys() == average.keys()
    for name, value in before.items():
        kept = torch.equal(value, after[name])
        owner = name.rpartition(".")[0]
        assert kept or owner not in norms, f"{name} changed"
        if owner in norms:
            assert torch.equal(value, average[name]), f"the average of {name} changed"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) > 10
    assert len([name for name in before if name.rpartition(".")[0] in norms]) == 5 * len(norms)


# ---- multi-scale training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", RESIZES)
@pytest.mark.parametrize("loss_size", ["label", "logits"])
@pytest.mark.parametrize("parts", [1, 3])
def test_multi_scale_loss_is_that_of_four_forward_passes(convention, loss_size, parts):
    """Image, two smaller ones, and the maximum: four losses added up; gradients of the direct computation."""
    model = network("many scales")
    model.resize = convention
    freeze_batch_norm(model)
    image, label = images_and_labels()
    loss, grads, _ = one_step(model, split(image, label, parts), loss_size=loss_size)

    def enlarged(x, size):
        if convention == "tf_legacy":
            return resize(x, size, convention)
        return F.interpolate(x, size, mode="bilinear", align_corners=convention == "align_corners")

    x = (image.double() - model.mean) / model.std
    sizes = [SIZE, *(scaled_size(SIZE, scale, convention) for scale in (0.75, 0.5))]
    assert sizes == [(40, 48), *([(31, 37), (21, 25)] if convention == "align_corners" else [(30, 36), (20, 24)])]
    maps = [model.head(model.encoder(x if size == SIZE else enlarged(x, size))) for size in sizes]
    maps.append(torch.stack([enlarged(each, maps[0].shape[-2:]) for each in maps]).max(0).values)
    total = torch.zeros(())
    for each in maps:
        if loss_size == "label":
            each, target = enlarged(each, SIZE), label
        else:
            mode = "nearest" if convention == "tf_legacy" else "nearest-exact"
            target = F.interpolate(label[:, None].double(), each.shape[-2:], mode=mode)[:, 0].long()
        total = total + F.cross_entropy(each.float(), target, ignore_index=IGNORE_INDEX)
    model.zero_grad()
    total.backward()
    assert loss == pytest.approx(float(total.detach()), rel=1e-6)
    close(grads, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


# ---- looks at an image --------------------------------------------------------------------------------------


class Constant(nn.Module):
    """The same logits everywhere, whatever the image: equivariant under every scale, flip and window."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, 2.0, -1.0]))

    def forward(self, x):
        return self.logits.reshape(1, -1, 1, 1).expand(len(x), -1, -(-x.shape[2] // 4), -(-x.shape[3] // 4))


class Pointwise(nn.Module):
    """Two 1x1 convolutions: each pixel for itself, so equivariant under flips and windows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))

    def forward(self, x):
        return self.net(x.float() / 255)


class Random:
    labels = LabelSpace.of_size(CLASSES)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image, label = images_and_labels()
        return Sample(image[index + 1], label[index + 1].byte(), f"{index}")


SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.mark.parametrize(
    "options",
    [
        InferenceOptions(SCALES, flip=True),
        InferenceOptions(SCALES, flip=True, fusion="max"),
        InferenceOptions(SCALES, flip=True, window=(32, 32)),
        InferenceOptions(window=(16, 20), overlap=0.3),
        InferenceOptions(window=SIZE),
        InferenceOptions(window=(500, 500), overlap=0.0),
    ],
)
def test_a_constant_network_is_the_same_in_every_look(options):
    found = Predictor(Constant(), device="cpu", precision="float32", options=options).scores(Random()[0].image)
    probabilities = found / found.sum(1, keepdim=True) if options.fusion == "mean" and not options.is_single else found
    one_look = Predictor(Constant(), device="cpu", precision="float32").scores(Random()[0].image)
    expected = one_look.softmax(1) if options.fusion == "mean" and not options.is_single else one_look
    torch.testing.assert_close(probabilities, expected[..., :1, :1].expand_as(probabilities), rtol=0, atol=1e-6)
    plain = degrid.evaluate(Constant(), Random(), device="cpu", measures=degrid.Measures(calibration=True))
    many = degrid.evaluate(
        Constant(), Random(), device="cpu", options=options, measures=degrid.Measures(calibration=True)
    )
    assert many.confusion == plain.confusion
    assert many.ece == pytest.approx(plain.ece, abs=1e-6)


@pytest.mark.parametrize(
    "options", [InferenceOptions(flip=True), InferenceOptions(window=SIZE), InferenceOptions(window=(20, 24))]
)
def test_a_pointwise_network_is_the_same_in_flips_and_windows(options):
    plain = degrid.evaluate(Pointwise(), Random(), device="cpu", measures=degrid.Measures(calibration=True))
    many = degrid.evaluate(
        Pointwise(), Random(), device="cpu", options=options, measures=degrid.Measures(calibration=True)
    )
    assert many.confusion == plain.confusion
    assert many.ece == pytest.approx(plain.ece, abs=1e-6)


class ConstantEncoder(nn.Module):
    preprocess = degrid.types.Preprocess()
    reductions = (4,)

    def forward(self, x):
        return x.new_ones(len(x), 1, -(-x.shape[2] // 4), -(-x.shape[3] // 4))


def test_multi_scale_input_of_a_constant_network_is_its_single_scale():
    head = nn.Conv2d(1, CLASSES, 1)
    single = Segmenter(ConstantEncoder(), head, Random.labels, 4)
    multi = Segmenter(ConstantEncoder(), head, Random.labels, 4, scales=MSC_SCALES)
    image = Random()[0].image[None]
    torch.testing.assert_close(multi(image), single(image), rtol=0, atol=1e-6)
