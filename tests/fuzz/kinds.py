"""What is given to degrid: for each kind of input, a strategy that draws cases and a function that runs one."""

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
import typer
from hypothesis import strategies as st
from mask_writers import ENCODINGS
from PIL import Image
from test_convert_faults import KINDS as CHECKPOINTS
from test_convert_faults import valid_files
from torchvision.models import segmentation
from typer.testing import CliRunner

import degrid
from degrid import config, recipes
from degrid.analysis.curves import read_curves
from degrid.bands import read_values
from degrid.checkpoints.readers.files import read_tensors
from degrid.checkpoints.systems.table import find_system
from degrid.cli import app
from degrid.config import describe_settings
from degrid.data.formats.masks import MaskReading
from degrid.data.formats.pairs import Pair
from degrid.data.formats.read_mask import read_mask, remarks_on
from degrid.exporters.facts import Facts
from degrid.image import IMAGE_SUFFIXES, read_image
from degrid.networks import build_model
from degrid.types import IGNORE_INDEX, Bands, LabelSpace, UserError, voc_palette
from degrid.verbs.run_settings import check_settings
from degrid.verbs.train import run_config
from fuzz.datasets import DATASETS
from fuzz.edits import CHANGE, EDIT, PLACE, SCALARS, TYPO, VALUES, as_json, as_yaml, changed, edited, retyped


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    cases: draws one. run: gives it to degrid within an empty folder. prepare: what is made once, outside the limits.
    """

    name: str
    cases: st.SearchStrategy[Any]
    run: Callable[[Any, Path], Any]
    prepare: Callable[[], Any] = lambda: None


@cache
def scratch() -> Path:
    """A folder for what is made once."""
    return Path(tempfile.mkdtemp(prefix="degrid_fuzz_"))


# ---- datasets -----------------------------------------------------------------------------------------------


_TREES, _TEXTS = (".json", ".yaml"), (".json", ".yaml", ".txt", ".csv")
_SEVERAL = {"tree": st.lists(CHANGE, min_size=1, max_size=3), "text": st.lists(TYPO, min_size=1, max_size=3)}
_SEVERAL["bytes"] = st.lists(EDIT, min_size=1, max_size=4)
DAMAGE = st.sampled_from(["tree", "tree", "text", "text", "bytes"]).flatmap(
    lambda how: st.tuples(st.just(how), PLACE, _SEVERAL[how])
)
"""A change of one file, see `damage`."""


def damage(root: Path, change) -> None:
    """Change one file in a folder: values, words or bytes."""
    how, place, edits = change
    files = sorted(file for file in root.rglob("*") if file.is_file())
    suffixes = {"tree": _TREES, "text": _TEXTS}.get(how)
    chosen = [file for file in files if suffixes is None or file.suffix in suffixes]
    if not chosen:
        return
    file = chosen[int(place * len(chosen))]
    data = file.read_bytes()
    match how:
        case "tree":
            try:
                value = changed(json.loads(data), edits)
            except (ValueError, RecursionError):  # changed before
                return
            data = as_json(value) if file.suffix == ".json" else as_yaml(value)
        case "text":
            data = retyped(data, edits)
        case "bytes":
            data = edited(data, edits)
    file.unlink()  # it may be a link to the sound one
    file.write_bytes(data)


@cache
def sound_datasets() -> Path:
    for name, write in DATASETS.items():
        (scratch() / "data" / name).mkdir(parents=True)
        write(scratch() / "data" / name)
    return scratch() / "data"


def read_dataset(case, folder: Path) -> None:
    name, *changes = case
    root = folder / "data"
    shutil.copytree(sound_datasets() / name, root)
    for change in changes:
        damage(root, change)
    read_dataset_in(root)


def read_dataset_in(root: Path | str) -> None:
    """What `data check` calls sound is read."""
    report = degrid.check_data(root, processes=1)
    assert str(report)
    json.dumps(report.to_dict())
    for split in report.splits:
        data = degrid.open_dataset(root, split)
        for index in range(len(data)):
            try:
                check_sample(data[index], data)
            except UserError:
                if report.ok:
                    raise AssertionError(f"check_data found nothing wrong with sample {index} of {split}") from None
                raise


def check_sample(sample, data) -> None:
    assert sample.image.dtype == sample.label.dtype == torch.uint8
    assert sample.image.shape[1:] == sample.label.shape
    assert ((sample.label < len(data.labels)) | (sample.label == IGNORE_INDEX)).all()


# ---- settings -----------------------------------------------------------------------------------------------


def _setting_names() -> list[str]:
    return [setting.path for setting in describe_settings() if setting.type != "group"]


_PLAUSIBLE = [
    "0",
    "-1",
    "1",
    "2",
    "0.5",
    "1,2",
    "1,2,3",
    "true",
    "none",
    "[1,2]",
    "{}",
    '{"a": 1}',
    "1e400",
    "nan",
    "-inf",
    "x:y",
]
SETTING = st.tuples(
    st.deferred(lambda: st.sampled_from(_setting_names()))
    | st.sampled_from(["model", "optim.options.b", "a", "", "."]),
    st.sampled_from(_PLAUSIBLE) | SCALARS | VALUES,
)


def read_settings(case, folder: Path) -> None:
    """Settings as text, as values, and in a file, agree."""
    recipe, given, as_text = case
    if as_text:
        texts = [f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in given]
        found = run_config(recipe, settings=texts)
    else:
        found = run_config(recipe, settings=dict(given))
    written = json.dumps(config.to_dict(found))
    (folder / "run.json").write_bytes(written.encode("utf-8", "surrogatepass"))
    assert repr(recipes.load(str(folder / "run.json"))) == repr(found)
    check_settings(found)


def read_run_file(case, folder: Path) -> None:
    recipe, how, edits = case
    data = as_json({"config": config.to_dict(recipes.load(recipe)), "degrid": "0.1.0"})
    (folder / "run.json").write_bytes(data)
    damage(folder, (how, 0, edits))
    check_settings(recipes.load(str(folder / "run.json")))


# ---- images -------------------------------------------------------------------------------------------------


@cache
def sound_images() -> dict[str, bytes]:
    """Label images in every encoding, and photographs, by their file's name."""
    found, folder = {}, scratch() / "images"
    folder.mkdir()
    table = np.array(voc_palette(256), np.uint8)
    ids = np.arange(70).reshape(7, 10) % 2
    for number, (name, encoding) in enumerate(ENCODINGS.items()):
        file = folder / f"{number} {name}{encoding.suffix}".replace(",", "")
        encoding.write(file, table[ids] if encoding.colors else ids, table)
        found[file.name] = file.read_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    for name, options in {
        "photo.jpg": {},
        "turned.jpg": {"exif": exif},
        "slow.jpg": {"progressive": True},
        "photo.png": {},
        "photo.webp": {},
        "photo.tif": {},
        "photo.jp2": {},
        "photo.gif": {},
        "photo.bmp": {},
        "photo.avif": {},
        "photo.ppm": {},
    }.items():
        Image.fromarray(pixels).save(folder / name, **options)
        found[name] = (folder / name).read_bytes()
    Image.fromarray(pixels).convert("CMYK").save(folder / "print.jpg")
    found["print.jpg"] = (folder / "print.jpg").read_bytes()
    return found


def read_picture(case, folder: Path) -> str:
    """As an image, as a label image, and as bands, whatever it is; each on its own."""
    place, edits = case
    names = sorted(sound_images())
    name = names[int(place * len(names))]
    file = folder / f"x{Path(name).suffix}"
    file.write_bytes(edited(sound_images()[name], edits))
    outcome = "refused"
    pair = Pair("x", file, file)
    for read in (
        *(lambda: read_image(file), lambda: read_mask(file), lambda: read_mask(file, MaskReading(lossy=True))),
        *(lambda: read_values(file), pair.read_image),
    ):
        try:
            found = read()
        except UserError:
            continue
        outcome = "accepted"
        assert found.ndim in (2, 3)
    for look in (pair.is_plain, pair.no_data, lambda: remarks_on(file)):
        look()
    return outcome


# ---- checkpoints --------------------------------------------------------------------------------------------


def read_checkpoint(case, folder: Path) -> None:
    place, edits, whole = case
    kind = CHECKPOINTS[int(place * len(CHECKPOINTS))]
    for name, data in valid_files().items():
        if name.partition(".")[0] == kind.partition(".")[0]:
            (folder / name).write_bytes(edited(data, edits) if name == kind else data)
    if whole:
        try:
            degrid.convert(folder / kind, folder / "out")
        finally:
            assert not (folder / "out").exists() or degrid.load(folder / "out")
    else:
        assert read_tensors(folder / kind).tensors


@cache
def sound_states() -> list[dict[str, list[int]]]:
    """Names and shapes, made small, of networks of torchvision."""
    with torch.device("meta"):
        networks = [
            segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None),
            segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None),
            torchvision.models.resnet18(weights=None),
        ]
    return [
        {name: [min(size, 3) for size in each.shape] for name, each in net.state_dict().items()} for net in networks
    ]


def plan_conversion(case, folder: Path) -> None:
    """Tensors with names of a known system, some missing, called otherwise or of another shape."""
    place, changes = case
    shapes = changed(sound_states()[int(place * len(sound_states()))], changes)
    if not isinstance(shapes, dict):
        return
    sizes = {
        name: [size % 5 for size in shape if isinstance(size, int)][:6] if isinstance(shape, list) else []
        for name, shape in shapes.items()
    }
    tensors = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    find_system(tensors, None, folder)[0].plan(tensors)


# ---- models -------------------------------------------------------------------------------------------------


@cache
def sound_model() -> Path:
    labels = LabelSpace(("road", "car"), ((1, 2, 3), (4, 5, 6)))
    model = degrid.deeplabv3("timm:test_resnet", labels, output_stride=16, channels=8, pretrained=False)
    degrid.save(model, scratch() / "model")
    return scratch() / "model"


def read_model(case, folder: Path) -> None:
    shutil.copytree(sound_model(), folder / "model", copy_function=shutil.copyfile)
    damage(folder / "model", case)
    model = degrid.load(folder / "model")
    with torch.no_grad():
        count = model.bands.count if hasattr(model, "bands") else 3
        assert model(torch.zeros(1, count, 33, 40)).shape[1] == len(model.labels)


# ---- networks, training, prediction ---------------------------------------------------------------------------


_SMALL = ["model.encoder=timm:test_resnet", "model.pretrained=false", "model.channels=8", "model.output_stride=16"]
_SHORT = ["train.steps=1", "train.eval_every=1", "train.batch_size=2", "data.crop=32,32", "train.device=cpu"]
_WORDS_OF_SETTINGS = [
    *(
        "0",
        "1",
        "2",
        "3",
        "4",
        "8",
        "-1",
        "0.5",
        "1,2",
        "1,2,4",
        "6,12,18",
        "0,0",
        "1,1,1",
        "nan",
        "inf",
        "1e30",
        "none",
    ),
    *("true", "false", "x", "tent", "ssc", "gi", "gaussian", "adamw", "torch.optim:RMSprop", "cosine", "step", "focal"),
    *("dice+lovasz", "ohem", "frozen", "logits", "bfloat16", "tf_legacy", "all", '{"sigma": 0}', '{"size": 2}', "file"),
    *('{"alpha": 0.3}', '{"nesterov": true}', "median_frequency", "deeplabv2", "deeplabv3", "0,4095", "100000", "-5"),
    *("1.5", "0.0003", "0.75,0.5", "0,1", "1,0", "0.1,0.1,0.1,0.6", "2,2", "a:b", "0,0,0,0"),
]
# What names files, other data, other encoders or processes is fuzzed elsewhere, or goes on for long.
_NOT = ("path", "workers", "trackers", "init", "then", "encoder", "pretrained", "steps", "epochs", "device", "crop")


def _assignments(*groups: str):
    names = st.deferred(
        lambda: st.sampled_from(
            [name for name in _setting_names() if name.startswith(groups) and name.rpartition(".")[2] not in _NOT]
        )
    )
    return st.lists(st.tuples(names, st.sampled_from(_WORDS_OF_SETTINGS)).map("=".join), min_size=1, max_size=3)


def build_network(case, folder: Path) -> None:
    found = run_config("synthetic", settings=[*_SMALL, *case])
    model = build_model(found.model, LabelSpace.of_size(3)).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, model.bands.count, 33, 40)).shape[:2] == (1, 3)


def train_briefly(case, folder: Path) -> None:
    try:
        degrid.train("synthetic", data="synthetic:2", settings=[*_SMALL, *_SHORT, *case], out=folder / "run")
    except UserError:
        run = folder / "run"
        assert not (run / "model").exists() or degrid.load(run)
        raise
    assert degrid.load(folder / "run")


def predict_pictures(case, folder: Path) -> str:
    """A damaged image beside a sound one: the sound one is predicted, and nothing is left half-written."""
    (folder / "in").mkdir()
    names = sorted(name for name in sound_images() if Path(name).suffix in IMAGE_SUFFIXES)
    place, edits = case
    name = names[int(place * len(names))]
    (folder / "in" / f"x{Path(name).suffix}").write_bytes(edited(sound_images()[name], edits))
    (folder / "in" / "sound.png").write_bytes(sound_images()["photo.png"])
    found = degrid.predict(_sound_predictor(), [folder / "in"], folder / "out", device="cpu")
    assert (folder / "out" / "sound.png").is_file()
    assert found.images + len(found.failures) == 2
    json.loads((folder / "out" / "summary.json").read_text())
    for file in (folder / "out").rglob("*"):
        assert not file.name.endswith(".tmp")
        if file.suffix in (".png", ".jpg"):
            Image.open(file).load()
    return "refused" if found.failures else "accepted"


@cache
def _sound_predictor():
    return degrid.load(sound_model())


def _prepare_prediction() -> None:
    sound_images()
    _sound_predictor()


# ---- records of runs ----------------------------------------------------------------------------------------


def _run_folder(root: Path) -> None:
    scores = {"miou": 0.5, "pixel_accuracy": 0.7, "class_iou": {"road": 0.5, "car": None}}
    rows = [{"step": k, "loss": 1 / (k + 1), "lr": 0.01} for k in range(4)] + [{"step": 3, "val": scores}]
    root.mkdir()
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "run.json").write_text(json.dumps({"config": {"train": {"batch_size": 2, "accumulate": 1}}}))
    (root / "log.txt").write_text("data; 10 training and 3 validation images\n")


_LOG = "Iteration: 0\n0, 1.5, 0.100\n10, 1.25, 0.200\nclass 0: 0.5\nmIoU: 0.500\nPixel Accuracy: 0.7\n10, 1.0, 0.3\n"


def read_records(case, folder: Path) -> None:
    old, changes = case
    if old:
        (folder / "run").mkdir()
        (folder / "run" / "log.txt").write_text(_LOG)
    else:
        _run_folder(folder / "run")
    for change in changes:
        name, edits = change
        files = sorted((folder / "run").iterdir())
        file = files[int(name * len(files))]
        file.write_bytes(retyped(file.read_bytes(), edits))
    found = read_curves(folder / "run")
    assert len(found.steps) == len(found.loss)
    degrid.collect(folder / "run", folder / "x.tgz")


# ---- exported models ----------------------------------------------------------------------------------------


def read_facts(case, folder: Path) -> None:
    """What an exported model says about itself."""
    classes = (("road", (1, 2, 3)), ("car", (4, 5, 6)))
    facts = Facts(classes, "ids", "uint8", "half_pixel", "0.1.0", size=(4, 5), bands=Bands(4, ((0, 9),) * 4))
    value = json.loads(facts.to_json())
    how, _, edits = case
    data = as_json(changed(value, edits)) if how == "tree" else as_json(value)
    data = retyped(data, edits) if how == "text" else edited(data, edits) if how == "bytes" else data
    found = Facts.read(data.decode("utf-8", "replace"), folder / "x.onnx")
    LabelSpace(*zip(*found.classes, strict=True))


# ---- command lines ------------------------------------------------------------------------------------------


COMMANDS = {
    command.name: command
    for command in typer.main.get_command(app).commands.values()
    if not hasattr(command, "commands")
}
COMMANDS |= {f"data {name}": each for name, each in typer.main.get_command(app).commands["data"].commands.items()}
_LONG = {"bench": "degrid.bench.suite.run", "demo": "degrid.demo", "train": "degrid.verbs.train.run"}
"""Commands that take minutes when all is well; only what their arguments become is tried."""
PLACES = (
    "model",
    "data",
    "data/images",
    "data/images/a.png",
    "data/classes.csv",
    "data/empty",
    "run",
    "missing",
    "x/y.json",
)
WORDS = (
    *PLACES,
    "",
    "-",
    "0",
    "-1",
    "1",
    "2",
    "nan",
    "1e9",
    "0.5",
    "33x40",
    "0x0",
    "x",
    "a=b",
    "synthetic:2",
    "val",
    "ids",
)


@st.composite
def _command_lines(draw):
    name = draw(st.sampled_from(sorted(COMMANDS)))
    words = name.split()
    place = st.sampled_from(PLACES) | st.sampled_from(WORDS)
    for parameter in COMMANDS[name].params:
        required = parameter.required or draw(st.integers(0, 5)) == 0
        if not required or parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            words.append(draw(place))
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[-1])
        else:
            words += [parameter.opts[-1], draw(place | st.sampled_from(["model.channels=8", "train.steps=0"]))]
    return [*words, *draw(st.lists(place, max_size=1))]


@cache
def sound_places() -> Path:
    root = scratch() / "places"
    shutil.copytree(sound_model(), root / "model")
    shutil.copytree(sound_datasets() / "table", root / "data")
    (root / "data" / "empty").touch()
    _run_folder(root / "run")
    return root


def run_command(case, folder: Path) -> str:
    """Through the runner of the command line, in a folder with a model, data, a run and an empty file."""
    shutil.copytree(sound_places(), folder, dirs_exist_ok=True)
    name = next(name for name in COMMANDS if case[: len(name.split())] == name.split())
    stub = mock.patch(_LONG[name], side_effect=UserError("not run")) if name in _LONG else nullcontext()
    with stub:
        result = CliRunner().invoke(app, case)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.output
    return "accepted" if result.exit_code == 0 else "refused"


_NAMES = st.sampled_from(list(DATASETS))
_RECIPES = st.sampled_from(["synthetic", "folder", "camvid", "deeplabv2_voc12", "deeplabv3plus_voc12", "eth_voc12"])
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("settings", st.tuples(_RECIPES, st.lists(SETTING, min_size=1, max_size=3), st.booleans()), read_settings),
        Kind(
            "run files",
            st.sampled_from(["tree", "tree", "text", "bytes"]).flatmap(
                lambda how: st.tuples(_RECIPES, st.just(how), _SEVERAL[how])
            ),
            read_run_file,
        ),
        Kind(
            "datasets",
            st.tuples(_NAMES, DAMAGE) | st.tuples(_NAMES, DAMAGE, DAMAGE),
            read_dataset,
            sound_datasets,
        ),
        Kind("images", st.tuples(PLACE, _SEVERAL["bytes"]), read_picture, sound_images),
        Kind("checkpoints", st.tuples(PLACE, _SEVERAL["bytes"], st.booleans()), read_checkpoint, valid_files),
        Kind("state dicts", st.tuples(PLACE, _SEVERAL["tree"]), plan_conversion, sound_states),
        Kind("models", DAMAGE, read_model, sound_model),
        Kind(
            "records",
            st.tuples(
                st.booleans(),
                st.lists(st.tuples(PLACE, st.lists(TYPO, min_size=1, max_size=3)), min_size=1, max_size=3),
            ),
            read_records,
        ),
        Kind("facts", DAMAGE, read_facts),
        Kind("networks", _assignments("model."), build_network),
        Kind("training", _assignments("model.", "optim.", "train.", "data."), train_briefly),
        Kind("predictions", st.tuples(PLACE, _SEVERAL["bytes"]), predict_pictures, _prepare_prediction),
        Kind("arguments", _command_lines(), run_command, sound_places),
    )
}
"""By name."""
