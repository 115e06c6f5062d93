"""degrid.train and degrid.collect from Python, without a shell, with the results of their commands."""

import json
import math
import os
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from claims import another
from PIL import Image
from test_run import TINY, cli, options, same, weights
from torch import nn

import degrid
from degrid import config, recipes
from degrid.engine.training.log import read_metrics
from degrid.engine.training.losses import make_losses
from degrid.engine.training.optimizers import make_optimizer, parameter_groups, schedule
from degrid.smoothing.table import operator_factory
from degrid.types import UserError
from degrid.verbs.run import RunResult
from degrid.verbs.run_settings import check_settings, idle_settings
from degrid.verbs.run_start import open_data
from degrid.verbs.train import run_config

SMALL = config.parse_settings([*TINY, "train.steps=4", "train.eval_every=2"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training by the command line and from Python; what Python was told."""
    folder = tmp_path_factory.mktemp("runs")
    words = [part for path, value in SMALL.items() for part in ("--set", f"{path}={value}")]
    code, output = cli("train", "--data", "synthetic:6", "--operator", "ssc", *words, "-o", folder / "command")
    assert code == 0, output
    shown, told = [], []
    result = degrid.train(
        data="synthetic:6",
        operator="ssc",
        settings=SMALL,
        out=folder / "python",
        progress=shown.append,
        tell=told.append,
    )
    return folder, result, shown, told, output


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def test_python_and_command_line_give_the_same_model_and_settings(runs):
    folder, result, *_ = runs
    assert result.folder == folder / "python"
    assert same(weights(folder / "command"), weights(folder / "python"))
    told = [json.loads((folder / name / "run.json").read_text())["config"] for name in ("command", "python")]
    assert told[0] == told[1]
    assert losses(folder / "command") == losses(folder / "python")
    validations = [record["val"]["miou"] for record in read_metrics(result.folder) if "val" in record]
    assert result.best_miou == max(validations)
    assert str(result).endswith(f"try: degrid predict {result.folder} IMAGES")


def test_progress_and_words_come_by_callbacks(runs):
    _, _, shown, told, output = runs
    assert [(now.done, now.total) for now in shown if now.task == "training"] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [now.done for now in shown if now.task == "evaluating"] == [1, 2, 3, 4, 5, 6] * 2
    assert next(now for now in shown if now.task == "training").status.startswith("loss ")
    assert any("ssc dilated convolutions" in line for line in told)
    assert sum("val mIoU" in line for line in told) == 2
    assert all(line in output for line in told)  # the command line shows the same


def test_nothing_is_printed(tmp_path, capfd):
    degrid.train(data="synthetic:2", settings={**SMALL, "train.steps": 1}, out=tmp_path / "run")
    assert capfd.readouterr() == ("", "")


def test_settings_may_be_a_mapping_or_texts_or_one_text_and_a_recipe_may_be_an_object(tmp_path):
    texts = run_config("synthetic", settings=["train.steps=3", "model.scales=0.75,0.5", "data.crop=48,64"])
    values = run_config("synthetic", settings={"train.steps": 3, "model.scales": (0.75, 0.5), "data.crop": [48, 64]})
    assert texts == values
    assert run_config("synthetic", settings="train.steps=3") == run_config("synthetic", settings={"train.steps": 3})
    with pytest.raises(UserError, match='got "train.steps"'):
        run_config("synthetic", settings="train.steps")
    assert run_config(texts) == texts
    assert run_config(texts, settings={"train.init": tmp_path}).train.init == str(tmp_path)
    with pytest.raises(UserError, match='"train.steps": expected a whole number'):
        run_config("synthetic", settings={"train.steps": "many"})


def test_show_prints_what_python_gets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    code, output = cli("train", "--data", "photos", "--operator", "tent", "--msc", "--steps", 7, "--show")
    assert code == 0
    expected = run_config(
        data="photos", operator="tent", settings={"train.steps": 7, "model.scales": degrid.types.MSC_SCALES}
    )
    assert config.from_dict(config.RunConfig, json.loads(output)) == expected
    assert (expected.name, expected.data.path) == ("photos", str(tmp_path / "photos"))


def test_what_is_to_be_typed_next_is_quoted(tmp_path):
    assert str(RunResult(Path("my runs/a"), None)).endswith("try: degrid predict 'my runs/a' IMAGES")
    assert "degrid train --resume 'my runs/a' (" in str(degrid.Stopped(Path("my runs/a")))
    words = ("--data", "synthetic", "--slurm", "-o", tmp_path / "a run")
    code, output = cli("launch", *words, *options(TINY))
    assert (code, output) == (0, f"job: {tmp_path}/a run/job.sh; submit it with: sbatch '{tmp_path}/a run/job.sh'\n")


def test_the_path_of_the_data_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "a=b"):
        (tmp_path / name).mkdir()
    (tmp_path / "photos" / "dataset.yaml").touch()
    for data, path, name in (
        ("photos", f"{tmp_path}/photos", "photos"),
        ("photos/dataset.yaml", f"{tmp_path}/photos/dataset.yaml", "photos"),
        ("a=b", f"{tmp_path}/a=b", "a=b"),
        ("my:Format=photos", f"my:Format={tmp_path}/photos", "photos"),
        ("my:Dataset", "my:Dataset", "my_Dataset"),
        ("synthetic:4", "synthetic:4", "synthetic_4"),
    ):
        found = run_config(data=data)
        assert (found.data.path, found.name) == (path, name)
        from_scratch = data.startswith("synthetic")  # the built-in scenes need no download
        assert found.model == recipes.load("synthetic" if from_scratch else "folder").model


@pytest.mark.parametrize("text", ["compat=true", " compat = True "])
def test_compat_is_read_once(text):
    assert run_config("eth_voc12", settings=[text]) == recipes.load("eth_voc12", compat=True)
    assert run_config("eth_voc12", settings={"compat": True}) == recipes.load("eth_voc12", compat=True)
    assert run_config("eth_voc12", settings=["compat=false"]) == recipes.load("eth_voc12")
    with pytest.raises(UserError, match="these do: eth_voc12"):
        run_config("synthetic", settings=[text])


def test_a_stopped_run_is_resumed_from_python(runs, tmp_path):
    folder, *_ = runs
    out = tmp_path / "python"

    def interrupt(now):
        if now.done == 3 and now.task == "training":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(degrid.Stopped) as stopped:
        degrid.train(data="synthetic:6", operator="ssc", settings=SMALL, out=out, progress=interrupt)
    assert stopped.value.folder == out
    assert str(stopped.value) == f"stopped and saved; continue with: degrid train --resume {out} (resume=...)"
    with pytest.raises(UserError, match=r"\(--async\): this run was begun without it"):
        degrid.train(resume=out, settings={"train.asynchronous.workers": 2})
    result = degrid.train(resume=out, settings={"data.workers": 0, "train.timeout": 99, "train.device": "cpu"})
    assert same(weights(result.folder), weights(folder / "python"))
    assert losses(result.folder) == losses(folder / "python")


def test_a_folder_is_trained_in_by_one_run_at_a_time(runs, tmp_path):
    """While another process has it, neither is its run continued nor a new one begun, and nothing is written."""
    shutil.copytree(runs[0] / "python", tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    for arguments, folder in (
        ({"resume": tmp_path / "old"}, tmp_path / "old"),
        ({"data": "synthetic:6", "settings": SMALL, "out": tmp_path / "new"}, tmp_path / "new"),
    ):
        with another(folder) as process:
            with pytest.raises(UserError, match=f"{folder} is being trained by process {process.pid} on "):
                degrid.train(**arguments)
            (folder / "running").unlink()
    assert {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == before
    assert list((tmp_path / "new").iterdir()) == []


def test_processes_that_read_other_data_are_refused(tmp_path, monkeypatch):
    """Here the second of two processes finds an image more, as where a copy is not complete."""

    def gathered(value):
        other = {**value, "training images": 7} if isinstance(value, dict) and "training images" in value else value
        return [value, other]

    monkeypatch.setattr("degrid.engine.ranks.gathered", gathered)
    with pytest.raises(
        UserError, match=r"training images differ: training images is 6 in process 0 and 7 in process 1"
    ):
        degrid.train(data="synthetic:6", settings=SMALL, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mistakes(tmp_path):
    for arguments, message in (
        ({}, "say what to train"),
        ({"recipe": "no_such"}, 'unknown recipe "no_such"'),
        ({"recipe": tmp_path}, f"is a folder, and no recipe: train on its images with --data {tmp_path}"),
        ({"data": tmp_path / "nowhere"}, "no data at"),
        ({"resume": tmp_path, "settings": ["train.steps=3"]}, "give no other settings with it"),
        ({"resume": tmp_path, "operator": "ssc"}, "give no other settings with it"),
        ({"recipe": "synthetic", "start_iteration": 2}, "give it beside --resume"),
        ({"recipe": "synthetic", "settings": ["train.steps"]}, 'expected a setting like "train.steps=2000"'),
    ):
        with pytest.raises(UserError, match=message):
            degrid.train(**arguments, out=None if "resume" in arguments else tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_was_decided_for_the_user_is_said_and_kept(tmp_path):
    """Masks of 0 and 255 are read as two classes, and images without lists are divided: both are worth a sentence."""
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (tmp_path / "photos" / sub).mkdir(parents=True)
    for k in range(6):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "images" / f"{k}.png")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8) * 255).save(tmp_path / "photos" / "masks" / f"{k}.png")
    expected = degrid.data.notes_of(degrid.open_dataset(tmp_path / "photos", "train"))
    assert expected
    told = []
    settings = {**SMALL, "train.steps": 1}
    result = degrid.train(data=tmp_path / "photos", settings=settings, out=tmp_path / "run", tell=told.append)
    assert list(result.notes) == expected == json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    log = (tmp_path / "run" / "log.txt").read_text()
    for note in expected:
        assert told.count(note) == 1
        assert note in log
    words = options([f"{path}={value}" for path, value in settings.items()])
    code, output = cli("train", "--data", tmp_path / "photos", *words, "-o", tmp_path / "command")
    assert code == 0
    assert all(note in output for note in expected)


def test_a_dataset_of_ones_own_declares_its_channels(tmp_path, monkeypatch):
    (tmp_path / "bands_sets.py").write_text(
        "import torch\n"
        "from degrid import LabelSpace, Sample\n"
        "from degrid.types import Bands\n"
        "class Silent:\n"
        "    labels, bands = LabelSpace.of_size(2), ['red', 'green', 'blue', 'infrared']\n"
        "    def __init__(self, split): pass\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, i):\n"
        "        return Sample(torch.zeros(4, 8, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.uint8), str(i))\n"
        "class Declared(Silent):\n"
        "    bands = Bands(4)\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = config.override(config.RunConfig(), {"data.path": "bands_sets:Silent"})
    with pytest.raises(UserError, match=r"of 3 channels, got 4; .* by its attribute bands = degrid.types.Bands\(4\)"):
        open_data(settings)
    _, found = open_data(config.override(settings, {"data.path": "bands_sets:Declared"}))
    assert found.model.in_channels == 4


@pytest.mark.slow
def test_later_stages_take_the_settings_too(tmp_path, monkeypatch):
    """Short options are short for --set, so they reach every stage as --set does."""
    (tmp_path / "stages.py").write_text(
        "from dataclasses import replace\n"
        "from degrid import config, recipes\n"
        "def first():\n"
        f"    run = config.override(recipes.load('folder'), {TINY!r})\n"
        "    return replace(run, name='first', then='stages:second')\n"
        "def second():\n"
        "    return replace(first(), name='second', then='')\n"
    )
    monkeypatch.chdir(tmp_path)
    code, output = cli("train", "stages:first", "--data", "synthetic:4", "--steps", 1, "-q")
    assert code == 0, output
    for name in ("first", "first_stage2"):
        assert len(losses(tmp_path / "runs" / name)) == 1

    # Stopped in the second stage, the run is resumed by the first stage's folder.
    steps = []

    def interrupt(now):
        steps.append(now)
        if sum(each.task == "training" for each in steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(degrid.Stopped) as stopped:
        degrid.train("stages:first", data="synthetic:4", settings={"train.steps": 2}, out="other", progress=interrupt)
    assert str(stopped.value.folder) == "other"
    assert [len(losses(tmp_path / name)) for name in ("other", "other_stage2")] == [2, 1]
    result = degrid.train(resume=stopped.value.folder)
    assert [len(losses(tmp_path / name)) for name in ("other", "other_stage2")] == [2, 2]
    assert str(result.folder) == "other_stage2"


def test_collect(runs, tmp_path):
    folder, *_ = runs
    archive = degrid.collect([folder / "python"], tmp_path / "a.tgz", weights=True)
    assert cli("collect", folder / "python", "-o", tmp_path / "b.tgz", "--weights")[0] == 0
    with tarfile.open(archive.path) as ours, tarfile.open(tmp_path / "b.tgz") as theirs:
        assert ours.getnames() == theirs.getnames() == list(archive.files)
    assert "python/model/model.safetensors" in archive.files
    assert archive.left_out == ()
    for one in (folder / "python", str(folder / "python")):
        assert degrid.collect(one, tmp_path / "c.tgz", weights=True).files == archive.files
    with pytest.raises(UserError, match="no runs: expected one run folder or more, got none"):
        degrid.collect([], tmp_path / "d.tgz")
    assert not (tmp_path / "d.tgz").exists()


def test_the_momentum_of_batch_norm_is_that_of_the_settings(tmp_path):
    """With a momentum of 0 the running statistics never move from those of a new layer, with 1 they are the batch's."""
    for momentum, stays in (("0", True), ("1", False)):
        once = {
            **SMALL,
            "train.steps": 1,
            "train.ema": 0.0,
            "train.batch_norm_momentum": float(momentum),
            "data.val": "",
        }
        found = degrid.train(data="synthetic:4", settings=once, out=tmp_path / momentum)
        state = degrid.load(found.folder).state_dict()
        means = [value for name, value in state.items() if name.endswith("running_mean")]
        assert len(means) > 3
        assert all(bool((value == 0).all()) == stays for value in means)
    with pytest.raises(UserError, match="expected 0 to 1, or none, got 1.5"):
        degrid.train(data="synthetic:4", settings={"train.batch_norm_momentum": 1.5}, out=tmp_path / "none")


@pytest.mark.parametrize(
    ("path", "values", "expected"),
    [
        ("optim.lr", (-1, math.nan, math.inf), "at least 0"),
        ("optim.warmup", (-5,), "at least 0"),
        ("optim.smoothing_factor", (-1.0, math.nan), "at least 0"),
        ("optim.clip_norm", (-1.0, math.nan), "at least 0"),
        ("optim.momentum", (-0.1, 1, 5, math.nan), "0 .off. or a number below 1"),
        ("train.ema", (1, math.nan), "0 .off. or a number below 1"),
        ("train.epochs", (-1, math.nan, math.inf), "at least 0"),
        ("train.timeout", (0, math.nan, math.inf), "at least 1"),
        ("train.seed", (-1,), "at least 0"),
        ("train.save_every", (-1,), "at least 0"),
        ("train.batch_norm_momentum", (-0.1, 1.1, math.nan), "0 to 1, or none"),
    ],
)
def test_numbers_outside_their_range_are_refused_before_anything_is_done(path, values, expected):
    """A negative warm-up made the learning rate negative; others ended in a traceback or in weights of NaN."""
    for value in values:
        with pytest.raises(UserError, match=f'"{path}": expected {expected}, got '):
            check_settings(config.override(config.RunConfig(), {path: value}))
    with pytest.raises(UserError, match="expected 0 < smallest <= largest"):
        check_settings(config.override(config.RunConfig(), {"data.scale": (0.5, math.inf)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one: make_optimizer("adamw", one, 0.1, 0.9, {"betas": [2, 3]}), 'optimiser "adamw" does not accept .*'),
        (lambda one: make_optimizer("torch.optim:LBFGS", one, 0.1, 0.9), 'optimiser "torch.optim:LBFGS" does not .*'),
        (lambda one: schedule("cosine_restarts", 0.1, 9, options={"period": "x"}), "period='x': could not convert"),
        (lambda one: schedule("cosine_restarts", 0.1, 9, options={"growth": "x"}), "growth='x': unsupported operand"),
        (lambda one: make_losses("generalised_cross_entropy", options={"q": "x"}), "q='x': '<' not supported"),
        (lambda one: operator_factory("gaussian", sigma=[1]), 'sigma must be a number, "shared" or "layer", got .1.'),
        (lambda one: operator_factory("gaussian", sigma=math.inf)(2), "a positive number of pixels, got inf"),
        (lambda one: operator_factory("average", size=1.5)(2), "odd and positive, so that it is centred; got 1.5"),
    ],
)
def test_values_that_a_part_does_not_accept_are_named(make, message):
    groups = parameter_groups(nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1)), 0.1)
    with pytest.raises(UserError, match=message):
        make(groups)


def test_settings_that_do_nothing_are_told():
    recipe = recipes.load("folder")
    assert idle_settings(recipe) == []
    for given, told in (
        ({"train.init_head": False}, "train.init_head has no effect without train.init"),
        (
            {"train.batch_norm": "frozen", "train.batch_norm_momentum": 0.1},
            "train.batch_norm_momentum has no effect with train.batch_norm=frozen",
        ),
        ({"train.focal_gamma": 1.0}, "train.focal_gamma has no effect without focal in train.loss"),
        ({"optim.schedule": "cosine", "optim.power": 0.5}, "optim.power has no effect with another schedule than poly"),
    ):
        assert idle_settings(config.override(recipe, given)) == [told]
    assert idle_settings(config.override(recipe, {"train.loss": "focal+dice", "train.focal_gamma": 1.0})) == []
