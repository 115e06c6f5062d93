"""Masks whose values do not mean what they seem to: what stops training, what is read otherwise, and the mends."""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from degrid.data import check_data, notes_of, open_dataset
from degrid.data.formats.layout import Layout
from degrid.data.formats.pairs import Pair
from degrid.data.formats.scan import resolve_classes
from degrid.types import IGNORE_INDEX, UserError

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
    assert 'write "ids: {0: 0, 255: 1}"' in check_data(tmp_path).problems[0]
    put(tmp_path, [stripes(0, 1, 255)] * 3)
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


def test_palettes_of_random_colours_do_not_matter(tmp_path):
    masks = [indexed(stripes(0, 1, 2), np.random.default_rng(k).integers(0, 256, (3, 3))) for k in range(3)]
    put(tmp_path, masks, "a\nb\nc\n")
    assert kinds(tmp_path) == []


def test_kinds_are_checked(tmp_path):
    put(tmp_path, [stripes(0, 1)] * 2)
    with pytest.raises(UserError, match='no doubt is called "one_class". Did you mean "one-class"'):
        open_dataset(tmp_path, accept=["one_class"])


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
    assert str(report).endswith('sound, but without a split "train"; there is: test')
    with pytest.raises(UserError, match='has no split "train"; it has: test'):
        open_dataset(tmp_path)
