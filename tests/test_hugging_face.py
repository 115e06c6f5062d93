"""Datasets of Hugging Face, in folders: columns, palettes by index, names, splits, streaming, and what goes wrong."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from degrid.cli import app
from degrid.data import check_data, notes_of, open_dataset
from degrid.data.formats.hugging_face.address import Address
from degrid.data.formats.hugging_face.columns import find_columns
from degrid.data.formats.masks import MaskReading
from degrid.types import IGNORE_INDEX, UserError
from degrid.verbs.train import run_config

datasets = pytest.importorskip("datasets")

SHAPE = (6, 8)
NAMES = ("wall", "floor", "lamp")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Nothing is written to the user's cache, and nothing is asked of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    datasets.disable_progress_bars()


def image(k):
    return np.random.default_rng([1, k]).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def ids(k):
    mask = np.random.default_rng([2, k]).integers(0, 3, SHAPE, dtype=np.uint8)
    mask[0, 0] = IGNORE_INDEX
    return mask


def encoded(picture, form="PNG"):
    stream = io.BytesIO()
    picture.save(stream, form)
    return {"bytes": stream.getvalue(), "path": None}


def palette(k):
    """Indices are ids; the colours are of no use, and others in each file."""
    picture = Image.fromarray(ids(k)).convert("P")
    picture.frombytes(ids(k).tobytes())
    picture.putpalette(np.random.default_rng(k).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return picture


def table(count, first=0, **kinds):
    """A `Dataset` with the columns of `kinds`: name -> (function of the row's number, feature)."""
    kinds = kinds or {
        "image": (lambda k: encoded(Image.fromarray(image(k))), datasets.Image()),
        "annotation": (lambda k: encoded(palette(k)), datasets.Image()),
        "scene": (lambda k: k % 2, datasets.ClassLabel(names=["kitchen", "hall"])),
    }
    columns = {name: [make(k) for k in range(first, first + count)] for name, (make, _) in kinds.items()}
    return datasets.Dataset.from_dict(columns, datasets.Features({name: kind for name, (_, kind) in kinds.items()}))


@pytest.fixture
def saved(tmp_path):
    """Saved by save_to_disk: train with the rows 0 to 4, validation with 5 and 6."""
    datasets.DatasetDict(train=table(5), validation=table(2, 5)).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def same(dataset, first, numbers=None):
    """Whether pixels and ids are those of the rows from `first` on."""
    numbers = range(first, first + len(dataset)) if numbers is None else numbers
    return all(
        np.array_equal(sample.image.permute(1, 2, 0).numpy(), image(k)) and np.array_equal(sample.label.numpy(), ids(k))
        for k, sample in zip(numbers, (dataset[i] for i in range(len(dataset))), strict=True)
    )


# ---- what is read ---------------------------------------------------------------------------------------------


def test_a_saved_dataset_pixel_by_pixel(saved):
    for path in (saved, f"hf:{saved}"):
        train, val = open_dataset(path), open_dataset(path, "val")
        assert (len(train), len(val)) == (5, 2)
        assert same(train, 0)
        assert same(val, 5)
        assert train[3].name == "train/000003"
    report = check_data(f"hf:{saved}")
    assert report.ok, report.problems
    assert (report.kind, report.reason) == ("Hugging Face", "columns image and annotation")
    counts = np.bincount(np.concatenate([ids(k).ravel() for k in range(5)]), minlength=256)
    assert report.splits["train"].class_pixels == counts[:3].tolist()
    assert report.splits["train"].void_pixels == 5


def test_dataset_yaml_leads_to_it(saved):
    """Its folder is relative to the file; classes and void are those of the file."""
    file = saved.parent / "dataset.yaml"
    for path in ("hf:saved", "saved", f"hf:{saved}?mask=annotation"):
        file.write_text(f"path: {path}\nclasses: [road, car]\nvoid: [2]\n")
        sample = open_dataset(file)[3]
        assert np.array_equal(sample.label.numpy(), np.where(ids(3) == 2, IGNORE_INDEX, ids(3)))
    file.write_text("path: hf:saved\ntrain: images\n")
    with pytest.raises(UserError, match=r"hf:saved brings its own splits and masks; leave out train"):
        open_dataset(file)


def test_what_dataset_yaml_in_its_folder_says(tmp_path, monkeypatch):
    """What the message on codes asks for mends them, also where the dataset is not a folder."""

    def codes(k):
        return encoded(Image.fromarray(np.tile(np.array([0, 60, 190, 255], np.uint8), (6, 2))))

    pictures = {"image": (lambda k: encoded(Image.fromarray(image(k))), datasets.Image())}
    table(4, image=pictures["image"], mask=(codes, datasets.Image())).to_parquet(tmp_path / "train.parquet")
    wish = 'write "ids: [0, 60, 190, 255]"'
    with pytest.raises(UserError, match=re.escape(f"{wish} in {tmp_path}/dataset.yaml")):
        open_dataset(f"hf:{tmp_path}", accept=())
    (tmp_path / "dataset.yaml").write_text("ids: [0, 60, 190, 255]\n")
    assert open_dataset(f"hf:{tmp_path}", accept=())[0].label[0, :4].tolist() == [0, 1, 2, 3]
    found = datasets.load_dataset(str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
    monkeypatch.setattr("degrid.data.formats.hugging_face.format._names_file", lambda _: None)
    with pytest.raises(UserError, match='write "path: hf:one/codes" and "ids: .*" in a file dataset.yaml, and give'):
        open_dataset("hf:one/codes", accept=())
    (tmp_path / "dataset.yaml").write_text("path: hf:one/codes\nids: [0, 60, 190, 255]\n")
    assert open_dataset(tmp_path / "dataset.yaml", accept=())[0].label[0, :4].tolist() == [0, 1, 2, 3]


def test_a_saved_dataset_without_a_split(saved):
    (saved / "dataset_dict.json").write_text('{"splits": []}')
    with pytest.raises(UserError, match="has no split; save it again"):
        open_dataset(saved)


def test_the_report_does_not_depend_on_the_number_of_processes(saved):
    assert check_data(saved, processes=1).to_dict() == check_data(saved, processes=2).to_dict()


def test_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    table(4).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    table(3, 4).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    train, val = open_dataset(f"hf:{tmp_path}"), open_dataset(f"hf:{tmp_path}", "val")
    assert same(train, 0)
    assert same(val, 4)
    assert train.labels.names == NAMES


def test_a_folder_of_images_with_metadata(tmp_path):
    """imagefolder: files beside metadata.jsonl. Their paths are kept, and read where they are."""
    rows = []
    for k in range(4):
        for part, picture in (("i", Image.fromarray(image(k))), ("m", palette(k))):
            (tmp_path / "photos" / "train").mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "photos" / "train" / f"{part}{k}.png")
        rows.append({"file_name": f"i{k}.png", "mask_file_name": f"m{k}.png"})
    file = tmp_path / "photos" / "train" / "metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    train, val = (open_dataset(f"hf:{tmp_path / 'photos'}", split) for split in ("train", "val"))
    assert len(train) + len(val) == 4
    numbers = [[int(source.index) for source in each.sources] for each in (train, val)]
    assert same(train, 0, numbers[0])
    assert same(val, 0, numbers[1])
    assert any("kept for validation" in note for note in notes_of(train))
    gone = tmp_path / "photos" / "train" / f"m{numbers[0][0]}.png"
    gone.unlink()
    with pytest.raises(UserError, match=rf"train\[{numbers[0][0]}\], mask: no such image: {gone}"):
        train[0]


def test_streaming_takes_the_first_rows(tmp_path, saved):
    (tmp_path / "data").mkdir()
    table(5).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    table(3, 5).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    path = f"hf:{tmp_path / 'data'}?streaming=2"
    train, test = open_dataset(path), open_dataset(path, "test")
    assert (len(train), len(test)) == (2, 2)
    assert same(train, 0)
    assert same(test, 5)
    assert "only the first 2 rows of each split were fetched" in notes_of(train)


@pytest.mark.parametrize(
    "kind",
    [
        "array",
        "lists of classes",
        "tiff",
        "16 bit",
        "jpeg image",
    ],
)
def test_masks_and_images_of_many_kinds(tmp_path, kind):
    png = (lambda k: encoded(Image.fromarray(image(k))), datasets.Image())
    as_lists = lambda k: ids(k).tolist()  # noqa: E731
    kinds = {
        "array": {"image": png, "mask": (as_lists, datasets.Array2D(SHAPE, "int32"))},
        "lists of classes": {
            "image": png,
            "mask": (
                lambda k: np.where(ids(k) == IGNORE_INDEX, 0, ids(k)).tolist(),
                datasets.List(datasets.List(datasets.ClassLabel(names=list(NAMES)))),
            ),
        },
        # As the library itself stores palette images that it is given in memory.
        "tiff": {"image": png, "mask": (lambda k: encoded(palette(k), "TIFF"), datasets.Image())},
        "16 bit": {
            "image": png,
            "mask": (lambda k: encoded(Image.fromarray(ids(k).astype(np.uint16))), datasets.Image()),
        },
        "jpeg image": {
            "pixel_values": (lambda k: encoded(Image.fromarray(image(k)), "JPEG"), datasets.Image()),
            "label": (lambda k: encoded(palette(k)), datasets.Image(mode="L")),
        },
    }[kind]
    datasets.DatasetDict(train=table(3, **kinds)).save_to_disk(tmp_path / "saved")
    dataset = open_dataset(tmp_path / "saved")
    numbers = [source.index for source in dataset.sources]
    for k, index in zip(numbers, range(len(dataset)), strict=True):
        expected = np.where(ids(k) == IGNORE_INDEX, 0, ids(k)) if kind == "lists of classes" else ids(k)
        assert np.array_equal(dataset[index].label.numpy(), expected)
        stream = io.BytesIO(kinds.get("pixel_values", png)[0](k)["bytes"])
        assert (
            np.abs(dataset[index].image.permute(1, 2, 0).numpy().astype(int) - np.asarray(Image.open(stream))).max()
            <= 1
        )
    if kind == "lists of classes":
        assert dataset.labels.names == NAMES


def test_names_by_id_may_have_gaps_and_void(tmp_path, saved):
    (saved / "id2label.json").write_text(json.dumps({"0": "unlabeled", "2": "lamp", "1": "floor"}))
    train = open_dataset(saved)
    assert train.labels.names == ("floor", "lamp")
    became = np.full(256, IGNORE_INDEX)
    became[1:3] = 0, 1
    assert all(np.array_equal(train[k].label.numpy(), became[ids(k)]) for k in range(5))


def test_a_table_of_the_users_own_wins(saved):
    (saved / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    (saved / "classes.csv").write_text("id,name,r,g,b\n0,a,0,0,0\n1,b,1,1,1\n2,c,2,2,2\n")
    assert open_dataset(saved).labels.names == ("a", "b", "c")


def test_a_palette_can_be_read_by_color(saved):
    source = open_dataset(f"hf:{saved}").sources[0]
    shown = source.palette()
    assert np.array_equal(source.reading(MaskReading(by_color=True)).read_label(), shown[ids(0)])
    assert len(np.unique(shown[:3], axis=0)) == 3


def test_images_of_16_bits_keep_their_contrast(tmp_path):
    deep = np.arange(48, dtype=np.uint16).reshape(SHAPE) * 20
    kinds = {
        "image": (lambda k: encoded(Image.fromarray(deep)), datasets.Image()),
        "mask": (lambda k: encoded(palette(k)), datasets.Image()),
    }
    datasets.DatasetDict(train=table(3, **kinds), test=table(1, **kinds)).save_to_disk(tmp_path / "saved")
    source = open_dataset(tmp_path / "saved").sources[0]
    assert not source.is_plain()
    assert np.array_equal(source.read_values()[..., 0], deep)


def test_processes_that_load_data_can_read_it(saved):
    from torch.utils.data import DataLoader

    loaded = DataLoader(open_dataset(saved), batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    assert [sample.name for sample in loaded] == [f"train/{k:06d}" for k in range(5)]


# ---- columns --------------------------------------------------------------------------------------------------


def columns(given=None, **kinds):
    features = {"I": datasets.Image(), "A": datasets.Array2D(SHAPE, "int32"), "S": datasets.Value("string")}
    return find_columns({name: features[kind] for name, kind in kinds.items()}, given or {}, "hf:x")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"id": "S", "pixel_values": "I", "label": "I"}, ("pixel_values", "label")),
        ({"annotation": "I", "image": "I"}, ("image", "annotation")),
        ({"image": "I", "trimap": "I"}, ("image", "trimap")),
        ({"photo": "I", "semantic_mask": "A"}, ("photo", "semantic_mask")),
        ({"left_image": "I", "left_label": "I"}, ("left_image", "left_label")),
        ({"jpg": "I", "png": "I", "__key__": "S"}, ("jpg", "png")),
        ({"Image": "I", "Label Map": "I"}, ("Image", "Label Map")),
        ({"conditioning": "I", "mask": "I"}, ("conditioning", "mask")),
    ],
)
def test_columns_are_found(kinds, expected):
    assert columns(**kinds) == (expected, "")


def test_a_choice_of_columns_is_said():
    found, note = columns(image="I", mask="I", depth="I", label="I")
    assert found == ("image", "mask")
    assert note == 'masks are those of the column "mask", not of label (?mask=COLUMN chooses)'
    assert columns({"mask": "depth"}, image="I", mask="I", depth="I") == (("image", "depth"), "")
    assert columns({"image": "b", "mask": "c"}, a="I", b="I", c="I") == (("b", "c"), "")


@pytest.mark.parametrize(
    ("kinds", "given", "message"),
    [
        ({"text": "S"}, {}, r"hf:x has no column of the type Image, .* its columns: text \(string\)"),
        (
            {"image": "I", "label": "S"},
            {},
            r"no column that looks like masks; its columns: image \(Image\), label \(string\)",
        ),
        ({"a": "I", "b": "I"}, {}, r'no column that looks like masks; .*say so: "hf:x\?mask=b"'),
        ({"image": "I"}, {}, r'no column that looks like masks; .*say so: "hf:x\?mask=COLUMN"'),
        ({"a": "I", "b": "I", "mask": "I"}, {}, "several columns that could be images"),
        ({"mask": "I"}, {}, "no column of images beside the masks"),
        ({"image": "I", "mask": "I"}, {"mask": "msak"}, r'"msak" is not a column of masks. Did you mean "mask"\?'),
    ],
)
def test_columns_that_are_not_there(kinds, given, message):
    with pytest.raises(UserError, match=message):
        columns(given, **kinds)


# ---- what goes wrong --------------------------------------------------------------------------------------------


def test_faulty_rows_are_named(tmp_path):
    cells = [
        encoded(palette(0)),
        None,
        {"bytes": b"\x89PNG broken", "path": None},
        encoded(Image.fromarray(image(3)), "JPEG"),
    ]
    kinds = {
        "image": (lambda k: None if k == 4 else encoded(Image.fromarray(image(k))), datasets.Image()),
        "mask": (lambda k: [*cells, cells[0]][k], datasets.Image()),
    }
    datasets.DatasetDict(train=table(5, **kinds), test=table(1, **kinds)).save_to_disk(tmp_path / "saved")
    problems = "\n".join(check_data(tmp_path / "saved").problems)
    where = f"hf:{tmp_path / 'saved'}, train"
    assert f"1 image without a mask (add the masks, or remove the images): {where}[1], image" in problems
    assert f"{where}[2], mask" in problems
    assert "1 JPEG mask (their ids are blurred; save masks as PNG" in problems
    assert f"dataset.yaml): {where}[3], mask" in problems
    assert f"{where}[4], image: there is none" in problems
    assert "images of train" not in problems
    with pytest.raises(UserError, match=r'1 of 5 images in the split "train" of .* are missing'):
        open_dataset(tmp_path / "saved")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf:", "expected hf:NAME_OR_FOLDER"),
        ("hf:x?streaming=none", "expected the number of samples to fetch, got none"),
        ("hf:x?mask", r'got "mask="'),
        ("hf:x?masks=a", r'got "masks=a". Did you mean "mask"\?'),
        (
            "hf:no/such",
            r"hf:no/such: datasets cannot open it \(.*Hub.*\); expected a name on the hub, which needs a connection",
        ),
    ],
)
def test_addresses_that_lead_nowhere(path, message):
    with pytest.raises(UserError, match=message):
        open_dataset(path)


def test_a_folder_without_data_and_a_split_that_is_not_there(tmp_path, saved):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="datasets cannot open it"):
        open_dataset(f"hf:{tmp_path / 'empty'}")
    with pytest.raises(
        UserError, match='has no split "test"; it has: train, val. Choose one of these, or add such a split'
    ):
        open_dataset(saved, "test")


def test_without_the_library(saved):
    code = (
        "import sys; sys.modules['datasets'] = None\nfrom degrid import UserError, open_dataset\n"
        f"try: open_dataset({str(saved)!r})\nexcept UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("needs the library datasets, which is not installed: pip install degrid[hf]")


def test_addresses_from_any_folder(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert Address.parse("saved?mask=annotation").absolute() == f"hf:{saved}?mask=annotation"
    assert Address.parse("org/name?config=a").absolute() == "hf:org/name?config=a"


def test_commands_and_the_name_of_a_run(saved, tmp_path):
    for words in (["check"], ["stats"], ["preview", "-o", str(tmp_path / "x.png")]):
        done = CliRunner().invoke(app, ["data", words[0], f"hf:{saved}", *words[1:]])
        assert done.exit_code == 0, done.output
    config = run_config(data=f"hf:{saved}?mask=annotation")
    assert (config.data.path, config.name) == (f"hf:{saved}?mask=annotation", "saved")
