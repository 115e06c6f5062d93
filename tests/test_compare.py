"""Scores of single images: models against each other, near class borders, and the worst images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_run import TINY, cli, options

import degrid
from degrid import model_folder
from degrid.engine.evaluation import bootstrap as compare
from degrid.engine.evaluation.bootstrap import ImageConfusions, paired_bootstrap
from degrid.engine.evaluation.failures import WIDTHS, TrimapCounts, WorstImages
from degrid.engine.evaluation.metrics import ConfusionMatrix, contour_band, hits_and_unions, mean_iou, scores
from degrid.image import overlay_classes
from degrid.types import LabelSpace, Sample, UserError


def scored(images, classes, wrong, seed=0):
    """Matrices of random truths and of predictions of which a share is wrong; the truths depend on the seed alone."""
    truths = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, (images, 8, 9)))
    noise = np.random.default_rng(seed + 1)
    flips = torch.from_numpy(noise.random((images, 8, 9)) < wrong)
    guesses = torch.where(flips, (truths + 1) % classes, truths)
    collect = ImageConfusions(classes)
    for index, (truth, guess) in enumerate(zip(truths, guesses, strict=True)):
        collect(index, Sample(torch.zeros(3, 8, 9, dtype=torch.uint8), truth, f"{index}"), guess)
    return collect.stacked()


def miou_by_hand(matrix):
    found = []
    for k in range(len(matrix)):
        union = matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]
        if union:
            found.append(float(matrix[k, k] / union))
    return sum(found) / len(found) if found else 0.0


# ---- bootstrap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [10, compare.CHUNK_VALUES])
def test_bootstrap_against_a_loop(monkeypatch, chunk):
    monkeypatch.setattr(compare, "CHUNK_VALUES", chunk)
    rng = np.random.default_rng(5)
    a = rng.integers(0, 9, (6, 4, 4))
    a[:, 3] = a[:, :, 3] = 0  # a class in neither truth nor prediction
    a[2:, 2] = a[2:, :, 2] = 0  # and one that is absent from many draws
    b = np.stack([matrix[:, [1, 0, 2, 3]] for matrix in a])
    draws = np.random.default_rng(7).integers(6, size=(200, 6))
    deltas = [miou_by_hand(b[chosen].sum(0)) - miou_by_hand(a[chosen].sum(0)) for chosen in draws]
    found = paired_bootstrap(a, b, draws=200, seed=7)
    assert found.miou_a == pytest.approx(miou_by_hand(a.sum(0)))
    assert found.miou_b == pytest.approx(miou_by_hand(b.sum(0)))
    assert found.difference == pytest.approx(found.miou_b - found.miou_a)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(deltas, [2.5, 97.5])))
    flipped = sum(delta * found.difference <= 0 for delta in deltas)
    assert found.p == pytest.approx(2 * (flipped + 1) / 201)
    assert 2 / 201 < found.p < 1


def test_identical_models_do_not_differ():
    a = scored(7, 3, 0.3)
    found = paired_bootstrap(a, a.copy(), draws=100)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_better_model_is_better_beyond_chance():
    worse, better = scored(20, 3, 0.4), scored(20, 3, 0.1)
    found = paired_bootstrap(worse, better, draws=500)
    assert 0 < found.low < found.difference < found.high
    assert found.p == 2 / 501  # no draw of 500 flips
    back = paired_bootstrap(better, worse, draws=500)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_only_void_and_a_single_image():
    nothing = np.zeros((3, 2, 2), np.int64)
    assert paired_bootstrap(nothing, nothing, draws=5).difference == 0
    one = scored(1, 3, 0.2)
    found = paired_bootstrap(one, scored(1, 3, 0.9), draws=5)
    assert found.low == found.high == found.difference < 0


def test_what_cannot_be_compared():
    a = scored(4, 3, 0.2)
    for b, draws, message in (
        (a[:3], 10, "one shape"),
        (a, 0, "0 draws"),
        (a[::-1], 10, "the same images"),
    ):
        with pytest.raises(UserError, match=message):
            paired_bootstrap(a, b, draws=draws)
    with pytest.raises(UserError, match="nothing to compare"):
        ImageConfusions(3).stacked()


def test_mean_iou_is_that_of_the_scores():
    matrix = ConfusionMatrix(4)
    matrix.counts += np.array([[5, 1, 0, 0], [2, 7, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    expected = scores(matrix, LabelSpace.of_size(4), 1).miou
    assert mean_iou(*hits_and_unions(matrix.counts)).item() == pytest.approx(expected)
    assert expected == pytest.approx(miou_by_hand(matrix.counts))


# ---- trimap -------------------------------------------------------------------------------------------------


def test_trimap_by_hand():
    # One row: the border lies between the columns 3 and 4; void at the right end is a border too.
    truth = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 255]])
    guess = torch.tensor([[1, 0, 0, 0, 0, 1, 1, 1, 1, 0]])
    counts = TrimapCounts(2, (1, 2, 4))
    counts.update(guess, truth)
    one, two, four = counts.curve()
    # Columns 3, 4 and 8: class 0 has 1 hit of 2, class 1 has 1 hit of 2.
    assert (one.width, one.pixels, one.miou) == (1, 3, pytest.approx((1 / 2 + 1 / 2) / 2))
    # Columns 2, 3, 4, 5, 7, 8: class 0 2 of 3, class 1 3 of 4.
    assert (two.width, two.pixels, two.miou) == (2, 6, pytest.approx((2 / 3 + 3 / 4) / 2))
    # All but the void pixel: class 0 3 of 5, class 1 4 of 6.
    assert (four.width, four.pixels, four.miou) == (4, 9, pytest.approx((3 / 5 + 4 / 6) / 2))


def test_trimap_bands_against_distances():
    rng = np.random.default_rng(3)
    blocks = torch.from_numpy(rng.choice([0, 1, 2, 255], size=(3, 4)))
    truth = blocks.repeat_interleave(7, 0).repeat_interleave(9, 1)
    ids = truth.numpy()
    rows, columns = np.indices(ids.shape)
    nearest = np.full(ids.shape, 10**6)
    for i, j in np.ndindex(ids.shape):
        away = np.maximum(abs(rows - i), abs(columns - j))[ids != ids[i, j]]
        nearest[i, j] = away.min(initial=10**6)
    counts = TrimapCounts(3, WIDTHS)
    counts.update(torch.zeros_like(truth), truth)
    for point in counts.curve():
        assert point.pixels == ((nearest <= point.width) & (ids != 255)).sum()
        assert np.array_equal(contour_band(truth.numpy(), point.width, image_border=False), nearest <= point.width)


def test_a_very_wide_trimap_is_the_whole_image():
    rng = np.random.default_rng(4)
    truth = torch.from_numpy(rng.choice([0, 1, 2, 255], size=(20, 31)))
    guess = torch.from_numpy(rng.integers(0, 3, size=(20, 31)))
    counts, whole = TrimapCounts(3, (1, 1000)), ConfusionMatrix(3)
    counts.update(guess, truth)
    whole.update(guess, truth)
    assert counts.curve()[-1].pixels == whole.counts.sum()
    assert counts.curve()[-1].miou == pytest.approx(scores(whole, LabelSpace.of_size(3), 1).miou)


def test_one_class_has_no_trimap_and_widths_rise():
    counts = TrimapCounts(2, (1, 40))
    counts.update(torch.zeros(9, 9, dtype=torch.uint8), torch.zeros(9, 9, dtype=torch.uint8))
    assert [(point.pixels, point.miou) for point in counts.curve()] == [(0, 0), (0, 0)]
    for widths in ((), (0, 1), (2, 1), (1, 1)):
        with pytest.raises(UserError, match="increasing"):
            TrimapCounts(2, widths)


# ---- worst images -------------------------------------------------------------------------------------------


def test_worst_images_in_order():
    worst = WorstImages(3, 3)
    truth = torch.zeros(10, dtype=torch.uint8).reshape(2, 5)
    for index, wrong in enumerate((2, 9, 0, 5, 9, 1)):
        guess = truth.clone()
        guess.view(-1)[:wrong] = 2
        worst(index, Sample(torch.zeros(3, 2, 5, dtype=torch.uint8), truth, f"image {index}"), guess)
    void = Sample(torch.zeros(3, 2, 5, dtype=torch.uint8), torch.full_like(truth, 255), "void")
    worst(6, void, truth)
    # Two classes are present: one without a hit, and class 1 in neither.
    assert [(image.index, image.name) for image in worst.found] == [
        (1, "image 1"),
        (4, "image 4"),
        (3, "image 3"),
    ]
    assert [image.miou for image in worst.found] == pytest.approx([0.1 / 2, 0.1 / 2, 0.5 / 2])


# ---- command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two tiny networks on the built-in scenes, one of them hardly trained."""
    root = tmp_path_factory.mktemp("compared")
    for name, steps in (("short", 1), ("long", 6)):
        settings = [*TINY, f"train.steps={steps}", "train.eval_every=6"]
        code, output = cli("train", "--data", "synthetic:4", "-q", *options(settings), "-o", root / name)
        assert code == 0, output
    return root / "short", root / "long"


@pytest.mark.slow
def test_compare_from_the_command_line(models, tmp_path):
    short, long = models
    words = ["compare", short, long, short, "--data", "synthetic:4", "--draws", 50, "--seed", 3]
    code, output = cli(*words, "-o", tmp_path / "compare.json")
    assert code == 0, output
    assert output.strip().splitlines()[-1] == f"comparison: {tmp_path / 'compare.json'}"
    record = json.loads((tmp_path / "compare.json").read_text())
    assert (record["draws"], record["seed"], record["split"]) == (50, 3, "val")
    first, second, again = record["models"]
    dataset = degrid.open_dataset("synthetic:4", "val")
    stacks = []
    for model, found in ((short, first), (long, second)):
        collect = ImageConfusions(len(dataset.labels))
        whole = degrid.evaluate(degrid.load(model), dataset, on_image=collect)
        assert found["model"] == str(model)
        assert found["miou"] == whole.miou
        assert f"{100 * whole.miou:.2f}" in output
        assert np.array_equal(collect.stacked().sum(0), whole.confusion)
        stacks.append(collect.stacked())
    expected = paired_bootstrap(*stacks, draws=50, seed=3)
    assert first["difference_to_first"] is None
    assert second["difference_to_first"] == pytest.approx(vars(expected))
    assert again["difference_to_first"]["high"] == again["difference_to_first"]["low"] == 0
    assert f"[{100 * expected.low:+.2f}, {100 * expected.high:+.2f}]" in output
    assert "best of 3 on 4 images" in output
    assert "pixel accuracy" in output
    assert all(f"IoU {name}" in output for name in dataset.labels.names)


def test_compare_wants_two_models_of_the_same_classes(models, tmp_path):
    code, output = cli("compare", models[0], "--data", "synthetic:4")
    assert (code, "two models or more" in output) == (2, True)
    network = degrid.load(models[1])
    network.labels = LabelSpace(tuple(reversed(network.labels.names)), network.labels.colors)
    model_folder.save(network, tmp_path / "other")
    code, output = cli("compare", models[0], tmp_path / "other", "--data", "synthetic:4")
    assert (code, "do not predict the same classes" in output) == (2, True)


def test_eval_with_trimap_and_worst_images(models, tmp_path):
    out = tmp_path / "scores.json"
    code, output = cli("eval", models[1], "--data", "synthetic:4", "--trimap", "--worst", 2, "-o", out)
    assert code == 0, output
    record = json.loads(out.read_text())
    assert [point["width"] for point in record["trimap"]] == list(WIDTHS)
    assert all(f"up to {width} " in output for width in WIDTHS)
    assert f"{100 * record['trimap'][0]['miou']:.2f}" in output
    dataset = degrid.open_dataset("synthetic:4", "val")
    collect = ImageConfusions(len(dataset.labels))
    degrid.evaluate(degrid.load(models[1]), dataset, on_image=collect)
    each = mean_iou(*hits_and_unions(collect.stacked())).tolist()
    order = sorted(range(4), key=lambda index: each[index])[:2]
    assert [image["name"] for image in record["worst"]] == [dataset[index].name for index in order]
    assert [image["miou"] for image in record["worst"]] == pytest.approx(sorted(each)[:2])
    assert all(f"{100 * each[index]:.2f}" in output for index in order)
    pictures = sorted((tmp_path / "scores_worst").iterdir())
    assert len(pictures) == 2
    sample = dataset[order[0]]
    pixels = sample.image.permute(1, 2, 0).numpy()
    width = pixels.shape[1]
    picture = np.array(Image.open(pictures[0]))
    assert picture.shape == (pixels.shape[0], 3 * width, 3)
    assert np.array_equal(picture[:, :width], pixels)
    truth = overlay_classes(pixels, sample.label.numpy(), dataset.labels)
    assert np.array_equal(picture[:, width : 2 * width], truth)


def test_eval_without_the_extras_writes_none(models, tmp_path):
    code, output = cli("eval", models[0], "--data", "synthetic:4", "-o", tmp_path / "scores.json")
    assert code == 0, output
    assert not {"trimap", "worst"} & json.loads((tmp_path / "scores.json").read_text()).keys()
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]
