"""More that is given to degrid: benchmarks, GeoTIFFs, folders of Hugging Face, exported files, and full disks."""

import math
import os
import resource
import shutil
import struct
import tarfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import datasets
import numpy as np
import rasterio
from hypothesis import strategies as st
from PIL import Image
from test_geotiff import PLACE as MAP
from typer.testing import CliRunner

import degrid
from degrid.bands import open_scene, read_values
from degrid.cli import app
from degrid.data import prepare_benchmark
from degrid.data.formats.pairs import Pair
from degrid.data.formats.read_mask import read_mask
from degrid.data.synthetic import LABELS
from degrid.image import read_image
from degrid.raster import is_on_map, tiff_header
from degrid.types import Bands, UserError
from fuzz import kinds
from fuzz.benchmarks import BENCHMARKS
from fuzz.datasets import IDS
from fuzz.edits import EDIT, PLACE, edited
from fuzz.kinds import DAMAGE, Kind, damage, read_dataset_in, scratch, sound_images, sound_model

# ---- benchmarks ---------------------------------------------------------------------------------------------


@cache
def sound_benchmarks() -> Path:
    for name, write in BENCHMARKS.items():
        (scratch() / "benchmarks" / name).mkdir(parents=True)
        write(scratch() / "benchmarks" / name)
    return scratch() / "benchmarks"


MOVE = st.tuples(st.sampled_from(["remove", "rename", "double", "empty", "folder", "up"]), PLACE, PLACE)
"""A change of a folder: one file is away, has another's name or content, or is something else."""


def move(root: Path, change) -> None:
    what, place, other = change
    files = sorted(root.rglob("*"))
    if not files:
        return
    file, source = files[int(place * len(files))], files[int(other * len(files))]
    match what:
        case "remove" if file.is_file():
            file.unlink()
        case "remove":
            shutil.rmtree(file)
        case "rename" if file.is_file():
            file.rename(file.with_name(source.name if not file.with_name(source.name).is_dir() else "other"))
        case "double" if file.is_file() and source.is_file() and file != source:
            shutil.copy(source, file)
        case "empty" if file.is_file():
            file.write_bytes(b"")
        case "folder" if file.is_file():
            file.unlink()
            file.mkdir()
        case "up" if not (root / file.name).exists():
            file.rename(root / file.name)


def read_benchmark(case, folder: Path) -> None:
    """As it is, or prepared first."""
    name, moves, changes, prepare = case
    root = folder / "data"
    shutil.copytree(sound_benchmarks() / name, root)
    for each in moves:
        move(root, each)
    for change in changes:
        damage(root, change)
    if prepare:
        prepare_benchmark(name.split()[0] if name in list(BENCHMARKS)[:6] else "voc", root)
        assert not list(root.rglob("*.tmp"))
    read_dataset_in(root)


# ---- GeoTIFFs -----------------------------------------------------------------------------------------------


@cache
def sound_maps() -> dict[str, bytes]:
    """Maps of several types, in tiles and strips, compressed or not, with and without a value for no data."""
    found, rng = {}, np.random.default_rng(0)
    for name, count, kind, more in (
        ("bytes", 3, "uint8", {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}),
        ("words", 4, "uint16", {"nodata": 65535, "compress": "lzw", "predictor": 2}),
        ("floats", 1, "float32", {"nodata": -9999.0}),
        ("bands", 3, "int16", {"interleave": "band", "nodata": -1}),
        ("mask", 1, "uint8", {"photometric": "palette"}),
    ):
        values = rng.integers(0, 3 if name == "mask" else 200, (count, 20, 24)).astype(kind)
        profile = {**MAP, "width": 24, "height": 20, "count": count, "dtype": kind, **more}
        with rasterio.MemoryFile() as memory:
            with memory.open(driver="GTiff", **profile) as opened:
                opened.write(values)
                if name == "mask":
                    opened.write_colormap(1, {k: (k, 9, 9, 255) for k in range(256)})
            found[name] = bytes(memory.read())
    return found


TAG = st.tuples(
    PLACE,
    st.sampled_from(["tag", "type", "count", "value", "value", "swap", "bytes"]),
    st.sampled_from([0, 1, 2, 3, 4, 5, 8, 12, 16, 17, 255, 256, 257, 1000, 65535, 1 << 20, 2**31 - 1, 2**32 - 1]),
    EDIT,
)
"""A change of one entry in a TIFF's table of tags."""


def retagged(data: bytes, changes) -> bytes:
    out = bytearray(data)
    table = struct.unpack_from("<I", out, 4)[0]
    number = struct.unpack_from("<H", out, table)[0]
    for place, what, value, edit in changes:
        at = table + 2 + 12 * int(place * number)
        match what:
            case "tag":
                struct.pack_into("<H", out, at, value & 0xFFFF)
            case "type":
                struct.pack_into("<H", out, at + 2, value & 0xFFFF)
            case "count":
                struct.pack_into("<I", out, at + 4, value)
            case "value":
                struct.pack_into("<I", out, at + 8, value)
            case "swap":
                other = table + 2 + 12 * (value % number)
                out[at : at + 12], out[other : other + 12] = out[other : other + 12], out[at : at + 12]
            case "bytes":
                out = bytearray(edited(bytes(out), [edit]).ljust(len(data), b"\0"))
    return bytes(out)


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A TIFF that says it has this size."""
    out = bytearray(data)
    table = struct.unpack_from("<I", out, 4)[0]
    for at in range(table + 2, table + 2 + 12 * struct.unpack_from("<H", out, table)[0], 12):
        tag = struct.unpack_from("<H", out, at)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", out, at, tag, 4, 1, width if tag == 256 else height)
    return bytes(out)


_SIDES = [1, 20, 24, 255, 256, 257, 1000, 2000, 65535, 1 << 20, 2**31 - 1, 2**32 - 1]
_SLOW = range(1 << 22, 1 << 28)
"""Pixels that a map claims to have with which it is not predicted here: too many for 30 s, where the file holds them,
and too few to be refused for lack of memory. The time is that of any image of that size.
"""


def read_map(case, folder: Path) -> str:
    """As an image, bands, a mask, an open scene, and as one of two images to predict."""
    place, changes, predicts = case
    maps = sound_maps()
    file = folder / "in" / "x.tif"
    file.parent.mkdir()
    file.write_bytes(retagged(maps[sorted(maps)[int(place * len(maps))]], changes))
    pair, outcome = Pair("x", file, file), "refused"
    for read in (
        *(lambda: read_image(file), lambda: read_values(file), lambda: read_mask(file), pair.read),
        *(lambda: open_scene(file, Bands(3, "file"), 1 << 30), pair.is_plain, pair.no_data, lambda: is_on_map(file)),
    ):
        try:
            read()
            outcome = "accepted"
        except UserError:
            continue
    header = tiff_header(file)
    if predicts and header is not None and math.prod(header.size) not in _SLOW:
        found = degrid.predict(kinds._sound_predictor(), [folder / "in"], folder / "out", device="cpu")
        assert found.images + len(found.failures) + len(found.left_out) >= 1
        assert not list((folder / "out").rglob("*.tmp"))
    return outcome


def predict_claim(case, folder: Path) -> None:
    """A map that claims to be larger than its file is read if it is small enough, and refused otherwise."""
    name, width, height = case
    file = folder / "in" / "x.tif"
    file.parent.mkdir()
    file.write_bytes(claiming(sound_maps()[name], width, height))
    header = tiff_header(file)
    assert header is not None
    assert header.size == (width, height)
    if width * height not in _SLOW:
        found = degrid.predict(kinds._sound_predictor(), [file], folder / "out", device="cpu")
        assert found.images + len(found.failures) == 1
        assert not list((folder / "out").rglob("*.tmp"))


# ---- Hugging Face ---------------------------------------------------------------------------------------------


@cache
def sound_tables() -> Path:
    """What `save_to_disk` writes, parquet files, and images beside their table."""
    root = scratch() / "tables"
    datasets.disable_progress_bars()
    pictures = [Image.fromarray(np.full((6, 8, 3), 40 * k, np.uint8)) for k in range(3)]
    columns = {"image": datasets.Image(), "annotation": datasets.Image(), "text": datasets.Value("string")}
    rows = {"image": pictures, "annotation": [Image.fromarray(IDS)] * 3, "text": ["a", "b", "c"]}
    table = datasets.Dataset.from_dict(rows, datasets.Features(columns))
    datasets.DatasetDict(train=table, validation=table).save_to_disk(root / "saved")
    (root / "parquet" / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        table.to_parquet(root / "parquet" / "data" / f"{split}-00000-of-00001.parquet")
    (root / "parquet" / "id2label.json").write_text('{"0": "road", "1": "car", "2": "sign"}')
    (root / "folder" / "train").mkdir(parents=True)
    lines = []
    for k, picture in enumerate(pictures):
        picture.save(root / "folder" / "train" / f"i{k}.png")
        Image.fromarray(IDS).save(root / "folder" / "train" / f"m{k}.png")
        lines.append(f'{{"file_name": "i{k}.png", "mask_file_name": "m{k}.png"}}\n')
    (root / "folder" / "train" / "metadata.jsonl").write_text("".join(lines))
    return root


def read_table(case, folder: Path) -> None:
    name, moves, changes = case
    root = folder / "data"
    shutil.copytree(sound_tables() / name, root)
    for each in moves:
        move(root, each)
    for change in changes:
        damage(root, change)
    try:
        with mock.patch("datasets.config.HF_DATASETS_CACHE", folder / "cache"):
            read_dataset_in(f"hf:{root}")
    except UserError as error:
        if "(MemoryError)" in str(error):  # Arrow asks for the memory that a damaged file claims, and fills none of it
            raise UserError(str(error)) from None
        raise


# ---- exported models ----------------------------------------------------------------------------------------


@cache
def sound_exports() -> Path:
    folder = scratch() / "exported"
    for name in ("m.onnx", "m.xml", "m.pt2"):
        kind = {"m.onnx": "onnx", "m.xml": "openvino", "m.pt2": "torch-export"}[name]
        degrid.export(degrid.load(sound_model()), folder / kind / name, format=kind)
    sound_images()
    return folder


def open_export(case, folder: Path) -> None:
    """Predict, evaluate or describe with a damaged file."""
    kind, edits, verb = case
    shutil.copytree(sound_exports() / kind, folder / "m")
    files = sorted((folder / "m").iterdir())
    for place, edit in edits:
        file = files[int(place * len(files))]
        file.write_bytes(edited(file.read_bytes(), [edit]))
    file = next(file for file in files if file.suffix != ".bin")
    match verb:
        case "predict":
            (folder / "a.png").write_bytes(sound_images()["photo.png"])
            try:
                degrid.predict(file, [folder / "a.png"], folder / "out", device="cpu")
            finally:
                assert not list((folder / "out").rglob("*.tmp"))
        case "eval":
            shutil.copytree(sound_benchmarks() / "voc", folder / "data")
            degrid.evaluate(file, "synthetic:1", device="cpu")
        case "info":
            degrid.describe(file)


# ---- full disks and interruptions -----------------------------------------------------------------------------


@contextmanager
def little_room(limit: int):
    """No file may be larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def interrupted(number: int):
    """Ctrl-C when the n-th file is about to get its name."""
    left, real = [number], os.fsync

    def fsync(handle):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(handle)

    with mock.patch("os.fsync", fsync):
        yield


_EVAL = ["--data", "synthetic:1", "--device", "cpu"]
WRITERS = {
    "predict": ["predict", "M", "I", "-o", "out"],
    "eval": ["eval", "M", *_EVAL, "-o", "out/scores.json", "--calibration", "--worst", "1"],
    "compare": ["compare", "M", "M", *_EVAL, "--draws", "2", "-o", "out/c.json"],
    "export onnx": ["export", "M", "-o", "out/m.onnx"],
    "export openvino": ["export", "M", "-o", "out/m.xml", "--format", "openvino"],
    "export pt2": ["export", "M", "-o", "out/m.pt2", "--format", "torch-export"],
    "preview": ["data", "preview", "D", "-n", "2", "-o", "out/p.png"],
    "records": ["data", "export", "D", "-o", "out/d.tfrecord"],
    "plot": ["plot", "R", "-o", "out"],
    "collect": ["collect", "R", "-o", "out/r.tgz"],
    **{f"prepare {name}": ["data", "prepare", name, "out"] for name in list(BENCHMARKS)[:6] if "palette" not in name},
}


@cache
def sound_writing(name: str) -> dict[str, bytes]:
    """What a command writes, by the names of the files."""
    folder, here = scratch() / "writing" / name, Path.cwd()
    folder.mkdir(parents=True)
    result = CliRunner().invoke(app, _ready(name, folder))
    os.chdir(here)
    assert result.exit_code == 0, (name, result.output, result.exception)
    return _contents(folder / "out")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _ready(name: str, folder: Path) -> list[str]:
    """The words of a command, and what it needs in the folder."""
    places = {
        "M": scratch() / "scenes",
        "I": scratch() / "photos",
        "D": scratch() / "data" / "table",
        "R": folder / "run",
    }
    if name.startswith("prepare"):
        shutil.copytree(sound_benchmarks() / name.split()[1], folder / "out")
    if name in ("plot", "collect"):
        kinds._run_folder(folder / "run")
    os.chdir(folder)
    return [str(places.get(word, word)) for word in WRITERS[name]]


def write_with_little_room(case, folder: Path) -> str:
    """Every file that is there afterwards is whole: as the command leaves it, or as it was before."""
    name, how, size, old = case
    sound = sound_writing(name)
    if old and not name.startswith("prepare"):
        for file in sound:
            (folder / "out" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "out" / file).write_bytes(b"old")
    words = _ready(name, folder)
    with little_room(size) if how == "room" else interrupted(size % 7):
        result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit | UserError | KeyboardInterrupt):
        raise result.exception
    for file, data in _contents(folder / "out").items():
        assert not file.endswith(".tmp"), f"{file} is left"
        assert file in sound, f"{file} is no result"
        if data != b"old" and file.endswith(".tgz"):  # holds the time
            with tarfile.open(folder / "out" / file) as archive:
                assert all(archive.extractfile(member).read() for member in archive if member.isfile())
        elif data != b"old" and file.endswith(".xml"):  # OpenVINO draws some names
            assert ElementTree.fromstring(data).tag == "net"
        else:
            assert data in (sound[file], b"old"), f"{file} is half-written: {len(data)} of {len(sound[file])} bytes"
    return "accepted" if result.exit_code == 0 else "refused"


def _prepare_writing() -> None:
    model = degrid.deeplabv3("timm:test_resnet", LABELS, output_stride=16, channels=8, pretrained=False)
    degrid.save(model, scratch() / "scenes")
    (scratch() / "photos").mkdir(exist_ok=True)
    for name in ("a", "b"):
        (scratch() / "photos" / f"{name}.png").write_bytes(sound_images()["photo.png"])
    kinds.sound_datasets()
    sound_benchmarks()


def _prepare_exporting() -> None:
    _prepare_writing()
    for name in WRITERS:
        if name.startswith("export"):
            sound_writing(name)


_DAMAGES = st.lists(DAMAGE, max_size=2)
_MOVES = st.lists(MOVE, max_size=2)
KINDS: dict[str, Kind] = kinds.KINDS | {
    kind.name: kind
    for kind in (
        Kind(
            "benchmarks",
            st.tuples(st.sampled_from(list(BENCHMARKS)), _MOVES, _DAMAGES, st.booleans()),
            read_benchmark,
            sound_benchmarks,
        ),
        Kind(
            "maps",
            st.tuples(PLACE, st.lists(TAG, min_size=1, max_size=3), st.integers(0, 9).map(lambda number: number == 0)),
            read_map,
            lambda: (sound_maps(), kinds._sound_predictor()),
        ),
        Kind(
            "claims",
            st.tuples(st.sampled_from(["bands", "bytes", "floats", "mask", "words"]), *[st.sampled_from(_SIDES)] * 2),
            predict_claim,
            lambda: (sound_maps(), kinds._sound_predictor()),
        ),
        Kind(
            "tables",
            st.tuples(st.sampled_from(["saved", "parquet", "folder"]), _MOVES, _DAMAGES),
            read_table,
            sound_tables,
        ),
        Kind(
            "exports",
            st.tuples(
                st.sampled_from(["onnx", "openvino", "torch-export"]),
                st.lists(st.tuples(PLACE, EDIT), min_size=1, max_size=3),
                st.sampled_from(["predict", "eval", "info"]),
            ),
            open_export,
            sound_exports,
        ),
        *(
            Kind(
                what,
                st.tuples(
                    st.sampled_from([name for name in WRITERS if name.startswith("export") == (what == "exporting")]),
                    st.sampled_from(["room", "interrupt"]),
                    st.integers(0, 300) | st.integers(0, 30_000),
                    st.booleans(),
                ),
                write_with_little_room,
                prepare,
            )
            for what, prepare in (("writing", _prepare_writing), ("exporting", _prepare_exporting))
        ),
    )
}
"""By name."""
