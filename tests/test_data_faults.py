"""What people's files are really like: Windows text, hidden files, odd masks, mistakes in every place."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from degrid.data import check_data, check_promises, notes_of, open_dataset
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.read_mask import read_mask
from degrid.types import IGNORE_INDEX, LabelSpace, Sample, UserError

MASK = (np.arange(80, dtype=np.uint8).reshape(8, 10)) % 3
TABLE = "id,name,r,g,b\n0,a,0,0,0\n1,b,1,1,1\n2,c,2,2,2\n"


def put(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def put_pair(root, name, mask=MASK, images="images", masks="masks"):
    seed = zlib.crc32(f"{root}{images}{name}".encode())
    put(root / images / f"{name}.png", np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8))
    put(root / masks / f"{name}.png", np.asarray(mask))


@pytest.fixture
def root(tmp_path):
    for k in range(6):
        put_pair(tmp_path, f"x{k}")
    return tmp_path


def names(root, split="train"):
    return [pair.name for pair in open_dataset(root, split).sources]


# ---- text files ---------------------------------------------------------------------------------------------


def test_text_from_windows(root):
    (root / "train.txt").write_bytes("\ufeffx0\r\nx1\r\n".encode())
    (root / "val.txt").write_bytes("\ufeffx2".encode())
    (root / "classes.csv").write_bytes(("\ufeff" + TABLE).encode())
    assert (names(root), names(root, "val")) == (["x0", "x1"], ["x2"])
    assert open_dataset(root).labels.names == ("a", "b", "c")


@pytest.mark.parametrize("file", ["train.txt", "classes.csv", "classes.txt", "dataset.yaml"])
def test_text_of_another_encoding_is_named(root, file):
    (root / file).write_bytes("x0 stra\xdfe\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{file} is not UTF-8 text \(byte 7\); save it as UTF-8"):
        open_dataset(root)


def test_lists_may_name_files(root):
    (root / "train.txt").write_text("x0.png\n./images/x1.png\n/images/x3\n")
    (root / "val.txt").write_text("x2\n")
    assert names(root) == ["x0", "x1", "x3"]
    assert notes_of(open_dataset(root))[0].startswith("2 images are in none of the lists")


def test_a_listed_image_that_is_not_there(root):
    (root / "train.txt").write_text("x0\nzz\n")
    with pytest.raises(UserError, match=r'1 of 2 images in the split "train" .* are missing, .*zz\.jpg among them'):
        open_dataset(root)
    report = check_data(root)
    assert report.problems == [f"1 image that cannot be read (get them again): no such image: {root}/images/zz.jpg"]


def test_an_empty_list_is_a_mistake(root):
    (root / "train.txt").write_text("\n")
    with pytest.raises(UserError, match=r"train\.txt is empty; fill it, or delete it"):
        open_dataset(root)


def test_a_mask_of_several_images_is_told(root):
    lines = [f"images/{name}.png masks/{name if name != 'x3' else 'x2'}.png\n" for name in ("x1", "x2", "x3")]
    (root / "train.txt").write_text("".join(lines))
    (root / "val.txt").write_text("images/x0.png masks/x0.png\n")
    note = f"1 mask belongs to several images each: {root / 'masks/x2.png'} to x2.png, x3.png"
    assert note in check_data(root).notes
    (root / "train.txt").write_text("".join(lines[:2]))
    assert not any("several images" in note for note in check_data(root).notes)


@pytest.mark.parametrize("form", ["{0}", "images/{0}.png masks/{0}.png"])
def test_an_empty_list_of_the_test_is_none(root, form):
    """PaddleSeg's split_dataset_list.py writes one where nothing is left for the test, as by default."""
    names = sorted(file.stem for file in (root / "images").iterdir())
    for split, listed in (("train", names[1:]), ("val", names[:1]), ("test", [])):
        (root / f"{split}.txt").write_text("".join(f"{form.format(name)}\n" for name in listed))
    report = check_data(root)
    assert {split: found.num_images for split, found in report.splits.items()} == {"train": len(names) - 1, "val": 1}
    assert len(open_dataset(root / "train.txt" if "/" in form else root)) == len(names) - 1


def test_list_with_spaces_in_names(tmp_path):
    put_pair(tmp_path, "my photo", images="JPEG", masks="Seg")
    (tmp_path / "train.txt").write_text("/JPEG/my photo.png /Seg/my photo.png\n")
    (tmp_path / "test.txt").write_text("/JPEG/my photo.png\n")
    for path in (tmp_path, tmp_path / "train.txt"):
        assert names(path) == ["JPEG/my photo"]
    with pytest.raises(UserError, match='1 of 1 images in the split "test" .* have no mask'):
        open_dataset(tmp_path / "train.txt", "test")


def test_list_of_any_name_far_from_its_data(tmp_path):
    put_pair(tmp_path / "data", "a")
    put_pair(tmp_path / "data", "b")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "mine.txt").write_text("/images/a.png /masks/a.png\n")
    (lists / "val.txt").write_text("/images/b.png /masks/b.png\n")
    with pytest.raises(UserError, match="is in none of the folders above the list"):
        open_dataset(lists / "mine.txt")
    train = open_dataset(lists / "mine.txt", root=tmp_path / "data")
    val = open_dataset(lists / "mine.txt", "val", root=tmp_path / "data")
    assert [train[0].name, val[0].name] == ["images/a", "images/b"]
    with pytest.raises(UserError, match='has no split "test"; it has: train, val'):
        open_dataset(lists / "mine.txt", "test", root=tmp_path / "data")


# ---- folders ------------------------------------------------------------------------------------------------


def test_hidden_files_are_passed_over(root):
    (root / "images" / "._x0.png").write_bytes(b"left by macOS")
    put(root / "images" / ".ipynb_checkpoints" / "x0-checkpoint.png", MASK)
    put(root / "__MACOSX" / "images" / "x0.png", MASK)
    assert sorted(names(root) + names(root, "val")) == [f"x{k}" for k in range(6)]
    assert check_data(root).ok


def test_folder_names_in_any_case(tmp_path):
    for split in ("Train", "Validation"):
        put_pair(tmp_path / split, split, images="Images", masks="MASKS")
    assert (names(tmp_path), names(tmp_path, "val")) == (["Train"], ["Validation"])
    with pytest.raises(UserError, match=r"it has: train, val\. Choose one of these, or add a folder test/"):
        open_dataset(tmp_path, "test")


def test_mask_folder_beside_the_split_and_a_table_without_ids(tmp_path):
    """CamVid as it is passed around: train, train_labels, colours, a table of name,r,g,b with a row for void."""
    colors = np.zeros((1, 3, 3), np.uint8)
    colors[0, 1:] = (9, 8, 7), (1, 2, 3)
    for split in ("train", "val"):
        put(tmp_path / split / "a.png", np.full((1, 3, 3), len(split), np.uint8))
        put(tmp_path / f"{split}_labels" / "a_L.png", colors)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,9,8,7\nVoid,0,0,0\nsky,1,2,3\n")
    val = open_dataset(tmp_path, "val")
    assert val.labels == LabelSpace(("road", "sky"), ((9, 8, 7), (1, 2, 3)))
    assert val[0].label.tolist() == [[IGNORE_INDEX, 0, 1]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "names no class"),
        ("id,name,r,g,b\n0,a,0,0\n", "expected the columns id,name,r,g,b"),
        ("id,name,r,g,b\n0,a,0,0,256\n", "expected 0 to 255"),
        ("id,name,r,g,b\nzero,a,0,0,0\n", "expected the columns"),
        ("id,name,r,g,b\n1,a,0,0,0\n1,b,0,0,0\n", 'the id 1 belongs to both "a" and "b"'),
        ("id|name|r|g|b\n0|a|0|0|0\n", "expected the columns"),
    ],
)
def test_mistakes_in_the_table(root, table, message):
    (root / "classes.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        open_dataset(root)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.csv", "id,name\n9,c\n2,a\n4,b\n"),
        ("classes.csv", "id,name\n2,a\n4,b\n9,c\n255,void\n"),
        ("classes.txt", "2 a\n4 b\n9 c\n"),
        ("classes.csv", "id,name\n2,a\n4,b\n9,c\n0,unlabelled\n"),
    ],
)
def test_ids_with_gaps_are_those_in_the_masks(tmp_path, name, text):
    for k in range(6):
        put_pair(tmp_path, f"x{k}", np.array([2, 4, 9], np.uint8)[MASK])
    (tmp_path / name).write_text(text)
    dataset = open_dataset(tmp_path, accept=[])
    assert dataset.labels.names == ("a", "b", "c")
    assert torch.equal(dataset[0].label, torch.from_numpy(MASK))
    assert f"{name}: the ids 2, 4, 9 become 0 to 2" in dataset.notes
    assert check_data(tmp_path).ok
    # A value that is not listed is never taken for a class.
    put_pair(tmp_path, "x9", np.array([1, 4, 9], np.uint8)[MASK])
    (problem,) = check_data(tmp_path).problems
    assert f"has the ids 1; expected 2, 4, 9, as {name} says, or 255 (void)" in problem
    assert "list what is not a class as void: [1]" in problem
    (tmp_path / "dataset.yaml").write_text("void: [1]\n")
    assert check_data(tmp_path).ok


def test_black_and_white_masks_do_not_fit_ids_from_1(tmp_path):
    for k in range(6):
        put_pair(tmp_path, f"x{k}", np.where(MASK, 255, 0).astype(np.uint8))
    (tmp_path / "classes.csv").write_text("id,name\n1,a\n2,b\n")
    (problem,) = [problem for problem in check_data(tmp_path).problems if "unknown" in problem]
    assert "has the ids 0; expected 1 to 2, as classes.csv says, or 255 (void)" in problem
    assert 'write "ids: [0, 255]" if the masks are black and white, or write "void: [0]" if 0 is not a class' in problem
    (tmp_path / "dataset.yaml").write_text("ids: [0, 255]\n")
    dataset = open_dataset(tmp_path, "train")
    assert dataset.labels.names == ("a", "b")
    assert all(torch.equal(sample.label, torch.from_numpy(MASK > 0).to(torch.uint8)) for sample in dataset)


def test_ids_from_1_beside_0(root):
    (root / "classes.csv").write_text("id,name\n1,a\n2,b\n")
    with pytest.raises(UserError, match=r'as classes.csv says,.*; give id 0 a class, or write "void: \[0\]" if 0'):
        open_dataset(root)[0]
    (root / "dataset.yaml").write_text("void: [0]\n")
    assert open_dataset(root)[0].label.unique().tolist() == [0, 1, IGNORE_INDEX]


def test_numbers_of_objects_where_there_are_two_names(tmp_path):
    for k in range(6):
        put_pair(tmp_path, f"x{k}", MASK + (np.arange(80).reshape(8, 10) % (4 + k % 2)).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("background\ncell\n")
    with pytest.raises(UserError, match="or threshold: 1 if they number the objects"):
        open_dataset(tmp_path)[0]
    (tmp_path / "dataset.yaml").write_text("threshold: 1\n")
    assert open_dataset(tmp_path)[0].label.unique().tolist() == [0, 1]


def test_voc_of_any_year_and_labelmes_export(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2007"
    put_pair(base, "one", images="JPEGImages", masks="SegmentationClassPNG")
    put_pair(base, "two", images="JPEGImages", masks="SegmentationClassPNG")
    (base / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    dataset = open_dataset(tmp_path, "train")
    assert dataset.labels.names == ("_background_", "cat", "dog")
    assert torch.equal(dataset[0].label, torch.from_numpy(MASK))


def test_cityscapes_coarse_has_a_split_of_its_own(tmp_path):
    for split in ("train", "train_extra", "val"):
        put(tmp_path / "leftImg8bit" / split / "ulm" / f"{split}_leftImg8bit.png", np.zeros((2, 2, 3), np.uint8))
        put(tmp_path / "gtCoarse" / split / "ulm" / f"{split}_gtCoarse_labelIds.png", np.full((2, 2), 7, np.uint8))
    assert names(tmp_path, "train_extra") == ["train_extra/ulm/train_extra"]
    assert names(tmp_path) == ["train/ulm/train"]


# ---- masks --------------------------------------------------------------------------------------------------


def png(bits, samples):
    """A grey PNG of few bits, as optimisers and some tools write it; Pillow cannot."""
    packed = []
    for row in samples:
        row = [*row, *[0] * (-len(row) % (8 // bits))]
        values = [
            sum(v << 8 - bits * (i + 1) for i, v in enumerate(row[k : k + 8 // bits]))
            for k in range(0, len(row), 8 // bits)
        ]
        packed.append(b"\0" + bytes(values))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(samples[0]), len(samples), bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"".join(packed))), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize(("bits", "row"), [(1, [0, 1, 1]), (2, [0, 1, 2, 3, 1]), (4, [0, 9, 15])])
def test_masks_of_few_bits_give_the_stored_values(tmp_path, bits, row):
    (tmp_path / "m.png").write_bytes(png(bits, [row, row[::-1]]))
    assert read_mask(tmp_path / "m.png").tolist() == [row, row[::-1]]


def test_rule_by_hand_for_every_width():
    rule = MaskRule({0: 0, 1: 1, 700: 2, -1: IGNORE_INDEX, 255: IGNORE_INDEX})
    ids, unknown = rule.apply(np.array([[0, 1, -1], [700, 5, 5]], np.int32))
    assert ids.tolist() == [[0, 1, 255], [2, 255, 255]]
    assert unknown == {5: 2}
    ids, unknown = rule.apply(np.array([[0, 1, 255], [7, 7, 9]], np.uint8))
    assert ids.tolist() == [[0, 1, 255], [255, 255, 255]]
    assert unknown == {7: 2, 9: 1}
    assert rule.apply(np.array([[2**31 - 1]], np.int32))[1] == {2**31 - 1: 1}  # no table of two billion rows


def test_a_rare_class_is_found_in_one_mask_of_many(tmp_path):
    for k in range(450):
        put_pair(tmp_path, f"x{k}", np.where(MASK == 1, 5, MASK) if k == 401 else MASK)
    dataset = open_dataset(tmp_path)
    assert len(dataset.labels) == 6
    assert "0 to 5, after the ids in 450 of 450 masks" in " ".join(notes_of(dataset))


def test_two_classes_with_void_are_not_black_and_white(tmp_path):
    """255 is void as soon as one mask shows that 1 exists, however rare class 1 is."""
    (tmp_path / "images").mkdir()
    for k in range(30):
        put_pair(tmp_path, f"x{k}", np.where(MASK == 1, 255, k == 17).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("ground\ncrack\n")
    train = open_dataset(tmp_path)
    assert {int(v) for i in range(len(train)) for v in train[i].label.unique()} <= {0, 1, IGNORE_INDEX}
    assert IGNORE_INDEX in train[0].label
    put_pair(tmp_path, "x17", np.where(MASK == 1, 255, 0).astype(np.uint8))
    black_and_white = open_dataset(tmp_path)
    assert black_and_white[0].label.unique().tolist() == [0, 1]
    assert "taken as background and foreground" in " ".join(notes_of(black_and_white))


def test_black_and_white_masks_take_the_names_of_a_model(tmp_path):
    for k in range(3):
        put_pair(tmp_path, f"x{k}", np.where(MASK == 1, 255, 0).astype(np.uint8))
    labels = LabelSpace(("ground", "crack"), ((0, 0, 0), (9, 9, 9)))
    dataset = open_dataset(tmp_path, labels=labels)
    assert dataset.labels == labels
    assert torch.equal(dataset[0].label, torch.from_numpy((MASK == 1).astype(np.uint8)))
    with pytest.raises(UserError, match=r"has 2 classes \(background, foreground\); expected 3"):
        open_dataset(tmp_path, labels=LabelSpace.of_size(3))


def test_unknown_values_are_counted(root):
    (root / "classes.csv").write_text(TABLE)
    for k in range(6):
        put_pair(root, f"x{k}", np.where(MASK == 1, 7, MASK))
    with pytest.raises(UserError, match=r"has the ids 7; expected 0 to 2 or 255 \(void\); 27 pixels have such ids"):
        open_dataset(root)[0]
    report = check_data(root)
    assert report.unknown == {"7": (6, 6 * 27)}
    assert [note for note in report.notes if note.startswith("values without")] == [
        "values without a class: 7 (6 masks, 162 pixels); if the values in the masks are those of the classes in order"
        ', write "ids: [0, 2, 7]" in dataset.yaml'
    ]
    assert json.loads(json.dumps(report.to_dict()))["unknown"] == {"7": [6, 162]}


# ---- dataset.yaml -------------------------------------------------------------------------------------------


def test_yaml_with_a_list_of_names(root):
    (root / "train.txt").write_text("x3\nx1\n")
    (root / "dataset.yaml").write_text("train: train.txt\nval: images\nmasks: masks\nclasses: [a, b]\nvoid: 2\n")
    assert names(root) == ["x3", "x1"]
    assert len(open_dataset(root, "val")) == 6
    assert open_dataset(root)[0].label.unique().tolist() == [0, 1, IGNORE_INDEX]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.lst", "images/x3.png masks/x3.png\nimages/x1.png masks/x1.png\n"),
        ("a.CSV", "image,mask\nimages/x3.png,masks/x3.png\nimages/x1.png,masks/x1.png\n"),
        ("a.csv", "image\nx3\nx1\n"),
    ],
)
def test_yaml_with_a_list_of_any_ending(root, name, text):
    (root / name).write_text(text)
    (root / "dataset.yaml").write_text(f"train: {name}\nclasses: [a, b]\nignore_index: 2\n")
    assert [found.rpartition("/")[2] for found in names(root)] == ["x3", "x1"]
    assert open_dataset(root)[0].label.unique().tolist() == [0, 1, IGNORE_INDEX]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ids: [1, 2]", "ids lists 2 values for 3 classes"),
        ("ids: 3", "ids must be a table from raw ids to classes"),
        ("ids: {a: 0}", "expected a raw id and a class"),
        ("ids: {1: true}", "expected a raw id and a class"),
        ("void: [a]", r"void lists raw ids and colours, such as \[0, \[128, 64, 128\]\]; got 'a'"),
        ("ignore_index: 1", '1 is void, and also the class "b"'),
        ("names: [x]", '"names" is another word for "classes", which is also given'),
        ("void: [[1, 2, 300]]", "a colour is three whole numbers"),
        ("void: 1", '1 is void, and also the class "b"; keep one of the two; or number the classes yourself'),
        ("ids: [3, 4, 5]\nvoid: [7, 4]", '4 is void, and also the class "b"; keep one of the two'),
        ("nc: 4", "nc says 4 classes, but 3 are named"),
    ],
)
def test_more_mistakes_in_a_description(root, text, message):
    (root / "dataset.yaml").write_text(f"train: images\nmasks: masks\nclasses: [a, b, c]\n{text}\n")
    with pytest.raises(UserError, match=message):
        open_dataset(root)


def test_ids_of_a_class_must_be_numbers(root):
    (root / "dataset.yaml").write_text("train: images\nmasks: masks\nclasses: {0: {name: a, ids: x}}\n")
    with pytest.raises(UserError, match=r"class 0: ids are whole numbers, such as \[26, 27\]; got \['x'\]"):
        open_dataset(root)


# ---- check --------------------------------------------------------------------------------------------------


def test_check_sees_names_that_come_twice_and_masks_of_one_class(root):
    put(root / "images" / "x0.bmp", np.zeros((8, 10, 3), np.uint8))
    for k in range(6):
        put_pair(root, f"y{k}", np.full((8, 10), 2, np.uint8))
    report = check_data(root)
    assert report.problems == ["1 name of different samples in val (rename or remove one of each): x0"]
    assert any(
        note.startswith("6 masks that are entirely one class: ") and "(class 2)" in note for note in report.notes
    )


def test_check_of_datasets_without_files(tmp_path, monkeypatch):
    calls = []
    report = check_data("synthetic:2", lambda p: calls.append((p.done, p.total)))
    assert report.ok
    assert {split: found.num_images for split, found in report.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert sum(report.splits["val"].class_pixels) + report.splits["val"].void_pixels == 2 * 144 * 192
    assert calls[-1] == (6, 6)
    (tmp_path / "faulty_set.py").write_text(
        "import torch\nfrom degrid import LabelSpace, Sample, UserError\n"
        "class Set:\n"
        "    labels = LabelSpace.of_size(2)\n"
        "    def __init__(self, split):\n"
        "        if split != 'train': raise UserError('no such split')\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, i):\n"
        "        label = torch.full((4, 4), 9, dtype=torch.uint8)\n"
        "        return Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), label, 'a')\n"
    )
    monkeypatch.chdir(tmp_path)
    report = check_data("faulty_set:Set")
    assert list(report.splits) == ["train"]
    assert "label holds the ids [9]" in report.problems[0]


def test_a_name_is_part_of_the_promise():
    class Set(list):
        labels = LabelSpace.of_size(2)

    image, label = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    for bad in ("", 3):
        with pytest.raises(UserError, match="name must be a non-empty string"):
            check_promises(Set([Sample(image, label, bad)]))


@pytest.mark.parametrize("name", ["synthetic:0", "synthetic:many", "synthetic:"])
def test_number_of_scenes(name):
    assert len(open_dataset("synthetic:7", "val")) == 7
    with pytest.raises(UserError, match='a number of scenes, as in "synthetic:50"'):
        open_dataset(name)
