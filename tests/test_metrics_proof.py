"""Confusion matrix and scores against other implementations of them, on random maps with void."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from degrid.engine.evaluation.metrics import ConfusionMatrix, hits_and_unions, mean_iou, scores
from degrid.types import IGNORE_INDEX, LabelSpace


def random_maps(seed, classes):
    """Some maps of their own sizes: truth with void, and a prediction that agrees in part; classes may be absent."""
    rng = np.random.default_rng(seed)
    maps = []
    used = rng.choice(classes, size=rng.integers(1, classes + 1), replace=False)
    for _ in range(rng.integers(1, 4)):
        size = tuple(rng.integers(1, 12, size=2))
        truth = rng.choice(used, size=size)
        guess = np.where(rng.random(size) < 0.6, truth, rng.integers(0, classes, size))
        maps.append((np.where(rng.random(size) < 0.2, IGNORE_INDEX, truth), guess))
    return maps


def ours(maps, classes):
    matrix = ConfusionMatrix(classes)
    for truth, guess in maps:
        matrix.update(torch.from_numpy(guess.astype(np.uint8)), torch.from_numpy(truth.astype(np.uint8)))
    return matrix, scores(matrix, LabelSpace.of_size(classes), len(maps))


def valid_pixels(maps):
    truth = np.concatenate([t.ravel() for t, _ in maps])
    guess = np.concatenate([g.ravel() for _, g in maps])
    return truth[truth != IGNORE_INDEX], guess[truth != IGNORE_INDEX]


@settings(max_examples=40)
@given(st.integers(2, 21), st.integers(0, 2**32 - 1))  # of one class alone scikit-learn warns
def test_against_scikit_learn(classes, seed):
    maps = random_maps(seed, classes)
    matrix, found = ours(maps, classes)
    truth, guess = valid_pixels(maps)
    if not len(truth):
        assert int(matrix.counts.sum()) == found.miou == found.pixel_accuracy == 0
        return
    ids = list(range(classes))
    assert np.array_equal(matrix.counts, confusion_matrix(truth, guess, labels=ids))
    assert found.pixel_accuracy == pytest.approx(accuracy_score(truth, guess))
    present = sorted(set(truth) | set(guess))
    ious = jaccard_score(truth, guess, labels=present, average=None)
    assert [found.class_iou[k] for k in present] == pytest.approx(ious)
    assert [k for k in ids if found.class_iou[k] is None] == [k for k in ids if k not in present]
    assert found.miou == pytest.approx(ious.mean())
    recalls = recall_score(truth, guess, labels=sorted(set(truth)), average=None)
    assert found.mean_accuracy == pytest.approx(recalls.mean())
    weighted = jaccard_score(truth, guess, labels=present, average="weighted")
    assert found.frequency_weighted_iou == pytest.approx(weighted)


def torchvision_scores(maps, classes):
    """Global accuracy, recall and IoU per class as torchvision's segmentation reference defines them.

    references/segmentation/utils.py, class ConfusionMatrix, of https://github.com/pytorch/vision (not in its package):
    of pixels whose truth lies in 0..n-1, h[truth, guess] counts; global accuracy is trace(h) / sum(h), recall is
    diag(h) / row sums, and IoU diag(h) / (row sums + column sums - diag(h)). Its means are NaN with an absent class.
    """
    h = np.zeros((classes, classes))
    for truth, guess in maps:
        known = (truth >= 0) & (truth < classes)
        np.add.at(h, (truth[known], guess[known]), 1)
    hit, rows, columns = np.diag(h), h.sum(axis=1), h.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.trace(h) / h.sum(), hit / rows, hit / (rows + columns - hit)


@settings(max_examples=40)
@given(st.integers(1, 21), st.integers(0, 2**32 - 1))
def test_against_the_formula_of_torchvisions_reference(classes, seed):
    maps = random_maps(seed, classes)
    matrix, found = ours(maps, classes)
    if not int(matrix.counts.sum()):
        return
    accuracy, recall, iou = torchvision_scores(maps, classes)
    as_array = [np.array([np.nan if v is None else v for v in x]) for x in (found.class_accuracy, found.class_iou)]
    assert found.pixel_accuracy == pytest.approx(accuracy)
    np.testing.assert_allclose(as_array[0], recall)
    np.testing.assert_allclose(as_array[1], iou)
    # Where its mean is a number it is ours; where a class is absent ours leaves that class out.
    assert found.miou == pytest.approx(np.nanmean(iou))
    if not np.isnan(iou).any():
        assert found.miou == pytest.approx(iou.mean())


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_renaming_the_classes_renames_the_scores(classes, seed):
    """A property that no implementation of IoU may lack: permuted ids, permuted scores, the same means."""
    maps = random_maps(seed, classes)
    order = np.random.default_rng(seed).permutation(classes)
    table = np.full(IGNORE_INDEX + 1, IGNORE_INDEX)
    table[:classes] = order
    _, found = ours(maps, classes)
    _, renamed = ours([(table[truth], table[guess]) for truth, guess in maps], classes)
    assert renamed.miou == pytest.approx(found.miou)
    assert renamed.pixel_accuracy == found.pixel_accuracy
    assert [renamed.class_iou[k] for k in order] == list(found.class_iou)


def test_a_dataset_is_not_the_mean_of_its_images():
    """Counts are added before dividing: one image of 1 pixel that is wrong, one of 99 that is right."""
    single = (np.array([[0]]), np.array([[1]]))
    many = (np.zeros((9, 11), int), np.zeros((9, 11), int))
    matrix, found = ours([single, many], 2)
    assert found.class_iou == (0.99, 0.0)
    assert found.miou == pytest.approx(0.495)
    assert mean_iou(*hits_and_unions(matrix.counts)).item() == pytest.approx(0.495)
