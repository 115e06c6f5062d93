"""The Winograd convolution against the direct one."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import degrid
from degrid.acceleration import winograd_layer
from degrid.acceleration.winograd_layer import WinogradConv2d, use_winograd
from degrid.kernels import winograd
from degrid.kernels.winograd import best_tile, convolve_pairs, convolve_tiles, products_of, winograd_weight
from degrid.types import UserError

pytest.importorskip("numba")
TOLERANCE = 1e-4  # of the largest output
TILES = [(4, 4), (3, 3), (3, 4), (4, 3), (6, 6), (6, 3), (4, 6)]


@pytest.fixture(params=["numba", "torch"])
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(winograd, "numba_installed", lambda: False)
    return request.param


def example(channels=64, out=64, size=(13, 17), batch=1, seed=0):
    """Input, weight and bias of normal size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *size, generator=generator)
    weight = torch.randn(out, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    return x, weight, torch.randn(out, generator=generator)


def exact(x, weight, bias, rate):
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), 1, rate, rate)


def winograd_conv2d(x, transformed, rate, bias=None, tile=(4, 4)):
    """The whole convolution; `transformed` is the weight as `winograd_weight` gives it for this tile."""
    count = products_of(tile)
    if tile == winograd.PAIRS:
        return convolve_pairs(x, transformed, rate, bias)
    multiply = functools.partial(F.conv2d, weight=transformed, groups=count)
    return convolve_tiles(x, multiply, len(transformed) // count, rate, bias, tile)


def error(found, truth):
    assert found.shape == truth.shape
    return ((found - truth).abs().max() / truth.abs().max()).item()


@given(
    rate=st.integers(1, 24),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    batch=st.integers(1, 3),
    channels=st.sampled_from([(64, 64), (64, 80), (112, 96), (64, 67), (16, 16), (3, 70)]),
    compiled=st.booleans(),
    biased=st.booleans(),
    planes_first=st.booleans(),
    tile=st.sampled_from(TILES),
)
@settings(max_examples=20)
def test_equals_the_direct_convolution(rate, height, width, batch, channels, compiled, biased, planes_first, tile):
    x, weight, bias = example(*channels, (height, width), batch)
    if not planes_first:
        x = x.contiguous(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "numba_installed", lambda: compiled)
        found = winograd_conv2d(x, winograd_weight(weight, tile), rate, bias if biased else None, tile)
    truth = exact(x, weight, bias if biased else None, rate)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, truth) <= TOLERANCE


@pytest.mark.parametrize("rate", [1, 2, 3, 4, 6, 12, 18, 24])
@pytest.mark.parametrize("tile", TILES)
def test_every_rate(way, rate, tile):
    x, weight, bias = example(size=(65, 41), batch=2)
    found = winograd_conv2d(x, winograd_weight(weight, tile), rate, bias, tile=tile)
    assert error(found, exact(x, weight, bias, rate)) <= TOLERANCE


@pytest.mark.parametrize("tile", TILES)
def test_the_algorithm_is_exact(tile):
    """In float64 only rounding is left, so the float32 error is rounding as well."""
    x, weight, bias = (part.double() for part in example(8, 5, (11, 9), 2))
    found = winograd_conv2d(x, winograd_weight(weight, tile), 2, bias, tile=tile)
    assert error(found, F.conv2d(x, weight, bias, 1, 2, 2)) <= 1e-13


def test_weight_of_a_single_tap():
    """Only the middle tap: G g G^T is the outer product of G's middle column with itself."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 36
    middle = torch.tensor([0, -1 / 6, 1 / 6, 1 / 12, -1 / 12, 0], dtype=torch.float64)
    expected = 36 * torch.outer(middle, middle)
    torch.testing.assert_close(winograd_weight(weight), expected.float().reshape(36, 1, 1, 1), rtol=0, atol=0)
    three = torch.tensor([0, -1 / 2, 1 / 6, 1 / 3, 0], dtype=torch.float64)
    expected = 36 * torch.outer(three, middle)
    torch.testing.assert_close(winograd_weight(weight, (3, 4)), expected.float().reshape(30, 1, 1, 1), rtol=0, atol=0)


def test_values_by_hand(way):
    """All ones, rate 3: each output counts the taps inside the map, times channels."""
    x = torch.ones(1, 64, 5, 7)
    found = winograd_conv2d(x, winograd_weight(torch.ones(64, 64, 3, 3)), 3)
    rows, columns = [2, 2, 1, 2, 2], [2, 2, 2, 3, 2, 2, 2]  # such as row 2: neither -1 nor 5 is inside
    expected = 64 * torch.tensor(rows)[:, None] * torch.tensor(columns)
    torch.testing.assert_close(found[0, 7], expected.float(), rtol=1e-5, atol=0)


def test_many_tiles_go_in_parts(monkeypatch):
    """Parts of equal size, of which the last overlaps, give what one part gives."""
    x, weight, bias = example(size=(37, 29), batch=2)
    whole = winograd_conv2d(x, winograd_weight(weight), 2, bias)
    monkeypatch.setattr(winograd, "LIMIT", 36 * 64 * 11)
    parts = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda tiles, *a, **k: parts.append(tiles.shape[2]) or convolve(tiles, *a, **k))
    torch.testing.assert_close(winograd_conv2d(x, winograd_weight(weight), 2, bias), whole, rtol=1e-5, atol=1e-5)
    assert len(parts) > 10
    assert len(set(parts)) == 1


@settings(max_examples=30)
@given(
    rate=st.integers(1, 24),
    beyond=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    batch=st.integers(1, 3),
    biased=st.booleans(),
    double=st.booleans(),
)
def test_pairs_equal_the_direct_convolution(rate, beyond, batch, biased, double):
    """On every map with sides from rate + 1 to twice the rate."""
    height, width = (rate + min(each, rate) for each in beyond)
    x, weight, bias = (each.double() if double else each for each in example(7, 5, (height, width), batch))
    bias = bias if biased else None
    found = winograd_conv2d(x, winograd_weight(weight, winograd.PAIRS), rate, bias, winograd.PAIRS)
    truth = exact(x, weight, bias, rate)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, truth) <= (1e-13 if double else 1e-5)


@torch.no_grad()
def test_a_layer_takes_pairs(monkeypatch):
    layer = WinogradConv2d.from_conv(wide_conv(in_channels=512, out_channels=256, padding=6, dilation=6))
    used = []
    in_pairs = winograd_layer.convolve_pairs
    monkeypatch.setattr(winograd_layer, "convolve_pairs", lambda *a, **k: used.append(1) or in_pairs(*a, **k))
    x = torch.randn(2, 512, 11, 12).contiguous(memory_format=torch.channels_last)
    assert error(layer(x), exact(x, layer.weight, layer.bias, 6)) <= 1e-5
    assert used == [1]


def test_tiles_of_uneven_phases():
    """65 pixels at rate 4: phase 0 has 17 of them, five tiles; the others 16, four tiles each. In threes, six each."""
    corners = winograd._corners(65, 4, 4)
    assert corners.tolist() == [*range(0, 65, 16), *range(1, 65, 16), *range(2, 65, 16), *range(3, 65, 16)]
    assert len(corners) == 17
    assert winograd._corners(65, 4, 3).tolist() == [start + 12 * tile for start in range(4) for tile in range(6)]


def test_best_tile_by_hand():
    """512 channels, rate 4, 65x65: 12² tiles of 64 (1 + 85/256), which is 12276, against 0.95 (65 + 122)² = 33221."""
    assert (winograd.TRANSFORM, winograd.MARGIN, winograd.LARGE) == (85, 0.95, 1.1)
    assert best_tile((1, 512, 65, 65), 512, 4) == (6, 6)  # 17² of 36 would be 13858, more than 1.1 times as many
    assert best_tile((1, 512, 129, 129), 512, 4) == (4, 4)  # 33² of 36, 39204; 24² of 64, 36864, are no tenth less
    # rate 12: phases of 6 and 5 pixels are 12 tiles of six, or 24 of three
    assert best_tile((1, 2048, 65, 65), 256, 12) == (6, 6)
    # rate 24: 24 tiles down and across, of either kind; those of three need (24 * 5)² (1 + 85/2048 + 85/256) = 19779,
    # the taps 0.95 (65 + 82)² = 20529; along 96 pixels 24 tiles of four are enough, and 32 of three too many
    assert best_tile((1, 2048, 65, 65), 256, 24) == (3, 3)
    assert best_tile((2, 2048, 65, 96), 256, 24) == (3, 4)
    assert best_tile((2, 2048, 96, 65), 256, 24) == (4, 3)
    # rate 36: pairs need (36 + 2 * 29)² (1 + 85/2048 + 85/256) = 12137, the taps 0.95 (65 + 58)² = 14373; at rate 56
    # there are fewer: (56 + 2 * 9)² 1.37 = 7521 against 0.95 (65 + 18)² = 6545
    assert best_tile((1, 2048, 65, 65), 256, 36) == winograd.PAIRS
    assert best_tile((1, 2048, 65, 65), 256, 56) is None
    # none at all from the map's size on; along the longer side of this map phases have three pixels
    assert best_tile((1, 2048, 65, 65), 256, 65) is None
    assert best_tile((1, 2048, 65, 75), 256, 36) is None
    # 4 x 4 at rate 1: one tile, 36 (1 + 85/32) = 131.6 against 0.95 (4 + 6)² = 95
    assert best_tile((1, 64, 4, 4), 64, 1) is None
    # with 1024 channels the transforms weigh less: 36 (1 + 85/512) = 42.0; whatever the batch
    assert best_tile((1, 1024, 4, 4), 1024, 1) == (4, 4)
    assert best_tile((3, 1024, 4, 4), 1024, 1) == (4, 4)


@pytest.mark.parametrize("channels", [(48, 64), (64, 48), (72, 64), (64, 72)])
def test_odd_channels_do_not_pay(channels):
    assert best_tile((1, channels[0], 65, 65), channels[1], 2) is None


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding="same", dilation=4),
        nn.Conv2d(128, 5, 1),
    ).eval()


def test_network_gives_the_same_classes(monkeypatch):
    model = small_network()
    fast = copy.deepcopy(model)
    assert use_winograd(fast) == 2
    used = []
    convolve = winograd_layer.convolve_tiles
    monkeypatch.setattr(winograd_layer, "convolve_tiles", lambda *a, **k: used.append(1) or convolve(*a, **k))
    images = torch.randn(2, 3, 61, 49).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(3):  # the weights are packed the second time
            logits = fast(images)
            assert error(logits, model(images)) <= 1e-5
            assert torch.equal(logits.argmax(1), model(images).argmax(1))
    assert len(used) == 6
    assert list(fast.state_dict()) == list(model.state_dict())
    assert fast[2].weight.data_ptr() != model[2].weight.data_ptr()


@pytest.mark.parametrize("packs", [True, False])
def test_with_and_without_packed_weights(monkeypatch, packs):
    monkeypatch.setattr(winograd_layer, "_can_pack", lambda: packs)
    x, weight, bias = example(128, 64, (33, 31))
    prepared = winograd_layer._Prepared(weight)
    for tile in TILES:
        multiply = functools.partial(prepared.multiply, tile=tile)
        for _ in range(2):
            found = winograd.convolve_tiles(x, multiply, 64, 2, bias, tile)
            assert error(found, exact(x, weight, bias, 2)) <= TOLERANCE
    packed = [packed is not None for packed in prepared.packings.values()]
    assert packed == ([True] * winograd_layer.PACKINGS if packs else [])


def test_a_packed_weight_is_kept_once(monkeypatch):
    """Beside it there is no plain one, nor one for another size in the same order; both come back where wanted."""
    weight = example(64, 80)[1]
    prepared = winograd_layer._Prepared(weight, watched=False)
    plain = winograd_weight(weight)
    images = {count: torch.randn(1, 36 * 64, count, 1) for count in (50, 51, 52)}
    images = {count: x.contiguous(memory_format=torch.channels_last) for count, x in images.items()}

    def run(count):
        found = prepared.multiply(images[count], (4, 4))
        torch.testing.assert_close(found, F.conv2d(images[count], plain, groups=36), rtol=1e-4, atol=1e-5)
        return list(prepared.transformed), len({id(each) for each in prepared.packings.values() if each is not None})

    assert run(50) == ([(4, 4)], 0)
    assert run(50) == run(50) == ([], 1)
    monkeypatch.setattr(winograd_layer, "winograd_weight", None)  # it is unpacked, not computed again
    assert run(51) == ([(4, 4)], 1)
    assert torch.equal(prepared.weight_for((4, 4)), plain)
    assert run(51)[0] == []
    monkeypatch.setattr(winograd_layer, "_are_packed_alike", lambda one, other: False)
    before = run(51)[1]
    run(52)
    assert run(52) == ([], before + 1)


def test_packings_are_alike_in_the_same_order_only():
    """Whether those of 25 and 64 tiles differ is up to the library; what is packed is the same."""
    weight = winograd_weight(example(256, 256)[1])
    few, many = (winograd_layer._pack(weight, count, 36) for count in (25, 64))
    alike = winograd_layer._are_packed_alike
    assert alike(few, winograd_layer._pack(weight, 25, 36))
    assert not alike(few, winograd_layer._pack(-weight, 25, 36))
    assert torch.equal(few.to_dense(), many.to_dense())


@pytest.mark.parametrize("tile", TILES)
def test_the_weight_is_transformed_in_parts(monkeypatch, tile):
    weight = example(64, 67)[1]
    whole = winograd_weight(weight, tile)
    monkeypatch.setattr(winograd, "_PART", 64 * 36 * 7)
    torch.testing.assert_close(winograd_weight(weight, tile), whole, rtol=1e-6, atol=1e-8)


def test_this_pytorch_can_pack():
    assert winograd_layer._can_pack()


def test_missing_private_operators_are_noticed(monkeypatch):
    def gone(*args):
        raise AttributeError("mkldnn_reorder_conv2d_weight")

    monkeypatch.setattr(winograd_layer, "_pack", gone)
    assert not winograd_layer._can_pack.__wrapped__()
    monkeypatch.setattr(winograd_layer, "_pack", lambda transformed, *sizes: transformed)
    monkeypatch.setattr(winograd_layer, "_packed_product", lambda tiles, *packed: tiles + 1)
    assert not winograd_layer._can_pack.__wrapped__()  # there, but wrong


def test_packings_are_few(monkeypatch):
    prepared = winograd_layer._Prepared(example()[1])
    sizes = [((4, 4), 4), ((4, 4), 4), ((4, 4), 5), ((4, 4), 5), ((3, 3), 4), ((4, 4), 4), ((4, 4), 7), ((4, 4), 8)]
    for tile, count in sizes:
        tiles = torch.zeros(1, winograd.products_of(tile) * 64, count, 1)
        prepared.multiply(tiles.contiguous(memory_format=torch.channels_last), tile)
    kept = {size: packed is not None for size, packed in prepared.packings.items()}
    assert kept == {((4, 4), 4): True, ((4, 4), 7): False, ((4, 4), 8): False}


def wide_conv(**changes):
    return nn.Conv2d(
        **{"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 2, "dilation": 2, **changes}
    )


class OwnConv(nn.Conv2d):
    pass


def hooked():
    conv = wide_conv()
    conv.register_forward_hook(lambda *args: None)
    return conv


OTHERS = {
    "1x1": wide_conv(kernel_size=1, padding=0),
    "5x5": wide_conv(kernel_size=5, padding=4),
    "stride": wide_conv(stride=2),
    "groups": wide_conv(groups=2),
    "narrow input": wide_conv(in_channels=48),
    "narrow output": wide_conv(out_channels=21),
    "odd channels": wide_conv(in_channels=72),
    "less padding": wide_conv(padding=1),
    "reflection": wide_conv(padding_mode="reflect"),
    "unequal rates": wide_conv(padding=(2, 1), dilation=(2, 1)),
    "subclass": OwnConv(64, 64, 3, padding=2, dilation=2),
    "hooks": hooked(),
    "1-D": nn.Conv1d(64, 64, 3, padding=1),
    "transposed": nn.ConvTranspose2d(64, 64, 3, padding=1),
}


@pytest.mark.parametrize("conv", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_stay(conv):
    model = nn.Sequential(conv)
    assert use_winograd(model) == 0
    assert model[0] is conv
    with pytest.raises(UserError, match="expected a plain 3x3"):
        WinogradConv2d.from_conv(conv)


@pytest.mark.parametrize("operator", ["regular", "decompose", "gi", "ssc", "aggregation", "tent"])
def test_smoothed_convolutions_take_that_way(operator, monkeypatch):
    model = nn.Sequential(wide_conv(in_channels=128, out_channels=128), wide_conv(padding=1, dilation=1))
    degrid.smooth_dilated_convs(model, operator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".smoothing." in name:
                parameter.add_(0.1)
    names, fast = list(model.state_dict()), copy.deepcopy(model)
    assert use_winograd(fast) == 2
    assert type(fast[0]) is type(model[0])
    assert list(fast.state_dict()) == names
    rates = []
    convolve = winograd_layer.convolve_tiles
    monkeypatch.setattr(winograd_layer, "convolve_tiles", lambda *a, **k: rates.append(a[3]) or convolve(*a, **k))
    x = torch.randn(2, 128, 32, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert error(fast[0](x), model[0](x)) <= TOLERANCE
    assert rates == [1 if operator == "decompose" else 2]


def test_smoothed_convolutions_with_computed_weights_stay():
    model = nn.Sequential(wide_conv())
    degrid.smooth_dilated_convs(model, "tent")
    nn.utils.parametrizations.weight_norm(model[0])
    x = torch.randn(1, 64, 16, 16)
    with torch.no_grad():
        expected = model(x)
        assert use_winograd(model) == 0
        assert torch.equal(model(x), expected)


def test_smoothed_convolutions_of_few_channels_stay():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, dilation=2))
    degrid.smooth_dilated_convs(model, "tent")
    assert use_winograd(model) == 0
    assert "convolve" not in vars(model[0])


def test_a_shared_layer_stays_shared():
    model = nn.ModuleDict()
    model["a"] = model["b"] = wide_conv()
    assert use_winograd(model) == 1
    assert model["a"] is model["b"]
    assert type(model["b"]) is WinogradConv2d


def test_parameters_are_the_same_objects():
    conv = wide_conv().train()
    layer = WinogradConv2d.from_conv(conv)
    assert (layer.weight, layer.bias, layer.training) == (conv.weight, conv.bias, True)
    assert WinogradConv2d.from_conv(wide_conv(bias=False)).bias is None


@pytest.fixture
def layer(monkeypatch):
    """A layer, and how often it went Winograd's way."""
    layer = WinogradConv2d.from_conv(wide_conv(in_channels=128, out_channels=128))
    layer.used = []
    convolve = winograd_layer.convolve_tiles
    monkeypatch.setattr(winograd_layer, "convolve_tiles", lambda *a, **k: layer.used.append(1) or convolve(*a, **k))
    return layer


@torch.no_grad()
def test_used_where_it_pays(layer):
    assert layer(torch.randn(1, 128, 32, 32)).shape == (1, 128, 32, 32)
    assert layer.used == [1]
    layer(torch.randn(1, 128, 2, 2))  # a tile would be mostly outside
    layer(torch.randn(128, 32, 32))  # no batch
    assert layer.used == [1]


def test_not_used_elsewhere(layer, monkeypatch):
    x = torch.randn(1, 128, 32, 32)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
        assert torch.export.export(layer, (x,)).module()(x).shape == x.shape
        monkeypatch.setattr(winograd_layer, "numba_installed", lambda: False)
        layer(x)
    assert layer.used == []


@pytest.mark.parametrize("matrix_units", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_bfloat16_only_where_it_saves_most(monkeypatch, matrix_units, autocast):
    """Half of the direct cost is not enough; and exact beside the rounding of the result to bfloat16."""
    monkeypatch.setattr(winograd_layer, "has_matrix_units", lambda: matrix_units)
    winograd_layer._margins.cache_clear()
    used = []
    convolve = winograd_layer.convolve_tiles
    monkeypatch.setattr(winograd_layer, "convolve_tiles", lambda *a, **k: used.append(1) or convolve(*a, **k))
    try:
        wide = WinogradConv2d.from_conv(wide_conv(in_channels=512, out_channels=512)).to(torch.bfloat16)
        narrow = WinogradConv2d.from_conv(wide_conv(in_channels=128, out_channels=128)).to(torch.bfloat16)
        x = torch.randn(1, 512, 32, 32).bfloat16().contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, _ = wide(x), narrow(x[:, :128])
            if autocast:
                narrow(x[:, :128].float())
        assert found.dtype == torch.bfloat16
        assert used == ([] if matrix_units else [1])
        assert error(found.double(), exact(x, wide.weight.double(), wide.bias.double(), 2)) <= 2**-8
    finally:
        winograd_layer._margins.cache_clear()


@torch.no_grad()
def test_a_changed_weight_is_seen(layer):
    x = torch.randn(1, 128, 32, 32)
    before = layer(x)
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    assert error(layer(x), 2 * before) <= 1e-5
    layer.load_state_dict(wide_conv(in_channels=128, out_channels=128).state_dict())
    assert error(layer(x), F.conv2d(x, layer.weight, layer.bias, 1, 2, 2)) <= TOLERANCE
    assert len(layer.used) == 3


@torch.no_grad()
def test_changes_that_pytorch_does_not_count_are_seen(layer):
    """As a hand-written moving average makes them."""
    x = torch.randn(1, 128, 32, 32)
    layer(x)
    counted = layer.weight._version
    for change in (
        lambda: layer.weight.data.mul_(2),
        lambda: layer.weight.detach().numpy().__imul__(3),
        lambda: layer.weight.data[0, 0, 0, :1].add_(5),
        lambda: layer.weight.data.copy_(layer.weight.flip(1)),
    ):
        change()
        assert layer.weight._version == counted
        assert error(layer(x), F.conv2d(x, layer.weight, layer.bias, 1, 2, 2)) <= TOLERANCE
    with torch.inference_mode():
        inside = WinogradConv2d.from_conv(wide_conv(in_channels=128, out_channels=128))
        inside(x)
        inside.weight.mul_(2)
        assert error(inside(x), F.conv2d(x, inside.weight, inside.bias, 1, 2, 2)) <= TOLERANCE
    assert len(layer.used) == 7


@torch.no_grad()
def test_copies_and_saves_after_use(layer):
    x = torch.randn(1, 128, 32, 32)
    for _ in range(2):
        expected = layer(x)
    del layer.used
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin.train().eval().requires_grad_(False).weight, layer.weight.detach())
        layer.used = []
        assert error(twin(x), expected) <= 1e-6


def test_threads_share_a_layer(layer):
    from concurrent.futures import ThreadPoolExecutor

    maps = [torch.randn(1, 128, 24 + 8 * (i % 5), 32) for i in range(20)]

    @torch.no_grad()
    def run(x):
        return error(layer(x), exact(x, layer.weight, layer.bias, 2))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, maps)) <= TOLERANCE
    assert len(layer.used) == len(maps)


def test_workspace_is_reused():
    space = winograd._Workspace()
    first = space.take(3, 36, 64)
    assert first.shape == (3, 36, 64)
    assert np.shares_memory(first, space.take(1, 36, 64))
    assert space.take(4, 36, 64).size == 4 * 36 * 64
