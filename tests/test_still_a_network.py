"""A network that was smoothed, frozen or checkpointed can be handed on as before: pickles, torch.func, FX, ..

It is compared with itself before it was handed on.
"""

import copy
import io
import pickle
import warnings

import pytest
import timm
import torch
from timm.layers import create_feature_extractor
from timm.layers.pool2d_same import AvgPool2dSame
from torch import nn

import degrid
from degrid import UserError
from degrid.models import activation_checkpointing, batch_norm, checkpoint_activations, freeze_batch_norm
from degrid.models.library_encoders import SteadyAvgPool2d
from degrid.smoothing import OPERATORS, smooth_dilated_convs


class Unit(nn.Module):
    """A residual unit with a dilated convolution."""

    def __init__(self):
        super().__init__()
        self.dilated, self.norm = nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.BatchNorm2d(4)
        self.point = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x + self.point(self.norm(self.dilated(x)).relu())


def network(*steps):
    """Two units, to which these steps were done."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sequential(Unit(), Unit()))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    for step in steps:
        step(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "smoothing" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def smooth(model, operator="gi"):
    smooth_dilated_convs(model, operator)


IMAGES = torch.rand(2, 3, 11, 14, generator=torch.Generator().manual_seed(0))
STEPS = {
    "smoothed": (smooth,),
    "frozen": (freeze_batch_norm,),
    "checkpointed": (checkpoint_activations,),
    "all": (smooth, freeze_batch_norm, checkpoint_activations),
}


@pytest.fixture(params=STEPS.values(), ids=STEPS)
def model(request):
    return network(*request.param)


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("hand_on", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded])
def test_copies_are_of_the_same_kind(model, hand_on):
    found = hand_on(model)
    assert [type(module) for module in found.modules()] == [type(module) for module in model.modules()]
    assert torch.equal(found(IMAGES), model(IMAGES))
    found.train()(IMAGES).sum().backward()
    model.train()(IMAGES).sum().backward()
    for ours, theirs in zip(found.parameters(), model.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
    assert torch.equal(
        found[2][0].dilated(input=IMAGES.new_ones(1, 4, 7, 9)), model[2][0].dilated(torch.ones(1, 4, 7, 9))
    )
    loaded = found.state_dict()
    assert list(loaded) == list(model.state_dict())


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_is_handed_on(operator):
    """With all that can be done beside it: by copies, pickles, FX and torch.export, with the same values."""
    model = network(lambda model: smooth(model, operator), *STEPS["all"][1:])
    with torch.no_grad():
        expected = model(IMAGES)
        for handed_on in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.fx.symbolic_trace(model),
            torch.export.export(model, (IMAGES,)).module(),
        ):
            torch.testing.assert_close(handed_on(IMAGES), expected, rtol=1e-6, atol=1e-6)


def test_pickles_are_read_where_no_such_class_was_made_before():
    """As in processes that are spawned."""
    model = network(*STEPS["all"])
    pickled = pickle.dumps(model)
    for make in (batch_norm._frozen, batch_norm._folded, batch_norm._folding, activation_checkpointing._checkpointed):
        make.cache_clear()
    found = pickle.loads(pickled)
    assert type(found[2][0]) is not type(model[2][0])
    assert torch.equal(found(IMAGES), model(IMAGES))


@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated:FutureWarning")  # PyTorch's jvp uses it
def test_functions_of_torch_func(model):
    single = torch.func.vmap(lambda image: model(image[None])[0])(IMAGES)
    torch.testing.assert_close(single, model(IMAGES), rtol=1e-4, atol=1e-5)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, (IMAGES,)).square().sum()

    found = torch.func.grad(loss)(weights)
    model(IMAGES).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3)
    images = IMAGES.double()
    _, along = torch.func.jvp(model.double(), (images,), (torch.ones_like(images),))
    step = 1e-6
    torch.testing.assert_close(along, (model(images + step) - model(images - step)) / (2 * step), rtol=1e-4, atol=1e-6)


def test_fx_takes_it_as_before(model):
    from torchvision.models.feature_extraction import create_feature_extractor

    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(IMAGES), model(IMAGES))
    for node in ("2.0.dilated", "2.1.point"):
        found = []
        hook = model.get_submodule(node).register_forward_hook(
            lambda layer, args, output, found=found: found.append(output)
        )
        model(IMAGES)
        hook.remove()
        assert torch.equal(create_feature_extractor(model, {node: "map"})(IMAGES)["map"], found[0])


def test_fx_takes_networks_in_training_mode():
    torch.manual_seed(0)
    model = degrid.deeplabv3("timm:resnet10t", 3, output_stride=16, channels=16).train()
    twin = copy.deepcopy(model)
    graph, image = torch.fx.symbolic_trace(twin), 255 * torch.rand(2, 3, 33, 40)
    torch.manual_seed(1)
    expected = model(image)
    torch.manual_seed(1)
    assert torch.equal(graph(image), expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(twin.buffers(), model.buffers(), strict=True))


def test_fx_takes_networks_whose_poolings_timm_pads_by_the_size_of_the_map():
    """timm's own network at output stride 8 cannot be recorded."""
    torch.manual_seed(0)
    model = degrid.deeplabv3plus("timm:resnet10t", 3, operator="ssc", output_stride=8, channels=16)
    for step in (freeze_batch_norm, checkpoint_activations):
        step(model)
    graph = torch.fx.symbolic_trace(model.eval())
    poolings = [module for module in model.modules() if isinstance(module, AvgPool2dSame)]
    assert [module.stride for module in poolings] == [(1, 1)] * 2
    with torch.no_grad():
        for size in ((33, 40), (50, 47)):
            image = 255 * torch.rand(1, 3, *size)
            assert torch.equal(graph(image), model(image))
    for kernel in (2, 3, (2, 5)):
        theirs = AvgPool2dSame(kernel, 1, count_include_pad=False)
        for size in ((1, 4), (7, 6)):
            x = torch.randn(2, 3, *size)
            assert torch.equal(SteadyAvgPool2d(kernel, 1, count_include_pad=False)(x), theirs(x))


def test_fx_takes_networks_with_padding_of_tensorflow_as_it_took_them_before():
    """By timm's tracer, which does not look into Conv2dSame; PyTorch's cannot trace timm's own network either."""
    torch.manual_seed(0)
    plain = timm.create_model("tf_mobilenetv3_small_minimal_100", features_only=True, output_stride=8).eval()
    node = "blocks.4.2.conv_pwl"
    for steps in ((), STEPS["all"]):
        model = copy.deepcopy(plain)
        for step in steps:
            step(model)
        model.eval()
        with pytest.raises(torch.fx.proxy.TraceError, match="control flow"):
            torch.fx.symbolic_trace(model)
        _assert_timm_extracts(model, node)
    model = degrid.deeplabv3plus(
        "timm:tf_mobilenetv3_small_minimal_100", 3, operator="ssc", output_stride=8, channels=16
    )
    for step in (freeze_batch_norm, checkpoint_activations):
        step(model)
    _assert_timm_extracts(model.eval(), "head.classifier")


def _assert_timm_extracts(model, node):
    """A graph gives the maps of a layer in the middle that the network computes, at sizes of every parity."""
    found = []
    hook = model.get_submodule(node).register_forward_hook(lambda layer, args, output: found.append(output))
    graph = create_feature_extractor(model, {node: "map"})
    with torch.no_grad():
        for size in ((33, 40), (50, 47)):
            image = 255 * torch.rand(1, 3, *size)
            model(image)
            expected = found[-1]
            assert torch.equal(graph(image)["map"], expected)
    hook.remove()


@pytest.mark.filterwarnings("ignore")  # PyTorch announces that it will be removed
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "fx"])
def test_static_quantisation(graph):
    from torch.ao.quantization import QConfigMapping, QuantWrapper, convert, get_default_qconfig, prepare
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, config = network(smooth).eval(), get_default_qconfig("fbgemm")
    body = nn.Sequential(model[0], model[2][0].dilated, model[2][0].point)
    expected = body(IMAGES)
    if graph:
        prepared = prepare_fx(body, QConfigMapping().set_global(config), (IMAGES,))
        prepared(IMAGES)
        found = convert_fx(prepared)
    else:
        wrapped = QuantWrapper(copy.deepcopy(body))
        wrapped.qconfig = config
        prepared = prepare(wrapped)
        prepared(IMAGES)
        found = convert(prepared)
    assert sum("quantized" in type(module).__module__ for module in found.modules()) >= 2
    error = (found(IMAGES) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.05


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "regular"])
@pytest.mark.parametrize("sizes", [((16, 16), (17, 19)), ((17, 19), (24, 30))], ids=["even", "odd"])
def test_traces_serve_every_size(operator, sizes):
    """Also the older ONNX exporter traces so."""
    layer = nn.Sequential(nn.Conv2d(2, 3, 3, padding=4, dilation=4)).eval()
    smooth_dilated_convs(layer, operator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        first, second = (torch.randn(1, 2, *size) for size in sizes)
        with warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = torch.jit.trace(layer, first, check_trace=False)
        for x in (first, second):
            torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_scripting_is_refused_in_one_sentence_and_changes_nothing():
    model = network(smooth)
    before = model(IMAGES)
    with pytest.raises(UserError, match="cannot compile smoothed convolutions; use torch.jit.trace"):
        torch.jit.script(model)
    assert torch.equal(model(IMAGES), before)


def test_fsdp_shards_group_interaction(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = network(smooth).train()
        plain = copy.deepcopy(model)
        fully_shard(model)
        for _ in range(2):
            model(IMAGES).square().sum().backward()
            plain(IMAGES).square().sum().backward()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad)
    finally:
        dist.destroy_process_group()
