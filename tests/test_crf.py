"""The dense CRF against its definition."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from degrid import UserError
from degrid.kernels import dense_crf
from degrid.kernels.crf_settings import CRF
from degrid.kernels.dense_crf import Lattice, _blur, compiled, refine, refine_bytes, with_torch


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


@pytest.fixture(params=["numba", "torch"])
def implementation(request, monkeypatch):
    monkeypatch.setattr(dense_crf, "numba_installed", lambda: request.param == "numba")


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("crf", [CRF(), CRF(bi_xy_std=20, bi_rgb_std=13, pos_xy_std=3), CRF(bi_weight=0, iterations=3)])
def test_agrees_with_the_exact_mean_field(crf):
    _, image, probabilities = scene(36, 44)
    ours, exact = refine(probabilities, image, crf), exact_mean_field(probabilities, image, crf)
    torch.testing.assert_close(ours.sum(0), torch.ones(36, 44))
    assert float((ours.argmax(0) == exact.argmax(0)).float().mean()) >= 0.999
    assert float((ours - exact).abs().mean()) < 5e-3
    if crf.bi_weight == 0:  # no lattice: exact
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "size", "crf"),
    [
        (21, (50, 70), CRF()),
        (8, (33, 20), CRF(bi_xy_std=49, bi_rgb_std=5, pos_xy_std=3)),
        (2, (1, 40), CRF(bi_xy_std=1, bi_rgb_std=2, pos_xy_std=0.3, iterations=2)),
        (9, (40, 1), CRF(pos_weight=0, iterations=4)),
        (3, (17, 19), CRF(bi_weight=12, pos_weight=8)),
        (5, (12, 14), CRF(bi_weight=0, pos_xy_std=9)),
    ],
)
def test_the_compiled_field_is_the_one_of_pytorch(classes, size, crf):
    generator = torch.Generator().manual_seed(classes)
    image = torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8)
    image[:, : size[0] // 2] = 90  # pixels of one colour share their lattice points
    probabilities = torch.rand(classes, *size, generator=generator) ** 6
    probabilities[0, 0] = 0
    probabilities /= probabilities.sum(0)
    ours, expected = dense_crf.compiled(probabilities, image, crf), dense_crf.with_torch(probabilities, image, crf)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-5)


def test_the_compiled_lattice_filters_like_the_one_of_pytorch():
    image = torch.randint(0, 256, (3, 21, 30), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    crf = CRF(bi_weight=4, bi_xy_std=9, bi_rgb_std=20)
    values = torch.rand(21 * 30, 8)
    ours = dense_crf._CompiledLattice(image.permute(1, 2, 0).numpy(), crf)
    points, _ = ours.blurred(values.numpy(), ours.values(8), ours.values(8))
    filtered = (torch.from_numpy(points)[ours.corners] * torch.from_numpy(ours.weights)[..., None]).sum(1)
    plain = Lattice(dense_crf._appearance(image, crf))
    near = plain.filter(torch.ones(len(values), 1)).rsqrt()
    # A pixel between two simplices may fall into either: a point of weight 0 that is there or not conducts the blur.
    close = torch.isclose(filtered, 4 * near * plain.filter(near * values), rtol=1e-3, atol=1e-4)
    assert float(close.float().mean()) > 0.97


def test_weights_too_large_for_the_compiled_softmax_run_in_pytorch():
    _, image, probabilities = scene(20, 24)
    crf = CRF(bi_weight=200, pos_weight=150)
    refined = refine(probabilities, image, crf)
    torch.testing.assert_close(refined, dense_crf.with_torch(probabilities, image, crf))
    torch.testing.assert_close(refined.sum(0), torch.ones(20, 24))


def test_other_than_rgb_is_refused():
    with pytest.raises(UserError, match="expected an RGB image, got 4 channels"):
        refine(torch.ones(2, 8, 8) / 2, torch.zeros(4, 8, 8, dtype=torch.uint8))


@pytest.mark.usefixtures("implementation")
def test_widths_that_number_too_many_points_are_refused():
    with pytest.raises(UserError, match="widths are too small"):
        refine(torch.ones(2, 90, 90) / 2, torch.full((3, 90, 90), 255), CRF(bi_xy_std=1e-3, bi_rgb_std=1e-3))


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


def noise(side):
    """Pixels of any colours, and what a network might say of them."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
    return torch.rand(21, side, side, generator=generator).softmax(0), image


@pytest.mark.parametrize("way", [compiled, with_torch])
def test_noise_needs_more_than_the_room_for_a_photograph(way):
    """Nearly each corner of each pixel is a point of its own, where the lattice of one colour has a few."""
    probabilities, image = noise(40)
    room = refine_bytes(40 * 40, 21, way is compiled)
    with pytest.raises(UserError, match=r"CRF: \d MiB are needed for this image, .* memory limit leaves \d MiB"):
        way(probabilities, image, CRF(iterations=1), room)
    flat = torch.full_like(image, 99)
    assert torch.equal(way(probabilities, flat, CRF(iterations=1), room), way(probabilities, flat, CRF(iterations=1)))


@pytest.mark.slow
def test_memory_is_as_much_as_is_said():
    """In a process that gives freed memory back, as commands under a limit do."""
    code = """
from degrid.bench.measure import peak_memory
from degrid.engine.memory import settle_memory
from test_crf import CRF, compiled, noise, refine_bytes, torch, with_torch
settle_memory(1 << 30)
side = 400
for way in (compiled, with_torch):
    for points, (probabilities, image) in ((6, noise(side)), (0, noise(side))):
        image = image if points else torch.zeros_like(image)
        way(probabilities, image, CRF(iterations=1))  # what it loads stays
        found = peak_memory(lambda: way(probabilities, image, CRF(iterations=2))) * 2**20 - probabilities.nbytes
        print(found / refine_bytes(side**2, 21, way is compiled, points))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent, check=True
    )
    ratios = [float(line) for line in done.stdout.split()]
    assert ratios == pytest.approx([1] * 4, rel=0.3), ratios
