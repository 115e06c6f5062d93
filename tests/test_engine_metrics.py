import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from degrid.engine.evaluation.metrics import BoundaryCounts, ConfusionMatrix, contour_band, scores
from degrid.engine.training.objective import Objective, median_frequency_weights
from degrid.types import IGNORE_INDEX, LabelSpace, UserError


def test_three_classes_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 1, 255], [2, 2, 255]])
    guess = torch.tensor([[0, 1, 1], [1, 0, 2], [1, 2, 0]])
    matrix = ConfusionMatrix(3)
    matrix.update(guess, truth)
    assert matrix.counts.tolist() == [[1, 1, 0], [1, 2, 0], [0, 1, 1]]
    found = scores(matrix, LabelSpace.of_size(3), 1)
    # class 0: 1 hit, 1 missed, 1 wrongly found; class 1: 2, 1, 2; class 2: 1, 1, 0
    assert found.class_iou == pytest.approx((1 / 3, 2 / 5, 1 / 2))
    assert found.miou == pytest.approx((1 / 3 + 2 / 5 + 1 / 2) / 3)
    assert found.pixel_accuracy == pytest.approx(4 / 7)
    assert found.class_accuracy == pytest.approx((1 / 2, 2 / 3, 1 / 2))
    assert found.mean_accuracy == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert found.frequency_weighted_iou == pytest.approx((2 * 1 / 3 + 3 * 2 / 5 + 2 * 1 / 2) / 7)
    assert found.class_pixels == (2, 3, 2)
    assert found.num_classes_counted == 3


def test_absent_classes_are_left_out_and_counted():
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([0, 3]), torch.tensor([0, 0]))
    found = scores(matrix, LabelSpace.of_size(4), 1)
    assert found.class_iou == (0.5, None, None, 0.0)
    assert found.miou == 0.25
    assert found.num_classes_counted == 2
    assert found.class_accuracy == (0.5, None, None, None)
    assert found.mean_accuracy == 0.5


def test_only_void_gives_zero_not_nan():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 1]), torch.tensor([255, 255]))
    found = scores(matrix, LabelSpace.of_size(2), 1)
    assert (found.miou, found.pixel_accuracy, found.num_classes_counted) == (0.0, 0.0, 0)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_sharded_equals_whole(shards, seed):
    rng = np.random.default_rng(seed)
    truth = torch.from_numpy(rng.choice([0, 1, 2, 255], size=60))
    guess = torch.from_numpy(rng.integers(0, 3, size=60))
    whole = ConfusionMatrix(3)
    whole.update(guess, truth)
    parts = ConfusionMatrix(3)
    for g, t in zip(guess.chunk(shards), truth.chunk(shards), strict=True):
        part = ConfusionMatrix(3)
        part.update(g, t)
        parts.counts += part.counts
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.counts.dtype == np.int64


def test_foreign_ids_are_refused():
    with pytest.raises(UserError, match="label holds id 3; expected 0 to 2 or 255"):
        ConfusionMatrix(3).update(torch.tensor([0]), torch.tensor([3]))
    with pytest.raises(UserError, match="prediction holds id 5"):
        ConfusionMatrix(3).update(torch.tensor([5]), torch.tensor([0]))
    with pytest.raises(UserError, match="differ in shape"):
        ConfusionMatrix(3).update(torch.zeros(2, 2), torch.zeros(4))


def naive_band(ids, width):
    """Pixels of a class removed by `width` erosions with a 3x3 square, the outside being foreign."""
    band = np.zeros(ids.shape, bool)
    for value in np.unique(ids):
        mask = np.pad(ids == value, 1)
        eroded = mask.copy()
        for _ in range(width):
            before = eroded.copy()
            for y, x in itertools.product(range(mask.shape[0]), range(mask.shape[1])):
                if before[y, x]:
                    eroded[y, x] = before[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].all()
        band |= (mask & ~eroded)[1:-1, 1:-1]
    return band


@pytest.mark.parametrize("width", [1, 2, 3, 6, 30])
def test_contour_band_equals_erosion(width):
    rng = np.random.default_rng(width)
    ids = np.kron(rng.integers(0, 3, size=(4, 5)), np.ones((5, 4), int))
    assert np.array_equal(contour_band(ids, width), naive_band(ids, width))


def test_boundary_iou_by_hand():
    # 10x10, diagonal 14.1, share 0.07 -> a band 1 pixel wide. Truth: left half 0, right half 1; the prediction's
    # border is one pixel further right.
    truth = torch.zeros(10, 10, dtype=torch.long)
    truth[:, 5:] = 1
    guess = torch.zeros(10, 10, dtype=torch.long)
    guess[:, 6:] = 1
    counts = BoundaryCounts(2, width_fraction=0.07)
    counts.update(guess, truth)
    # band of class 0: truth is the rim of a 10x5 block: 26 pixels; guess of 10x6: 28; class 1: 26 and 24.
    # In common, same class: class 0: 10x5 rim without its right column's inner part: columns 0-4 of rows 0 and 9,
    # and column 0: 18; class 1: columns 6-9 of rows 0 and 9, and column 9: 16.
    assert counts.intersection.tolist() == [18, 16]
    assert counts.union.tolist() == [26 + 28 - 18, 26 + 24 - 16]


def test_boundary_iou_never_counts_void():
    truth = torch.full((8, 8), IGNORE_INDEX)
    truth[:, :4] = 0
    counts = BoundaryCounts(2)
    counts.update(torch.ones(8, 8), truth)
    assert counts.union.tolist() == [int(contour_band(truth.numpy(), 1)[:, :4].sum())] * 2
    counts = BoundaryCounts(2)
    counts.update(torch.zeros(8, 8), truth)
    assert counts.intersection.tolist() == counts.union.tolist()


def sum_and_weight(logits, label, size="label", class_weights=None):
    objective = Objective(size=size, class_weights=class_weights)
    return objective.totals([logits], label)[0], objective.weights([logits.shape[-2:]], label)[0]


def test_loss_is_the_mean_over_valid_pixels_and_void_changes_nothing():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5)
    label = torch.randint(0, 3, (2, 4, 5))
    label[0, 0] = IGNORE_INDEX
    total, weight = sum_and_weight(logits, label)
    log_p = logits.log_softmax(1)
    by_hand = [
        -log_p[n, label[n, y, x], y, x]
        for n, y, x in itertools.product(range(2), range(4), range(5))
        if label[n, y, x] != IGNORE_INDEX
    ]
    assert weight == len(by_hand) == 35
    assert float(total) == pytest.approx(float(sum(by_hand)), rel=1e-6)

    wide_logits = torch.cat([logits, torch.randn(2, 3, 4, 2)], 3)
    wide_label = F.pad(label, (0, 2), value=IGNORE_INDEX)
    again, again_weight = sum_and_weight(wide_logits, wide_label)
    assert (float(again), float(again_weight)) == (pytest.approx(float(total), rel=1e-6), 35)


def test_loss_of_an_all_void_batch_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    total, weight = sum_and_weight(logits, torch.full((1, 8, 8), IGNORE_INDEX))
    total.backward()
    assert float(total.detach()) == 0
    assert float(weight) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_sizes():
    logits = torch.randn(1, 3, 2, 2)
    label = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 255], [2, 2, 255, 255]]])
    total, weight = sum_and_weight(logits, label, "logits")
    small = torch.tensor([[[0, 1], [2, 255]]])
    assert float(total) == pytest.approx(float(F.cross_entropy(logits, small, ignore_index=255, reduction="sum")))
    assert weight == 3
    total, weight = sum_and_weight(logits, label, "label")
    large = F.interpolate(logits, (4, 4), mode="bilinear", align_corners=False)
    assert float(total) == pytest.approx(float(F.cross_entropy(large, label, ignore_index=255, reduction="sum")))
    assert weight == 12


def test_class_weights_equal_torch_weighted_mean():
    torch.manual_seed(1)
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    label[0, 0, 0] = IGNORE_INDEX
    weights = torch.tensor([0.5, 2.0, 1.0])
    total, weight = sum_and_weight(logits, label, class_weights=weights)
    expected = F.cross_entropy(logits, label, weight=weights, ignore_index=IGNORE_INDEX)
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-6)


def test_median_frequency_weights_by_hand():
    weights = median_frequency_weights(torch.tensor([60, 30, 10, 0]))
    assert weights.tolist() == pytest.approx([0.5, 1.0, 3.0, 0.0])
    assert not math.isnan(float(median_frequency_weights(torch.zeros(3)).sum()))
