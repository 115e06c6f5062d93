"""The picture of what was understood: shares as bars, void hatched, and the values that became each class."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import degrid
from degrid.data import open_dataset
from degrid.data.inspection.preview import Seen, _font, preview_sheet
from degrid.types import IGNORE_INDEX, LabelSpace, Sample

RED, GREEN, BLUE = (250, 10, 20), (30, 240, 50), (60, 70, 230)
VALUES = np.repeat(np.array([[7] * 4, [8] * 4, [9, 9, 3, 3], [3, 3, 200, 200]], np.uint8), 8, axis=1)
TABLE = """train: images
val: images
masks: masks
classes:
  0: {name: many, color: [250, 10, 20], ids: [8, 7, 30]}
  1: {name: few, color: [30, 240, 50], ids: [9]}
  2: {name: never, color: [60, 70, 230], ids: [11, 12, 13, 14, 15, 16, 17]}
void: [3, 200]
"""


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        for folder, pixels in (("images", np.zeros((4, 32, 3), np.uint8)), ("masks", VALUES)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "dataset.yaml").write_text(TABLE)
    return tmp_path


def seen(dataset):
    found = Seen(dataset)
    for index in range(len(dataset)):
        found.add(index, dataset[index].label.numpy())
    return found


def runs(sheet, color):
    """The lengths of the horizontal runs of a colour, each distinct one once."""
    same = np.pad((sheet == np.array(color)).all(axis=2), ((0, 0), (1, 1)))
    rows, starts = np.nonzero(same[:, 1:] & ~same[:, :-1])
    ends = np.nonzero(~same[:, 1:] & same[:, :-1])[1]
    return {int(end - start) for _, start, end in zip(rows, starts, ends, strict=True)}


def test_values_are_those_of_the_masks_then_those_of_the_rule(root):
    found = seen(open_dataset(root))
    assert found.pixels[[0, 1, 2, IGNORE_INDEX]].tolist() == [128, 32, 0, 96]
    assert [found.values_of(train) for train in range(3)] == ["7, 8, 30", "9", "11, 12, 13, 14, 15, 16, .."]
    assert found.values_of(IGNORE_INDEX) == "3, 200, 255"


def test_values_of_colour_masks_are_colours(root):
    for name in "ab":
        Image.fromarray(np.array([[RED, RED], [BLUE, (1, 2, 3)]], np.uint8)).save(root / "masks" / f"{name}.png")
        Image.new("RGB", (2, 2)).save(root / "images" / f"{name}.png")
    (root / "dataset.yaml").write_text(TABLE.replace("void: [3, 200]", "void: [[1, 2, 3]]"))
    found = seen(open_dataset(root))
    assert [found.values_of(train) for train in (0, 1, 2, IGNORE_INDEX)] == [
        "250 10 20",
        "30 240 50",
        "60 70 230",
        "1 2 3",
    ]


def test_bars_are_as_long_as_the_shares(root):
    sheet = preview_sheet(open_dataset(root))
    # The fullest bar takes 162 pixels, of which a line on each side is black; the swatch takes 22.
    assert {20, 160} <= runs(sheet, RED)
    assert {20, 162 * 32 // 128 - 2} <= runs(sheet, GREEN)
    assert runs(sheet, BLUE) == {20}


def test_void_is_hatched_and_only_void():
    class Set(list):
        labels = LabelSpace(("a",), (RED,))

    image = torch.full((3, 318, 318), 90, dtype=torch.uint8)
    label = torch.zeros(318, 318, dtype=torch.uint8)
    label[:159] = IGNORE_INDEX
    sheet = preview_sheet(Set([Sample(image, label, "x")]), title="my set")
    shown = sheet[8 + 22 + 15 :, 8 + 320 :][:318, :318]  # at the size of the image
    void, rest = shown[:159].reshape(-1, 3), shown[159:].reshape(-1, 3)
    assert {tuple(pixel) for pixel in void.tolist()} == {(90, 90, 90), (255, 255, 255)}
    assert 0.4 < (void == 255).mean() < 0.6
    assert len({tuple(pixel) for pixel in rest.tolist()}) == 1


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_images_of_any_number_of_bands_are_shown(bands):
    class Set(list):
        labels = LabelSpace(("a",), (RED,))

    image = torch.arange(bands, dtype=torch.uint8)[:, None, None].expand(bands, 318, 318) + 50
    sheet = preview_sheet(Set([Sample(image, torch.zeros(318, 318, dtype=torch.uint8), "x")]))
    shown = sheet[8 + 22 + 15 :, 8:][:318, :318].reshape(-1, 3)
    assert np.unique(shown, axis=0).tolist() == [[50, 51, 52] if bands >= 3 else [50, 50, 50]]


def test_training_shows_what_it_understood_before_its_first_step(root, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = root / "run"
    settings = {"train.steps": 1, "train.batch_size": 2, "train.device": "cpu", "model.pretrained": False}
    settings |= {
        "data.accept": ["splits-overlap"],
        "data.crop": (32, 32),
        "model.encoder": "timm:resnet18",
        "model.channels": 8,
    }

    def stop(*_, **__):
        written = {file.name for file in out.iterdir()}
        assert {"run.json", "preview.png"} <= written
        raise KeyboardInterrupt

    monkeypatch.setattr("degrid.verbs.run.train_loop", stop)
    with pytest.raises(KeyboardInterrupt):
        degrid.train(data=root, out=out, settings=settings)
    with Image.open(out / "preview.png") as picture:
        sheet = np.asarray(picture)
    data = json.loads((out / "run.json").read_text())["config"]["data"]
    assert np.array_equal(sheet, preview_sheet(open_dataset(root), title=f"{data['path']}, train"))
    events = EventAccumulator(str(out / "log" / "train")).Reload()
    assert events.Tags()["images"] == ["train/preview"]
    shown = events.Images("train/preview")[0]
    assert (shown.step, shown.height, shown.width) == (0, *sheet.shape[:2])


def test_a_font_of_the_system_has_the_letters_of_chinese(tmp_path, monkeypatch):
    """Its name decides; here it is a copy of another font."""
    from matplotlib import font_manager

    from degrid.data.inspection import preview

    own, other = _font(15).path, tmp_path / "NotoSansCJK.ttc"
    shutil.copyfile(own, other)
    for entries, expected in (([], own), ([font_manager.FontEntry(str(other), "Noto Sans CJK SC")], str(other))):
        preview._font_file.cache_clear()
        monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
        assert _font(15, "道路").path == expected
        assert _font(15, "Straße").path == own
    preview._font_file.cache_clear()


def test_letters_of_other_languages_are_drawn():
    missing = _font(15).getmask("\U0010fffd")
    for letter in "ßéŁжΔœ":
        drawn = _font(15).getmask(letter)
        assert drawn.size != missing.size or bytes(drawn) != bytes(missing), letter
