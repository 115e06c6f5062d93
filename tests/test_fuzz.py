"""Damaged and absurd inputs of every kind end in a result or in one sentence.

`DEGRID_FUZZ=10000` gives degrid more inputs than the 300 of the slow tests, `DEGRID_FUZZ_SEED=1` others.
"""

import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fuzz.datasets import DATASETS
from mask_writers import tiff
from test_tools_polygons import TRUTH

import degrid
from degrid.config import RunConfig, from_dict, override
from degrid.data.formats.hugging_face.rows import Row
from degrid.data.formats.read_mask import read_mask
from degrid.exporters.facts import Facts
from degrid.files import parse_json, parse_yaml
from degrid.image import read_image, values_to_bytes
from degrid.raster import tiff_header
from degrid.types import Bands, LabelSpace, UserError

NUMBER = int(os.environ.get("DEGRID_FUZZ", "300"))
SEED = int(os.environ.get("DEGRID_FUZZ_SEED", "0"))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "HF_HUB_OFFLINE": "1"}  # arenas take address space
SHARES = {
    "settings": 16,
    "run files": 8,
    "datasets": 22,
    "images": 13,
    "checkpoints": 7,
    "state dicts": 2,
    "models": 4,
    "records": 4,
    "facts": 3,
    "arguments": 4,
    "networks": 1,
    "training": 1,
    "predictions": 1,
    "benchmarks": 4,
    "maps": 5,
    "claims": 1,
    "tables": 2,
    "writing": 2,
}
"""Kinds of input, with their percentage of all inputs."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc")
def test_every_input_gives_a_result_or_a_sentence(tmp_path):
    wanted = [f"{kind}:{NUMBER * share // 100}" for kind, share in SHARES.items()]
    places = [str(Path(__file__).parent), str(Path(degrid.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worker", str(SEED), tmp_path, *wanted],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), **ENVIRONMENT},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for each in found:
        print(f"{each['kind']}: {each['outcomes']}, {each['slowest']:.2f} s, {each['grown']:.0f} MiB")
    failures = [f"{key}\n{each['case']}\n{each['error']}" for kind in found for key, each in kind["failures"].items()]
    assert not failures, "\n".join(failures)
    last = (tmp_path / "case.txt").read_text()
    assert done.returncode == 0, f"the process ended within {last}{done.stderr}"
    assert [each["kind"] for each in found] == list(SHARES)
    assert all(sum(each["outcomes"].values()) and each["outcomes"].keys() <= {"accepted", "refused"} for each in found)


# ---- what was found so ----------------------------------------------------------------------------------------


def changed(value, path, new):
    """JSON values with another one at a path such as "images 0 id"; None removes it."""
    *above, last = [int(part) if part.isdecimal() else part for part in path.split()]
    node = value
    for part in above:
        node = node[part]
    if new is None:
        del node[last]
    else:
        node[last] = new


@pytest.mark.parametrize(
    ("dataset", "file", "path", "new", "message"),
    [
        ("panoptic", "annotations/panoptic_train2017.json", "categories 0", {"id": 1}, "each with id and name"),
        ("panoptic", "annotations/panoptic_train2017.json", "categories 0", "road", "each with id and name"),
        ("panoptic", "annotations/panoptic_train2017.json", "images 0 file_name", None, "images, and annotations"),
        ("panoptic", "annotations/panoptic_train2017.json", "annotations 0 segments_info 0 id", [1], "their segments"),
        ("COCO", "annotations/instances_default.json", "images 0 width", [8], "images, each with file_name, height"),
        ("Segments.ai", "roads-v1.0.json", "dataset task_attributes categories", [[1]], "categories and samples"),
        (
            "Label Studio",
            "project.json",
            "0 annotations 0 result 0 original_height",
            [6],
            "tasks with their annotations",
        ),
    ],
)
def test_values_of_another_form(tmp_path, dataset, file, path, new, message):
    DATASETS[dataset](tmp_path)
    value = json.loads((tmp_path / file).read_text())
    changed(value, path, new)
    (tmp_path / file).write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"{Path(file).name}: expected .*{message}"):
        degrid.open_dataset(tmp_path)[0]


def test_a_task_without_an_image(tmp_path):
    DATASETS["Label Studio"](tmp_path)
    value = json.loads((tmp_path / "project.json").read_text())
    del value[0]["data"]["image"]
    (tmp_path / "project.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="project.json: the task 0 has shapes, but names no image"):
        degrid.check_data(tmp_path)


def test_names_that_no_file_can_have(tmp_path):
    DATASETS["lists"](tmp_path)
    (tmp_path / "train.txt").write_text(f"/images/a.png /masks/a.png\n/images/{'a' * 300}.png /masks/a.png\n")
    report = degrid.check_data(tmp_path, processes=1)
    assert len(report.problems) == 1
    with pytest.raises(UserError, match="1 of 2 images in the split .* are missing"):
        degrid.open_dataset(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"/images/a.png /masks/\0a.png\n")
    with pytest.raises(UserError, match="train.txt is not UTF-8 text"):
        degrid.open_dataset(tmp_path)
    with pytest.raises(UserError, match="cannot read .*null byte"):
        read_mask(tmp_path / "a\0.png")


def test_deep_values():
    deep = "[" * 1000
    for parse in (parse_json, parse_yaml):
        with pytest.raises(ValueError, match="nested too deep"):
            parse(deep)
    with pytest.raises(UserError, match="expected a number, got '\\[\\["):
        override(RunConfig(), [f"optim.lr={deep}"])
    with pytest.raises(ValueError, match="too deep, or contain themselves"):
        parse_yaml("&a [*a]")


def test_references_that_stand_for_too_much():
    lines = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 8)]
    with pytest.raises(ValueError, match="stand for too much"):
        parse_yaml("\n".join(["a0: &a0 [1, 2]", *lines]))
    assert parse_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


def test_numbers_too_large_for_a_fraction():
    with pytest.raises(UserError, match='"optim.lr": the number is too large'):
        from_dict(RunConfig, {"optim": {"lr": 10**400}})


def test_claims_of_images_take_no_memory(tmp_path):
    """A tag of a TIFF and a box of a JPEG 2000 that are said to hold 64 MiB."""
    whole = tiff(TRUTH, nodata="0 ".ljust(9))
    tag = struct.pack("<HHI", 42113, 2, 10)
    assert tag in whole
    (tmp_path / "a.tif").write_bytes(whole.replace(tag, struct.pack("<HHI", 42113, 2, 1 << 26)))
    box = struct.pack(">I4s", 1 << 26, b"ftyp")
    (tmp_path / "a.jp2").write_bytes(struct.pack(">I4sI", 12, b"jP  ", 0x0D0A870A) + box + bytes(9))
    for name in ("a.tif", "a.jp2"):
        tracemalloc.start()
        with pytest.raises(UserError, match=f"{name} is"):
            read_image(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
        tracemalloc.stop()
    assert tiff_header(tmp_path / "a.tif") is None


def test_tags_of_another_type(tmp_path):
    """A width in letters, and a value for no data in numbers, count as not said."""
    sound = tiff(TRUTH, nodata="0")
    for tag, kind, new in ((256, 4, 2), (42113, 2, 3)):
        start = struct.pack("<HH", tag, kind)
        assert sound.count(start) == 1
        (tmp_path / "a.tif").write_bytes(sound.replace(start, struct.pack("<HH", tag, new)))
        header = tiff_header(tmp_path / "a.tif")
        assert (header.size[0], header.no_data) == ((0, 0.0) if tag == 256 else (TRUTH.shape[1], None))


def test_a_folder_where_a_row_of_a_table_names_an_image(tmp_path):
    cell = {"bytes": None, "path": str(tmp_path)}
    row = Row("a", [{"image": cell, "mask": cell}], 0, ("image", "mask"), "hf:x, row 0")
    for read in (row.image_file, row.read_image, row.read_label):
        with pytest.raises(UserError, match="row 0, .*: no such image: "):
            read()


def test_floats_that_are_no_numbers():
    """NaN is dark, infinity bright, and neither decides whether values are fractions."""
    values = np.array([[0.5, np.nan, np.inf, -np.inf, 1.0]], np.float32)
    assert values_to_bytes(values).tolist() == [[128, 0, 255, 0, 255]]


FACTS = {"classes": [["road", [1, 2, 3]]], "output": "ids", "input": "uint8", "resize": "half_pixel", "version": "1"}


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"classes": []},
            {"classes": [["road", [1, 2]]]},
            {"classes": [["road", [1, 2, 300]]]},
            {"classes": [[1, [1, 2, 3]]]},
        ),
        *(
            {"output": "x"},
            {"input": 3},
            {"resize": "x"},
            {"size": "x"},
            {"size": [1]},
            {"bands": {"count": 1}},
            {"y": 1},
        ),
    ],
)
def test_facts_of_another_form(tmp_path, change):
    assert Facts.read(json.dumps({**FACTS, "size": [4, 5]}), tmp_path).size == (4, 5)
    with pytest.raises(UserError, match="was not written by degrid export"):
        Facts.read(json.dumps({**FACTS, **change}), tmp_path)
    for text in ("null", "[]", ""):
        with pytest.raises(UserError, match="was not written by degrid export"):
            Facts.read(text, tmp_path)


def test_what_is_no_class():
    for names, colors, message in (
        (("a", 1), ((0, 0, 0), (1, 1, 1)), "class names are text; got 'a', 1"),
        (("a",), ((0, 0),), "three whole numbers from 0 to 255, got \\(0, 0\\)"),
        (("a",), ((0, 0, -1),), "three whole numbers"),
        (("a",), ("red",), "got 'red'"),
    ):
        with pytest.raises(UserError, match=message):
            LabelSpace(names, colors)
    assert Bands.of({"count": 1, "range": [[0, 9]]}) == Bands(1, ((0.0, 9.0),))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"channels": 0}, "model.channels, .*model.rates and model.dropout: .*got 0, 48, None"),
        ({"rates": (0,)}, "channels and rates from 1 to 10000"),
        ({"dropout": -1}, "a fraction from 0 to 1"),
        ({"dropout": float("nan")}, "a fraction from 0 to 1"),
        ({"in_channels": 10**30}, '"model.in_channels": expected at least 1 channel, at most 10000'),
        ({"multi_grid": (0,)}, '"model.multi_grid": expected factors from 1 to 10000'),
        ({"multi_grid": (10**30,)}, '"model.multi_grid": expected factors from 1 to 10000'),
        ({"operator": "torch.optim:RMSprop"}, "expected a class derived from torch.nn.Module"),
    ],
)
def test_settings_of_no_network(setting, message):
    with pytest.raises(UserError, match=message):
        degrid.deeplabv3("timm:test_resnet", 2, **{"output_stride": 16, "channels": 8, **setting})


def test_more_channels_than_the_data_have(tmp_path):
    settings = ["model.encoder=timm:test_resnet", "model.pretrained=false", "model.in_channels=4"]
    with pytest.raises(UserError, match='"model.in_channels": synthetic:2 gives images of 3 channels, got 4'):
        degrid.train("synthetic", data="synthetic:2", settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"std": (0.0, 1.0, 1.0)}, {"mean": (float("nan"), 1.0, 1.0)}])
def test_means_and_deviations(change):
    values = {"mean": (1.0, 1.0, 1.0), "std": (1.0, 1.0, 1.0), "bgr": False, **change}
    with pytest.raises(UserError, match="model.mean and model.std: expected numbers"):
        degrid.deeplabv3("timm:test_resnet", 2, output_stride=16, **values)


def test_a_model_folder_with_words_for_numbers(tmp_path):
    degrid.save(degrid.deeplabv3("timm:test_resnet", 2, output_stride=16, channels=8), tmp_path)
    file = tmp_path / "config.json"
    sound = file.read_text()
    for path, new in (
        ("preprocess mean", ["x"]),
        ("preprocess std 0", "x"),
        ("preprocess bgr", {}),
        ("preprocess", []),
    ):
        value = json.loads(sound)
        changed(value, path, new)
        file.write_text(json.dumps(value))
        with pytest.raises(UserError, match="config.json"):
            degrid.load(tmp_path)
