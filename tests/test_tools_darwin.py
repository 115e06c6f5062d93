"""Darwin's (V7's) semantic masks, as darwin-py writes them in colours, ids and grey values."""

import numpy as np
import pytest
from PIL import Image

from degrid.data import check_data, open_dataset
from degrid.types import UserError

TRUTH = np.array([[0, 1, 2], [3, 0, 1]], np.uint8)
NAMES = ("__background__", "asphalt, new", "crack", "pothole")
HUES = ((0, 0, 0), (255, 50, 50), (153, 255, 50), (50, 255, 255))
VOC_COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))


def export(root, values, masks, names=NAMES):
    for folder, pixels in (("images", np.zeros((*TRUTH.shape, 3), np.uint8)), ("masks", masks)):
        for name in ("a", "day 2/b"):
            file = root / folder / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    rows = [f'"{name}",{value}\n' for name, value in zip(names, values, strict=True)]
    (root / "class_mapping.csv").write_text("class_name,class_color\n" + "".join(rows), newline="")


@pytest.mark.parametrize("kind", ["index", "grey", "rgb"])
def test_three_kinds(tmp_path, kind):
    if kind == "rgb":
        export(tmp_path, [" ".join(map(str, hue)) for hue in HUES], np.array(HUES, np.uint8)[TRUTH])
    else:
        # The last class is white, which is void elsewhere.
        values = (0, 1, 2, 3) if kind == "index" else (0, 85, 170, 255)
        export(tmp_path, values, np.array(values, np.uint8)[TRUTH])
    samples = [sample for split in ("train", "val") for sample in open_dataset(tmp_path, split)]
    assert {sample.name for sample in samples} == {"a", "day 2/b"}
    for sample in samples:
        assert np.array_equal(sample.label.numpy(), TRUTH)
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == NAMES
    assert dataset.labels.colors == (HUES if kind == "rgb" else VOC_COLORS)
    assert dataset.rule.said == "class_mapping.csv"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("0", "1", "2", "3 4"), "expected the columns class_name and class_color"),
        (("0", "1", "2", "x"), 'expected whole numbers as values of pixels, got "x"'),
        (("0 0 0", "1 1 1", "2 2 2", "1 2 300"), "a colour is three whole numbers from 0 to 255; got 1, 2, 300"),
    ],
)
def test_mistakes_in_the_mapping(tmp_path, values, message):
    export(tmp_path, values, TRUTH)
    with pytest.raises(UserError, match=f"class_mapping.csv: .*{message}"):
        open_dataset(tmp_path)


def test_grey_masks_of_many_classes_are_mixed_up(tmp_path):
    number = 17
    grey = [index * 255 // (number - 1) for index in range(number)]
    names = [f"class {index:02d}" for index in range(number)]
    ids = np.arange(2 * number).reshape(2, number) % number
    written = ids.copy()
    for index, value in enumerate(grey):  # as darwin-py does it
        written = np.where(written == index, value, written)
    for masks, mixed in ((written, True), (np.array(grey)[ids], False)):
        root = tmp_path / str(mixed)
        export(root, grey, np.array(masks, np.uint8), names)
        for file in (root / "images").rglob("*.png"):
            Image.fromarray(np.random.default_rng(len(file.name)).integers(0, 256, (*ids.shape, 3), np.uint8)).save(
                file
            )
        problems = [problem for problem in check_data(root).problems if "values-mixed" in problem]
        assert bool(problems) == mixed
        if mixed:
            assert "gives class 01 the value 15, which no mask has; darwin-py up to 3.6.3 writes 239" in problems[0]
            assert "the value of class 15; export ids or colours" in problems[0]
