"""Tables of classes in JSON and YAML, and tables as spreadsheets and people write them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from degrid.data import check_data, class_table, notes_of, open_dataset
from degrid.data.formats.class_text import rows_of_lines
from degrid.types import UserError

NAMES = ("soil", "road", "tree")
COLORS = ((90, 60, 30), (128, 64, 128), (0, 128, 0))
HEX = tuple("#{:02X}{:02X}{:02X}".format(*color) for color in COLORS)
IDS = np.repeat(np.arange(48, dtype=np.uint8).reshape(6, 8) % 4, 4, axis=0).repeat(4, axis=1)


def pairs(root, mask, count=4):
    for k in range(count):
        for folder, values in (
            ("images", np.random.default_rng(k).integers(0, 256, (24, 32, 3), np.uint8)),
            ("masks", mask),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / folder / f"{k}.png")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("id2label.json", {"2": "tree", "0": "soil", "1": "road"}),
        ("label2id.json", {"tree": 2, "soil": 0, "road": 1}),
        ("classes.json", [*NAMES]),
        ("classes.json", {"classes": [{"id": k, "name": name} for k, name in enumerate(NAMES)]}),
        ("class_names.json", {"0": {"name": "soil"}, "1": {"name": "road"}, "2": {"name": "tree"}}),
        ("dataset.json", {"channel_names": {"0": "R"}, "labels": {"soil": 0, "road": 1, "tree": 2}}),
        ("labels.json", {"soil": {"id": 0}, "tree": {"id": 2}, "road": {"id": 1}}),
    ],
)
def test_ids(tmp_path, name, table):
    (tmp_path / name).write_text(json.dumps(table))
    labels, rule = class_table(tmp_path)
    assert labels.names == NAMES
    assert [rule.ids[value] for value in (0, 1, 2, 255)] == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("classes.json", dict(zip(NAMES, COLORS, strict=True))),
        ("classes.json", dict(zip(HEX, NAMES, strict=True))),
        # Supervisely and Dubai's aerial images; SuperAnnotate and CVAT, whose numbers are those of their own store.
        ("classes.json", {"classes": [{"title": NAMES[k], "color": HEX[k]} for k in range(3)]}),
        ("labels.json", [{"id": 4711 + k, "name": NAMES[k], "color": [*COLORS[k]]} for k in range(3)]),
    ],
)
def test_colors(tmp_path, name, table):
    (tmp_path / name).write_text(json.dumps(table))
    pairs(tmp_path, np.array([*COLORS, COLORS[0]], np.uint8)[IDS])
    found = open_dataset(tmp_path)
    assert (found.labels.names, found.labels.colors) == (NAMES, COLORS)
    assert found[0].label.tolist() == np.array([0, 1, 2, 0])[IDS].tolist()


TABLE = "id,name,r,g,b\n" + "".join(
    f"{k},{name},{r},{g},{b}\n" for k, (name, (r, g, b)) in enumerate(zip(NAMES, COLORS, strict=True))
)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labels.csv", TABLE),
        ("label_map.csv", "label,index\n" + "".join(f"{name},{k}\n" for k, name in enumerate(NAMES))),
        ("Klassen.csv", "Nummer;Name\n" + "".join(f"{k};{name}\n" for k, name in enumerate(NAMES))),
        ("étiquettes.csv", TABLE),
        ("colors.txt", "".join(f"{r} {g} {b} {name}\n" for name, (r, g, b) in zip(NAMES, COLORS, strict=True))),
        ("categories.tsv", "id\tcategory\n" + "".join(f"{k}\t{name}\n" for k, name in enumerate(NAMES))),
        ("masks/classes.csv", TABLE),
        ("masks/classes.txt", "\n".join(NAMES)),
    ],
)
def test_tables_that_are_called_otherwise_or_lie_beside_the_masks(tmp_path, file, text):
    pairs(tmp_path, IDS % 3)
    (tmp_path / file).write_text(text)
    assert open_dataset(tmp_path).labels.names == NAMES
    assert f"the classes are those of {file}" in check_data(tmp_path).notes


def test_superannotates_classes_lie_in_a_folder_and_lack_the_background(tmp_path):
    rows = [{"id": 2190 + k, "name": NAMES[k], "color": HEX[k].lower()} for k in range(2)]
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes/classes.json").write_text(json.dumps(rows))
    for k in range(4):
        image = np.random.default_rng(k).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"{k}.jpg")
        Image.fromarray(np.array([(0, 0, 0), *COLORS[:2]], np.uint8)[IDS % 3]).save(tmp_path / f"{k}.jpg___fuse.png")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("background", *NAMES[:2])
    assert (dataset.arrays(0).label == IDS % 3).all()


@pytest.mark.parametrize(
    "text",
    [
        "image,label\n0.png,cat\n1.png,dog\n",
        "id,label\n0,cat\n1,dog\n2,cat\n3,cat\n",
        "id,name\n0,0.png\n1,1.png\n2,2.png\n",
    ],
)
def test_labels_of_whole_images_are_no_table(tmp_path, text):
    pairs(tmp_path, IDS % 3)
    (tmp_path / "labels.csv").write_text(text)
    assert open_dataset(tmp_path).labels.names == ("class 0", "class 1", "class 2")
    assert any("labels.csv is not read" in note for note in check_data(tmp_path).notes)


def test_a_table_far_above_is_named(tmp_path):
    pairs(tmp_path / "of_mine/v2", IDS % 3)
    (tmp_path / "classes.csv").write_text(TABLE)
    assert any(f"{tmp_path / 'classes.csv'} is not read" in note for note in check_data(tmp_path / "of_mine/v2").notes)


def test_ids_are_not_called_renumbered_where_masks_hold_colours(tmp_path):
    table = "name,r,g,b\nvoid,90,60,30\nroad,128,64,128\ntree,0,128,0\n"
    for folder, masks, renumbered in (("c", np.array(COLORS, np.uint8)[IDS % 3], False), ("i", IDS % 3, True)):
        pairs(tmp_path / folder, masks)
        (tmp_path / folder / "classes.csv").write_text(table)
        notes = check_data(tmp_path / folder).notes
        assert "classes.csv: 0 (void) is void, which is no class" in notes
        assert ("classes.csv: the ids 1, 2 become 0 to 1" in notes) == renumbered


def test_masks_without_an_image_stop_neither_check_nor_training(tmp_path):
    pairs(tmp_path, IDS % 3)
    (tmp_path / "images/3.png").unlink()
    report = check_data(tmp_path)
    note = f"1 mask without an image, from which nothing is learned: {tmp_path}/masks/3.png"
    assert report.ok
    assert note in report.notes
    assert note in notes_of(open_dataset(tmp_path, accept=()))


def test_yaml_and_void(tmp_path):
    (tmp_path / "classes.yaml").write_text("names:\n  0: void\n  1: road\n  3: tree\n")
    labels, rule = class_table(tmp_path)
    assert labels.names == ("road", "tree")
    assert [rule.ids[value] for value in (0, 1, 3, 255)] == [255, 0, 1, 255]


@pytest.mark.parametrize(
    "table",
    [
        {"images": [], "annotations": [], "categories": [{"id": 1, "name": "road"}]},
        {"version": "5.0", "shapes": [], "labels": ["road"]},
        {"road": [1, 2]},
        [{"file": "a.png"}],
        [1, 2],
        "road",
        {"0": "road", "1": 5},
        {"labels": {"road": 0, "tree": 0}},
        {"labels": {"road": 0, "tree": 1000}},
    ],
)
def test_what_is_no_table_is_passed_over(tmp_path, table):
    (tmp_path / "labels.json").write_text(json.dumps(table))
    assert class_table(tmp_path) == (None, None)


def test_tables_in_rows_win(tmp_path):
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    (tmp_path / "classes.txt").write_text("soil\nroad\ntree\n")
    assert class_table(tmp_path)[0].names == NAMES


@pytest.mark.parametrize("name", ["id2label.json", "labels.csv"])
def test_tables_that_number_the_same_names_otherwise(tmp_path, name):
    texts = {
        "id2label.json": '{"0": "tree", "1": "soil", "2": "road"}',
        "labels.csv": "id,name\n0,tree\n1,soil\n2,road\n",
    }
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    (tmp_path / name).write_text(texts[name])
    with pytest.raises(UserError, match=f"classes.txt and {name} beside it number the classes differently"):
        class_table(tmp_path)
    (tmp_path / "classes.txt").write_text("tree\nsoil\nroad\n")
    assert class_table(tmp_path)[0].names == ("tree", "soil", "road")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.csv", "id,name,ignore\n0,soil,0\n1,road,0\n2,tree,0\n3,shade,1\n"),
        ("classes.csv", "name,id,is_void\nsoil,0,no\nroad,1,no\ntree,2,no\nshade,3,Yes\n"),
        ("labels.csv", "name;id;ignoreInEval\nsoil;0;False\nshade;3;True\nroad;1;False\ntree;2;False\n"),
        ("classes.json", json.dumps([{"id": k, "name": n, "void": k == 3} for k, n in enumerate((*NAMES, "shade"))])),
        ("labels.json", json.dumps({n: {"id": k, "ignored": k // 3} for k, n in enumerate((*NAMES, "shade"))})),
    ],
)
def test_a_column_says_what_is_void(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    labels, rule = class_table(tmp_path)
    assert labels.names == NAMES
    assert [rule.ids[value] for value in range(4)] == [0, 1, 2, 255]


@pytest.mark.parametrize("where", [0, 1, 3])
def test_rows_of_void_count_where_nothing_gives_ids(tmp_path, where):
    """Kaggle's Semantic Drone Dataset: class_dict.csv begins with unlabeled, which is 0 in the masks."""
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(NAMES, COLORS, strict=True)]
    rows.insert(where, "unlabeled,0,0,0")
    (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows, ""]))
    pairs(tmp_path, IDS)
    assert not check_data(tmp_path).problems
    expected = [*range(where), 255, *range(where, 3)]
    assert open_dataset(tmp_path)[0].label.tolist() == np.array(expected)[IDS].tolist()
    assert any(f"{where} (unlabeled) is void" in note for note in notes_of(open_dataset(tmp_path)))


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffID;Bezeichnung;R;G;B\r\n0;soil;90;60;30\r\n1;road;128;64;128\r\n2;tree;0;128;0\r\n",
        "Class;Name;Red;Green;Blue;;\r\n0;soil;90;60;30;;\r\n1;road;128;64;128;;\r\n2;tree;0;128;0;;\r\n;;;;;;\r\n",
        'name,color\nsoil,"rgb(90,60,30)"\nroad,"rgb(128, 64, 128)"\ntree,"rgb(0,128,0)"\n',
        "clase,rojo,verde,azul\nsoil,90,60,30\nroad,128,64,128\ntree,0,128,0\n",
        "Klasse;Farbe\nsoil;#5A3C1E\nroad;#804080\ntree;#008000\n",
        "name,category,color\nsoil,flat,#5A3C1E\nroad,flat,#804080\ntree,nature,#008000\n",
    ],
)
def test_tables_of_spreadsheets(tmp_path, text):
    (tmp_path / "classes.csv").write_text(text, encoding="utf-8")
    labels, rule = class_table(tmp_path)
    assert (labels.names, labels.colors) == (NAMES, COLORS)
    assert rule.colors[COLORS[2]] == rule.ids[2] == 2


@pytest.mark.parametrize("text", ["id\tname\n0\tsoil\n1\troad\n2\ttree\n", "name,id\nsoil,0\nroad,1\ntree,2\n"])
@pytest.mark.parametrize("file", ["classes.txt", "class.txt"])
def test_headers_in_lists_of_names_are_no_class(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    labels, rule = class_table(tmp_path)
    assert labels.names == NAMES
    assert [rule.ids[value] for value in (0, 1, 2)] == [0, 1, 2]


def test_names_that_look_like_a_header_but_stand_alone(tmp_path):
    (tmp_path / "classes.txt").write_text("label\nvalue\nname\n")
    assert class_table(tmp_path)[0].names == ("label", "value", "name")


def test_masks_that_count_without_the_row_of_void_are_asked(tmp_path):
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nvoid,0,0,0\nsoil,1,0,0\nroad,2,0,0\ntree,3,0,0\n")
    ids = np.where(IDS == 3, np.uint8(255), IDS)
    pairs(tmp_path, ids)
    report = check_data(tmp_path)
    assert [problem[-20:] for problem in report.problems] == ["[table-contradicted]"]
    assert 'write "ids: [0, 1, 2]"' in report.problems[0]
    (tmp_path / "dataset.yaml").write_text("ids: [0, 1, 2]\n")
    assert not check_data(tmp_path).problems
    assert open_dataset(tmp_path)[0].label.tolist() == ids.tolist()


@pytest.mark.parametrize("base", [1000, 256])
def test_classes_times_a_number_and_objects(tmp_path, base):
    """Cityscapes' instanceIds: 26001 is the second car."""
    pairs(tmp_path, np.array([2 * base, 2 * base + 1, 3 * base, 3 * base + 1], np.uint16)[IDS])
    with pytest.raises(UserError, match=rf"the class times {base} .*np.where\(ids < {base}, ids, ids // {base}\)"):
        open_dataset(tmp_path)
    shutil.rmtree(tmp_path / "masks")
    pairs(tmp_path, np.array([0, base, 2 * base, 3 * base], np.uint16)[IDS])
    with pytest.raises(UserError, match=r'write "ids: \[0, '):
        open_dataset(tmp_path)


def test_the_largest_number_of_32_bits_for_void(tmp_path):
    rasters = np.array([0, 1, 2, 2**32 - 1], np.uint32)[IDS]
    pairs(tmp_path, IDS.astype(np.uint8))
    for k in range(4):
        (tmp_path / "masks" / f"{k}.png").unlink()
        np.save(tmp_path / "masks" / f"{k}.npy", rasters)
    with pytest.raises(UserError, match=r'write "ids: \[0, 1, 2, 4294967295\]" .* void belong in "void: \[\.\.\]"'):
        open_dataset(tmp_path)
    (tmp_path / "dataset.yaml").write_text("void: [4294967295]\n")
    assert open_dataset(tmp_path)[0].label.tolist() == np.where(IDS == 3, 255, IDS).tolist()


def test_the_colours_of_the_full_ade20k(tmp_path):
    for k in range(4):
        for name, values in (("{}.jpg", np.full((24, 32, 3), k)), ("{}_seg.png", np.dstack([IDS * 10, IDS, IDS]))):
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / name.format(f"ADE_train_{k:08d}"))
    with pytest.raises(UserError, match=r"of the full ADE20K: of its objects, red // 10 \* 256 \+ green is the number"):
        open_dataset(tmp_path)


def test_depth_is_no_mask(tmp_path):
    """16 bits of millimetres: too many values for classes and objects."""
    pairs(tmp_path, np.random.default_rng(0).permutation(24 * 64).astype(np.uint16).reshape(24, 64) * 40)
    with pytest.raises(
        UserError, match=r"ids from 0 to 61400; .*: so many values are those of a picture, such as a depth"
    ):
        open_dataset(tmp_path)


def test_more_objects_than_classes_can_be(tmp_path):
    """All masks hold as many, without gaps."""
    pairs(tmp_path, np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    with pytest.raises(
        UserError, match='ids from 0 to 767; .*: write "threshold: 1" in .*dataset.yaml if they number ob'
    ):
        open_dataset(tmp_path)


def test_colours_in_brackets():
    for form in ("{} ({}, {}, {})", "{}: [{},{},{}]", "({}, {}, {}) {}", "{} = rgb({} {} {})"):
        lines = [form.format(*((*c, n) if form[0] == "(" else (n, *c))) for n, c in zip(NAMES, COLORS, strict=True)]
        rows, in_order = rows_of_lines(lines)
        assert in_order
        assert [(row.name, row.colors) for row in rows] == [(n, (c,)) for n, c in zip(NAMES, COLORS, strict=True)]
    rows, _ = rows_of_lines(["box (1, 2, 3)", "car"])
    assert [row.name for row in rows] == ["box (1, 2, 3)", "car"]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("- road\n- sky\n", [(0, "road"), (1, "sky")]),
        ("\u2022 road\n\u2022 sky\n", [(0, "road"), (1, "sky")]),
        ("0. road\n1. sky\n", [(0, "road"), (1, "sky")]),
        ("2) road\n1) sky\n", [(2, "road"), (1, "sky")]),
        ("- road\nsky\n", [(0, "- road"), (1, "sky")]),
    ],
)
def test_the_marks_of_a_list_are_no_part_of_the_names(text, rows):
    assert [(row.number, row.name) for row in rows_of_lines(text.splitlines())[0]] == rows
