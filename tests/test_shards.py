"""Shards: what is written, read back from here and afar, damaged, and shared out among processes."""

import gc
import io
import itertools
import json
import multiprocessing
import os
import tarfile
import weakref
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import degrid
from degrid import UserError, config
from degrid.cli import app
from degrid.data import Share, check_data, notes_of, open_dataset, training_batches
from degrid.data import training as training_module
from degrid.data.formats import table
from degrid.data.shards import places
from degrid.data.shards.index import key_of, mask_ending, member_name, read_index, read_members
from degrid.data.training import through_buffer
from degrid.types import Bands
from degrid.verbs.run_start import open_data

TRAIN, VAL = 11, 3


def picture(index, seed=0):
    return np.random.default_rng([seed, index]).integers(0, 256, (6, 8 + index % 3, 3), dtype=np.uint8)


def put(file, array, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Images of several kinds whose names hold dots, folders and per cents, and masks of 0, 1 and void."""
    root = tmp_path_factory.mktemp("plain") / "photos"
    for index in range(TRAIN + VAL):
        suffix, options = [(".jpg", {"quality": 90}), (".png", {}), (".bmp", {})][index % 3]
        name = f"city/a.{index}%2E" if index == 4 else f"frame_{index:02d}"
        split = "train" if index < TRAIN else "val"
        put(root / split / "images" / f"{name}{suffix}", picture(index), **options)
        label = picture(index, 1)[..., 0] % 3
        put(root / split / "masks" / f"{name}.png", np.where(label == 2, 255, label).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    put(root / "train" / "images" / "frame_00.jpg", picture(0).transpose(1, 0, 2)[:, ::-1], exif=turned)
    put(root / "train" / "masks" / "frame_00.png", picture(0, 1)[..., 0] % 2)
    (root / "classes.txt").write_text("road\ncar\n")
    return root


@pytest.fixture(scope="module", params=["tar", "tfrecord"])
def shards(plain, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("shards") / request.param
    degrid.write_shards(plain, folder, kind=request.param, size=6000)
    return folder


def same(found, expected):
    assert len(found) == len(expected)
    assert found.labels == expected.labels
    for index in range(len(expected)):
        one, other = found[index], expected[index]
        assert one.name == other.name
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_give_what_was_written(plain, shards, split):
    found = open_dataset(shards, split, accept=[])
    same(found, open_dataset(plain, split))
    assert found.splits == ("train", "val")
    index = json.loads((shards / "shards.json").read_text())
    files = [row["file"] for row in index["splits"][split]]
    assert len(files) > 1 or split == "val"
    assert sum(row["samples"] for row in index["splits"][split]) == len(found)
    assert [row["name"] for row in index["classes"]] == ["road", "car"]
    assert [(shards / row["file"]).stat().st_size for row in index["splits"][split]] == [
        row["bytes"] for row in index["splits"][split]
    ]
    assert check_data(shards).ok


def test_an_address_gives_what_the_folder_gives(plain, shards):
    same(open_dataset(f"file://{shards}", "val"), open_dataset(plain, "val"))
    same(open_dataset(f"simplecache::file://{shards}/", "val"), open_dataset(plain, "val"))


@pytest.mark.parametrize("inside", ["", "a/b"])
def test_shards_in_an_archive(plain, shards, inside, tmp_path):
    """An address may be a chain of fsspec's."""
    files = sorted(shards.iterdir())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in files:
            archive.write(file, f"{inside}/{file.name}".lstrip("/"))
        lost = {each.file for each in read_index(str(shards)).splits["train"][:1]}
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for file in files:
            if file.name not in lost:
                archive.write(file, f"{inside}/{file.name}".lstrip("/"))
    same(open_dataset(f"zip://{inside}::file://{tmp_path}/all.zip", "val"), open_dataset(plain, "val"))
    some = open_dataset(f"zip://{inside}::file://{tmp_path}/some.zip", skip_bad_shards=True)
    assert "1 damaged shard left out" in notes_of(some)[-1]
    assert all(name in notes_of(some)[-1] for name in lost)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_programs_read_the_shards(plain, shards):
    """WebDataset, which leaves files open, and the reader of TFRecord files that knows nothing of shards.json."""
    expected = open_dataset(plain, "train")
    if shards.name == "tfrecord":
        (layout,) = [table.read_as("TFRecord", shards)]
        assert [source.name for source in layout.splits["train"]] == [source.name for source in expected.sources]
        labels = [source.read().label for source in layout.splits["train"]]
    else:
        webdataset = pytest.importorskip("webdataset")
        urls = [str(file) for file in sorted(shards.glob("train-*.tar"))]
        rows = list(webdataset.WebDataset(urls, shardshuffle=False))  # its decoder would make RGB of labels
        assert [member_name(row["__key__"]) for row in rows] == [source.name for source in expected.sources]
        labels = [np.asarray(Image.open(io.BytesIO(row["seg.png"]))) for row in rows]
        images = [np.asarray(Image.open(io.BytesIO(row.get("jpg") or row["png"]))) for row in rows]
        for image, sample in zip(images, (expected[index] for index in range(TRAIN)), strict=True):
            assert np.abs(image.astype(int) - sample.image.permute(1, 2, 0).numpy()).max() <= 2  # JPEG decoders round
    gc.collect()
    for index, label in enumerate(labels):
        assert np.array_equal(label, expected[index].label.numpy())


def test_files_are_copied_where_every_reader_sees_the_same(plain, tmp_path):
    degrid.write_shards(plain, tmp_path, splits=["train"])
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        held = {entry.name: archive.extractfile(entry).read() for entry in archive}
    images = plain / "train" / "images"
    assert held["frame_03.jpg"] == (images / "frame_03.jpg").read_bytes()
    assert held["frame_01.png"] == (images / "frame_01.png").read_bytes()
    assert "frame_00.png" in held  # turned by EXIF
    assert "frame_02.png" in held  # a BMP
    assert "city/a%2E4%252E.png" in held


@settings(max_examples=50)
@given(st.text(st.sampled_from("ab.%2E5/"), min_size=1))
def test_names_survive(name):
    key = key_of(name)
    assert member_name(key) == name
    assert "." not in key.rpartition("/")[2]


@pytest.mark.parametrize(
    ("endings", "image", "mask"),
    [
        (["jpg", "seg.png"], "jpg", "seg.png"),
        (["jpg", "mask.png", "json"], "jpg", "mask.png"),
        (["png", "label.png", "depth.png"], "png", "label.png"),
        (["jpg", "png"], "jpg", "png"),
        (["jpg", "cls"], "", ""),
        (["jpg", "png", "bmp"], "", ""),
    ],
)
def test_which_files_of_a_sample_are_image_and_mask(endings, image, mask):
    assert mask_ending(endings) == (image, mask)


def add(archive, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def encoded(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=kind)
    return stream.getvalue()


def foreign(file, count=3, first=0):
    with tarfile.open(file, "w") as archive:
        for index in range(first, first + count):
            add(archive, f"./s{index}.png", encoded(picture(index)))
            add(archive, f"./s{index}.mask.png", encoded(picture(index, 1)[..., 0] % 2))
    return file


def test_tar_files_of_others(tmp_path):
    foreign(tmp_path / "street-train-0.tar")
    foreign(tmp_path / "street-train-1.tar", first=3)
    foreign(tmp_path / "street-val-0.tar", 2)
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    assert [source.name for source in train.sources] == [f"s{index}" for index in range(6)]
    assert np.array_equal(train[4].image.permute(1, 2, 0).numpy(), picture(4))
    assert np.array_equal(train[4].label.numpy() // 255, picture(4, 1)[..., 0] % 2 // 255)
    assert len(val) == 2
    assert check_data(tmp_path).kind == "WebDataset"
    assert len(open_dataset(tmp_path / "street-val-0.tar", "val")) == 2
    data = (tmp_path / "street-train-0.tar").read_bytes()
    (tmp_path / "street-train-0.tar").write_bytes(data[:1800])
    with pytest.raises(UserError, match=r"street-train-0.tar is not a tar file, or is damaged or truncated"):
        open_dataset(tmp_path)
    rest = open_dataset(tmp_path, skip_bad_shards=True)
    assert [source.name for source in rest.sources] == ["s3", "s4", "s5"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_labels_of_another_size(tmp_path, kind):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, f"a.{kind.lower()}", encoded(picture(0), kind))
        add(archive, "a.seg.png", encoded(picture(0)[..., 0].T // 255))
    with pytest.raises(UserError, match="train-0.tar: a label of 6x8 pixels for an image of 8x6 at byte"):
        open_dataset(tmp_path)[0]


def test_images_of_other_bands_keep_their_values(tmp_path):
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    five = np.dstack([deep % 256] * 5).astype(np.uint8)
    for name, array in (("deep", deep), ("five", five)):
        folder = tmp_path / name
        for index in range(2):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            if name == "deep":
                put(folder / "images" / f"{index}.png", array + index)
            else:
                np.save(folder / "images" / f"{index}.npy", array + index)
            put(folder / "masks" / f"{index}.png", np.eye(6, 8, dtype=np.uint8))
        degrid.write_shards(folder, tmp_path / f"{name}_shards")
        for split in ("train", "val"):
            found, expected = open_dataset(tmp_path / f"{name}_shards", split), open_dataset(folder, split)
            assert found.bands == expected.bands
            same(found, expected)
            bands = Bands(1, ((0, 500),)) if name == "deep" else Bands(5, "bytes")
            assert np.array_equal(found.sources[0].read(bands).image, expected.sources[0].read(bands).image)
    with pytest.raises(UserError, match="TFRecord shards hold images of 3 channels"):
        degrid.write_shards(tmp_path / "five", tmp_path / "other", kind="tfrecord")


def test_writing_goes_on_where_it_stopped(plain, tmp_path, monkeypatch):
    degrid.write_shards(plain, tmp_path / "whole", size=6000)

    def stop(now):
        if now.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        degrid.write_shards(plain, tmp_path / "again", size=6000, progress=stop)
    there = sorted(file.name for file in (tmp_path / "again").iterdir())
    assert there == [f"train-00000{number}.tar{suffix}" for number in range(3) for suffix in ("", ".json")]
    before = (tmp_path / "again" / there[0]).stat().st_mtime_ns
    told = []
    degrid.write_shards(plain, tmp_path / "again", size=6000, progress=told.append)
    assert told[0].done == 7
    assert (told[0].task, told[-1].task, told[-1].done, told[-1].total) == ("writing train", "writing val", VAL, VAL)
    assert (tmp_path / "again" / there[0]).stat().st_mtime_ns == before
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="holds shards of train, val already"):
        degrid.write_shards(plain, tmp_path / "again")
    (tmp_path / "again" / "shards.json").unlink()
    with pytest.raises(UserError, match=r"train-000000.tar holds other images"):
        degrid.write_shards(plain, tmp_path / "again", shuffle=1)


def test_images_in_random_order(plain, tmp_path):
    degrid.write_shards(plain, tmp_path, splits=["train"], shuffle=5)
    names = [source.name for source in open_dataset(tmp_path).sources]
    expected = [source.name for source in open_dataset(plain).sources]
    assert names != expected
    assert sorted(names) == sorted(expected)


def test_an_image_that_comes_twice_has_two_names(plain, tmp_path):
    (tmp_path / "list.txt").write_text("/images/frame_01.png /masks/frame_01.png\n" * 2)
    dataset = open_dataset(tmp_path / "list.txt", root=plain / "train")
    assert len(dataset) == 2
    (tmp_path / "dataset.yaml").write_text(f"path: {plain / 'train'}\ntrain: {tmp_path / 'list.txt'}\n")
    degrid.write_shards(tmp_path / "dataset.yaml", tmp_path / "out")
    assert [source.name for source in open_dataset(tmp_path / "out").sources] == [
        "images/frame_01",
        "images/frame_01~2",
    ]


# ---- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def five(plain, tmp_path):
    """A folder of several shards that may be damaged."""
    degrid.write_shards(plain, tmp_path / "five", size=6000)
    return tmp_path / "five"


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("damage", ["cut", "gone", "no index"])
def test_a_damaged_shard_is_named_or_left_out(five, damage, far):
    file = five / "train-000001.tar"
    count = len(read_members(str(five), file.name)[1])
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-600])
    else:
        (file if damage == "gone" else file.with_name(f"{file.name}.json")).unlink()
    message = {"cut": "has .* bytes, where shards.json says", "gone": "is missing", "no index": "no such file|No such"}
    place = f"file://{five}" if far else five
    with pytest.raises(UserError, match=f"{file.name}.*({message[damage]})"):
        open_dataset(place)
    rest = open_dataset(place, skip_bad_shards=True)
    assert len(rest) == TRAIN - count
    assert f"1 damaged shard left out, with {count} image" in notes_of(rest)[-1]
    assert not check_data(five).ok


def test_the_option_of_training_counts_what_it_leaves_out(five):
    (five / "train-000001.tar").unlink()
    count = len(read_members(str(five), "train-000001.tar")[1])
    shown = CliRunner().invoke(app, ["train", "--data", str(five), "--skip-bad-shards", "--show"])
    data, _ = open_data(config.from_dict(config.RunConfig, json.loads(shown.output)))
    assert len(data.train) == TRAIN - count
    assert f"1 damaged shard left out, with {count} image" in " ".join(
        data.notes
    )  # which stand in log.txt and run.json


def test_a_changed_byte_is_noticed(five):
    file = five / "train-000001.tar"
    member = read_members(str(five), file.name)[1][0]
    data = bytearray(file.read_bytes())
    data[member.label.at + 30] ^= 1
    file.write_bytes(data)
    dataset = open_dataset(five)
    index = [source.name for source in dataset.sources].index(member.name)
    changed = rf"{file.name}: the sample {member.name} has changed since it was written .*: --skip-bad-shards"
    with pytest.raises(UserError, match=changed):
        dataset[index]
    assert len(dataset[0].name)
    names = [source.name for source in open_dataset(five, skip_bad_shards=True).sources]
    assert member.name not in names
    assert dataset[0].name in names


def test_no_sound_shard(five):
    for file in five.glob("val-*.tar"):
        file.unlink()
    with pytest.raises(UserError, match="no shard of . is sound"):
        open_dataset(five, "val", skip_bad_shards=True)


def test_faulty_indices(five):
    (five / "shards.json").write_text('{"format": "degrid shards 1", "splits": {}}')
    with pytest.raises(UserError, match=r"shards.json is not what degrid data shard writes"):
        open_dataset(five)
    with pytest.raises(UserError, match=r"cannot read memory://nowhere/shards.json: there is no such file"):
        open_dataset("memory://nowhere")
    with pytest.raises(UserError, match="cannot open nothing://x/shards.json"):
        open_dataset("nothing://x")
    for name, words in (
        ("../train-0.tar", "which is not beside it"),
        ("a\\\\b.tar", "not beside"),
        ("x.tar", "x.tar occurs twice"),
    ):
        shard = {"file": name, "samples": 1, "bytes": 1}
        index = {
            "format": "degrid shards 1",
            "classes": [{"name": "a", "color": [0, 0, 0]}],
            "splits": {"train": [shard] * 2},
        }
        (five / "shards.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=rf"shards.json is not what degrid data shard writes; .*{words}"):
            open_dataset(five)
    for given_kind, message in ((("zip", 1), 'unknown kind of shards "zip"'), (("tar", 0), "at least 1 byte")):
        with pytest.raises(UserError, match=message):
            degrid.write_shards(five, five / "x", kind=given_kind[0], size=given_kind[1])


def test_a_server_that_sends_whole_files_only(shards, monkeypatch):
    """As Python's http.server does, whatever part is asked for."""
    import fsspec

    class Server:
        def cat_file(self, path, start, end):
            return (shards / path).read_bytes()

        def size(self, path):
            return (shards / path).stat().st_size

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (Server(), address.rpartition("/")[2]))
    with pytest.raises(UserError, match=r"the server sends \d+; it must support requests for parts of files"):
        open_dataset("https://here/shards")[0]


def test_a_server_that_fails_now_and_then(monkeypatch):
    import fsspec

    answers = iter([OSError("busy"), OSError("busy"), b"abc"])

    class Server:
        def cat_file(self, path, start, end):
            answer = next(answers)
            if isinstance(answer, OSError):
                raise answer
            return answer[start:end]

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (Server(), "x"))
    monkeypatch.setattr(places, "_WAITS", (0, 0))
    assert places.read_part("s3://bucket/x", 1, 2) == b"bc"
    answers = itertools.repeat(OSError("busy"))
    with pytest.raises(UserError, match="cannot read s3://bucket/x: busy"):
        places.read_part("s3://bucket/x", 1, 2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loading_process_closes_nothing_of_the_one_that_started_it():
    """fsspec forgets after a fork what it has opened; the connections of aiohttp would be closed for both."""
    import fsspec

    closed = []

    class Far(fsspec.AbstractFileSystem):
        protocol = "far"

        def __init__(self, **options):
            super().__init__(**options)
            weakref.finalize(self, closed.append, os.getpid())

        def cat_file(self, path, start=None, end=None):
            gc.collect()
            return str(closed).encode()

    fsspec.register_implementation("far", Far, clobber=True)
    assert places.read_part("far://x") == b"[]"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(places.read_part, ("far://x",)) == b"[]"


# ---- training -----------------------------------------------------------------------------------------------


def keep(sample, rng):
    """The sample cut to one size, with a number of the generator's in a corner."""
    image = sample.image[:, :6, :8].clone()
    image[0, 0, 0] = int(rng.integers(256))
    return type(sample)(image, sample.label[:6, :8], sample.name)


class Worker:
    def __init__(self, id, num_workers):
        self.id, self.num_workers = id, num_workers


def epoch_names(dataset, monkeypatch, world, workers, buffer, epochs=4, total=4):
    """The names of the images of some epochs, in the order of steps, as all ranks and workers load them."""
    steps = epochs * len(dataset) // total
    names = [[] for _ in range(steps)]
    for rank in range(world):
        share = Share.of(total, 2, rank, world)
        batches = training_module._Batches(dataset, keep, share, 3, None, buffer)
        count = steps * share.pieces
        for worker in range(max(1, workers)):
            monkeypatch.setattr(
                training_module, "get_worker_info", lambda worker=worker: Worker(worker, workers) if workers else None
            )
            numbers = range(worker, count, max(1, workers))
            for number, batch in zip(numbers, training_module._Numbered(batches, 0), strict=False):
                names[number // share.pieces].append((number % share.pieces, rank, batch.names))
    monkeypatch.undo()
    return [name for step in names for _, _, each in sorted(step, key=lambda row: row[:2]) for name in each]


@pytest.mark.parametrize(("size", "buffer"), [(100_000, 4), (6000, 0), (6000, 3), (1, 0)])  # 1, 6 and 11 shards
def test_every_image_once_per_epoch_for_any_ranks_and_workers(plain, tmp_path, monkeypatch, size, buffer):
    degrid.write_shards(plain, tmp_path / "x", size=size, splits=["train"])
    assert len(list((tmp_path / "x").glob("*.tar"))) == {100_000: 1, 6000: 6, 1: TRAIN}[size]
    dataset = open_dataset(tmp_path / "x")
    threads = torch.get_num_threads()
    orders = {
        tuple(epoch_names(dataset, monkeypatch, world, workers, buffer))
        for world, workers in itertools.product(range(1, 5), range(4))
    }
    torch.set_num_threads(threads)
    (order,) = orders  # whoever loads, the steps hold the same images in the same order
    assert len(order) == 4 * TRAIN
    epochs = [order[first : first + TRAIN] for first in range(0, 4 * TRAIN, TRAIN)]
    for epoch in epochs:
        assert len({*epoch}) == TRAIN
    assert epochs[0] != epochs[1]


def test_without_a_buffer_shards_are_read_in_the_order_of_plain_files(plain, shards):
    def first(path, start=0, workers=0, buffer=0):
        stream = training_batches(open_dataset(path), keep, 4, 7, start, workers, buffer=buffer)
        return [(batch.names, batch.image.sum().item()) for batch in itertools.islice(stream, 6 - start)]

    whole = first(plain)
    assert first(shards) == first(f"file://{shards}") == whole
    assert first(shards, start=2, workers=1) == whole[2:]
    buffered = first(shards, buffer=3)
    assert buffered != whole
    assert first(shards, start=4, workers=1, buffer=3) == buffered[4:]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 99))
def test_a_buffer_keeps_every_image_and_its_neighbourhood(shard_of, size, seed):
    stores = np.unique(sorted(shard_of), return_inverse=True)[1]
    order = through_buffer(np.arange(len(stores)), stores, size, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(stores)))
    # The k-th image out of the buffer was among the first k + size that went in; shards go in one after another.
    shards = list(dict.fromkeys(stores[order].tolist()))
    assert len(shards) == stores.max() + 1
    if size == 1:
        assert [shard for shard, _ in itertools.groupby(stores[order].tolist())] == shards
        for shard in shards:
            inside = order[stores[order] == shard]
            assert (np.diff(inside) == 1).all()


def test_the_command(plain, tmp_path):
    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    done = run("data", "shard", plain, "-o", tmp_path / "x", "--size", "2K", "--split", "train", "--format", "tar")
    assert done.exit_code == 0, done.output
    assert f"train: {TRAIN} images in " in done.output
    assert max(file.stat().st_size for file in (tmp_path / "x").glob("*.tar")) < 8000
    assert zlib.crc32((tmp_path / "x" / "classes.csv").read_bytes())
    refused = run("data", "shard", plain, "-o", tmp_path / "y", "--size", "many")
    assert isinstance(refused.exception, UserError)
    assert "--size: expected a size such as 2GiB" in str(refused.exception)
