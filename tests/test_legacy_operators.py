"""The original code's operators: values and gradients as that code computed them."""

import numpy as np
import originals
import pytest
import torch
from torch import nn

from degrid import UserError
from degrid.smoothing import smooth_dilated_convs
from degrid.smoothing.legacy import GroupInteraction

OPERATORS = {
    "regular": ("regular", {}),
    "decompose": ("decompose", {}),
    "smooth_GI": ("smooth_GI", {}),
    "smooth_SSC": ("smooth_SSC", {}),
    "average_filter": ("average_filter", {}),
    "gaussian_filter": ("gaussian_filter", {}),
    "gaussian_one_learned": ("gaussian", {"sigma": "shared"}),
    "gaussian_all_learned": ("gaussian", {"sigma": "layer"}),
    "aggregation": ("aggregation", {}),
    "aggregation_learned": ("aggregation", {"sigma": "shared"}),
}


def to_torch(name, value):
    """A variable of the original as the parameter that holds it here."""
    if name.endswith(("conv/weights",)):
        value = value.transpose(3, 2, 0, 1)
    elif name.endswith("w_avg"):
        value = value.transpose(2, 3, 0, 1)
    elif name.endswith("fix_w"):
        value = value.reshape(value.shape[:2])
    return torch.from_numpy(np.ascontiguousarray(value))


def parameters(conv, original):
    """Our parameters by the names of the original's variables."""
    smoothing = conv.smoothing
    found = {"net/conv/weights": conv.weight, "net/conv/biases": conv.bias}
    places = {
        "net/conv/fix_w": getattr(smoothing, "residual" if original != "smooth_GI" else "weight", None),
        "net/w_avg": getattr(smoothing, "weight", None),
        "net/c_vector": getattr(smoothing, "mix", None),
        "net/gauss_sigma": getattr(smoothing, "sigma", None),
        "net/conv/gauss_sigma": getattr(smoothing, "sigma", None),
    }
    return {**found, **{name: place for name, place in places.items() if place is not None}}


def relative(ours, theirs):
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("size", ["12x16", "13x17"])
@pytest.mark.parametrize("rate", [2, 4])
@pytest.mark.parametrize("original", OPERATORS)
@pytest.mark.parametrize("state", ["ops", "ops_at_init"])
def test_values_and_gradients_are_the_originals(state, original, rate, size):
    at = f"{state}/{original}/r{rate}/{size}/"
    conv = nn.Conv2d(4, 6, 3, padding=rate, dilation=rate)
    name, options = OPERATORS[original]
    smooth_dilated_convs(nn.Sequential(conv), name, legacy=True, **options)
    ours = parameters(conv, original)
    variables = {key: originals.array(f"{at}var/{key}") for key in originals.names(f"{at}var/")}
    with torch.no_grad():
        for key, value in variables.items():
            if key.endswith("w_gauss_value"):
                assert not value.any()  # stored by the original, never trained, added to its kernel
            else:
                ours[key].copy_(to_torch(key, value))
    x = torch.from_numpy(originals.array(f"{at}x")).permute(0, 3, 1, 2).requires_grad_()
    y = conv(x)
    assert relative(y, torch.from_numpy(originals.array(f"{at}y")).permute(0, 3, 1, 2)) <= 1e-5
    cotangent = torch.from_numpy(originals.array(f"{at}cotangent")).permute(0, 3, 1, 2)
    (y * cotangent).sum().backward()
    gradients = originals.names(f"{at}grad/")
    assert len(gradients) >= 3
    for key in gradients:
        theirs = originals.array(f"{at}grad/{key}")
        if key.endswith("gauss_sigma"):
            # Rounding noise in both: sigma cancels. The other gradients are of the order of 10.
            assert np.abs(theirs).max() < 1e-4
            assert ours[key].grad.abs().max() < 1e-4
        elif key == "x":
            assert relative(x.grad, torch.from_numpy(theirs).permute(0, 3, 1, 2)) <= 1e-5
        else:
            assert relative(ours[key].grad, to_torch(key, theirs)) <= 1e-5
    # What the original does not train has no gradient here either.
    trained = {key for key, parameter in ours.items() if key in variables and parameter.grad is not None}
    assert trained == set(gradients) - {"x"}


@pytest.mark.parametrize("original", OPERATORS)
def test_parameters_start_where_the_originals_do(original):
    conv = nn.Conv2d(4, 6, 3, padding=4, dilation=4)
    name, options = OPERATORS[original]
    smooth_dilated_convs(nn.Sequential(conv), name, legacy=True, **options)
    ours = parameters(conv, original)
    at = f"ops_at_init/{original}/r4/12x16/var/"
    for key in originals.names(at):
        if not key.endswith(("conv/weights", "conv/biases", "w_gauss_value")):
            assert torch.allclose(ours[key], to_torch(key, originals.array(at + key)), atol=1e-7), key


def test_first_group_never_reaches_the_others():
    operator = GroupInteraction(2)
    with torch.no_grad():
        operator.weight.copy_(torch.arange(16.0).reshape(4, 4))
    expected = [[0, 0, 0, 0], [4, 5 + 1, 6, 7], [8, 9, 10 + 2, 11], [12, 13, 14, 15 + 3]]
    assert operator.mixing().tolist() == expected


def test_odd_rates_cover_the_offsets_0_and_1():
    conv = nn.Conv2d(1, 1, 3, padding=3, dilation=3, bias=False)
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[0, 0, 1, 1] = 1
    smooth_dilated_convs(nn.Sequential(conv), "average", legacy=True)
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    assert conv(x)[0, 0].tolist() == [[0] * 5, *[[0, 0.25, 0.25, 0, 0]] * 2, [0] * 5, [0] * 5]


@pytest.mark.parametrize("operator", ["average", "gaussian", "aggregation"])
def test_rate_1_is_refused(operator):
    from degrid.smoothing import operator_factory

    with pytest.raises(UserError, match="rate 2 or more"):
        operator_factory(operator, legacy=True)(1)


@pytest.mark.parametrize("operator", ["gaussian", "aggregation"])
def test_unknown_sigma_is_refused(operator):
    from degrid.smoothing import operator_factory

    with pytest.raises(UserError, match='a number, "shared" or "layer", got "learned"'):
        operator_factory(operator, legacy=True, sigma="learned")


def test_sharing():
    def network(**options):
        net = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=4, dilation=4) for _ in range(2)))
        smooth_dilated_convs(net, legacy=True, **options)
        return net[0].smoothing, net[1].smoothing

    first, second = network(operator="aggregation", sigma="shared")
    assert first.mix is second.mix
    assert first.sigma is second.sigma
    assert first.weight is not second.weight
    first, second = network(operator="gaussian", sigma="layer")
    assert first.sigma is not second.sigma
