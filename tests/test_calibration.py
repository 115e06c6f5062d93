"""Expected calibration error: against its formula, in any order, in bands of rows, and through the command line."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.engine.evaluation.calibration import UNIT, CalibrationCounts
from degrid.engine.inference import tta as confidence_module
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.inference.predictor import Predictor
from degrid.engine.inference.tta import row_bands
from degrid.kernels.crf_settings import CRF
from degrid.resize import RESIZES, resize
from degrid.types import IGNORE_INDEX, ConfidenceBin, LabelSpace, Sample


def reference(confidence, hit, bins=15):
    """Equation 3 of Guo et al., pixel by pixel, in double precision."""
    groups = [[] for _ in range(bins)]
    for p, right in zip(confidence, hit, strict=True):
        groups[max(0, int(np.ceil(p * bins)) - 1)].append((p, right))
    total = sum(map(len, groups))
    return sum(len(g) / total * abs(np.mean([r for _, r in g]) - np.mean([p for p, _ in g])) for g in groups if g)


def counted(confidence, hit, bins=15):
    counts = CalibrationCounts(bins)
    counts.update(torch.tensor(confidence), torch.tensor(hit))
    return counts


class Net(nn.Module):
    """Small, with logits at half the size of the image and confidences from low to high."""

    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, classes, 5, 2, 2)

    def forward(self, x):
        return 8 * self.conv(x.float() / 255)


class Pictures:
    labels = LabelSpace.of_size(4)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        size = (21 + index, 30)
        image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
        label = torch.from_numpy(rng.choice([0, 1, 2, 3, IGNORE_INDEX], size).astype(np.uint8))
        return Sample(image, label, f"{index}")


def test_by_hand():
    # Five bins: (0.2, 0.4] holds 0.3 (wrong) and 0.4 (right); (0.8, 1] holds 0.9 (right) and 1.0 (wrong).
    counts = counted([0.3, 0.4, 0.9, 1.0], [False, True, True, False], 5)
    assert counts.pixels.tolist() == [0, 2, 0, 0, 2]
    assert counts.hits.tolist() == [0, 1, 0, 0, 1]
    empty = ConfidenceBin(0, None, None)
    first, second, third, fourth, fifth = counts.bins()
    assert (first, third, fourth) == (empty, empty, empty)
    assert (second.confidence, second.accuracy) == (pytest.approx(0.35), 0.5)
    assert (fifth.confidence, fifth.accuracy) == (pytest.approx(0.95), 0.5)
    assert counts.ece == pytest.approx((2 * 0.15 + 2 * 0.45) / 4)
    assert CalibrationCounts().ece == 0


def test_an_edge_belongs_to_the_bin_below():
    edges = torch.linspace(0, 1, 16)[1:]
    counts = CalibrationCounts()
    counts.update(edges, torch.ones(15, dtype=torch.bool))
    assert counts.pixels.tolist() == [1] * 15


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_random_pixels_against_the_formula(number, seed):
    rng = np.random.default_rng(seed)
    confidence = rng.random(number).astype(np.float32)
    hit = rng.random(number) < confidence
    found = counted(confidence, hit)
    assert found.ece == pytest.approx(reference(confidence.astype(np.float64), hit), abs=1e-6)
    assert int(found.pixels.sum()) == number


def test_sure_and_right_equally_often_is_calibrated():
    """A confidence of 3/4 that is right in three of four pixels has no error; right always, it errs by 1/4."""
    assert counted([0.75] * 4, [True, True, True, False]).ece == 0
    assert counted([0.75] * 4, [True] * 4).ece == 0.25


def test_the_same_bits_in_any_order_and_division():
    rng = np.random.default_rng(3)
    confidence = torch.from_numpy(rng.random(50_000).astype(np.float32))
    hit = torch.from_numpy(rng.random(50_000) < 0.5)
    whole, parts = CalibrationCounts(), CalibrationCounts()
    whole.update(confidence, hit)
    order = torch.from_numpy(rng.permutation(50_000))
    for some in order.split(777):
        parts.update(confidence[some], hit[some])
    assert torch.equal(whole.confidence, parts.confidence)
    assert (whole.ece, whole.bins()) == (parts.ece, parts.bins())
    exact = confidence.double().sum().item()
    assert int(whole.confidence.sum()) / UNIT == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("convention", RESIZES)
@pytest.mark.parametrize("size", [(37, 53), (9, 14), (5, 6), (1, 1)])
def test_bands_are_the_whole(monkeypatch, convention, size):
    scores = torch.randn(1, 3, 9, 14, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(confidence_module, "BAND_VALUES", 3 * size[1] * 4)
    bands = list(row_bands(scores, size, convention))
    assert [first for first, _ in bands] == list(range(0, size[0], 4))
    assert max(band.shape[1] for _, band in bands) <= 4
    torch.testing.assert_close(torch.cat([b for _, b in bands], 1)[None], resize(scores, size, convention))


@pytest.mark.parametrize(
    ("options", "probabilities"),
    [
        (InferenceOptions(), False),
        (InferenceOptions(fusion="max", flip=True), False),
        (InferenceOptions(flip=True, scales=(1.0, 1.5)), True),
        (InferenceOptions(window=(16, 16)), False),
        (InferenceOptions(crf=CRF(bi_xy_std=10, bi_rgb_std=20, iterations=1)), True),
    ],
)
def test_evaluation_against_a_softmax_at_full_size(monkeypatch, options, probabilities):
    monkeypatch.setattr(confidence_module, "BAND_VALUES", 4 * 30 * 5)
    assert options.gives_probabilities == probabilities
    predictor, confidence, hit = Predictor(Net(), precision="float32", options=options), [], []
    for index in range(3):
        sample = Pictures()[index]
        full = resize(predictor.scores(sample.image), sample.label.shape)[0].double()
        found = full / full.sum(0) if probabilities else full.softmax(0)
        assert torch.allclose(found.sum(0), torch.ones((), dtype=torch.double))
        best, ids = found.max(0)
        predicted = predictor.predict(sample.image)
        sure = predictor.confidence(predicted)
        assert (sure is None) == (predicted.logits is None) == options.only_slides
        assert sure is None or np.allclose(sure, best, atol=1e-5)
        valid = sample.label != IGNORE_INDEX
        confidence += best[valid].tolist()
        hit += (ids == sample.label)[valid].tolist()
    with_it = degrid.evaluate(
        Net(), Pictures(), precision="float32", options=options, measures=degrid.Measures(calibration=True)
    )
    assert with_it.ece == pytest.approx(reference(confidence, hit), abs=1e-5)
    assert sum(each.pixels for each in with_it.reliability) == sum(with_it.class_pixels) == len(hit)
    right = sum(each.pixels * each.accuracy for each in with_it.reliability if each.pixels)
    assert right / len(hit) == pytest.approx(with_it.pixel_accuracy)
    without = degrid.evaluate(Net(), Pictures(), precision="float32", options=options)
    assert (without.ece, without.reliability) == (None, None)
    assert (with_it.confusion, with_it.boundary_iou) == (without.confusion, without.boundary_iou)


def test_only_void_has_no_error():
    counts = CalibrationCounts()
    void = torch.full((4, 5), IGNORE_INDEX, dtype=torch.uint8)
    counts.add_image(torch.randn(1, 3, 2, 2), torch.zeros_like(void), void, "half_pixel", False)
    assert (counts.ece, int(counts.pixels.sum())) == (0, 0)


def test_through_the_command_line(tmp_path):
    dataset = degrid.open_dataset("synthetic:2", "val")
    torch.manual_seed(0)
    model = degrid.deeplabv3plus("timm:test_resnet", dataset.labels, channels=8)
    degrid.save(model, tmp_path / "model")
    words = ["eval", str(tmp_path / "model"), "--data", "synthetic:2"]
    done = CliRunner().invoke(app, [*words, "--calibration", "-o", str(tmp_path / "s.json")], catch_exceptions=False)
    assert done.exit_code == 0
    values = json.loads((tmp_path / "s.json").read_text())
    direct = degrid.evaluate(model, dataset, measures=degrid.Measures(calibration=True))
    assert values["ece"] == pytest.approx(direct.ece)
    assert 0 < values["ece"] < 1
    assert len(values["reliability"]) == 15
    assert values["reliability"][0] == {"pixels": 0, "confidence": None, "accuracy": None}
    assert f"expected calibration error {100 * values['ece']:.2f} %" in done.output
    assert f"reliability diagram: {tmp_path / 's_reliability.png'}" in done.output
    with Image.open(tmp_path / "s_reliability.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "t.json")], catch_exceptions=False)
    assert json.loads((tmp_path / "t.json").read_text())["ece"] is None
    assert "calibration" not in done.output
    assert not (tmp_path / "t_reliability.png").exists()
