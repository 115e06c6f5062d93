"""degrid.report: one page on models, whose numbers are those of degrid.evaluate and degrid.compare."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from test_verbs_predict import cli
from torch import nn

import degrid
from degrid import config as configs
from degrid.analysis.plots import draw_field
from degrid.analysis.sections import ReportedModel, confusions, facts, receptive_fields, settings
from degrid.config import RunConfig, override
from degrid.data.synthetic import SyntheticScenes
from degrid.engine.evaluation.bootstrap import miou_interval
from degrid.types import LabelSpace, Scores, UserError
from degrid.verbs import report as verb
from degrid.verbs.gridding import gridding_of
from degrid.verbs.report import _chosen, _seen, gather
from degrid.verbs.scored import files_of

SEEN = {"receptive_field": np.eye(5), "sees": "from a to b", "grid": {"holes": "80 %"}, "layers": "networks <4>"}
"""In place of what takes long."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two untrained networks in what looks like run folders; the data are files, so that scores are kept."""
    folder = tmp_path_factory.mktemp("report")
    for index in range(4):
        sample = SyntheticScenes("val", 4)[index]
        for kind, pixels in (("images", sample.image.permute(1, 2, 0)), ("masks", sample.label)):
            file = folder / "data" / kind / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()[::2, ::2]).save(file)
    names = "".join(f"  - {name}\n" for name in SyntheticScenes.labels.names)
    (folder / "data" / "dataset.yaml").write_text(f"val: images\nmasks: masks\nclasses:\n{names}")
    data = str(folder / "data" / "dataset.yaml")
    for seed in range(2):
        place = folder / f"run{seed}"
        torch.manual_seed(seed)
        degrid.save(
            degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, output_stride=8, channels=8), place / "model"
        )
        config = override(RunConfig(), {"data.path": data, "data.val": "val", "train.seed": seed, "train.steps": 77})
        record = {"config": configs.to_dict(config), "date": "2026-01-02", "versions": {"degrid": "1", "torch": "2"}}
        (place / "run.json").write_text(json.dumps(record))
        lines = [{"step": step, "loss": 2.0 / step, "lr": 0.1} for step in (1, 2, 3)]
        (place / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("degrid.data.inspection.counting.SETTLED", -1)
        patch.setattr(verb, "_seen", lambda network, images, progress: SEEN)
        yield [folder / f"run{seed}" for seed in range(2)], data


class Reader(HTMLParser):
    """Tables, images and links of a page; `open` are tags without their ends."""

    VOID = ("img", "meta", "path", "use", "image")

    def __init__(self, page):
        super().__init__()
        self.open, self.rows, self.images, self.addresses, self.text = [], [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "img":
            self.images.append((values["alt"], values["src"]))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if any(tag in ("td", "th") for tag in self.open):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row[0] == first)


def pixels_of(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))).convert("RGB"))


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    folders, seen = runs[0], []
    out = tmp_path_factory.mktemp("page") / "report.html"
    found = degrid.report(folders, out, images=1, progress=seen.append)
    again = gather(folders, out, None, None, "auto", "float32", 1, seen.append)
    return found, again, seen, Reader(out.read_text())


def test_its_numbers_are_those_of_eval_and_compare(runs, made):
    (folders, data), (found, _, _, page) = runs, made
    compared = degrid.compare(folders, data)
    assert found.differences == compared.differences
    for folder, model in zip(folders, found.models, strict=False):
        expected = degrid.evaluate(folder, data)
        assert model.scores.confusion == expected.confusion
        assert model.scores.boundary_iou == expected.boundary_iou
        assert page.row(folder.name)[1] == f"{100 * expected.miou:.1f}"
        low, high = model.interval
        assert low <= expected.miou <= high
    for index, name in enumerate(SyntheticScenes.labels.names):
        ious = [model.scores.class_iou[index] for model in found.models]
        assert page.row(name)[1:3] == ["-" if iou is None else f"{100 * iou:.1f}" for iou in ious]
    assert found.verdict in page.text


def test_the_page_holds_everything_it_shows(made):
    page = made[3]
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert page.open == ["html", "body"] or not page.open
    titles = ("Scores", "Classes", "Confusion", "Training", "Worst images", "Best images", "Speed and size", "Settings")
    assert all(title in page.text for title in titles)
    assert page.row("train.steps")[1:] == ["77", "77"]
    assert page.row("train.seed")[1:] == ["0", "1"]
    assert page.row("trained")[1:] == ["2026-01-02"] * 2
    assert sum(alt.startswith("Training loss") for alt, _ in page.images) == 1


def test_the_images_are_the_worst_and_the_best_with_their_predictions(runs, made):
    (folders, data), (found, _, _, page) = runs, made
    dataset = degrid.open_dataset(data, "val")
    mean = np.mean([model.image_mious for model in found.models], axis=0)
    assert list(found.samples) == [int(mean.argmin()), int(mean.argmax())]
    for index, sample in found.samples.items():
        assert torch.equal(sample.image, dataset[index].image)
        expected = degrid.Predictor(degrid.load(folders[1]), precision="float32")(sample.image)
        assert np.array_equal(found.models[1].predictions[index], expected)
        shown = next(source for alt, source in page.images if alt == f"image: {sample.name}")
        error = pixels_of(shown).astype(int) - sample.image.permute(1, 2, 0).numpy()
        assert np.abs(error).mean() < 6  # a JPEG; the other scenes differ by more than 20
    values = [each.image_mious[index] for each in found.models for index in found.samples]
    assert all(f"mIoU {100 * value:.1f} %" in page.text for value in values)


def test_scores_are_computed_once(made):
    found, again, seen, _ = made
    assert sum(now.task.startswith("evaluating") for now in seen) == 2 * 4
    assert sum(now.task == "looking inside" for now in seen) == 2 * 2
    for one, other in zip(found.models, again.models, strict=True):
        assert one.scores == other.scores
        assert one.interval == other.interval


@pytest.mark.slow
def test_recipes_are_compared_over_their_seeds(runs, made, tmp_path):
    folders, _ = runs
    found = degrid.report([f"{folders[0]},{folders[1]}", folders[::-1]], tmp_path / "r.html", images=1)
    mious, edges = zip(*((model.scores.miou, model.scores.boundary_iou) for model in made[0].models), strict=True)
    for model in found.models:
        assert model.scores.miou == pytest.approx(np.mean(mious))
        assert model.scores.boundary_iou == pytest.approx(np.mean(edges))
        # of two values t(0.975, 1) = 12.7062, and the standard error is half their distance
        reach = 12.7062 * abs(mious[0] - mious[1]) / 2
        assert model.interval == pytest.approx((np.mean(mious) - reach, np.mean(mious) + reach), rel=1e-5)
    assert (found.differences[0].over, found.differences[0].difference) == ("seeds", 0)
    page = Reader((tmp_path / "r.html").read_text())
    assert [model.name for model in found.models] == ["run0, run1", "run1, run0"]
    assert "images, receptive field, settings and speed are of its first run" in page.text
    assert "95 % interval over seeds" in page.rows[0]


@pytest.mark.slow
def test_the_command_writes_the_page_of_a_model_folder(runs, tmp_path):
    folders, data = runs
    out = tmp_path / "page.html"
    done = cli("report", folders[1] / "model", "-o", out, "--images", 1)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[-1] == f"report: {out}"
    assert re.fullmatch(rf"run1, mIoU [\d.]+ % \[[\d.]+, [\d.]+\] on 4 images of {data}, val", lines[-2])
    page = Reader(out.read_text())
    assert page.row("holes") == ["holes", "80 %"]
    assert "run1: from a to b" in page.text
    assert "run1: gridding layer by layernetworks <4>" in page.text


@pytest.mark.slow
def test_any_network_is_looked_into():
    def conv(inputs, outputs, rate):
        return nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)

    torch.manual_seed(0)
    images = [torch.randint(256, (3, 70, 80), dtype=torch.uint8) for _ in range(2)]
    dilated = nn.Sequential(conv(3, 4, 2), nn.LeakyReLU(), conv(4, 4, 2), nn.Conv2d(4, 2, 1))
    seen = _seen(dilated, images, None)
    expected = gridding_of(dilated, [image[None].float() for image in images], real=True)
    assert (seen["layers"], seen["gridding"]) == (str(expected), expected.score)
    assert np.array_equal(seen["receptive_field"], expected.field)
    assert seen["grid"]["independent networks"] == "4"
    assert seen["grid"]["gridding score at period 2"] == "1.0000"
    assert seen["grid"]["phase exchange"] == "0.000 (all mixed: 0.750)"
    assert seen["grid"]["holes"] == f"{100 * expected.holes:.1f} %"
    assert seen["grid"]["checkerboard in the logits"] == f"{expected.checkerboard:.2f}"
    small = _seen(dilated, [image[:, :15, :15] for image in images], None)
    assert small["grid"]["checkerboard in the logits"] == "not measured: too small"

    plain = _seen(nn.Sequential(conv(3, 4, 1), conv(4, 2, 1)), images, None)
    assert (plain["receptive_field"] > 0).sum() == 25
    assert plain["grid"] == {"95 % of the influence within": "5x5 pixels of the image"}
    # Positions without influence are cut off; what is left is 5x5 of 70x80.
    shown = draw_field(plain["receptive_field"], "", "").axes
    assert [axes.get_xlim() + axes.get_ylim() for axes in shown[:2]] == [(-2.5, 2.5, 2.5, -2.5)] * 2
    page = receptive_fields([model_of([[1, 0], [0, 1]], **each) for each in (seen, plain)])
    assert Reader(page).row("holes") == ["holes", seen["grid"]["holes"], "-"]


def test_mistakes_are_told_in_a_sentence(runs, tmp_path):
    folders, data = runs
    network = degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, output_stride=8, channels=8)
    with pytest.raises(UserError, match=r"Segmenter does not record what it was validated on; name images with"):
        degrid.report(network, tmp_path / "a.html")
    with pytest.raises(UserError, match="nowhere: no such model or run folder"):
        degrid.report("nowhere", tmp_path / "a.html")
    with pytest.raises(UserError, match="images: expected at least 1, got 0"):
        degrid.report(folders[0], tmp_path / "a.html", images=0)
    with pytest.raises(UserError, match="at least one model"):
        degrid.report([], tmp_path / "a.html", data=data)
    other = json.loads((folders[1] / "run.json").read_text())
    other["config"]["data"]["path"] = "elsewhere"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"were validated on different data: .*elsewhere.*; name one with --data"):
        degrid.report([folders[0], tmp_path / "run"], tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_images_are_shown_once_and_never_without_a_valid_pixel():
    mious = np.array([0.5, np.nan, 0.1, 0.9, 0.3])
    assert _chosen(mious, 2) == ([2, 4], [3, 0])
    assert _chosen(mious[:3], 4) == ([2], [0])
    assert _chosen(mious[:1], 4) == ([0], [])


def test_the_interval_of_a_miou_is_that_of_its_draws():
    # One class right everywhere and one image with all of the other class wrong: a draw's mIoU is 1 without that image.
    stack = np.array([[[4, 0], [0, 0]], [[0, 0], [4, 0]]])
    # Draws of two images out of two: (0,0) -> 1, (1,1) -> 0, mixed -> IoUs 4/8 and 0 -> 0.25
    assert miou_interval(stack, draws=400) == (0.0, 1.0)
    assert miou_interval(stack[:1], draws=10) == (1.0, 1.0)


def model_of(confusion, **more):
    classes = tuple("ab"[: len(confusion)])
    counts = np.array(confusion)
    scores = Scores(
        0.5, 0.5, 0.5, 0.5, None, classes, (0.5,) * 2, (0.5,) * 2, None, (1, 1), 2, 1, tuple(map(tuple, counts))
    )
    return ReportedModel("m", scores, (0.4, 0.6), **more)


def test_confusions_are_shares_of_the_truth():
    labels = LabelSpace(("a", "b"), ((0, 0, 0), (9, 9, 9)))
    page = Reader(confusions([model_of([[6, 2], [1, 3]])], labels))
    assert page.rows[1:] == [["a", "b", "25.0", "16.7"], ["b", "a", "25.0", "8.3"]]
    assert "No pixel is wrong." in confusions([model_of([[6, 0], [0, 3]])], labels)


def test_settings_that_differ_come_first_and_text_is_escaped():
    one = model_of([[1, 0], [0, 1]], settings={"a": 1, "b": True, "c": [1, 2], "d": None, "e": "<i>"})
    usual = {"a": 1, "b": False, "c": [1, 2], "d": None}
    text = settings([one], usual)
    beside = settings([one, model_of([[1, 0], [0, 1]])], usual)  # a model that has none
    assert [len(Reader(part).rows) for part in beside.removesuffix("</details>").split("<details>")] == [3, 4]
    assert "No model here records" in settings([model_of([[1, 0], [0, 1]])], usual)
    first, rest = text.split("<details>")
    assert [row[:2] for row in Reader(first).rows[1:]] == [["b", "true"], ["e", "<i>"]]
    assert [row[:2] for row in Reader(rest.removesuffix("</details>")).rows[1:]] == [
        ["a", "1"],
        ["c", "1, 2"],
        ["d", "-"],
    ]


def test_long_facts_have_several_lines_and_times_are_said_to_be_of_one_model_after_the_other():
    network = "deeplabv3plus on timm:mobilenetv2_100"
    models = [model_of([[1, 0], [0, 1]], facts={"network": network, "time per image": "75 ms"})] * 2
    text = facts(models)
    assert text.count(f'<td class="long">{network}</td>') == 2
    assert text.count('class="long"') == 2
    assert "one after the other" in text
    assert "one after the other" not in facts(models[:1])


def test_a_model_that_is_called_by_its_name_has_files():
    assert [file.name for file in files_of("camvid-mobilenetv2")] == ["model.safetensors", "config.json"]
