"""TFRecord files: TensorFlow's own read exactly, ours laid out as TensorFlow's, damage named with its place."""

import io
import itertools
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from degrid.cli import app
from degrid.data import (
    SourceDataset,
    SyntheticScenes,
    TrainTransform,
    check_data,
    check_promises,
    notes_of,
    open_dataset,
    training_batches,
    write_tfrecord,
)
from degrid.data.formats.masks import MaskRule
from degrid.data.tfrecord.format import is_record_file, sources_in
from degrid.data.tfrecord.records import encode_example, framed, records_in
from degrid.data.tfrecord.source import RecordSource
from degrid.types import IGNORE_INDEX, ConversionError, LabelSpace, Sample, UserError
from degrid.verbs.write_shards import write_records

GOLDEN = Path(__file__).parent / "golden" / "tfrecord"
FOUR = LabelSpace.of_size(4)
SCHEMAS = ("encoded", "raw", "deeplab")


def crc32c(data):
    """The checksum bit by bit, from its polynomial (RFC 3720, section B.4); nothing shared with the package."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def picture(pixels, image_format="PNG", **options):
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    image.save(stream, format=image_format, **options)
    return stream.getvalue()


def raw(height=1, width=2, image=b"\0" * 6, label=b"\0\1", **more):
    return {"height": height, "width": width, "image_raw": image, "annotation_raw": label, **more}


def encoded(image, label, name=b"a.jpg"):
    return {"image/encoded": image, "image/segmentation/encoded": label, "image/filename": name}


def put(file, *examples):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(framed(encode_example(example)) for example in examples))
    return file


def read(file, labels=FOUR):
    dataset = SourceDataset([*sources_in([file])], labels, MaskRule.plain(labels))
    return [dataset[index] for index in range(len(dataset))]


class Samples(list):
    labels = FOUR


def samples(count=3):
    rng = np.random.default_rng(0)
    made = Samples()
    for k in range(count):
        label = rng.integers(0, 4, (5, 7 + k), dtype=np.uint8)
        label[0, 0] = IGNORE_INDEX
        image = rng.integers(0, 256, (3, 5, 7 + k), dtype=np.uint8)
        made.append(Sample(torch.from_numpy(image), torch.from_numpy(label), f"sub/s{k}"))
    return made


# ---- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["encoded", "raw"])
def test_files_that_tensorflow_wrote(schema):
    values = np.load(GOLDEN / "tfrecord_values.npz")
    dataset = open_dataset(GOLDEN / f"{schema}_schema.tfrecord")
    assert len(dataset) == 3
    assert dataset.labels == FOUR
    for k in range(3):
        sample = dataset[k]
        image = sample.image.permute(1, 2, 0).numpy()
        if schema == "raw":
            assert np.array_equal(image, values[f"image{k}"])
        else:  # JPEG decoders may round differently by up to 2 levels; the one this was written with agreed exactly
            assert np.abs(image.astype(int) - values[f"jpeg_decoded{k}"]).max() <= 2
        assert np.array_equal(sample.label.numpy(), values[f"label{k}"])
        assert (sample.label[0] == IGNORE_INDEX).all()
        assert sample.name == (f"img{k}" if schema == "encoded" else f"raw_schema_0000{k}")
    check_promises(dataset)


def test_label_pictures_keep_their_values(tmp_path):
    ids = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    narrow = Image.fromarray(ids % 4)
    wide = Image.fromarray(ids.astype(np.uint16))
    jpeg = picture(np.zeros((2, 3, 3)), "JPEG")
    labels = (picture(palette), picture(narrow, bits=2), picture(wide), picture(np.dstack([ids] * 3)))
    found = read(put(tmp_path / "x.tfrecord", *(encoded(jpeg, label) for label in labels)))
    expected = (ids, ids % 4, ids, ids)
    for sample, label in zip(found, expected, strict=True):
        assert np.array_equal(sample.label.numpy(), label)


@pytest.mark.parametrize("turned", [True, False])
def test_exif_orientation_follows_the_label(tmp_path, turned):
    pixels = np.random.default_rng(3).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = put(
        tmp_path / "x.tfrecord", encoded(picture(pixels, exif=exif), picture(np.zeros((3, 2)[:: 1 if turned else -1])))
    )
    image = read(file)[0].image.permute(1, 2, 0).numpy()
    assert np.array_equal(image, np.rot90(pixels, 3) if turned else pixels)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b"2007_000032", "2007_000032"),
        (b"city/frame_1.PNG", "city/frame_1"),
        (b"./frame.0.5", "frame.0.5"),
        (b"/home/someone/a.jpg", "a"),
        (rb"C:\data\a.jpeg", "a"),
        (b"../../etc/x.jpg", "etc/x"),
        (b"a\0\n\xff.jpg", "a__�"),
        (b"..", "x_00000"),
        (b"", "x_00000"),
    ],
)
def test_names(tmp_path, written, name):
    image, label = picture(np.zeros((1, 2, 3))), picture(np.zeros((1, 2)))
    assert read(put(tmp_path / "x.tfrecord", encoded(image, label, written)))[0].name == name


def test_unpacked_numbers_and_other_keys(tmp_path):
    """Some writers put each integer into a field of its own; a key more is nobody's harm."""
    single = b"\x12" + bytes([2 + 2]) + b"\x1a\x02\x08\x02"  # value: int64 list: field 1 as a varint, 2
    example = encode_example(raw(more=b"?"))
    packed = b"\x12\x05\x1a\x03\x0a\x01\x02"
    assert example.count(packed) == 1
    changed = example.replace(b"\x0a\x0e\x0a\x05width" + packed, b"\x0a\x0d\x0a\x05width" + single)
    assert len(changed) == len(example) - 1
    changed = b"\x0a" + bytes([changed[1] - 1]) + changed[2:]
    (tmp_path / "x.tfrecord").write_bytes(framed(changed))
    assert read(tmp_path / "x.tfrecord")[0].label.tolist() == [[0, 1]]


# ---- writing ------------------------------------------------------------------------------------------------


def test_a_written_record_byte_by_byte(tmp_path):
    sample = Sample(
        torch.tensor([[[1, 4]], [[2, 5]], [[3, 6]]], dtype=torch.uint8),
        torch.tensor([[0, 255]], dtype=torch.uint8),
        "x",
    )
    write_tfrecord(Samples([sample]), tmp_path / "x.tfrecord", "raw")
    rows = (
        b"\x0a\x0f" + b"\x0a\x06height" + b"\x12\x05\x1a\x03\x0a\x01\x01",
        b"\x0a\x0e" + b"\x0a\x05width" + b"\x12\x05\x1a\x03\x0a\x01\x02",
        b"\x0a\x17" + b"\x0a\x09image_raw" + b"\x12\x0a\x0a\x08\x0a\x06\1\2\3\4\5\6",
        b"\x0a\x18" + b"\x0a\x0eannotation_raw" + b"\x12\x06\x0a\x04\x0a\x02\0\xff",
    )
    table = b"".join(rows)
    payload = b"\x0a" + bytes([len(table)]) + table
    length = struct.pack("<Q", len(payload))
    assert (tmp_path / "x.tfrecord").read_bytes() == length + masked(length) + payload + masked(payload)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_round_trip(tmp_path, schema):
    calls = []
    write_tfrecord(samples(), tmp_path / "x.tfrecord", schema, lambda p: calls.append((p.done, p.total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for k, (expected, found) in enumerate(zip(samples(), read(tmp_path / "x.tfrecord"), strict=True)):
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.label, expected.label)
        assert found.name == (f"x_0000{k}" if schema == "raw" else expected.name)
    # And from one schema into another.
    dataset = SourceDataset([*sources_in([tmp_path / "x.tfrecord"])], FOUR, MaskRule.plain(FOUR))
    write_tfrecord(dataset, tmp_path / "y.tfrecord", "deeplab")
    assert torch.equal(read(tmp_path / "y.tfrecord")[1].image, samples()[1].image)


def test_jpeg_files_are_kept_byte_by_byte_unless_turned(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for name, orientation, size in (("a", 1, (6, 4)), ("b", 6, (4, 6)), ("c", 3, (6, 4))):  # b by 90, c by 180 degrees
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{name}.jpg", exif=exif)
        Image.new("L", size).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    write_tfrecord(open_dataset(tmp_path), tmp_path / "x.tfrecord")
    write_tfrecord(open_dataset(tmp_path / "x.tfrecord"), tmp_path / "y.tfrecord", "deeplab")
    kept = (tmp_path / "images" / "a.jpg").read_bytes()
    for file in ("x.tfrecord", "y.tfrecord"):
        data = (tmp_path / file).read_bytes()
        assert data.count(kept) == 1
        assert data.count(b"\xff\xd8\xff") == 1  # no other JPEG
        for expected, found in zip(open_dataset(tmp_path), read(tmp_path / file), strict=True):
            assert torch.equal(found.image, expected.image)


def test_what_cannot_be_written(tmp_path):
    file = tmp_path / "x.tfrecord"
    file.write_bytes(b"old")
    with pytest.raises(UserError, match='unknown TFRecord format "deplab". Did you mean "deeplab"'):
        write_tfrecord(samples(), file, "deplab")
    with pytest.raises(UserError, match=r"file called NAME\.tfrecord"):
        write_tfrecord(samples(), tmp_path / "x.rec")
    with pytest.raises(UserError, match="holds no image"):
        write_tfrecord(Samples(), file)

    class Broken(Samples):
        def __getitem__(self, index):
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        write_tfrecord(Broken(samples()), file)
    assert [place.name for place in tmp_path.iterdir()] == ["x.tfrecord"]
    assert file.read_bytes() == b"old"


# ---- as a dataset -------------------------------------------------------------------------------------------


def test_any_order_copies_and_workers(tmp_path):
    scenes = SyntheticScenes("train", 7, (64, 80))
    for shard in range(2):
        part = Samples(scenes[k] for k in range(4 * shard, min(7, 4 * shard + 4)))
        part.labels = scenes.labels
        write_tfrecord(part, tmp_path / f"train-0000{shard}-of-00002.tfrecord")
    (tmp_path / "classes.txt").write_text("\n".join(scenes.labels.names))
    dataset = open_dataset(tmp_path)
    copied = pickle.loads(pickle.dumps(dataset))  # as a started process gets it
    for k in np.random.default_rng(0).permutation(7):
        assert torch.equal(dataset[k].image, scenes[int(k)].image)
        assert torch.equal(copied[k].label, scenes[int(k)].label)
    batches = [
        list(itertools.islice(training_batches(source, TrainTransform((48, 48)), 2, seed=1, workers=workers), 5))
        for source, workers in ((scenes, 0), (dataset, 0), (dataset, 2))
    ]
    for first, *others in zip(*batches, strict=True):
        for other in others:
            assert torch.equal(first.image, other.image)
            assert torch.equal(first.label, other.label)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["voc_train.tfrecord", "voc_val.tfrecord"], {"train": 1, "val": 1}),
        (["train.tfrecords", "validation.tfrecords", "test.tfrecords"], {"train": 1, "val": 1, "test": 1}),
        (["train-00000-of-00002", "train-00001-of-00002", "val-00000-of-00001"], {"train": 2, "val": 1}),
        (["road_1280x720_val-00000.tfrecord", "road_1280x720_val-00001.tfrecord"], {"val": 2}),
        (["x-train.tfrecord-00000-of-00001", "x-trainval.TFRECORD"], {"train": 1, "trainval": 1}),
        (["train_aug-00000-of-00002.tfrecord", "train_aug-00001-of-00002.tfrecord"], {"train_aug": 2}),
        (["cats.tfrecord"], {"train": 1}),
        (["cats.tfrecord", "dogs-00000-of-00001"], {"cats": 1, "dogs": 1}),
    ],
)
@pytest.mark.parametrize("inside", [".", "records", "tfrecords"])
def test_splits_by_file_names(tmp_path, names, splits, inside):
    for name in names:
        put(tmp_path / inside / name, raw())
    (tmp_path / inside / "model.ckpt.data-00000-of-00001").write_bytes(b"no record file")
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n0,sky,1,2,3\n1,road,4,5,6\n")
    for split, count in splits.items():
        dataset = open_dataset(tmp_path, split)
        assert (len(dataset), dataset.labels.names) == (count, ("sky", "road"))
    with pytest.raises(UserError, match=r'has no split "dev"; it has: .*add a file dev\.tfrecord'):
        open_dataset(tmp_path, "dev")


def test_a_file_brings_its_shards_and_the_other_splits(tmp_path):
    for name in (
        "a_train-00000-of-00002",
        "a_train-00001-of-00002",
        "a_val.tfrecord",
        "b_train.tfrecord",
        "c.tfrecord",
    ):
        put(tmp_path / name, raw())
    assert [len(open_dataset(tmp_path / "a_train-00001-of-00002", s)) for s in ("train", "val")] == [2, 1]
    assert len(open_dataset(tmp_path / "b_train.tfrecord")) == len(open_dataset(tmp_path / "c.tfrecord")) == 1
    with pytest.raises(UserError, match=r"records of several datasets \(a, b\); give one file"):
        open_dataset(tmp_path)
    put(tmp_path / "d" / "train_aug.tfrecord", raw(), raw(), raw())
    for split in ("train", "val"):
        put(tmp_path / "d" / f"{split}.tfrecord", raw())
    assert [len(open_dataset(tmp_path / "d" / "train_aug.tfrecord", s)) for s in ("train", "val")] == [3, 1]
    (tmp_path / "a_train-00000-of-00002").unlink()
    assert "train: only 1 of 2 shards are there" in notes_of(open_dataset(tmp_path / "a_val.tfrecord", "val"))
    assert not is_record_file(Path("._train.tfrecord"))
    put(tmp_path / "e.tfrecord")
    with pytest.raises(UserError, match='the split "train" of .* is empty'):
        open_dataset(tmp_path / "e.tfrecord")


def test_classes_of_a_model_and_of_a_description(tmp_path):
    file = put(tmp_path / "train.tfrecord", raw())
    names = LabelSpace(("a", "b", "c"), ((0, 0, 0),) * 3)
    assert open_dataset(file, labels=names).labels == names  # the classes were guessed from the labels
    (tmp_path / "dataset.yaml").write_text("classes: [rest, car]\nids: {0: void, 1: 1}\n")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("rest", "car")
    assert dataset[0].label.tolist() == [[255, 1]]
    with pytest.raises(UserError, match=r"has 2 classes \(rest, car\); expected 3"):
        open_dataset(tmp_path, labels=names)
    white = put(tmp_path / "b" / "train.tfrecord", raw(label=b"\0\xff"))
    assert open_dataset(white)[0].label.tolist() == [[0, 1]]


def test_check_counts_and_names_places(tmp_path):
    file = put(tmp_path / "train.tfrecord", raw(), raw(label=b"\1\xff", image=b"abcdef"), raw(label=b"\0\5"), raw())
    data = bytearray(file.read_bytes())
    second = [record.offset for record in records_in(file)][1]
    data[-30] ^= 1  # in the last payload
    file.write_bytes(data)
    put(tmp_path / "val.tfrecord", raw())
    with (tmp_path / "val.tfrecord").open("ab") as stream:
        stream.write(b"half a header")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    report = check_data(tmp_path)
    assert report.splits["train"].class_pixels == [2, 2]
    assert report.splits["train"].void_pixels == 2
    assert report.splits["train"].sizes == {"2x1": 3}
    assert report.unknown == {"5": (1, 1)}
    text = str(report)
    for message in (
        "1 record that cannot be read",
        "its checksum does not match",
        f"train.tfrecord, record 2 (byte {2 * second}) has the ids 5; expected 0 to 1",
        "1 file whose records are lost from some place on",
        f"at byte {second}",
        "1 image of val that is in train too",
    ):
        assert message in text, message


def test_export_check_and_train_from_the_command_line(tmp_path):
    def run(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.output if result.exception is None else result.exception

    file, table = tmp_path / "out" / "scenes_train.tfrecord", tmp_path / "out" / "classes.csv"
    output = run("data", "export", "synthetic:3", "-o", file, "--format", "deeplab")
    assert output.strip().splitlines()[-1] == f"records: {file} (3 images); classes: {table}"
    run("data", "export", "synthetic:2", "-o", file.with_name("scenes_val.tfrecord"), "--split", "val")
    report = json.loads(run("data", "check", file.parent, "--json"))
    assert report["ok"]
    assert {name: split["num_images"] for name, split in report["splits"].items()} == {"train": 3, "val": 2}
    assert report["classes"] == list(SyntheticScenes.labels.names)
    assert run("data", "preview", file, "-o", tmp_path / "sheet.png").startswith("preview: ")
    batch = next(training_batches(open_dataset(file.parent), TrainTransform((32, 32)), 2, seed=0))
    assert batch.image.shape == (2, 3, 32, 32)
    own = tmp_path / "own" / "scenes_train.tfrecord"
    assert write_records("synthetic:3", own, schema="deeplab") == (3, own.with_name("classes.csv"))
    assert own.read_bytes() == file.read_bytes()
    assert own.with_name("classes.csv").read_bytes() == table.read_bytes()
    assert "degrid data export" in run("data", "export", "--help")
    # Nothing is left of an export that cannot be.
    assert 'format "xml"' in str(
        run("data", "export", "synthetic:2", "-o", tmp_path / "b" / "x.tfrecord", "--format", "xml")
    )
    assert not (tmp_path / "b").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "classes.txt").write_text("other\n")
    assert "names classes other than" in str(run("data", "export", "synthetic:2", "-o", tmp_path / "c" / "x.tfrecord"))
    assert [place.name for place in (tmp_path / "c").iterdir()] == ["classes.txt"]


# ---- damage: always a ConversionError that names file and place -----------------------------------------------


def refused(data, folder, message):
    file = folder / "x.tfrecord"
    file.write_bytes(data)
    with pytest.raises(ConversionError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert "byte" in str(caught.value)


def test_damaged_framing(tmp_path):
    good = framed(encode_example(raw()))
    refused(good[:-1], tmp_path, "cut short within record 0, which begins at byte 0")
    refused(good + good[:5], tmp_path, f"header of a record of 12 bytes reaches beyond the end at byte {len(good)}")
    refused(good + b"\0" * 12, tmp_path, f"no TFRecord header, or a damaged one, at byte {len(good)}")
    refused(good[:20] + b"?" + good[21:], tmp_path, "checksum does not match.* at byte 12")
    refused(good[:-1] + b"?", tmp_path, "checksum does not match.* at byte 12")
    refused(b"\x1f\x8b" + b"x" * 30, tmp_path, "compressed by gzip")
    huge = struct.pack("<Q", 1 << 62)
    refused(huge + masked(huge) + b"x" * 9, tmp_path, "cut short within record 0")
    (tmp_path / "x.tfrecord").write_bytes(good)
    dataset = open_dataset(tmp_path)
    (tmp_path / "x.tfrecord").write_bytes(good[:-9])  # shortened after it was opened
    with pytest.raises(ConversionError, match="a record of .* reaches beyond the end at byte 12"):
        dataset[0]
    (tmp_path / "x.tfrecord").unlink()
    with pytest.raises(UserError, match="cannot read .*No such file"):
        dataset[0]


IMAGE, LABEL = picture(np.zeros((2, 3, 3))), picture(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({}, "but found none in the record at byte 12"),
        (
            {"image/encoded": IMAGE, "image/label": 3},
            r"\(deeplab\), but found image/encoded, image/label in the record",
        ),
        (raw(image=b"\0" * 5), '"image_raw" has 5 bytes, where 2x1 pixels take 6, at byte'),
        (raw(label=b"\0"), '"annotation_raw" has 1 bytes, where 2x1 pixels take 2'),
        (raw(height=1 << 60), "where 2x1152921504606846976 pixels take"),
        (raw(height=0, image=b"", label=b""), "where 2x0 pixels take 0"),
        (raw(height=b"1"), '"height" holds no whole numbers'),
        (raw(image=3), '"image_raw" holds no bytes'),
        ({k: v for k, v in raw().items() if k != "width"}, 'the key "width" is missing'),
        (encoded(IMAGE, picture(np.zeros((3, 3)))), "a label of 3x3 pixels for an image of 3x2 at byte"),
        (encoded(IMAGE, picture(np.zeros((3, 2)))), "a label of 2x3 pixels for an image of 3x2 at byte"),
        # Before anything of such a size is decoded: the picture's data are not there.
        (encoded(picture(Image.new("1", (9000, 9000)))[:60], LABEL), "a label of 3x2 pixels for an image of 9000x9000"),
        (encoded(IMAGE, picture(np.zeros((2, 3)), "JPEG")), "the label at byte .* is a JPEG: .*Save masks as PNG"),
        (encoded(IMAGE[:45], LABEL), "the image at byte .* is not a JPEG or PNG file, or a damaged one"),
        (encoded(IMAGE, LABEL[:40]), "the label at byte .* is not a JPEG or PNG file, or a damaged one"),
        (encoded(picture(np.zeros((2, 3, 3)), "BMP"), LABEL), "the image at byte .* is not a JPEG or PNG file"),
        (encoded(IMAGE, b""), "the label at byte .* is not a JPEG or PNG file"),
    ],
)
def test_records_that_are_refused(tmp_path, example, message):
    refused(framed(encode_example(example)), tmp_path, message)


def test_messages_that_are_no_example(tmp_path):
    refused(framed(b"plain text"), tmp_path, "at byte")
    refused(framed(b"\x0a\x7f"), tmp_path, "field 1 of 127 bytes reaches beyond the end")
    refused(framed(b"\x08\x05"), tmp_path, "field 1 holds a number where a message is expected")
    refused(framed(b"\x0a\x05\x0a\x03\x0a\x01\xff"), tmp_path, "a key is not text")


_GOOD = [(GOLDEN / f"{schema}_schema.tfrecord").read_bytes() for schema in ("encoded", "raw")]
_EDIT = st.tuples(
    st.sampled_from(["set", "del", "put", "cut"]), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)
)


def edited(data, edits):
    data = bytearray(data)
    for kind, place, value in edits:
        at = int(place * len(data))
        if kind == "cut":
            del data[max(at, 1) :]
        else:
            data[at : at + (0 if kind == "put" else len(value))] = b"" if kind == "del" else value
    return bytes(data)


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good=st.sampled_from(_GOOD), edits=st.lists(_EDIT, min_size=1, max_size=6), inside=st.booleans())
def test_any_damage_is_reported(tmp_path, good, edits, inside):
    """Inside: a payload is changed and gets a checksum that fits, so that the change is not found by that."""
    length = struct.unpack("<Q", good[:8])[0]
    file = tmp_path / "x.tfrecord"
    file.write_bytes(framed(edited(good[12 : 12 + length], edits)) if inside else edited(good, edits))
    try:
        read_all = [RecordSource(record).read() for record in records_in(file)]
    except ConversionError as error:
        message = str(error)
    else:
        message = f"{file} byte"
        assert all(image.shape[:2] == label.shape[:2] for _, image, label, *_ in read_all)
    assert str(file) in message
    assert "byte" in message


def test_the_checksum_of_the_test_is_the_standard_one():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
