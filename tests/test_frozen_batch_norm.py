"""Frozen batch norm within the convolution before it: the same function, gradients and state, fewer maps kept."""

import copy
import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.optim.swa_utils import AveragedModel

import degrid
from degrid.acceleration.fold import fold_batch_norm
from degrid.models import EncoderSettings, HeadSettings, build_network, freeze_batch_norm
from degrid.models.batch_norm import _ScaledConvolution, conv_bn_pairs
from degrid.types import LabelSpace, UserError


def randomised(model):
    """Batch norms that do something, and no dropout."""
    random = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.running_mean.copy_(0.1 * torch.randn(size, generator=random))
            module.running_var.copy_(0.5 + torch.rand(size, generator=random))
            module.weight.data.copy_(0.5 + torch.rand(size, generator=random))
            module.bias.data.copy_(0.1 * torch.randn(size, generator=random))
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def frozen(model, fold, dtype=torch.float64):
    model = copy.deepcopy(model).to(dtype)
    freeze_batch_norm(model, fold=fold)
    return model.train()


def folded_layers(model):
    return [module for module in model.modules() if hasattr(module, "folded_norm")]


def gradients(model, image):
    loss = model(image).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


NETWORKS = [
    ("deeplabv3", "timm:resnet18", 26),
    ("deeplabv3plus", "timm:mobilenetv2_100", 60),
    ("deeplabv3", "timm:tf_mobilenetv3_small_minimal_100", None),  # convolutions that pad as TensorFlow does
    ("deeplabv3", "torchvision:mobilenet_v3_large", 52),
    pytest.param("deeplabv2", "caffe:resnet50", 53, marks=pytest.mark.slow),
    ("deeplabv3", "slim:resnet_v2_50", 38),  # 17 come first in their unit, after a sum or a pooling
]


@pytest.mark.parametrize(("network", "encoder", "count"), NETWORKS)
def test_loss_gradients_and_state_are_those_of_separate_layers(network, encoder, count):
    torch.manual_seed(0)
    plain = randomised(
        build_network(network, encoder, LabelSpace.of_size(3), EncoderSettings(16), HeadSettings(channels=16))
    )
    image = 255 * torch.rand(1, 3, 33, 35, dtype=torch.float64)
    separate, folded = frozen(plain, False), frozen(plain, True)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert len(folded_layers(folded)) == (norms if count is None else count)
    before = {key: value.clone() for key, value in folded.state_dict().items()}
    assert list(before) == list(plain.state_dict())

    expected, expected_gradients = gradients(separate, image)
    loss, found = gradients(folded, image)
    assert relative(loss, expected) < 1e-12
    assert found.keys() == expected_gradients.keys()
    assert max(relative(found[name], expected_gradients[name]) for name in found) < 1e-10
    assert all(torch.equal(before[key], value) for key, value in folded.state_dict().items())
    with torch.no_grad():
        assert relative(folded.eval()(image), separate.eval()(image)) < 1e-12


def test_single_precision_gradients():
    torch.manual_seed(0)
    plain = randomised(degrid.deeplabv3("timm:resnet18", 3, output_stride=8, channels=16))
    # A ReLU whose input is nearly 0 opens by rounding, which changes all gradients before it; SiLU has no such step.
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    image = 255 * torch.rand(2, 3, 65, 65)
    _, exact = gradients(frozen(plain, False), image.double())
    expected, _ = gradients(frozen(plain, False, torch.float32), image)
    loss, found = gradients(frozen(plain, True, torch.float32), image)
    assert relative(loss, expected) < 1e-5
    assert max(relative(found[name], exact[name]) for name in found) < 1e-5


@pytest.mark.slow
def test_bfloat16_is_as_near_as_with_separate_layers():
    torch.manual_seed(0)
    plain = randomised(degrid.deeplabv3("timm:resnet18", 3, output_stride=8, channels=16))
    image = 255 * torch.rand(2, 3, 65, 65)
    _, exact = gradients(frozen(plain, False), image.double())
    errors = []
    for fold in (False, True):
        model = frozen(plain, fold, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image)
        assert logits.dtype == torch.bfloat16
        logits.float().square().mean().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert all(value.dtype == torch.float32 for value in found.values())
        errors.append(torch.tensor([relative(found[name], exact[name]) for name in exact]).mean())
    assert errors[1] < 1.2 * errors[0] < 0.2


@pytest.mark.parametrize("operator", ["decompose", "gi", "ssc", "average", "gaussian", "aggregation", "tent"])
def test_smoothed_convolutions_are_folded_too(operator):
    torch.manual_seed(0)
    plain = randomised(degrid.deeplabv3("timm:test_resnet", 3, output_stride=8, channels=8, operator=operator))
    for name, parameter in plain.named_parameters():
        if ".smoothing." in name:
            nn.init.normal_(parameter, std=0.3)
    image = 255 * torch.rand(1, 3, 33, 35, dtype=torch.float64)
    separate, folded = frozen(plain, False), frozen(plain, True)
    assert sum(hasattr(layer, "smoothing") for layer in folded_layers(folded)) == 2
    expected, expected_gradients = gradients(separate, image)
    loss, found = gradients(folded, image)
    assert relative(loss, expected) < 1e-12
    assert max(relative(found[name], expected_gradients[name]) for name in expected_gradients) < 1e-9


class Conv(nn.Sequential):
    """A convolution with bias, batch norm and ReLU."""

    def __init__(self, **settings):
        super().__init__(nn.Conv2d(4, 6, 3, **settings), nn.BatchNorm2d(6), nn.ReLU(inplace=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {"padding": 2, "dilation": 2, "groups": 2},
        {"stride": 2, "bias": False},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_every_kind_of_convolution(settings):
    torch.manual_seed(0)
    image = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    plain = randomised(Conv(**settings)).double()
    norm = plain[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (plain[0](image) - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    expected_gradients = torch.autograd.grad(expected.relu().sin().sum(), [image, *plain[0].parameters()])
    freeze_batch_norm(plain, example=image.detach())
    assert len(folded_layers(plain)) == 1
    found = plain.train()(image)
    assert torch.allclose(found, expected.relu())
    for ours, theirs in zip(
        torch.autograd.grad(found.sin().sum(), [image, *plain[0].parameters()]), expected_gradients, strict=True
    ):
        assert torch.allclose(ours, theirs)


def test_the_gradient_and_its_gradient():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 2, 3, 3)
    scale, bias = torch.rand(6, 1, 1, 1), torch.randn(6)
    inputs = [value.double().requires_grad_(index != 2) for index, value in enumerate((x, weight, scale, bias))]
    geometry = (2, 1), (1, 2), (1, 2), 2
    assert torch.autograd.gradcheck(lambda *args: _ScaledConvolution.apply(*args, geometry), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: _ScaledConvolution.apply(*args, geometry), inputs)


def test_activation_of_timm_stays():
    conv, norm = nn.Conv2d(3, 5, 1), BatchNormAct2d(5, act_layer=nn.Hardswish)
    model = randomised(nn.Sequential(conv, norm))
    image = torch.randn(1, 3, 8, 8)
    expected = model.eval()(image)
    assert freeze_batch_norm(model) == 1
    assert len(folded_layers(model)) == 1
    assert torch.allclose(model.train()(image), expected, atol=1e-6)


class Wired(nn.Module):
    """Two convolutions and two batch norms, wired by a function."""

    def __init__(self, wires):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.m, self.n = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.wires = wires

    def forward(self, x):
        return self.wires(self, x)


def output_read_too(net, x):
    y = net.a(x)
    return net.m(y) + y


def output_given_too(net, x):
    y = net.a(x)
    return {"normal": [net.m(y)], "raw": y}


def output_viewed(net, x):
    y = net.a(x)
    return net.m(y), y[:, :1]


def output_read_in_a_thread(net, x):
    y, sums = net.a(x), []

    def read():
        z = net.b(x)
        sums.append(net.n(z) + z)

    worker = threading.Thread(target=read)
    worker.start()
    worker.join()
    return net.m(y) + sums[0]


def mapped(net, x):
    return net.m(net.a(x)) + torch.vmap(lambda each: net.a(each[None])[0])(x) + net.n(net.b(x))


WIRINGS = {
    "plain": (lambda net, x: net.n(net.a(x)) + net.m(net.b(x)), "an bm"),
    "shape asked": (lambda net, x: (lambda y: net.m(y).reshape(y.shape))(net.a(x)), "am"),
    "twice": (lambda net, x: net.m(net.a(x)) + net.m(net.a(x + 1)), "am"),
    "read too": (output_read_too, ""),
    "given too": (output_given_too, ""),
    "viewed": (output_viewed, ""),
    "two norms": (lambda net, x: (lambda y: net.m(y) + net.n(y))(net.a(x)), ""),
    "two norms in turn": (lambda net, x: net.m(net.a(x)) + net.n(net.a(x + 1)), ""),
    "two convolutions": (lambda net, x: net.m(net.a(x)) + net.m(net.b(x)), ""),
    "once after a sum": (lambda net, x: net.m(net.a(x)) + net.m(net.a(x) + 1), ""),
    "activation between": (lambda net, x: net.m(net.a(x).relu()) + net.n(net.b(x)), "bn"),
    "once without": (lambda net, x: net.m(net.a(x)) + net.a(x), ""),
    "in a thread": (output_read_in_a_thread, "am"),
    "mapped": (mapped, "bn"),
    "functional": (lambda net, x: F.conv2d(x, net.a.weight) + net.m(net.b(x)), "bm"),
}


@pytest.mark.parametrize("name", WIRINGS)
def test_only_what_one_batch_norm_alone_reads_is_a_pair(name):
    wires, expected = WIRINGS[name]
    net = Wired(wires).train()
    net.n.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    names = {module: key for key, module in net.named_modules()}
    assert sorted(names[conv] + names[norm] for conv, norm in conv_bn_pairs(net)) == expected.split()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert (net.training, net.m.training, net.n.training) == (True, True, False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Squashing(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight, bias).tanh()


class Doubling(nn.Conv2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Raising(nn.BatchNorm2d):
    def __call__(self, x):
        return 1 + super().__call__(x)


class SquashingSame(Conv2dSame):
    def forward(self, x):
        return super().forward(x).tanh()


@pytest.mark.parametrize("kind", [Squashing, Doubling, Raising, SquashingSame])
def test_subclasses_that_compute_something_else_keep_their_batch_norm(kind):
    torch.manual_seed(0)
    conv = kind(3, 4, 3, padding=1) if issubclass(kind, nn.Conv2d) else nn.Conv2d(3, 4, 3, padding=1)
    norm = nn.BatchNorm2d(4) if issubclass(kind, nn.Conv2d) else kind(4)
    model = randomised(nn.Sequential(conv, norm)).eval()
    frozen, image = copy.deepcopy(model), torch.randn(2, 3, 9, 9)
    assert freeze_batch_norm(frozen) == 1
    torch.testing.assert_close(frozen(image), model(image))
    torch.testing.assert_close(fold_batch_norm(model).model(image), model(image))


def test_hooks_on_all_modules_leave_every_batch_norm():
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    frozen, image = copy.deepcopy(model), torch.randn(2, 3, 9, 9)

    def doubled(module, args, output):
        return 2 * output if isinstance(module, nn.Conv2d) else None

    with nn.modules.module.register_module_forward_hook(doubled):
        freeze_batch_norm(frozen)
        torch.testing.assert_close(frozen(image), model(image))
        torch.testing.assert_close(fold_batch_norm(model).model(image), model(image))


def test_a_network_that_cannot_run_on_the_example():
    model = nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(UserError, match=r"could not run Sequential on an image of \(1, 3, 64, 64\).*fold=False"):
        freeze_batch_norm(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert freeze_batch_norm(copy.deepcopy(model), fold=False) == 1
    assert freeze_batch_norm(model, example=torch.zeros(1, 5, 2, 2)) == 1


class WideIsRaw(nn.Module):
    """Leaves the batch norm out of images wider than 128 pixels."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y if x.shape[-1] > 128 else self.norm(y)


def test_paths_that_depend_on_the_size_are_seen_at_two_sizes():
    model = randomised(WideIsRaw())
    frozen_model = frozen(model, True, torch.float32)
    model.eval()
    for width in (40, 140):
        image = torch.rand(1, 3, 20, width)
        torch.testing.assert_close(frozen_model(image), model(image))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_batch_norms_in_torchscript_are_frozen_or_refused():
    def network():
        return nn.Sequential(nn.Conv2d(3, 4, 3), randomised(nn.BatchNorm2d(4))).eval()

    image = torch.rand(2, 3, 8, 9)
    traced = torch.jit.trace(network(), image)
    model = nn.Sequential(network(), nn.Conv2d(4, 3, 1), traced)
    expected = model(image)
    assert freeze_batch_norm(model) == 2
    torch.testing.assert_close(model.train()(image), expected)
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == [
        "0.1.weight",
        "0.1.bias",
        "2.1.weight",
        "2.1.bias",
    ]
    for compiled in (torch.jit.script(network()), torch.jit.trace(network().train(), image)):
        model = nn.Sequential(network(), nn.Conv2d(4, 3, 1), compiled)
        with pytest.raises(UserError, match="cannot freeze the batch norms of 2.*before it is compiled"):
            freeze_batch_norm(model)
        assert type(model[0][1]) is nn.BatchNorm2d


def test_a_copy_follows_its_own_layers():
    torch.manual_seed(0)
    model = randomised(Conv())
    freeze_batch_norm(model, example=torch.zeros(1, 4, 9, 9))
    average = AveragedModel(model, multi_avg_fn=lambda old, new, count: torch._foreach_lerp_(old, new, 0.5))
    image = torch.randn(1, 4, 9, 9)
    assert torch.equal(average(image), model(image))
    assert average.module[0].folded_norm is average.module[1]
    first = model(image)
    with torch.no_grad():
        model[1].running_mean += 1
        model[0].weight *= 2
    assert torch.equal(average(image), first)
    assert not torch.allclose(model(image), first)
    average.update_parameters(model)  # the first update copies
    assert torch.allclose(average(image), model(image))


def test_later_loading_is_seen(tmp_path):
    torch.manual_seed(0)
    source = degrid.deeplabv3("timm:resnet18", 3, channels=8)
    randomised(source).eval()
    model = degrid.deeplabv3("timm:resnet18", 3, channels=8).eval()
    freeze_batch_norm(model)
    model.load_state_dict(source.state_dict())
    image = torch.randint(0, 256, (1, 3, 65, 65), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(model(image), source(image), rtol=1e-4, atol=1e-4)
        degrid.save(model, tmp_path / "model")
        assert torch.equal(degrid.load(tmp_path / "model")(image), source(image))


def saved_bytes(model, image):
    """Bytes that autograd keeps, parameters and buffers left out."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = model(image)
    del result
    return sum(kept.values())


def test_one_map_per_convolution_is_kept():
    layers = [(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)) for _ in range(3)]
    model = nn.Sequential(*itertools.chain.from_iterable(layers)).train()
    image = torch.randn(2, 4, 16, 16)
    one_map = 4 * image.numel()
    separate, folded = copy.deepcopy(model), copy.deepcopy(model)
    freeze_batch_norm(separate, fold=False)
    freeze_batch_norm(folded, example=image)
    channels = 3 * 4 * 4  # bytes of a value per channel, three layers
    # The image, and per layer the input of batch norm and of the ReLU's successor.
    assert one_map * 7 <= saved_bytes(separate, image) <= one_map * 7 + 4 * channels
    assert one_map * 4 <= saved_bytes(folded, image) <= one_map * 4 + 4 * channels


def test_no_scaled_weights_are_kept():
    """Of a layer whose operator is the identity as little as of a plain one: its input, and a number per channel."""
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(16)).train()
    degrid.smooth_dilated_convs(model, "average")
    image = torch.randn(1, 16, 6, 6)
    freeze_batch_norm(model, example=image)
    kept = saved_bytes(model, image)
    assert image.nbytes <= kept <= image.nbytes + 4 * 16
    assert kept < model[0].weight.nbytes


@pytest.mark.parametrize("operator", ["regular", "gi", "ssc"])
def test_compiled(operator):
    torch.manual_seed(0)
    plain = randomised(nn.Sequential(Conv(padding=2, dilation=2), nn.Conv2d(6, 3, 1)))
    degrid.smooth_dilated_convs(plain, operator)
    plain.double()
    image = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    freeze_batch_norm(plain, example=image)
    expected, expected_gradients = gradients(plain, image)
    plain.zero_grad()
    loss, found = gradients(torch.compile(plain, backend="aot_eager", fullgraph=operator == "regular"), image)
    assert relative(loss, expected) < 1e-12
    for name, value in expected_gradients.items():
        assert relative(found[f"_orig_mod.{name}"], value) < 1e-10


def test_distributed(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = randomised(Conv())
        image = torch.randn(1, 4, 9, 8)
        freeze_batch_norm(model, example=image)
        _, expected = gradients(copy.deepcopy(model), image)
        _, found = gradients(nn.parallel.DistributedDataParallel(model), image)
        assert all(torch.equal(found[f"module.{name}"], value) for name, value in expected.items())
    finally:
        torch.distributed.destroy_process_group()
