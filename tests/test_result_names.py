"""Results of degrid.predict are never lost, and never replace what is no result; what has none is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.contracts import SegmentationNetwork
from degrid.files import read_json
from degrid.types import LabelSpace, UserError
from degrid.verbs.find_images import find_images, is_result


class Red(nn.Module):
    """Class 1 where there is more red than half."""

    def forward(self, image):
        red = image[:, 0].float()
        return torch.stack([255 - red, red], 1)


class Many(SegmentationNetwork):
    """Class 0 everywhere, of as many classes as a benchmark has."""

    def __init__(self, count):
        super().__init__()
        self.labels, self.resize = LabelSpace.of_size(count), "half_pixel"

    def forward(self, image):
        return 1.0 - torch.arange(len(self.labels))[None, :, None, None].expand(len(image), -1, *image.shape[2:])


def picture(path, red=0):
    """A picture of one colour; JPEG keeps that exactly enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 9, 3), (red, 20, 20), np.uint8)).save(path)
    return path


def names(*patterns, out=None):
    return {name: str(path) for name, path in find_images([str(pattern) for pattern in patterns], out).images.items()}


def ids(path):
    return np.asarray(Image.open(path))


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_folders_that_tell_images_apart_are_in_the_names():
    for name in (
        "left/frame.png",
        "right/frame.png",
        "a/x/cam/f.png",
        "b/x/cam/f.png",
        "left/only.png",
        "left/s/t.png",
    ):
        picture(Path(name))
    assert names("left/frame.png", "right/frame.png") == {
        "left/frame": "left/frame.png",
        "right/frame": "right/frame.png",
    }
    assert names("left", "right") == {
        "left/frame": "left/frame.png",
        "left/only": "left/only.png",
        "left/s/t": "left/s/t.png",
        "right/frame": "right/frame.png",
    }
    assert list(names("a/x/cam", "b/x/cam/f.png")) == ["a/x/cam/f", "b/x/cam/f"]
    assert list(names("a/x/cam/*.png", "b/x/cam/*.png")) == ["a/x/cam/f", "b/x/cam/f"]
    assert list(names("left/only.png", "right/frame.png")) == ["only", "frame"]  # nothing to tell apart


def test_folders_may_lie_in_one_another():
    for name in ("frame.png", "sub/frame.png", "sub/sub/frame.png"):
        picture(Path("photos", name))
    assert list(names("photos/frame.png", "photos/sub/frame.png")) == ["photos/frame", "sub/frame"]
    assert len(names("photos/frame.png", "photos/sub/frame.png", "photos/sub/sub/frame.png")) == 3
    # What is found twice comes once.
    assert list(names("photos", "photos/sub", "./photos/frame.png")) == ["frame", "sub/frame", "sub/sub/frame"]


def test_extensions_stay_where_images_of_one_folder_share_a_name():
    for name in (
        "a/frame.jpg",
        "a/frame.png",
        "a/other.png",
        "b/frame.png",
        "c/frame.jpg",
        "c/frame.jpg.png",
        "c/frame.png",
    ):
        picture(Path(name))
    assert list(names("a")) == ["frame.jpg", "frame.png", "other"]
    assert names("a/frame.jpg", "b/frame.png") == {"a/frame": "a/frame.jpg", "b/frame": "b/frame.png"}
    assert list(names("a", "b")) == ["a/frame.jpg", "a/frame.png", "a/other", "b/frame"]
    assert list(names("c")) == ["frame.jpg", "frame.jpg.png", "frame.png"]  # frame.jpg could be the first or the second


def test_every_image_has_its_own_result(tmp_path):
    files = [picture(Path(name), red) for name, red in (("a/f.png", 0), ("b/f.png", 255), ("b/f.jpg", 0))]
    found = degrid.predict(Red(), files, "out", device="cpu")
    assert found.images == 3
    for name, value in (("a/f", 0), ("b/f.png", 1), ("b/f.jpg", 0)):
        assert (ids(f"out/{name}.png") == value).all()
        assert Path(f"out/{name}.overlay.jpg").is_file()
    rows = read_json("out/summary.json", "summary")["images"]
    assert {name: row["file"] for name, row in rows.items()} == {
        "a/f": "a/f.png",
        "b/f.png": "b/f.png",
        "b/f.jpg": "b/f.jpg",
    }
    each = [name for name, _ in degrid.predict_each(Red(), files, device="cpu")]
    assert each == list(rows)


@pytest.mark.parametrize("out", [".", "photos", "photos/below"])
def test_results_beside_the_images_replace_no_image_and_are_none_afterwards(out, tmp_path):
    for name, red in (("a.jpg", 255), ("b.png", 255), ("b.png.png", 255), ("c.overlay.jpg", 0), ("c.png", 255)):
        picture(Path("photos", name), red)
    before = contents(tmp_path)
    first = degrid.predict(Red(), "photos", out, device="cpu")
    assert first.images == 5
    assert first.left_out == {}
    after = contents(tmp_path)
    assert before.items() <= after.items()
    masks = {row["file"]: name for name, row in read_json(Path(out, "summary.json"), "summary")["images"].items()}
    assert len(set(masks.values())) == 5
    for file, name in masks.items():
        assert (ids(Path(out, f"{name}.png")) == (file != "photos/c.overlay.jpg")).all()
    # Once more: the same images, the same results.
    second = degrid.predict(Red(), "photos", out, device="cpu")
    assert second.images == 5
    assert second.left_out == ({} if out == "." else {"results of earlier runs": 11})
    again = contents(tmp_path)
    for folder in (again, after):
        folder.pop(Path(out, "summary.json").as_posix())
    assert again == after


def test_a_shells_pattern_in_the_folder_of_the_images():
    picture(Path("a.jpg"))
    assert degrid.predict(Red(), ["a.jpg"], ".", device="cpu").images == 1
    everything = sorted(Path().iterdir())
    found = degrid.predict(Red(), everything, ".", device="cpu")
    assert (found.images, found.left_out) == (1, {"results of earlier runs": 3})
    assert sorted(Path().iterdir()) == everything
    with pytest.raises(UserError, match=r"no images: .* got results of earlier runs \(2\)"):
        degrid.predict(Red(), ["a.png", "a.overlay.jpg"], ".", device="cpu")


def test_a_label_beside_an_image_is_kept():
    picture(Path("a.jpg"), 255), picture(Path("a.png"))
    label = Path("a.png").read_bytes()
    degrid.predict(Red(), "a.jpg", ".", device="cpu")
    assert Path("a.png").read_bytes() == label
    assert (ids("a.jpg.png") == 1).all()
    Path("summary.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"summary\.json was not written by degrid and would be lost"):
        degrid.predict(Red(), "a.jpg", ".", device="cpu")


@pytest.mark.parametrize(
    ("format", "count", "image", "taken"),
    [
        ("cityscapes", 19, "a_leftImg8bit.png", "a_pred.png"),
        ("voc", 21, "2008_1.jpg", "results/VOC2012/Segmentation/comp6_test_cls/2008_1.png"),
    ],
)
def test_benchmarks_results_replace_only_results(format, count, image, taken):
    picture(Path(image))
    files = degrid.ResultFiles(format)
    for _ in range(2):
        degrid.predict(Many(count), image, ".", device="cpu", files=files)
        assert is_result(Path(taken))
    assert list(names(".")) == [Path(image).stem]
    picture(Path(taken))
    mine = Path(taken).read_bytes()
    with pytest.raises(UserError, match="was not written by degrid and would be lost"):
        degrid.predict(Many(count), image, ".", device="cpu", files=files)
    assert Path(taken).read_bytes() == mine


def test_what_has_no_result_is_said():
    picture(Path("photos/a.png")), picture(Path("photos/.b.png")), picture(Path("photos/out/c.png"))
    for name in ("d.HEIC", "e.heic", "f.psd", "notes.txt", "README", "broken.jpg"):
        Path("photos", name).write_bytes(b"other")
    expected = {
        ".psd": 1,
        ".heic": 2,
        ".txt": 1,
        "hidden": 1,
        "in the folder for the results": 1,
        "without an extension": 1,
    }
    found = degrid.predict(Red(), "photos", "photos/out", device="cpu")
    assert found.images == 1
    assert found.left_out == expected
    summary = read_json("photos/out/summary.json", "summary")
    assert summary["left_out"] == expected
    assert summary["failures"] == {"broken": found.failures[0]}
    assert "broken.jpg is not an image" in found.failures[0]


def test_the_command_says_it_too(tmp_path):
    torch.manual_seed(0)
    degrid.save(degrid.deeplabv3("timm:test_resnet", 2, channels=8), "model")
    picture(Path("photos/a.png")), Path("photos/b.heic").write_bytes(b"other")
    done = CliRunner().invoke(app, ["predict", "model", "photos/a.png", "photos/b.heic", "--device", "cpu"])
    assert done.exit_code == 0
    assert "left out: .heic (1)\n" in done.output
    Path("none").mkdir(), Path("none/b.heic").write_bytes(b"other")
    with pytest.raises(UserError, match=r'"none": the folder holds no image, but \.heic \(1\); known kinds'):
        degrid.predict(Red(), "none", device="cpu")


@pytest.mark.parametrize("name", ["a" * 243, "\u00e9" * 121])
def test_names_as_long_as_names_can_be(name):
    """243 bytes and ".overlay.jpg" are 255; what is written first has a shorter name."""
    picture(Path("in/x.png")).rename(Path("in", f"{name}.png"))
    assert degrid.predict(Red(), "in", "out", device="cpu").images == 1
    assert {file.name for file in Path("out").iterdir()} == {f"{name}.png", f"{name}.overlay.jpg", "summary.json"}
    longer = f"{name}bb"[: 255 - len(name.encode()) + len(name)]
    picture(Path("more/x.png")).rename(Path("more", f"{longer}.png"))
    with pytest.raises(UserError, match=r"has 24[45] bytes, and its results \(\.overlay\.jpg\) may have 255: give the"):
        degrid.predict(Red(), "more", "out", device="cpu")


def test_links_to_nothing_are_counted():
    picture(Path("in/a.png"))
    Path("in/b.png").symlink_to("gone.png")
    found = find_images(["in"])
    assert (list(found.images), found.left_out) == (["a"], {"links to files that are not there": 1})


def test_arrays_are_predicted_as_pictures_of_the_same_values():
    """A model that was trained on .npy files reads them again; beside pictures, arrays are labels or the like."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Path("in").mkdir()
    np.save("in/a.npy", pixels)
    np.save("in/a.logits.npy", pixels)
    assert names("in") == {"a": "in/a.npy"}
    picture(Path("b.png"))
    Image.fromarray(pixels).save("b.png")
    degrid.predict(Red(), ["in/a.npy", "b.png"], "out")
    assert np.array_equal(ids("out/a.png"), ids("out/b.png"))
    assert {0, 1} <= {*ids("out/a.png").ravel().tolist()}
    picture(Path("in/c.png"))
    found = find_images(["in"])
    assert (list(found.images), found.left_out) == (["c"], {".npy": 1, "results of earlier runs": 1})
    assert list(names("in/a.npy", "in/c.png")) == ["a", "c"]
