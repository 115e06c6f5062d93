"""The dense CRF against its definition."""

import math

import pytest
import torch

from degrid import UserError
from degrid.engine.inference.crf import CRF, Lattice, _blur, refine


def exact_mean_field(probabilities, image, crf):
    """Every pair of pixels, as algorithm 1 of Krähenbühl & Koltun is written."""
    classes, height, width = probabilities.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y]).reshape(2, -1).T.double()
    color = image.reshape(3, -1).T.double()

    def kernel(features):
        return torch.exp(-torch.cdist(features, features).square() / 2)

    kernels = [
        (crf.bi_weight, kernel(torch.cat([place / crf.bi_xy_std, color / crf.bi_rgb_std], 1))),
        (crf.pos_weight, kernel(place / crf.pos_xy_std)),
    ]
    unary = -probabilities.double().reshape(classes, -1).T.clamp(min=1e-8).log()
    q = (-unary).softmax(1)
    for _ in range(crf.iterations):
        message = 0
        for weight, k in kernels:
            norm = k.sum(1, keepdim=True).rsqrt()
            message = message + weight * norm * (k @ (norm * q))
        q = (message - unary).softmax(1)
    return q.T.reshape(classes, height, width)


def scene(height, width, seed=0):
    """Three regions with their colours and some texture; probabilities that are blurred and noisy."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    truth = (x > width * 0.4).long() + ((y > height * 0.5) & (x > width * 0.4)).long()
    colors = torch.tensor([[200, 60, 50], [60, 180, 70], [50, 70, 190]])
    image = (colors[truth].permute(2, 0, 1) + 4 * torch.randn(3, height, width, generator=generator)).clamp(0, 255)
    hard = torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1).float()
    soft = _blur(hard, 2.5)
    soft = soft / soft.sum(0) + 0.25 * torch.rand(3, height, width, generator=generator)
    return truth, image.round().to(torch.uint8), soft / soft.sum(0)


@pytest.mark.parametrize("crf", [CRF(), CRF(bi_xy_std=20, bi_rgb_std=13, pos_xy_std=3), CRF(bi_weight=0, iterations=3)])
def test_agrees_with_the_exact_mean_field(crf):
    _, image, probabilities = scene(36, 44)
    ours, exact = refine(probabilities, image, crf), exact_mean_field(probabilities, image, crf)
    torch.testing.assert_close(ours.sum(0), torch.ones(36, 44))
    assert float((ours.argmax(0) == exact.argmax(0)).float().mean()) >= 0.999
    assert float((ours - exact).abs().mean()) < 5e-3
    if crf.bi_weight == 0:  # no lattice: exact
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-5)


def test_sharpens_a_blurred_mask():
    truth, image, _ = scene(120, 160)
    hard = torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1).float()
    small = torch.nn.functional.avg_pool2d(hard[None, :, 4:, 4:], 16, ceil_mode=True)
    probabilities = torch.nn.functional.interpolate(small, (120, 160), mode="bilinear")[0]

    def miou(ids):
        return sum(float(((ids == c) & (truth == c)).sum() / ((ids == c) | (truth == c)).sum()) for c in range(3)) / 3

    before, after = miou(probabilities.argmax(0)), miou(refine(probabilities, image).argmax(0))
    assert before < 0.97
    assert after > 0.995


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_lattice_filters_like_a_gaussian(dims):
    """Sums over random points against the definition: within a few percent, as the lattice is an approximation."""
    generator = torch.Generator().manual_seed(dims)
    features = 3 * torch.rand(600, dims, generator=generator)
    values = torch.rand(600, 2, generator=generator)
    exact = torch.exp(-torch.cdist(features, features).square() / 2) @ values
    ours = Lattice(features).filter(values)
    ratio = (ours / exact).mean()
    assert float((ours / exact / ratio - 1).abs().mean()) < 0.08
    torch.testing.assert_close(Lattice(features).filter(2 * values), 2 * ours)


def test_lattice_weights_are_barycentric():
    features = 10 * torch.randn(500, 5, generator=torch.Generator().manual_seed(4))
    lattice = Lattice(features)
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(500), rtol=1e-4, atol=1e-4)
    assert float(lattice.weights.min()) > -1e-4
    # A point that lies on a lattice point belongs to it alone.
    assert Lattice(torch.zeros(1, 5)).weights[0].tolist() == pytest.approx([1, 0, 0, 0, 0, 0])


def test_smoothness_filter_is_a_sum_of_gaussians():
    impulse = torch.zeros(1, 9, 9)
    impulse[0, 4, 4] = 1
    out = _blur(impulse, 1.0)[0]
    assert float(out[4, 4]) == pytest.approx(1)
    assert float(out[4, 6]) == pytest.approx(math.exp(-2))
    assert float(out[3, 5]) == pytest.approx(math.exp(-1))


@pytest.mark.parametrize("settings", [{"bi_xy_std": 0}, {"pos_weight": -1}, {"iterations": 0}])
def test_impossible_parameters(settings):
    with pytest.raises(UserError, match="CRF:"):
        CRF(**settings)
