"""Masks whose values do not mean what they seem to: what stops training, what is read otherwise, and the mends."""

import pickle
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from degrid.bands import RGB
from degrid.data import check_data, notes_of, open_dataset
from degrid.data.dataset import find_layout
from degrid.data.formats.copies import overlaps
from degrid.data.formats.doubts import doubts, stop_at_doubts
from degrid.data.formats.layout import Layout
from degrid.data.formats.pairs import Pair
from degrid.data.formats.scan import resolve_classes
from degrid.data.formats.source import FunctionSource
from degrid.data.formats.values import LabelValues, Survey
from degrid.types import IGNORE_INDEX, LabelSpace, UserError
from degrid.verbs.evaluate import opened

SIZE = (24, 32)
RNG = np.random.default_rng(0)


def put(root, masks, names=None):
    """Images with these masks, which are arrays or Pillow's images, and a table of classes."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True, parents=True)
    for index, mask in enumerate(masks):
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask, np.uint8))
        mask.save(root / "masks" / f"{index}.png")
        pixels = RNG.integers(0, 256, (mask.height, mask.width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    if names is not None:
        (root / ("classes.csv" if "," in names.split("\n")[0] else "classes.txt")).write_text(names)
    return root


def stripes(*values):
    """Vertical stripes of the values, [H,W]."""
    return np.repeat(np.asarray(values, np.uint8), -(-SIZE[1] // len(values)))[None, : SIZE[1]].repeat(SIZE[0], axis=0)


def soft(index=0, scale=4):
    """A white ellipse on black, made smaller with smoothing."""
    big = Image.new("L", (SIZE[1] * scale, SIZE[0] * scale))
    ImageDraw.Draw(big).ellipse([9 + 3 * index, 8, 70 + 3 * index, 70], fill=255)
    return big.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)


def kinds(path, accept=()):
    """The doubts of a check and of training, which must agree."""
    found = [re.search(r"\[([a-z-]+)\]$", problem)[1] for problem in check_data(path, accept=accept).problems]
    if found:
        with pytest.raises(UserError, match=rf"\[{found[0]}\].*accept it with data.accept={found[0]}"):
            open_dataset(path, accept=accept)
    else:
        open_dataset(path, accept=accept)
    return found


def shares(path):
    """The share of each class, and of void, among all pixels."""
    report = check_data(path)
    assert report.ok, report.problems
    found = [sum(split.class_pixels[index] for split in report.splits.values()) for index in range(len(report.classes))]
    void = sum(split.void_pixels for split in report.splits.values())
    total = sum(found) + void
    return dict(zip(report.classes, (number / total for number in found), strict=True)) | {"void": void / total}


# ---- values that are no ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, "background\nobject\n", "id,name,r,g,b\n0,a,0,0,0\n1,b,255,255,255\n"])
def test_soft_edges_are_doubted_and_a_threshold_mends_them(tmp_path, names):
    put(tmp_path, [soft(k) for k in range(5)], names)
    with pytest.raises(UserError, match=r"soft edges, \d+ values .* only where 0 meets 255; write \"threshold: 128\""):
        open_dataset(tmp_path, accept=())
    assert "grey-edges" in "".join(check_data(tmp_path).problems)
    (tmp_path / "dataset.yaml").write_text("threshold: 128\n")
    assert kinds(tmp_path) == []
    dataset = open_dataset(tmp_path)
    index = int(dataset.sources[0].name)
    assert np.array_equal(dataset[0].label.numpy(), np.asarray(soft(index)) >= 128)
    assert any(note.startswith("values below 128 are ") for note in notes_of(dataset))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((0, 128), "sparse-ids"),
        ((0, 254), "sparse-ids"),
        ((0, 127, 255), "sparse-ids"),
        ((0, 85, 170, 255), "sparse-ids"),
        ((0, 1, 18), "sparse-ids"),
        ((0, 60, 120, 180, 240), "sparse-ids"),
        ((0, 0, 0), "one-class"),
        ((255, 255), "nearly-void"),
    ],
)
def test_values_that_are_no_ids(tmp_path, values, kind):
    put(tmp_path, [stripes(*values)] * 3)
    assert kinds(tmp_path) == [kind]
    assert kinds(tmp_path, accept=[kind]) == []
    (tmp_path / "dataset.yaml").write_text(f"accept: [{kind}]\n")
    assert kinds(tmp_path) == []


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 1, 255), (0, 1, 2, 5), (0, 2), (1, 2), (0, 1, 2, 255)])
def test_values_that_are_ids(tmp_path, values):
    put(tmp_path, [stripes(*values)] * 3)
    assert kinds(tmp_path) == []


def test_shades_without_areas(tmp_path):
    """Thin lines with soft edges have no white area that could show where the edges are."""
    big = Image.new("L", (640, 480))
    for k in range(6):
        ImageDraw.Draw(big).line([0, 40 + 60 * k, 639, 90 + 50 * k], fill=255, width=5)
    put(tmp_path, [big.resize((160, 120), Image.Resampling.BICUBIC)] * 3)
    assert kinds(tmp_path) == ["grey-edges"]
    noise = np.random.default_rng(0).integers(-6, 7, (48, 64))
    put(tmp_path, [np.clip(np.kron(stripes(0, 255), np.ones((2, 2), int)) + noise, 0, 255)] * 3)
    assert kinds(tmp_path) == ["sparse-ids"]
    assert 'write "threshold: 128"' in check_data(tmp_path).problems[0]


def test_edges_by_hand():
    """A ramp of three columns between two areas, and a line that has the same on both sides."""
    values = LabelValues.of(np.array([[0, 0, 0, 6, 9, 14, 20, 20, 20, 5, 20]] * 6, np.uint8))
    assert values.values.tolist() == [0, 5, 6, 9, 14, 20]
    # In the 4 inner rows and 9 inner columns: examined, with equal neighbours, between a lower and a higher one (in a
    # row).
    ramp = [0, 0, 4, 4, 4, 0]
    assert values.edges.tolist() == [[8, 4, 4, 4, 4, 12], [4, 0, 0, 0, 0, 4], ramp, ramp]
    assert values.steps == (4 * 5, 4)  # only from 20 to 5 is far without a pixel between


def objects(number, dtype=np.uint8):
    """A mask in which objects are numbered."""
    mask = np.zeros(SIZE, dtype)
    for index in range(number):
        mask[3 * (index // 8) : 3 * (index // 8) + 2, 4 * (index % 8) : 4 * (index % 8) + 3] = index + 1
    return mask


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numbers_of_objects_are_no_classes(tmp_path, dtype):
    put(tmp_path, [Image.fromarray(objects(number, dtype)) for number in (3, 0, 9, 5, 2, 3)])
    assert kinds(tmp_path) == ["instances"]
    assert kinds(tmp_path, accept=["instances"]) == []
    (tmp_path / "dataset.yaml").write_text("threshold: 1")
    assert shares(tmp_path)["foreground"] == pytest.approx(6 * (3 + 9 + 5 + 2 + 3) / (6 * 24 * 32))


def test_more_objects_than_classes_can_be(tmp_path):
    masks = [objects(number, np.uint16) for number in (3, 60, 5, 2)]
    masks[0] = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) // 2
    put(tmp_path, [Image.fromarray(mask) for mask in masks])
    with pytest.raises(UserError, match=r'ids from 0 to 383; .* write "threshold: 1" in .* if they number objects'):
        open_dataset(tmp_path)


def test_classes_without_gaps_are_no_objects(tmp_path):
    """Where some mask leaves one out, or few numbers of classes come."""
    assert kinds(put(tmp_path / "a", [*map(objects, (3, 9, 5, 2)), stripes(0, 1, 3)])) == []
    assert kinds(put(tmp_path / "b", map(objects, (4, 9, 4, 9, 1)))) == []


def test_pictures_in_place_of_masks(tmp_path):
    dark = RNG.integers(0, 40, (4, *SIZE))
    assert kinds(put(tmp_path, dark)) == ["grey-edges"]
    assert "look like a photograph, not a mask" in check_data(tmp_path).problems[0]


@pytest.mark.parametrize("form", ["{}. {}", "{}: {}", "{}) {}"])
def test_names_that_are_numbered_from_1_for_masks_that_count_from_0(tmp_path, form):
    names = ("background", "road", "car")
    put(tmp_path, [stripes(0, 1)] * 3, "\n".join(form.format(*row) for row in enumerate(names, 1)))
    assert "expected 1 to 3, as classes.txt says, or 255 (void)" in check_data(tmp_path).problems[0]
    with pytest.raises(UserError, match=r'write "ids: \[0, 1, 2\]" if the masks count from 0, or write "void: \[0\]"'):
        open_dataset(tmp_path)[0]
    (tmp_path / "dataset.yaml").write_text("ids: [0, 1, 2]\n")
    assert shares(tmp_path) == {"background": 0.5, "road": 0.5, "car": 0, "void": 0}
    (tmp_path / "dataset.yaml").unlink()
    (tmp_path / "classes.txt").write_text("\n".join(form.format(*row) for row in enumerate(names)))
    assert shares(tmp_path) == {"background": 0.5, "road": 0.5, "car": 0, "void": 0}


def test_names_for_masks_that_count_from_1(tmp_path):
    put(tmp_path, [stripes(1, 2, 3), stripes(1, 2)], "road\ncar\ntree\nsky\n")
    assert kinds(tmp_path) == ["table-contradicted"]
    assert 'write "ids: [1, 2, 3, 4]"' in check_data(tmp_path).problems[0]
    (tmp_path / "dataset.yaml").write_text("ids: [1, 2, 3, 4]")
    assert shares(tmp_path)["sky"] == 0


def test_classes_that_differ_in_capitals_or_spaces(tmp_path):
    put(tmp_path, [stripes(0, 1, 2)] * 2, "road\ntraffic light\nTraffic_Light \n")
    assert kinds(tmp_path) == ["names-alike"]
    (tmp_path / "classes.txt").write_text("road\ntraffic light\nlight\n")
    assert kinds(tmp_path) == []


def test_images_that_are_their_masks(tmp_path):
    put(tmp_path, [stripes(0, 1), stripes(0, 1, 1), stripes(0, 0, 1)])
    for image in (tmp_path / "images").iterdir():
        image.write_bytes((tmp_path / "masks" / image.name).read_bytes())
    assert kinds(tmp_path) == ["images-are-masks"]
    Image.new("RGB", SIZE[::-1], (1, 2, 3)).save(tmp_path / "images" / "0.png")
    assert kinds(tmp_path) == []


def test_classes_that_only_val_has(tmp_path):
    for split, mask in (("train", stripes(0, 1)), ("val", stripes(0, 1, 2))):
        put(tmp_path / split, [mask] * 3)
    notes = check_data(tmp_path).notes
    assert "1 class that is not in train (and so never learned): 2 class 2" in notes


def test_ids_from_a_list_of_values(tmp_path):
    put(tmp_path, [stripes(0, 85, 170, 255)] * 3)
    (tmp_path / "dataset.yaml").write_text("ids: [0, 85, 170, 255]\n")
    assert kinds(tmp_path) == []
    assert open_dataset(tmp_path)[0].label[0, ::8].tolist() == [0, 1, 2, 3]
    (tmp_path / "dataset.yaml").write_text("ids: [170, 0, 85]\nclasses: [a, b, c]\n")
    assert open_dataset(tmp_path)[0].label[0, ::8].tolist() == [1, 2, 0, IGNORE_INDEX]


# ---- what the user said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("id,name,r,g,b\n0,leaf,255,255,255\n1,background,0,0,0\n", {"leaf": 0.25, "background": 0.75}),
        ("id,name,r,g,b\n0,background,0,0,0\n1,leaf,255,255,255\n", {"leaf": 0.25, "background": 0.75}),
        ("id,name,r,g,b\n0,leaf,0,200,0\n1,soil,0,0,0\n", {"leaf": 0.25, "soil": 0.75}),
        ("id,name,r,g,b\n0,leaf,255,255,255\n1,soil,90,60,0\n", {"leaf": 0.25, "soil": 0.75}),
        ("soil\nleaf\n", {"leaf": 0.25, "soil": 0.75}),
        ("polyp\n", {"background": 0.75, "polyp": 0.25}),
        ("id,name,r,g,b\n0,polyp,255,0,0\n", {"background": 0.75, "polyp": 0.25}),
    ],
)
def test_black_and_white_follow_the_table(tmp_path, mode, table, expected):
    white = Image.fromarray(stripes(0, 255, 0, 0)).convert(mode)
    put(tmp_path, [white] * 3, table)
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {**expected, "void": 0}


def test_a_table_that_calls_white_the_background(tmp_path):
    put(tmp_path, [stripes(0, 255, 0, 0)] * 3, "leaf\nbackground\n")
    assert kinds(tmp_path) == ["table-contradicted"]
    (tmp_path / "dataset.yaml").write_text("classes: [leaf, background]\nids: {0: 1, 255: 0}\n")
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {"leaf": 0.25, "background": 0.75, "void": 0}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_ids_in_a_description_win_over_black_and_white(tmp_path, mode):
    """In pictures of grey, too, where black is VOC's colour of the first class."""
    masks = [Image.fromarray(stripes(*values)).convert(mode) for values in ((0, 255, 0, 0), (0, 0), (255, 0, 0, 0))]
    put(tmp_path, masks)
    (tmp_path / "dataset.yaml").write_text("classes: [leaf, background]\nids: {255: 0, 0: 1}\n")
    assert kinds(tmp_path) == []
    assert shares(tmp_path)["leaf"] == pytest.approx(1 / 6)


def test_void_that_is_said_is_not_white(tmp_path):
    table = "id,name,r,g,b\n0,soil,0,0,0\n1,leaf,0,255,0\n255,void,255,255,255\n"
    put(tmp_path, [stripes(0, 255)] * 3, table)
    assert kinds(tmp_path) == ["one-class"]
    assert 'write "ids: [0, 255]"' in check_data(tmp_path).problems[0]
    other = put(tmp_path / "other", [stripes(1, 255)] * 3)
    assert 'write "ids: [1, 255]"' in check_data(other).problems[0]
    for root, first in ((tmp_path, 0), (other, 1)):
        (root / "dataset.yaml").write_text(f"ids: [{first}, 255]\n")
        assert kinds(root) == []
        assert [*shares(root).values()] == [0.5, 0.5, 0]
        (root / "dataset.yaml").unlink()
    put(tmp_path, [stripes(0, 1, 255)] * 3)
    assert kinds(tmp_path) == []


def test_the_threshold_for_soft_edges_of_small_values(tmp_path):
    put(tmp_path, [soft(k).point(lambda value: value // 26) for k in range(4)], "id,name\n0,soil\n1,leaf\n")
    assert "or threshold: 5 if it is black and white and blurred" in check_data(tmp_path).problems[0]
    (tmp_path / "dataset.yaml").write_text("threshold: 5\n")
    assert kinds(tmp_path) == []


@pytest.mark.parametrize(
    "names", ["crack\nvoid\nroad\n", "0,crack\n2,road\n1,ignore\n255,void\n", "0: crack\n1: Unlabelled\n2: road\n"]
)
def test_void_never_becomes_a_class(tmp_path, names):
    put(tmp_path, [stripes(0, 1, 2, 2)] * 3)
    (tmp_path / "classes.txt").write_text(names)
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {"crack": 0.25, "road": 0.5, "void": 0.25}
    assert any("is void, which is no class" in note for note in check_data(tmp_path).notes)


def test_classes_that_are_named_may_be_empty(tmp_path):
    put(tmp_path, [stripes(0, 15, 255)] * 3, "\n".join(f"class {k}" for k in range(150)))
    assert kinds(tmp_path) == []


# ---- palettes -------------------------------------------------------------------------------------------------

LEAF = "id,name,r,g,b\n0,background,0,0,0\n1,leaf,0,255,0\n"


def indexed(ids, palette):
    image = Image.fromarray(np.asarray(ids, np.uint8), "P")
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    return image


def test_palettes_that_show_the_classes_are_read_by_colour(tmp_path):
    green_first = indexed(stripes(0, 1, 1, 1), [(0, 255, 0), (0, 0, 0)])
    black_first = indexed(stripes(1, 0, 0, 0), [(0, 0, 0), (0, 255, 0)])
    put(tmp_path, [green_first, black_first, green_first], LEAF)
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {"background": 0.75, "leaf": 0.25, "void": 0}
    assert any("read by colour" in note for note in check_data(tmp_path).notes)


def test_palettes_that_contradict_the_table_in_part(tmp_path):
    put(tmp_path, [indexed(stripes(0, 1, 2, 2), [(0, 255, 0), (0, 0, 0), (9, 9, 9)])] * 3, LEAF + "2,sky,0,0,255\n")
    assert kinds(tmp_path) == ["palette-order"]
    (tmp_path / "dataset.yaml").write_text("palette: index\n")
    assert shares(tmp_path) == {"background": 0.25, "leaf": 0.25, "sky": 0.5, "void": 0}


def test_palettes_that_differ(tmp_path):
    masks = [indexed(stripes(0, 1), [(200, 0, 0), (0, 0, 200)]), indexed(stripes(0, 1), [(0, 0, 200), (200, 0, 0)])]
    put(tmp_path, masks)
    assert kinds(tmp_path) == ["palettes-differ"]
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n0,red,200,0,0\n1,blue,0,0,200\n")
    (tmp_path / "dataset.yaml").write_text("palette: color\n")
    dataset = open_dataset(tmp_path, "train")
    assert dataset[0].label[0, ::16].tolist() == ([0, 1] if dataset.sources[0].name == "0" else [1, 0])


def test_black_and_white_palettes_that_begin_with_white(tmp_path):
    white_first = indexed(stripes(0, 1, 1, 1), [(255, 255, 255), (0, 0, 0)])
    black_first = indexed(stripes(1, 0, 0, 0), [(0, 0, 0), (255, 255, 255)])
    put(tmp_path, [white_first, black_first, white_first])
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {"background": 0.75, "foreground": 0.25, "void": 0}


def test_palettes_of_random_colours_do_not_matter(tmp_path):
    masks = [indexed(stripes(0, 1, 2), np.random.default_rng(k).integers(0, 256, (3, 3))) for k in range(3)]
    put(tmp_path, masks, "a\nb\nc\n")
    assert kinds(tmp_path) == []


def test_kinds_are_checked(tmp_path):
    put(tmp_path, [stripes(0, 1)] * 2)
    with pytest.raises(UserError, match='no doubt is called "one_class". Did you mean "one-class"'):
        open_dataset(tmp_path, accept=["one_class"])
    with pytest.raises(UserError, match='accept: no doubt is called "one_class"'):
        check_data(tmp_path, accept=["one_class"])


# ---- mends in dataset.yaml ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", {"background": 0.75, "foreground": 0.25}),
        ("classes: [polyp]\n", {"background": 0.75, "polyp": 0.25}),
        ("classes: [soil, leaf]\n", {"soil": 0.75, "leaf": 0.25}),
        (
            "classes: [{name: leaf, color: [255, 255, 255]}, {name: soil, color: [0, 0, 0]}]\n",
            {"leaf": 0.25, "soil": 0.75},
        ),
        ("classes: [leaf, soil]\nids: {0: 1, 255: 0}\n", {"leaf": 0.25, "soil": 0.75}),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_threshold_reads_jpeg_masks(tmp_path, table, expected, mode):
    put(tmp_path, [stripes(0, 255, 0, 0)] * 2)
    for k in range(2):
        Image.fromarray(stripes(0, 255, 0, 0)).convert(mode).save(tmp_path / "masks" / f"{k}.jpg", quality=60)
        (tmp_path / "masks" / f"{k}.png").unlink()
    (tmp_path / "dataset.yaml").write_text("threshold: 128\n" + table)
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {**expected, "void": 0}


def test_the_nearest_colour_by_hand(tmp_path):
    """Up to 30 away; (0, 100, 31) is 31 from (0, 100, 0), and (200, 18, 24) is 30 from (200, 0, 0)."""
    rows = np.array([[(0, 100, 30), (0, 100, 31), (200, 18, 24), (200, 0, 0)]], np.uint8)
    classes = "classes: [{name: leaf, color: [0, 100, 0]}, {name: fruit, color: [200, 0, 0]}]\nnearest_color: 30\n"
    put(tmp_path, [Image.fromarray(rows)] * 2)
    (tmp_path / "dataset.yaml").write_text(classes)
    assert check_data(tmp_path).unknown == {"(0, 100, 31)": (2, 2)}
    (tmp_path / "dataset.yaml").write_text(classes + "void: [[0, 100, 60]]\n")  # 29 from the second, 30 from the first
    assert open_dataset(tmp_path)[0].label.tolist() == [[0, IGNORE_INDEX, 1, 1]]


def test_the_nearest_colour_reads_jpeg_masks(tmp_path):
    picture = np.array([(0, 0, 0), (200, 30, 30), (30, 200, 30)], np.uint8)[stripes(0, 1, 2, 2)]
    put(tmp_path, [stripes(0)] * 2)
    for k in range(2):
        Image.fromarray(picture).save(tmp_path / "masks" / f"{k}.jpg", quality=95, subsampling=0)
        (tmp_path / "masks" / f"{k}.png").unlink()
    assert "JPEG masks" in check_data(tmp_path).problems[0]
    colors = "{0: {name: a, color: [0, 0, 0]}, 1: {name: b, color: [200, 30, 30]}, 2: {name: c, color: [30, 200, 30]}}"
    (tmp_path / "dataset.yaml").write_text(f"classes: {colors}\nnearest_color: 60\n")
    assert shares(tmp_path) == {"a": 0.25, "b": 0.25, "c": 0.5, "void": 0}


def test_the_nearest_of_listed_ids(tmp_path):
    put(tmp_path, [np.array([[0, 3, 84, 90, 120, 169, 171, 255]])] * 2)
    (tmp_path / "dataset.yaml").write_text("ids: [0, 85, 170]\nnearest_color: 5\nvoid: 120\n")
    assert open_dataset(tmp_path)[0].label.tolist() == [[0, 0, 1, 1, 255, 2, 2, 255]]
    (tmp_path / "dataset.yaml").write_text("ids: [0, 85, 170]\nnearest_color: 5\n")
    assert check_data(tmp_path).unknown == {"120": (2, 2)}


@pytest.mark.parametrize("void", ["-3.4e38", "-3.4028234663852886e+38", ".nan", "NaN", '"nan"', "-9999.0", "-33333333"])
def test_void_of_masks_of_floats(tmp_path, void):
    """Numbers that no id can have are void in any mask of floats, whether that is said or not."""
    put(tmp_path, [stripes(0, 1)] * 3, "a\nb\n")
    values = np.full(SIZE, np.float32(void.strip('".')))
    values[:5] = stripes(0, 1)[:5]
    for k in range(3):
        Image.fromarray(values).save(tmp_path / f"masks/{k}.tif")
        (tmp_path / f"masks/{k}.png").unlink()
    (tmp_path / "dataset.yaml").write_text(f"void: [{void}]\n")
    assert np.array_equal(
        open_dataset(tmp_path)[0].label, np.where(np.arange(SIZE[0])[:, None] < 5, stripes(0, 1), 255)
    )
    for wrong in ("0.5", "true", "red-ish"):
        (tmp_path / "dataset.yaml").write_text(f"void: [{wrong}]\n")
        with pytest.raises(UserError, match="void lists raw ids and colours"):
            open_dataset(tmp_path)


def test_void_without_classes(tmp_path):
    put(tmp_path, [stripes(0, 1, 11, 255)] * 2)
    assert kinds(tmp_path) == ["sparse-ids"]
    (tmp_path / "dataset.yaml").write_text("void: 11\n")
    assert shares(tmp_path) == {"class 0": 0.25, "class 1": 0.25, "void": 0.5}


def test_vocs_border_in_colour_is_void(tmp_path):
    base = tmp_path / "VOC2012"
    (base / "JPEGImages").mkdir(parents=True)
    (base / "SegmentationClass").mkdir()
    picture = np.array([(0, 0, 0), (192, 128, 128), (224, 224, 192)], np.uint8)[stripes(0, 1, 1, 2)]
    for k in range(2):
        Image.fromarray(RNG.integers(0, 256, picture.shape, dtype=np.uint8)).save(base / "JPEGImages" / f"{k}.jpg")
        Image.fromarray(picture).convert("RGBA").save(base / "SegmentationClass" / f"{k}.png")
    found = shares(tmp_path)
    assert {name: share for name, share in found.items() if share} == {"background": 0.25, "person": 0.5, "void": 0.25}


@pytest.mark.parametrize(
    ("classes", "mask", "expected"),
    [
        ("{0: {name: o, labels: [[0, 0, 0]]}, 1: {name: b, labels: [[128, 0, 0], [0, 128, 0]]}}", "RGB", [0, 1, 1, 0]),
        ("{0: {name: o, values: [[0, 0, 0]]}, 1: {name: b, values: [[128, 0, 0], [0, 128, 0]]}}", "RGB", [0, 1, 1, 0]),
        ("{0: {name: o, color: [0, 0, 0]}, 1: {name: b, colors: [[128, 0, 0], [0, 128, 0]]}}", "RGB", [0, 1, 1, 0]),
        ("{0: {name: o, color: '#000000'}, 1: {name: b, colors: ['#800000', [0, 128, 0]]}}", "RGB", [0, 1, 1, 0]),
        ("{0: {name: o, labels: [0]}, 18: {name: b, labels: [18]}, 1: c}", "L", [0, 2, 1, 0]),
        ("{0: o, 1: c, 18: b}", "L", [0, 2, 1, 0]),
    ],
)
def test_tables_of_other_toolkits(tmp_path, classes, mask, expected):
    """Several colours for one class, and ids with gaps, which are numbered anew."""
    picture = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 0)], np.uint8)[None]
    put(tmp_path, [Image.fromarray(picture) if mask == "RGB" else np.array([[0, 18, 1, 0]])] * 2)
    (tmp_path / "dataset.yaml").write_text(f"classes: {classes}\n")
    dataset = open_dataset(tmp_path)
    assert dataset[0].label.tolist() == [expected]
    assert any("the ids 0, 1, 18 become 0 to 2" in note for note in notes_of(dataset)) == (mask == "L")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threshold: high", "threshold: expected a number of at least 0, got 'high'"),
        ("nearest_color: -1", "nearest_color: expected a number of at least 0"),
        ("palette: colour", "palette: expected color or index, got 'colour'"),
        ("ids: [1, 1]", "ids: expected different whole numbers"),
        ("accept: [grey-edge]", 'no doubt is called "grey-edge". Did you mean "grey-edges"'),
        ("threshold: 9\nclasses: [a, b, c]", "a threshold makes masks of two classes"),
        ("threshold: 128\nids: [0, 120, 255]", "the ids 0 and 255, in this order; ids says 0, 120, 255"),
        ("threshold: 128\nids: [255, 0]", "the ids 0 and 255, in this order; ids says 255, 0"),
        ("nearest_color: 9", "nearest_color needs classes with their colours"),
    ],
)
def test_mistakes_in_the_mends(tmp_path, text, message):
    put(tmp_path, [stripes(0, 1)] * 2)
    (tmp_path / "dataset.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=re.escape(message)):
        open_dataset(tmp_path)


# ---- what is counted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", range(10))
def test_pixels_of_labels_of_any_width_are_counted(width):
    """Four at a time, and those that are left over."""
    mask = (np.arange(width, dtype=np.uint8) % 3)[None]
    values = LabelValues.of(mask)
    assert dict(zip(values.values.tolist(), values.pixels.tolist(), strict=True)) == Counter(mask[0].tolist())


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6), st.integers(0, 6))
@settings(max_examples=25)
def test_surveys_add_up_in_any_parts(seeds, cut):
    """Counts of two parts, merged after a journey between processes, are those of the whole; compared with numpy's."""
    masks = [random_mask(seed) for seed in seeds]
    whole, parts = Survey(), (Survey(), Survey())
    for index, mask in enumerate(masks):
        values = LabelValues.of(mask)
        assert values.pixels.sum() == mask.shape[0] * mask.shape[1]
        whole.add(values, str(index))
        parts[index >= cut].add(values, str(index))
    merged, second = pickle.loads(pickle.dumps(parts))
    merged.merge(second)
    assert merged == whole
    flat = [
        value
        for mask in masks
        for value in (map(tuple, mask.reshape(-1, 3).tolist()) if mask.ndim == 3 else mask.ravel().tolist())
    ]
    assert whole.pixels == Counter(flat)


def random_mask(seed):
    rng = np.random.default_rng(seed)
    kind = rng.integers(3)
    shape = (*rng.integers(1, 9, 2), *([3] if kind == 2 else []))
    return rng.integers(0, 4, shape).astype(np.int32 if kind == 1 else np.uint8)


def test_surveys_stay_small():
    survey = Survey()
    for first in range(0, 9000, 900):
        survey.add(LabelValues.of(np.arange(first, first + 900, dtype=np.int32)[None]), "m")
    assert (len(survey.pixels), survey.pixels.total() + survey.beyond, survey.masks) == (4096, 9000, 10)


def test_thin_classes_have_no_soft_edges(tmp_path):
    """Lines of one pixel in ten classes beside large areas, as poles and wires are."""
    mask = stripes(0, 11)
    for k in range(1, 10):
        mask[2 * k] = k
    put(tmp_path, [mask] * 3, "\n".join(f"c{k}" for k in range(12)))
    assert kinds(tmp_path) == []


def test_ids_that_were_scaled_with_smoothing(tmp_path):
    """Also where a table has names for what comes only between two classes."""
    masks = [Image.fromarray(np.asarray(soft(k)) // 17) for k in range(3)]
    assert {0, 15} < set(np.unique(masks))
    scaled = [mask.resize((160, 120), Image.Resampling.BILINEAR) for mask in masks]
    put(tmp_path, scaled, "\n".join(f"c{k}" for k in range(21)))
    assert kinds(tmp_path) == ["grey-edges"]
    assert "make them again without that (nearest neighbour)" in check_data(tmp_path).problems[0]


@pytest.mark.parametrize("names", [None, "\n".join("abcdefgh")])
def test_small_ids_with_soft_edges(tmp_path, names):
    """0 and 7, and what smoothing leaves between them, which would be eight classes."""
    put(tmp_path, [soft(k).point(lambda value: round(value * 7 / 255)) for k in range(3)], names)
    assert kinds(tmp_path) == ["grey-edges"]
    assert "that come only where 0 meets 7" in check_data(tmp_path).problems[0]


def shapes(size, how):
    """Three classes on a background, drawn large and made as large as `size`."""
    big = Image.new("L", (192, 160))
    draw = ImageDraw.Draw(big)
    draw.ellipse([10, 20, 80, 90], fill=3)
    draw.ellipse([100, 30, 170, 100], fill=2)
    draw.rectangle([20, 110, 150, 150], fill=1)
    return big.resize(size, how)


@pytest.mark.parametrize("names", [None, "rest\na\nb\nc\n"])
def test_lines_of_one_class_where_two_others_meet(tmp_path, names):
    for how, expected in ((Image.Resampling.BILINEAR, ["grey-edges"]), (Image.Resampling.NEAREST, [])):
        for side in (60, 250):
            put(tmp_path / f"{side}{how}", [shapes((side, side), how)] * 3, names)
            assert kinds(tmp_path / f"{side}{how}") == expected


def test_masks_of_which_some_write_white_for_one(tmp_path):
    put(tmp_path, [stripes(0, 1), stripes(0, 255), stripes(0)])
    assert kinds(tmp_path) == ["values-mixed"]
    (tmp_path / "dataset.yaml").write_text("threshold: 1\n")
    assert shares(tmp_path) == {"background": pytest.approx(2 / 3), "foreground": pytest.approx(1 / 3), "void": 0}
    assert kinds(put(tmp_path / "void", [stripes(0, 1), stripes(0, 255), stripes(0, 1, 255)])) == []


@pytest.mark.parametrize(
    ("names", "values", "mend"),
    [
        ("leaf\nbackground\n", (0, 0, 1), [1, 0]),
        ("leaf\nother\n", (0, 1, 1), [1, 0]),
        ("leaf\nstem\nbackground\n", (0, 0, 1, 2), [1, 2, 0]),
        ("leaf\nstem\nbackground\n", (0, 1, 2, 2), None),
        ("leaf\nstem\nother\n", (0, 0, 1, 2), None),
        ("0 leaf\n1 background\n", (0, 0, 1), None),
        ("background\nleaf\n", (0, 0, 1), None),
    ],
)
def test_names_in_an_order_that_contradicts_the_masks(tmp_path, names, values, mend):
    put(tmp_path, [stripes(*values)] * 3, names)
    assert kinds(tmp_path) == (["table-contradicted"] if mend else [])
    if mend:
        assert f'write "ids: {mend}"' in check_data(tmp_path).problems[0]
        (tmp_path / "dataset.yaml").write_text(f"ids: {mend}\n")
        assert shares(tmp_path)[names.split()[-1]] == pytest.approx(np.mean(stripes(*values) == 0))


def test_sixteen_bits_of_black_and_white_take_one_line(tmp_path):
    put(tmp_path, [Image.fromarray(stripes(0, 1, 1, 1).astype(np.uint16) * 65535)] * 3)
    with pytest.raises(UserError, match=r'holds ids from 0 to 65535.*write "ids: \[0, 65535\]" in .*dataset.yaml'):
        check_data(tmp_path)
    (tmp_path / "dataset.yaml").write_text("ids: [0, 65535]\nclasses: [background, leaf]\n")
    assert shares(tmp_path) == {"background": 0.25, "leaf": 0.75, "void": 0}


def test_scores_of_data_in_doubt_are_refused(tmp_path):
    put(tmp_path, [soft(k) for k in range(5)], "background\nobject\n")
    with pytest.raises(UserError, match=r"soft edges.*\[grey-edges\]"):
        opened(tmp_path, "train", LabelSpace.of_size(2), RGB)


# ---- check and training agree on the splits -------------------------------------------------------------------


def test_one_list_of_any_name_is_everything(tmp_path):
    put(tmp_path, [stripes(0, 1)] * 12)
    splits = {"default": [Pair(str(k), tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png") for k in range(12)]}
    layout = resolve_classes(Layout("", tmp_path, splits))
    assert set(layout.splits) == {"train", "val"}
    assert sorted(pair.name for pairs in layout.splits.values() for pair in pairs) == sorted(map(str, range(12)))
    assert any("chosen by its name, is kept for validation" in note for note in layout.notes)
    named = resolve_classes(Layout("", tmp_path, {"test": splits["default"]}))
    assert list(named.splits) == ["test"]


def test_what_has_no_split_to_train_on_is_not_called_ready(tmp_path):
    put(tmp_path, [stripes(0, 1)] * 3)
    (tmp_path / "dataset.yaml").write_text("test: images\nmasks: masks\n")
    report = check_data(tmp_path)
    assert report.ok
    assert str(report).endswith('fine, but without a split "train"; there is: test')
    with pytest.raises(UserError, match='has no split "train"; it has: test'):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffid, name, r, g, b\n0, road, 255, 0, 0\n1, car, 0, 255, 0\n",
        "ID;Class;Red;Green;Blue\n0;road;255;0;0\n1;car;0;255;0\n",
        "label\tR\tG\tB\nroad\t255\t0\t0\ncar\t0\t255\t0\n",
        "Class Name;Blue Value;Green Value;Red Value\nroad;0;0;255\ncar;0;255;0\n",
        "label,class,color\n1,car,#00FF00\n0,road,#ff0000\n",
        'pixel_value,category,RGB\n0,road,"255 0 0"\n1,car,"(0, 255, 0)"\n',
        "id,name,r,g,b,note\n1.0,car,0.0,255.0,0.0\n0.0,road,255.0,0.0,0.0\n",
        "0,road,255,0,0\n1,car,0,255,0\n",
        "road,255,0,0\ncar,0,255,0\n",
        "car,1,0,255,0\nroad,0,255,0,0\n",
    ],
)
def test_columns_under_other_names_and_between_other_marks(tmp_path, text):
    from degrid.data import class_table

    (tmp_path / "classes.csv").write_text(text, encoding="utf-8")
    labels, rule = class_table(tmp_path)
    assert (labels.names, labels.colors) == (("road", "car"), ((255, 0, 0), (0, 255, 0)))
    assert rule.ids[1] == 1


@pytest.mark.parametrize(
    ("text", "names", "colors"),
    [
        ("car 1\nroad 0\n", ("road", "car"), None),
        ("car: 1\nroad: 0\n", ("road", "car"), None),
        ("car=1\nroad=0\n", ("road", "car"), None),
        ("1 car\n0 road\n", ("road", "car"), None),
        ("0 route 66\n1 area 51\n", ("route 66", "area 51"), None),
        ("255 0 0 road\n0 255 0 big car\n", ("road", "big car"), ((255, 0, 0), (0, 255, 0))),
        ("1 big car #00ff00\n0 road #FF0000\n", ("road", "big car"), ((255, 0, 0), (0, 255, 0))),
        ("road, car\n", ("road", "car"), None),
        ("lane 1\nlane 2\n", ("lane 1", "lane 2"), None),
        ("road\ncar 1\n", ("road", "car 1"), None),
    ],
)
def test_lines_of_names_with_ids_and_colours(tmp_path, text, names, colors):
    """In every file of names, the ids count and not the order of the lines."""
    from degrid.data import class_table
    from degrid.types import voc_palette

    for file in ("classes.txt", "labels.txt"):
        (tmp_path / file).write_text(text)
        labels, rule = class_table(tmp_path)
        (tmp_path / file).unlink()
        assert labels.names == names
        assert labels.colors == (colors or tuple(voc_palette(2)))
        assert [rule.ids[value] for value in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [{0: road}]", "class 0: expected name, and optionally color and ids; got 0"),
        ("classes: [road, no]", "class 1: YAML reads the name as False; write names such as no and null in quotes"),
        ("masks: labels\nformat: folder", "masks says where the masks are; say where the images are, too"),
    ],
)
def test_mistakes_in_what_names_classes(tmp_path, text, message):
    put(tmp_path, [stripes(0, 1)] * 3)
    (tmp_path / "labels").mkdir()
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_the_masks_that_a_description_names_are_read(tmp_path):
    """Not those that are found. Windows writes the slash otherwise."""
    put(tmp_path, [stripes(0, 0, 1)] * 3)
    (tmp_path / "own").mkdir()
    put(tmp_path / "own", [stripes(1, 1, 1, 0)] * 3)
    classes = "classes: [{id: '1', name: a, color: '#00ff00'}, {id: 0, name: b, color: 0 0 255}]\n"
    (tmp_path / "dataset.yaml").write_text("masks: own\\masks\n" + classes)
    assert shares(tmp_path) == {"b": 0.25, "a": 0.75, "void": 0}
    assert open_dataset(tmp_path).labels.colors == ((0, 0, 255), (0, 255, 0))


# ---- siblings: palettes, tables and splits that were said otherwise ---------------------------------------------


def test_colours_that_come_again_for_one_id_are_classes(tmp_path):
    """Each file has a palette of the colours that it needs, so that 1 is green in some and red in others."""
    colors = [[0, 0, 0, 0, 255, 0], [0, 0, 0, 255, 0, 0]]
    put(tmp_path, [indexed(stripes(0, 1), colors[k % 2]) for k in range(4)])
    assert kinds(tmp_path) == ["palettes-differ"]


def test_palettes_that_nearly_show_another_class(tmp_path):
    table = "id,name,r,g,b\n0,soil,0,0,0\n1,leaf,0,255,0\n"
    put(tmp_path, [indexed(stripes(0, 1, 1, 1), [0, 250, 3, 2, 0, 0])] * 3, table)
    assert kinds(tmp_path) == ["palette-order"]
    (tmp_path / "dataset.yaml").write_text(
        "palette: color\nnearest_color: 30\nclasses: [{name: soil, color: [0, 0, 0]}, {name: leaf, color: [0, 255, 0]}]"
    )
    assert shares(tmp_path) == {"soil": 0.75, "leaf": 0.25, "void": 0}


def test_black_and_white_palettes_of_named_classes(tmp_path):
    put(tmp_path, [indexed(stripes(0, 1, 1, 1), [255, 255, 255, 0, 0, 0])] * 3, "soil\nleaf\n")
    assert shares(tmp_path) == {"soil": 0.75, "leaf": 0.25, "void": 0}


@pytest.mark.parametrize("order", [(0, 128, 255), (255, 128, 0)])
def test_grey_colours_of_classes_are_the_values_of_grey_masks(tmp_path, order):
    rows = "".join(f"{k},{'abc'[k]},{grey},{grey},{grey}\n" for k, grey in enumerate(order))
    put(tmp_path, [stripes(*order, order[0])] * 3, "id,name,r,g,b\n" + rows)
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {"a": 0.5, "b": 0.25, "c": 0.25, "void": 0}


def test_a_class_with_the_id_of_void(tmp_path):
    put(tmp_path, [stripes(0, 1, 255, 255)] * 2, "id,name\n0,soil\n1,stem\n255,leaf\n")
    assert kinds(tmp_path) == []
    assert shares(tmp_path) == {"soil": 0.25, "stem": 0.25, "leaf": 0.5, "void": 0}
    put(tmp_path / "two", [stripes(0, 255, 255, 255)] * 2, "id,name\n0,soil\n255,leaf\n")
    assert shares(tmp_path / "two") == {"soil": 0.25, "leaf": 0.75, "void": 0}
    (tmp_path / "classes.csv").write_text("id,name\n0,soil\n1,stem\n255,background\n")
    with pytest.raises(UserError, match='255 normally means void, but the table calls it "background"'):
        open_dataset(tmp_path)


@pytest.mark.parametrize("second", ["other", "no_leaf", "Hintergrund"])
def test_names_of_what_is_no_object(tmp_path, second):
    put(tmp_path, [stripes(0, 255, 0, 0)] * 2, f"leaf\n{second}\n")
    assert kinds(tmp_path) == ["table-contradicted"]


@pytest.mark.parametrize(
    ("values", "mend"),
    [
        ((0, 10, 20), r'"ids: \[0, 10, 20\]"'),
        ((0, 1, 2, 200), r'"ids: \[0, 1, 2, 200\]"'),
        ((0, 1, 2, 78, 80, 80, 81, 160, 160, 161, 162), r'"ids: \[0, 80, 160\]" in .* "nearest_color: 24"'),
    ],
)
def test_the_mend_that_fits_sparse_values(tmp_path, values, mend):
    put(tmp_path, [stripes(*values, 0, 0)] * 2)
    assert re.search(f"write {mend}", check_data(tmp_path).problems[0])


def test_tables_that_contradict_each_other_or_are_not_read(tmp_path):
    put(tmp_path, [stripes(0, 1)] * 2)
    (tmp_path / "classes.xml").write_text("<classes/>")
    assert any("classes.xml is not read" in note for note in notes_of(open_dataset(tmp_path)))
    (tmp_path / "Classes.CSV").write_text("id,name\n0,a\n1,b\n")
    assert open_dataset(tmp_path).labels.names == ("a", "b")
    (tmp_path / "classes.txt").write_text("a\nc\n")
    with pytest.raises(UserError, match=r"Classes.CSV and classes.txt beside it name different classes"):
        open_dataset(tmp_path)


def named(root, names):
    """Images and masks of these names in images/ and masks/."""
    put(root, [stripes(0, 1)] * len(names))
    for folder in ("images", "masks"):
        for index, name in enumerate(names):
            place = root / folder / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            (root / folder / f"{index}.png").rename(place)
    return root


def splits(root):
    return {split: sorted(source.name for source in found) for split, found in find_layout(root).splits.items()}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"trainval.txt": "a\nb\n", "test.txt": "c\n"}, {"train": ["a", "b"], "test": ["c"]}),
        ({"train_files.txt": "a\nb", "val_files.txt": "c"}, {"train": ["a", "b"], "val": ["c"]}),
        ({"train.txt": "a", "train_ids.txt": "b", "val.txt": "c"}, {"train": ["a"], "val": ["c"]}),
        ({"meta/train_images.txt": "a\nb", "meta/val_images.txt": "c"}, {"train": ["a", "b"], "val": ["c"]}),
        ({"images/train.txt": "a\nb", "images/val.txt": "c"}, {"train": ["a", "b"], "val": ["c"]}),
        ({"split.csv": "image,split\na,train\nb,train\nc,valid"}, {"train": ["a", "b"], "val": ["c"]}),
        (
            {"metadata.csv": "id;Subset;file_name\n1;train;images/a.png\n2;test;images/b.png\n3;val;c.png"},
            {"train": ["a"], "val": ["c"], "test": ["b"]},
        ),
        ({"split.csv": "image,split\na,fold1\nb,fold2\nc,fold2"}, None),
    ],
)
def test_splits_however_they_are_listed(tmp_path, files, said):
    named(tmp_path, "abc")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = splits(tmp_path)
    assert found == said if said else len(found["val"]) == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["trainval/a", "test/c", "val/b"], {"train": ["trainval/a"], "val": ["val/b"], "test": ["test/c"]}),
        (["train/a", "trainval/b", "val/c"], {"train": ["train/a"], "val": ["val/c"]}),
        (["train/a", "validate/b"], {"train": ["train/a"], "val": ["validate/b"]}),
    ],
)
def test_splits_under_further_names(tmp_path, names, said):
    assert splits(named(tmp_path, names)) == said


def test_splits_that_only_the_folders_of_masks_say(tmp_path):
    named(tmp_path, ["train/a", "train/b", "train/c", "valid/d"])
    for split in ("train", "valid"):
        for image in sorted((tmp_path / "images" / split).iterdir()):
            image.rename(tmp_path / "images" / image.name)
        (tmp_path / "images" / split).rmdir()
    assert splits(tmp_path) == {"train": ["a", "b", "c"], "val": ["d"]}
    layout = find_layout(tmp_path)
    assert [pair.mask.relative_to(tmp_path).as_posix() for pair in layout.splits["val"]] == ["masks/valid/d.png"]
    (tmp_path / "masks" / "valid").rename(tmp_path / "masks" / "crack")  # a class, or an observer
    assert not any(pair.mask for pairs in find_layout(tmp_path).splits.values() for pair in pairs)


def test_train_alone_inside_is_divided_and_masks_may_lie_in_one_folder(tmp_path):
    """Of two images of one name in two folders neither has the mask."""
    named(tmp_path, ["train/a", "train/b", "train/c", "train/d"])
    for mask in sorted((tmp_path / "masks" / "train").iterdir()):
        mask.rename(tmp_path / "masks" / mask.name)
    layout = find_layout(tmp_path)
    assert {split: len(found) for split, found in layout.splits.items()} == {"train": 3, "val": 1}
    assert all(source.mask.stem == source.image.stem for found in layout.splits.values() for source in found)
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "images" / "val" / "a.png").write_bytes((tmp_path / "images" / "train" / "b.png").read_bytes())
    without = [source.name for found in find_layout(tmp_path).splits.values() for source in found if not source.mask]
    assert sorted(without) == ["train/a", "val/a"]


def test_several_masks_of_one_image(tmp_path):
    put(tmp_path, [stripes(0, 255)] * 2)
    for mask in ("0.png", "1.png"):
        for name in ("crack", "hole"):
            (tmp_path / "masks" / name).mkdir(exist_ok=True)
            (tmp_path / "masks" / name / mask).write_bytes((tmp_path / "masks" / mask).read_bytes())
        (tmp_path / "masks" / mask).unlink()
    said = "0 has several masks (crack/0.png, hole/0.png): if there is one for each class, join them into one mask"
    assert any(said in note for note in check_data(tmp_path).notes)
    with pytest.raises(UserError, match=f"have no mask.*; {re.escape(said)}.*; if each is by somebody else, keep one"):
        open_dataset(tmp_path)


def test_what_lies_beside_colour_masks_is_said(tmp_path):
    colors = np.array([(0, 0, 0), (200, 30, 40)], np.uint8)[stripes(0, 1)]
    put(tmp_path, [Image.fromarray(colors)] * 2)
    put(tmp_path / "other", [stripes(0, 1)] * 2)
    (tmp_path / "other" / "masks").rename(tmp_path / "labels")
    with pytest.raises(UserError, match='labels is not read: "masks: FOLDER"'):
        open_dataset(tmp_path)
    (tmp_path / "masks" / "classes.csv").write_text("id,name,r,g,b\n0,road,0,0,0\n1,crack,200,30,40\n")
    checked = check_data(tmp_path)
    assert checked.problems == []
    assert checked.notes[1:] == [
        "the labels are those of masks; labels is not read",
        "the classes are those of masks/classes.csv",
    ]


def test_folders_under_other_names_are_offered(tmp_path):
    put(tmp_path, [stripes(0, 1)] * 2)
    (tmp_path / "images").rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    (tmp_path / "masks").rename(tmp_path / "label_images_semantic")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    assert '"train: after" (or another) and "masks: label_images_semantic"' in str(caught.value)
    (tmp_path / "dataset.yaml").write_text("train: after\nmasks: label_images_semantic\n")
    assert len(open_dataset(tmp_path)) == 2


def test_a_list_with_a_third_column(tmp_path):
    named(tmp_path, "ab")
    for name, third in (("train.txt", " 0.5"), ("train.txt", "\ta photo of a dog"), ("train.csv", ",train")):
        line = f"images/a.png{third[0]}masks/a.png{third}"
        (tmp_path / name).write_text(f"{line}\n")
        said = (
            f"""{name}, line 1: expected "/image /mask", got "{line}"; what follows the mask ("{third[1:]}") is not"""
        )
        with pytest.raises(UserError, match=re.escape(said)):
            open_dataset(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "train.txt").write_text("a.png 0.5\n")
    with pytest.raises(UserError, match=r'got "a.png 0.5"; what follows the name \("0.5"\) is not read'):
        open_dataset(tmp_path)
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train.csv").write_text("image,mask,weight\nimages/a.png,masks/a.png,0.5\n")  # as the sentence says
    assert [source.name for source in open_dataset(tmp_path).sources] == ["images/a"]


@pytest.mark.parametrize(
    "names", ["train.txt val.txt", "TRAIN.TXT VAL.TXT", "train_list.txt eval_list.txt", "train.csv val.csv"]
)
def test_lists_whatever_they_are_called(tmp_path, names):
    put(tmp_path, [stripes(0, 1)] * 4)
    train, val = names.split()
    (tmp_path / train).write_text("# mine\n0\n1\n2\n")
    (tmp_path / val).write_text(f"{tmp_path}/images/3.png\n")
    assert [source.name for source in open_dataset(tmp_path, "val").sources] == ["3"]


def test_lists_that_are_not_read_are_named(tmp_path):
    put(tmp_path, [stripes(0, 1)] * 2)
    (tmp_path / "split.json").write_text("{}")
    assert any("split.json is not read" in note for note in notes_of(open_dataset(tmp_path)))


@pytest.mark.parametrize("between", ["->", ":", ",", " | "])
def test_a_table_of_images_and_masks(tmp_path, between):
    put(tmp_path / "a", [stripes(0, 1)] * 3)
    rows = [f"a/images/{k}.png{between}a/masks/{k}.png\n" for k in range(3)]
    (tmp_path / "train.txt").write_text("image,mask\n" + "".join(rows[:2]))
    (tmp_path / "val.txt").write_text(rows[2])
    assert [len(open_dataset(tmp_path, split)) for split in ("train", "val")] == [2, 1]


def test_splits_inside_scenes_and_images_in_two_splits(tmp_path):
    for scene in ("north", "south"):
        for split in ("01_train", "02_val"):
            put(tmp_path / split, [stripes(0, 1)])
            for folder in ("images", "masks"):
                place = tmp_path / "data" / folder / scene / split
                place.mkdir(parents=True)
                (tmp_path / split / folder / "0.png").rename(place / "0.png")
    names = [source.name for source in open_dataset(tmp_path / "data", "val").sources]
    assert names == ["north/02_val/0", "south/02_val/0"]
    root = put(tmp_path / "lists", [stripes(0, 1)] * 3)
    (root / "train.txt").write_text("0\n1\n")
    (root / "val.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match=r"1 of 2 images of val is in train, too.*\[splits-overlap\]"):
        open_dataset(root, accept=())


def test_copies_under_other_names_are_in_two_splits(tmp_path):
    """Files of one length are compared; pictures of one colour, such as empty tiles, may well come again."""
    root = put(tmp_path, [stripes(0, 1)] * 9)
    for k in (2, 5):
        Image.new("RGB", (32, 24)).save(root / "images" / f"{k}.png")
    (root / "images" / "6.png").write_bytes((root / "images" / "3.png").read_bytes())
    changed = bytearray((root / "images" / "1.png").read_bytes())
    changed[-13] ^= 1
    (root / "images" / "7.png").write_bytes(changed)
    (root / "train.txt").write_text("0\n1\n2\n3\n")
    (root / "val.txt").write_text("4\n5\n6\n8\n")
    with pytest.raises(
        UserError, match=r"1 of 4 images of val is in train, too, such as .*6.png \(a copy of .*3.png\)"
    ):
        open_dataset(root, accept=())
    assert kinds(root) == ["splits-overlap"]
    assert kinds(root, accept=["splits-overlap"]) == []
    (root / "dataset.yaml").write_text("accept: [splits-overlap]\n")
    assert kinds(root) == []
    assert "2 images of val that are in train too: 5 = 2; 6 = 3" in check_data(root).notes
    (root / "val.txt").write_text("4\n7\n")
    assert [doubt.kind for doubt in doubts(find_layout(root))] == []


def test_copies_of_images_that_are_no_files():
    """They are read, unless there are too many; names alone say nothing."""
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)

    def layout(count):
        def source(name, value):
            return FunctionSource(name, lambda: pixels + np.uint8(value), lambda: pixels[..., 0])

        train = [source(str(k), k % 100) for k in range(count)]
        return Layout("", Path(), {"train": train, "val": [source("0", 150), source("x", 1)]})

    assert overlaps(layout(5)) == [("val", 1, 2, "x", "1", "")]
    assert overlaps(layout(2000)) == []


@pytest.mark.parametrize("names", ["background\ncrack\n", ""])
def test_255_beside_ids_is_said_to_be_void(tmp_path, names):
    root = put(tmp_path, [stripes(0, 1, 255), stripes(0, 1), stripes(0, 1)])
    if names:
        (root / "classes.txt").write_text(names)
    assert any(note.startswith("255 is void, as usual: 1 of 3 masks") for note in notes_of(open_dataset(root)))
    for said in ("void: [255]\n", "ids: [0, 1]\n", "ids: {0: 0, 1: 1, 255: void}\n"):
        if names or "{" not in said:
            (root / "dataset.yaml").write_text(said + ("classes: [background, crack]\n" if names else ""))
            assert not any("255 is void" in note for note in notes_of(open_dataset(root)))


def test_as_many_values_as_names_of_which_one_is_255(tmp_path):
    root = put(tmp_path, [stripes(0, 1, 255)] * 4)
    (root / "classes.txt").write_text("background\ncrack\npothole\n")
    with pytest.raises(UserError, match=r"names 3 classes, .* but none of pothole.*ids: \[0, 1, 255\].*\[table-contra"):
        open_dataset(root, accept=())
    (root / "dataset.yaml").write_text("ids: [0, 1, 255]\n")
    assert set(np.unique(open_dataset(root, accept=())[0].label)) == {0, 1, 2}
    (root / "dataset.yaml").write_text("void: [255]\n")
    assert set(np.unique(open_dataset(root, accept=())[0].label)) == {0, 1, 255}


def test_what_is_no_split_by_its_name(tmp_path):
    root = put(tmp_path, [stripes(0, 1)] * 4)
    with pytest.raises(UserError, match=r"or name its folder or list in a dataset.yaml"):
        open_dataset(root, "trainaug")
    with pytest.raises(UserError, match=r"or add a folder test/ or a list test.txt"):
        open_dataset(root, "test")
    (root / "dataset.yaml").write_text("train: images\nmasks: masks\n")
    with pytest.raises(UserError, match=r'or add a line "test: FOLDER" to dataset.yaml'):
        open_dataset(root, "test")


def test_colors_in_the_order_of_opencv(tmp_path):
    root = put(tmp_path, [np.stack([stripes(0, 0), stripes(0, 0), stripes(0, 255)], axis=-1)] * 4)
    (root / "classes.csv").write_text("id,name,r,g,b\n0,background,0,0,0\n1,leaf,255,0,0\n")
    (problem,) = check_data(root).problems
    assert "those of classes with red and blue exchanged, as OpenCV writes" in problem
    (root / "classes.csv").write_text("id,name,r,g,b\n0,background,0,0,0\n1,leaf,0,0,255\n")
    assert check_data(root).ok


def test_metadata_of_hugging_face_and_classes_called_dont_care(tmp_path):
    root = put(tmp_path / "own", [stripes(0, 1, 2)] * 4)
    (root / "classes.txt").write_text("road\ncar\nDon't care\n")
    assert open_dataset(root).labels.names == ("road", "car")
    place = tmp_path / "hf"
    place.mkdir()
    for name in ("a.png", "a_m.png"):
        Image.new("L", (32, 24)).save(place / name)
    (place / "metadata.jsonl").write_text('{"file_name": "a.png", "mask_file_name": "a_m.png"}\n')
    with pytest.raises(UserError, match=f"metadata.jsonl is that of a dataset of Hugging Face: give hf:{place}"):
        open_dataset(place)


@pytest.mark.parametrize(
    "words", [("tr", "va", "te"), ("Entrenamiento", "Validacio\u0301n", "Prueba"), ("训练集", "验证集", "测试集")]
)
def test_short_and_foreign_names_of_splits(tmp_path, words):
    for index, word in enumerate(words):
        put(tmp_path / "pairs", [stripes(0, 1)] * (index + 1))
        place = tmp_path / "data" / word
        place.mkdir(parents=True)
        for k in range(index + 1):
            (tmp_path / "pairs" / "images" / f"{k}.png").rename(place / f"{word}{k}.png")
            (tmp_path / "pairs" / "masks" / f"{k}.png").rename(place / f"{word}{k}_mask.png")
    report = check_data(tmp_path / "data")
    assert {split: found.num_images for split, found in report.splits.items()} == {"train": 1, "val": 2, "test": 3}
    (tmp_path / "data" / words[0]).rename(tmp_path / "data" / "north")
    notes = check_data(tmp_path / "data").notes
    assert any("if the folders" in note and "are splits, call them train, val and test" in note for note in notes)


def _discs(rng, values, masks=12, side=64):
    """Masks of two discs each, of these values on 0."""
    rows, columns = np.mgrid[:side, :side]
    for _ in range(masks):
        ids = np.zeros((side, side), np.uint8)
        for value in rng.choice(values, 2):
            top, left = rng.integers(10, side - 10, 2)
            ids[(rows - top) ** 2 + (columns - left) ** 2 < 120] = value
        yield ids


def _stored(root, masks, names=""):
    rng = np.random.default_rng(5)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index, ids in enumerate(masks):
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize(ids.shape[::-1]).save(root / "images" / f"{index}.png")
        Image.fromarray(ids).save(root / "masks" / f"{index}.png")
    if names:
        (root / "classes.txt").write_text(names)
    return check_data(root)


def test_a_class_that_is_nothing_but_a_line_around_another_is_asked_about_or_said(tmp_path):
    smooth = [
        np.asarray(Image.fromarray(ids).resize((128, 128), Image.Resampling.BILINEAR))
        for ids in _discs(np.random.default_rng(1), [2])
    ]
    unnamed = _stored(tmp_path / "a", smooth)
    assert "id 1 comes as a line of one pixel between 0 and 2" in unnamed.problems[0]
    assert "[grey-edges]" in unnamed.problems[0]
    with pytest.raises(UserError, match="line of one pixel"):
        stop_at_doubts(resolve_classes(find_layout(tmp_path / "a")))
    named = _stored(tmp_path / "b", smooth, "background\nroad\ncar\n")
    assert named.ok
    assert any("id 1 comes as a line" in note and "unless that is a class" in note for note in named.notes)
    sharp = _stored(tmp_path / "c", _discs(np.random.default_rng(1), [1, 2]))
    assert sharp.ok
    assert "line of one pixel" not in str(sharp)


def test_ids_that_may_number_objects_with_gaps_are_said_to_be_taken_as_classes(tmp_path):
    said = "if they number the objects of each image"
    report = _stored(tmp_path / "a", _discs(np.random.default_rng(2), [1, 2, 4, 5, 7, 8, 9]))
    assert any(said in note and "threshold: 1" in note for note in report.notes)
    everywhere = (np.where(ids == 0, 3, ids).astype(np.uint8) for ids in _discs(np.random.default_rng(2), [*range(9)]))
    assert said not in str(_stored(tmp_path / "b", everywhere))


@pytest.mark.parametrize("white", [1, 255])
def test_two_names_of_which_none_is_a_background_are_said_with_their_values(tmp_path, white):
    report = _stored(tmp_path / "a", _discs(np.random.default_rng(3), [white]), "weed\ncrop\n")
    assert report.ok
    assert any(
        f"0 is taken as weed, {white} as crop" in note and f'"ids: [{white}, 0]"' in note for note in report.notes
    )
    (tmp_path / "a" / "dataset.yaml").write_text(f"ids: [{white}, 0]\n")
    turned = check_data(tmp_path / "a")
    assert turned.splits["train"].class_pixels[0] < turned.splits["train"].class_pixels[1]
    assert "is taken as weed" not in str(turned)
    assert "is taken as" not in str(
        _stored(tmp_path / "b", _discs(np.random.default_rng(3), [white]), "soil\nbackground\n")
    )
