"""Whole runs through the command line, on small real files: train, resume, kill, evaluate, predict, inspect."""

import dataclasses
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import originals
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cycles import TINY, scores_like
from typer.testing import CliRunner

import degrid
from degrid import cli as command_line
from degrid import config, model_folder, networks, recipes
from degrid.cli import app
from degrid.config import RunConfig
from degrid.data import SyntheticScenes
from degrid.engine.training import loop
from degrid.engine.training.log import read_metrics
from degrid.engine.training.loop import load_state
from degrid.image import open_image
from degrid.types import LabelSpace, UserError
from degrid.verbs import run as train_run
from degrid.verbs import train

TWO_STEPS = ["train.steps=2", "train.eval_every=2"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A stranger's folder: 8 scenes as JPEG photographs and palette masks."""
    root = tmp_path_factory.mktemp("photos")
    scenes = SyntheticScenes("train", 8, (72, 96))
    for sub in ("images", "masks"):
        (root / sub).mkdir()
    for k in range(8):
        sample = scenes[k]
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(root / "images" / f"p{k}.jpg", quality=95)
        Image.fromarray(sample.label.numpy()).save(root / "masks" / f"p{k}.png")
    (root / "classes.txt").write_text("\n".join(scenes.labels.names))
    return root


def options(settings):
    return [part for setting in settings for part in ("--set", setting)]


def cli(*words):
    """Run a command in this process; the user's errors come back as they would end up: code 2 and a sentence."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        return 2, f"degrid: {result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def process(*words, **kwargs):
    """Run a command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "degrid", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


@pytest.fixture(scope="session")
def trained(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    code, output = cli("train", "--data", photos, "--operator", "ssc", *options(TINY), "-o", folder)
    assert code == 0, output
    assert f"model: {folder / 'model'}; try: degrid predict {folder} IMAGES" in output
    return folder


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- training -----------------------------------------------------------------------------------------------


def test_a_run_leaves_everything(trained, photos):
    names = {file.name for file in trained.iterdir()}
    assert {"run.json", "metrics.jsonl", "log.txt", "last.ckpt", "best.ckpt", "model"} <= names
    for part in ("train", "val"):
        assert len(list((trained / "log" / part).glob("events.out.tfevents.*"))) == 1
    assert not any(name.endswith(".tmp") for name in names)
    run = json.loads((trained / "run.json").read_text())
    assert run["config"]["model"]["smoothing"]["operator"] == "ssc"
    assert run["config"]["train"]["steps"] == 6
    assert run["versions"]["torch"] == torch.__version__
    assert run["machine"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert run["machine"]["cpu"]
    records = read_metrics(trained)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "val" in r] == [3, 6]
    assert "ssc dilated convolutions" in (trained / "log.txt").read_text()
    model = degrid.load(trained)
    assert model.labels.names == SyntheticScenes.labels.names
    assert any(".smoothing." in key for key in model.state_dict())
    assert not model.training


def test_run_json_repeats_the_run(trained, tmp_path):
    code, _ = cli("train", trained / "run.json", "-o", tmp_path / "again")
    assert code == 0
    assert same(weights(trained), weights(tmp_path / "again"))
    assert [r["loss"] for r in read_metrics(trained) if "loss" in r] == [
        r["loss"] for r in read_metrics(tmp_path / "again") if "loss" in r
    ]


@pytest.mark.slow
def test_resume_after_kill_equals_never_having_stopped(trained, photos, tmp_path):
    """SIGKILL at several moments; each time the run goes on, and ends where the undisturbed one ends."""
    folder = tmp_path / "killed"
    processes = multiprocessing.get_context("forkserver")  # which imports PyTorch once, not once per process
    processes.set_forkserver_preload(["degrid.verbs.train", "timm", "torch.utils.tensorboard"])
    settings = [*TINY, "train.save_every=1"]
    arguments = {"data": photos, "operator": "ssc", "settings": settings, "out": folder}
    for moment in ("first checkpoint", 0.6, 0.05, 1.1):
        child = processes.Process(target=train.train, kwargs=arguments)
        metrics = folder / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        child.start()
        deadline = time.monotonic() + 120
        while child.is_alive() and time.monotonic() < deadline:
            if isinstance(moment, str):
                if (folder / "last.ckpt").exists():
                    break
            elif metrics.stat().st_size != before:  # it writes again: now a little more
                time.sleep(moment)
                break
            time.sleep(0.005)
        child.kill()
        child.join()
        arguments = {"resume": folder}
    degrid.train(resume=folder)
    assert same(weights(trained), weights(folder))
    assert [r["step"] for r in read_metrics(folder) if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in read_metrics(folder) if "loss" in r] == [
        r["loss"] for r in read_metrics(trained) if "loss" in r
    ]


@pytest.mark.slow
def test_resume_is_exact_with_rare_classes_repeated_dropout_and_workers(photos, tmp_path, monkeypatch):
    """Stopped after three of five steps, in the second of its longer epochs; the other run has one worker less."""
    settings = ["data.repeat_rare=0.9", "data.workers=2", "model.dropout=0.5", "train.save_every=1", "train.steps=5"]
    given = {"data": photos, "settings": [*TINY, *settings, "train.batch_size=4", "data.val="]}
    step, done = loop.train_step, []

    def interrupted(*args, **more):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append([name for batch in args[1] for name in batch.names])
        return step(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            degrid.train(**given, out=tmp_path / "resumed")
    degrid.train(resume=tmp_path / "resumed")
    degrid.train(**{**given, "settings": [*given["settings"], "data.workers=1"]}, out=tmp_path / "straight")
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "straight"))
    resumed, straight = ([r["loss"] for r in read_metrics(tmp_path / name)] for name in ("resumed", "straight"))
    assert resumed == straight
    assert len(resumed) == 5
    once = degrid.train(**{**given, "settings": [*given["settings"], "data.repeat_rare=0"]}, out=tmp_path / "once")
    assert not same(weights(once.folder), weights(tmp_path / "straight"))  # so that repeats were at work


@pytest.mark.slow
def test_each_stage_has_a_patience_of_its_own(photos, tmp_path, monkeypatch):
    """The first stops after its second validation; the next starts from the first's best, and stops so, too."""
    first = config.override(recipes.load("folder"), [*TINY, "train.eval_every=1", "train.patience=1", "name=first"])
    still = [*TINY, "train.eval_every=1", "train.patience=1", "name=second", "optim.lr=0", "train.batch_norm=frozen"]
    monkeypatch.setattr(recipes, "load", lambda name, **_: config.override(RunConfig(), still))
    found = iter([0.5, 0.4, 0.2, 0.2])
    monkeypatch.setattr(train_run, "_validation", lambda *_: lambda network, step: scores_like(next(found)))
    degrid.train(dataclasses.replace(first, then="second"), data=photos, out=tmp_path / "run")
    stages = tmp_path / "run", tmp_path / "run_stage2"
    assert [[r["step"] for r in read_metrics(stage) if "val" in r] for stage in stages] == [[1, 2], [1, 2]]
    best = load_state(stages[0] / "best.ckpt")
    assert (best["step"], load_state(stages[1] / "best.ckpt")["best_miou"]) == (1, 0.2)
    after = weights(stages[1])
    assert all(torch.equal(after[key], value) for key, value in weights(stages[0]).items() if "num_batches" not in key)


@pytest.mark.slow  # in this process: test_verbs_train.py::test_a_stopped_run_is_resumed_from_python
def test_ctrl_c_says_how_to_go_on(photos, tmp_path):
    folder = tmp_path / "stopped"
    words = [
        "train",
        "--data",
        photos,
        *options([*TINY, "train.steps=500", "train.eval_every=500"]),
        "-o",
        folder,
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "degrid", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size
    ):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert f"stopped and saved; continue with: degrid train --resume {folder}" in errors
    assert "Traceback" not in errors
    assert (folder / "last.ckpt").exists()


def test_frozen_batch_norm_accumulation_and_class_weights(photos, tmp_path):
    settings = [
        *TINY,
        "train.batch_norm=frozen",
        "train.accumulate=2",
        "train.class_weights=median_frequency",
    ]
    code, output = cli("train", "--data", photos, *options(settings), "-o", tmp_path / "r")
    assert code == 0, output
    torch.manual_seed(0)
    fresh = networks.build_model(
        config.override(recipes.load("folder"), TINY).model, LabelSpace.of_size(len(SyntheticScenes.labels))
    )
    after = degrid.load(tmp_path / "r").state_dict()
    norm = [key for key in after if key.endswith(("running_mean", "running_var"))]
    assert norm
    assert all(torch.equal(after[key], fresh.state_dict()[key]) for key in norm)


def test_smoothed_operators_with_shared_parameters_survive_saving(tmp_path):
    for operator, options_ in (("aggregation", {}), ("gaussian", {"sigma": "shared"})):
        torch.manual_seed(0)
        model = degrid.deeplabv3(
            "timm:resnet18", 3, output_stride=8, operator=operator, operator_options=options_, channels=16
        )
        for key, value in model.named_parameters():
            if ".smoothing." in key:
                torch.nn.init.normal_(value, std=0.3)
        model.eval()
        degrid.save(model, tmp_path / operator)
        again = degrid.load(tmp_path / operator)
        image = torch.randint(0, 256, (1, 3, 65, 65), dtype=torch.uint8)
        assert torch.equal(again(image), model(image))
        shared = [p for n, p in again.named_parameters() if n.endswith(("mix", "log_sigma"))]
        assert len(shared) == 1  # one parameter, still shared


# ---- using the model ----------------------------------------------------------------------------------------


def test_init_takes_weights_and_network_from_a_model(trained, photos, tmp_path):
    """With a learning rate of 0 and frozen batch norm a run ends with the weights it started from."""
    still = options(["optim.lr=0", "train.batch_norm=frozen", "train.steps=2", "data.crop=48,48", "train.batch_size=2"])
    words = ["train", "--data", photos, *still, "-q"]
    assert cli(*words, "--init", trained, "-o", tmp_path / "same")[0] == 0
    before, after = (load_file(run / "model" / "model.safetensors") for run in (trained, tmp_path / "same"))
    assert all(torch.equal(after[key], before[key]) for key in before if not key.endswith("num_batches_tracked"))
    assert json.loads((tmp_path / "same" / "run.json").read_text())["config"]["train"]["init"] == str(trained)

    # Smoothing that the model did not have starts anew, and so does a head that is not wanted.
    code, output = cli(*words, "--init", trained, "--operator", "gi", "-o", tmp_path / "smoothed")
    assert code == 0, output
    after = load_file(tmp_path / "smoothed" / "model" / "model.safetensors")
    assert all(key in after or ".smoothing.residual" in key for key in before)
    assert [key for key in after if key not in before]
    shared = set(after) & set(before)
    assert all(torch.equal(after[key], before[key]) for key in shared if not key.endswith("num_batches_tracked"))
    fresh = ["--set", "train.init_head=false"]
    assert cli(*words, "--init", trained, *fresh, "-o", tmp_path / "encoder")[0] == 0
    after = load_file(tmp_path / "encoder" / "model" / "model.safetensors")
    assert torch.equal(after["encoder.net.conv1.0.weight"], before["encoder.net.conv1.0.weight"])
    assert not torch.equal(after["head.classifier.weight"], before["head.classifier.weight"])
    assert "tensors start anew (head." in (tmp_path / "encoder" / "log.txt").read_text()


def test_a_recipe_can_have_a_second_stage(photos, tmp_path, monkeypatch):
    """As DeepLab v3: the second goes on from the first at output stride 8 with frozen batch norm."""
    (tmp_path / "two.py").write_text(
        "from dataclasses import replace\n"
        "from degrid import config, recipes\n"
        "def first():\n"
        f"    run = config.override(recipes.load('folder'), {[*TINY, *TWO_STEPS]!r})\n"
        "    return replace(run, name='first', then='two:second')\n"
        "def second():\n"
        "    run = config.override(first(), ['model.output_stride=8', 'train.batch_norm=frozen', 'then='])\n"
        "    return replace(run, name='second')\n"
        "def circle():\n"
        "    return replace(first(), name='circle', then='two:circle')\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["train", "two:first", "--data", photos, "-q", "--operator", "tent"]
    code, output = cli(*words, "--set", "optim.lr=0.001")
    assert code == 0, output
    assert str(Path("runs/first_stage2")) in output
    first, second = (json.loads((tmp_path / "runs" / n / "run.json").read_text()) for n in ("first", "first_stage2"))
    assert (first["config"]["model"]["output_stride"], second["config"]["model"]["output_stride"]) == (16, 8)
    assert second["config"]["train"]["init"] == str((tmp_path / "runs" / "first").absolute())
    assert second["config"]["data"]["path"] == first["config"]["data"]["path"]
    assert second["config"]["model"]["smoothing"]["operator"] == "tent"
    assert second["config"]["optim"]["lr"] == 0.001
    before, after = (
        load_file(tmp_path / "runs" / n / "model" / "model.safetensors") for n in ("first", "first_stage2")
    )
    norm = [key for key in before if key.endswith("running_mean")]
    assert all(torch.equal(before[key], after[key]) for key in norm)
    # What is there is not overwritten, and is noticed before the first stage.
    code, output = cli(*words, "-o", "runs/other")
    assert code == 0
    code, output = cli("train", "--resume", "runs/other", "-q")
    assert code == 0
    (tmp_path / "runs" / "third_stage2").mkdir()
    (tmp_path / "runs" / "third_stage2" / "run.json").write_text("{}")
    code, output = cli(*words, "-o", "runs/third")
    assert code == 2
    assert "third_stage2 holds a run already" in output
    assert not (tmp_path / "runs" / "third").exists()
    code, output = cli("train", "two:circle", "--data", photos, "-q")
    assert code == 2
    assert "circle" in output


def test_data_without_validation_are_trained_on_with_a_note(photos, tmp_path):
    (tmp_path / "d.yaml").write_text(f"path: {photos}\ntrain: images\nmasks: masks\n")
    code, output = cli("data", "check", tmp_path / "d.yaml")
    assert (code, output.splitlines()[-1]) == (0, "ready to train on")
    given = options([*TINY, "train.patience=2"])
    code, output = cli("train", "--data", tmp_path / "d.yaml", "-o", tmp_path / "run", *given)
    assert code == 0, output
    assert "train.patience has no effect, since nothing is validated" in output
    assert 'the data have no split "val": nothing is validated, and the last model is kept' in output
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_init_with_other_classes_and_other_networks(trained, photos, tmp_path):
    model = networks.build_model(degrid.load(trained).config, LabelSpace.of_size(3))
    anew = model_folder.initialise_from(model, trained)
    classifier = ["head.classifier.bias", "head.classifier.weight"]
    assert sorted(anew) == classifier
    # As many classes of other names: none of the old weights may stand for them. Numbered classes can be any.
    known = degrid.load(trained)
    for names, expected in (
        (known.labels.names, []),
        (LabelSpace.of_size(len(known.labels)).names, []),
        ([f"other {name}" for name in known.labels.names], classifier),
        (known.labels.names[::-1], classifier),
    ):
        model = networks.build_model(known.config, LabelSpace(tuple(names), known.labels.colors))
        assert sorted(model_folder.initialise_from(model, trained)) == expected
        assert torch.equal(model.head.classifier.weight, known.head.classifier.weight) == (not expected)
    code, output = cli("train", "synthetic", *options(TINY), "--init", trained, "--set", "model.channels=32", "-q")
    assert code == 2
    assert "holds another network" in output
    code, output = cli("train", "--data", photos, "--init", tmp_path, "-o", tmp_path / "run")
    assert code == 2
    assert "no model in" in output


@pytest.mark.slow
def test_converted_models_are_models(photos, tmp_path):
    """An old file through the command line: convert, inspect, predict, evaluate, fine-tune."""
    import torchvision

    theirs = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "old.pth")
    code, output = cli("convert", tmp_path / "old.pth", "-o", tmp_path / "model")
    assert code == 0, output
    assert "torchvision: deeplabv3_*" in output
    assert output.strip().splitlines()[-1].startswith(f"model: {tmp_path / 'model'}; try: degrid predict")
    assert "21: background, aeroplane" in cli("info", tmp_path / "model")[1]
    photo = photos / "images" / "p0.jpg"
    assert cli("predict", tmp_path / "model", photo, "-o", tmp_path / "out")[0] == 0
    small = options(["data.crop=48,48", "train.steps=1", "train.batch_size=2"])
    words = ["train", "--data", photos, "--init", tmp_path / "model", *small, "-o", tmp_path / "tuned", "-q"]
    code, output = cli(*words)
    assert code == 0, output
    assert cli("eval", tmp_path / "tuned", "--data", photos)[0] == 0
    # Mistakes.
    code, output = cli("convert", tmp_path / "none.ckpt", "-o", tmp_path / "x")
    assert code == 2
    assert "none.ckpt" in output
    code, output = cli("convert", photo, "-o", tmp_path / "x")
    assert code == 2
    code, output = cli("convert", tmp_path / "model", "-o", tmp_path / "x", "--modernise")
    assert code == 2
    assert "not a legacy model" in output
    code, output = cli("convert", tmp_path / "old.pth", "-o", tmp_path / "x", "--classes", tmp_path)
    assert code == 2
    assert "no classes.csv" in output
    code, output = cli("predict", tmp_path / "old.pth", photo)
    assert code == 2
    assert "degrid convert" in output
    assert not (tmp_path / "x").exists()


def test_eval_prints_a_table_and_writes_json(trained, photos, tmp_path):
    code, output = cli("eval", trained, "--data", photos, "-o", tmp_path / "scores.json")
    assert code == 0
    values = json.loads((tmp_path / "scores.json").read_text())
    assert "sidewalk" in output
    assert f"mIoU {100 * values['miou']:.2f} %" in output
    direct = degrid.evaluate(degrid.load(trained), degrid.open_dataset(photos, "val"))
    assert direct.miou == values["miou"]
    assert values["confusion"] == [list(row) for row in direct.confusion]
    assert 0 <= values["boundary_iou"] <= 1


def test_predict_keeps_names_sizes_and_values(trained, tmp_path):
    photos = tmp_path / "in"
    (photos / "deep" / "er").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = {
        "a.jpg": Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)),
        "a.png": Image.fromarray(rng.integers(0, 256, (33, 41), dtype=np.uint8)),
        "deep/er/b c.png": Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)),
        "deep/wide.tif": Image.fromarray(rng.integers(0, 65536, (20, 90), dtype=np.uint16)),
    }
    for name, picture in pictures.items():
        picture.save(photos / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(rng.integers(0, 256, (30, 60, 3), dtype=np.uint8))
    turned.save(photos / "turned.jpg", exif=exif)
    code, output = cli("predict", trained, photos, "-o", tmp_path / "out", "--save-logits")
    assert code == 0, output
    assert str(tmp_path / "out") in output.splitlines()[-1]
    model = degrid.load(trained)
    predictor = degrid.Predictor(model, precision="float32")  # as with --save-logits
    for file, name, size in (
        ("a.jpg", "a.jpg", (50, 70)),
        ("a.png", "a.png", (33, 41)),
        ("deep/er/b c.png", "deep/er/b c", (64, 64)),
        ("deep/wide.tif", "deep/wide", (20, 90)),
        ("turned.jpg", "turned", (60, 30)),
    ):
        mask = open_image(tmp_path / "out" / f"{name}.png")
        assert mask.mode == "P"
        assert mask.size == size[::-1]
        direct = predictor.predict(photos / file)
        assert np.array_equal(np.asarray(mask), direct.ids)
        assert open_image(tmp_path / "out" / f"{name}.overlay.jpg").size == size[::-1]
        logits = np.load(tmp_path / "out" / f"{name}.logits.npy")
        assert logits.dtype == np.float32
        assert logits.shape == (9, -(-size[0] // 4), -(-size[1] // 4))
        assert np.array_equal(logits, direct.logits)
        full = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear")
        assert np.array_equal(full[0].argmax(0).numpy(), np.asarray(mask))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_images"] == 5
    assert sum(summary["images"]["turned"]["pixels"].values()) == 60 * 30
    assert sum(summary["pixels"].values()) == sum(row["width"] * row["height"] for row in summary["images"].values())


def test_predict_patterns_and_its_own_results(trained, photos, tmp_path):
    out = photos / "images" / "results"
    code, _ = cli("predict", trained, photos / "images" / "p[01].jpg", "-o", out, "--no-overlay")
    assert code == 0
    assert sorted(f.name for f in out.iterdir()) == ["p0.png", "p1.png", "summary.json"]
    code, _ = cli("predict", trained, photos / "images", "-o", out, "--no-overlay")
    assert code == 0
    assert len(list(out.glob("*.png"))) == 8  # results of the first call are no images
    for file in out.iterdir():
        file.unlink()
    out.rmdir()


def test_predictor_takes_arrays_and_refuses_others(trained):
    predictor = degrid.Predictor(degrid.load(trained))
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    ids = predictor(pixels)
    assert ids.dtype == np.uint8
    assert ids.shape == (24, 32)
    assert np.array_equal(predictor(torch.from_numpy(pixels).permute(2, 0, 1)), ids)
    assert np.array_equal(predictor(Image.fromarray(pixels)), ids)
    grey = pixels[..., 0]
    assert np.array_equal(predictor(grey), predictor(np.repeat(grey[..., None], 3, 2)))
    for wrong in (pixels.astype(float), pixels[None], np.zeros((4, 4, 4), np.uint8), torch.zeros(3, 4, 4)):
        with pytest.raises(UserError, match="expected a uint8"):
            predictor(wrong)


def test_info(trained):
    code, output = cli("info", trained, "--size", "64x64")
    assert code == 0
    assert "deeplabv3plus on timm:test_resnet" in output
    assert re.search(r"layer4\.0\.conv2 +rate 2 +3x3 .* ssc", output)
    assert "smoothing 9," in output
    code, output = cli("info", "synthetic", "--size", "64x64", "--json")
    assert json.loads(output)["output_stride"] == 8
    assert cli("info", trained, "--size", "big")[0] == 2


# ---- mistakes: one sentence, exit code 2, nothing half-written ------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "say what to train"),
        (["train", "no_such"], 'unknown recipe "no_such"'),
        (["train", "--data", "nowhere"], "no data at nowhere"),
        (
            ["train", "synthetic", "--set", "train.stpes=3"],
            'unknown setting "train.stpes". Did you mean "train.steps"',
        ),
        (["train", "synthetic", "--batch-size", "4"], "no option --batch-size; it is a setting: --set train.batch"),
        (["lr-find", "synthetic", "--crop=65,65"], "no option --crop; it is a setting: --set data.crop="),
        (["train", "synthetic", "--set", "model.output_stride=4"], "output stride 4: expected 8, 16 or 32"),
        (
            ["train", "synthetic", "--set", "model.encoder=timm:pvt_v2_b0"],
            "pvt_v2_b0 does not support output stride 8; it supports 32",
        ),
        (["train", "synthetic", "--set", "model.network=deeplabv4"], 'unknown network "deeplabv4"'),
        (["train", "synthetic", "--operator", "scc"], 'unknown smoothing operator "scc". Did you mean "ssc"'),
        (["train", "synthetic", "--set", "model.output_stride=32", "--operator", "ssc"], "nothing to smooth"),
        (
            ["train", "synthetic", "--set", "train.steps=0"],
            'setting "train.steps": expected at least 1, got 0',
        ),
        (
            ["train", "synthetic", "--set", "train.batch_norm=off"],
            'expected train or frozen or synchronised, got "off"',
        ),
        (["train", "synthetic", "--set", "optim.name=adam"], 'unknown optimiser "adam"'),
        (["train", "synthetic", "--device", "cuda:9"], 'device "cuda:9": this machine has'),
        (["train", "synthetic", "--device", "warp"], 'unknown device "warp"'),
        (
            ["train", "synthetic", "--set", "train.precision=half"],
            '"train.precision": expected auto or float32 or bfloat16, got "half"',
        ),
        (["train", "--resume", "nowhere"], "there is no run folder nowhere to resume"),
        (["train", "--resume", "nowhere", "--steps", "3"], "give no other settings with it"),
        (["predict", "nowhere", "x.jpg"], 'no such file, folder or pattern: "x.jpg"'),
        (["eval", "nowhere", "--data", "synthetic"], "no model in nowhere"),
        (["info", "nowhere.json"], "cannot read the settings file"),
        (["data", "check", "nowhere"], "no data at nowhere"),
    ],
)
def test_mistakes(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = cli(*words)
    assert code == 2
    assert message in output
    assert list(tmp_path.iterdir()) == []


def test_the_version():
    assert cli("--version") == (0, f"degrid {degrid.__version__}\n")


@pytest.mark.parametrize(("raised", "said"), [(KeyboardInterrupt(), "degrid: stopped\n"), (typer.Exit(3), "")])
def test_an_interrupted_command_says_so(raised, said, monkeypatch, capsys):
    def command():
        raise raised

    app_of_one = typer.Typer()
    app_of_one.command()(command)
    monkeypatch.setattr("degrid.cli.quick_imports.install", lambda: None)
    monkeypatch.setattr("degrid.cli.settle_threads", lambda: None)
    monkeypatch.setattr("degrid.cli.make_app", lambda names: app_of_one)
    monkeypatch.setattr("sys.argv", ["degrid"])
    with pytest.raises(SystemExit) as ended:
        command_line.run()
    assert ended.value.code == (130 if said else 3)
    assert capsys.readouterr().err == said


def test_a_process_ends_with_one_line_and_code_2(tmp_path):
    done = process("train", "--data", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("degrid: no data at nowhere")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_data_check_and_preview(photos, tmp_path):
    code, output = cli("data", "check", photos)
    assert code == 0
    assert output.strip().endswith("ready to train on")
    code, output = cli("data", "check", photos, "--json")
    assert json.loads(output)["ok"] is True
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    Image.new("L", (9, 8)).save(tmp_path / "masks" / "a.png")
    code, output = cli("data", "check", tmp_path)
    assert code == 2
    assert "masks of another size than their image" in output
    code, output = cli("data", "preview", photos, "-o", tmp_path / "sheet.png", "-n", 2)
    assert output.strip() == f"preview: {tmp_path / 'sheet.png'}"
    assert open_image(tmp_path / "sheet.png").width > 600


def test_a_taken_folder_is_not_overwritten(trained):
    before = (trained / "run.json").read_bytes()
    code, output = cli("train", "synthetic", "-o", trained)
    assert code == 2
    assert "holds a run already; continue it with --resume" in output
    assert (trained / "run.json").read_bytes() == before


def test_damaged_images_among_good_ones(trained, photos, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = (photos / "images" / "p0.jpg").read_bytes()
    (folder / "good.jpg").write_bytes(good)
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "text.png").write_text("not an image")
    code, output = cli("predict", trained, folder, "-o", tmp_path / "out")
    assert code == 2
    assert "2 of 3 images could not be used" in output
    assert "cut.jpg is damaged or cut short" in output
    assert "text.png is not an image" in output
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"good.png", "good.overlay.jpg", "summary.json"}


def test_model_folders_that_cannot_be_used(trained, tmp_path):
    model = degrid.load(trained)
    folder = tmp_path / "m"
    degrid.save(model, folder)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot read the weights .*damaged"):
        degrid.load(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"no weights: .*model\.safetensors is missing"):
        degrid.load(folder)
    other = degrid.deeplabv3("timm:resnet18", len(model.labels), channels=16)
    save_file(other.state_dict(), file)
    with pytest.raises(UserError, match="belong to another model: .* missing .* not in this model"):
        degrid.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        degrid.load(folder)
    (folder / "config.json").write_text('{"format": "degrid model 1", "model": {}}')
    with pytest.raises(UserError, match="lacks or garbles a part"):
        degrid.load(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not a degrid model config"):
        degrid.load(folder)
    with pytest.raises(UserError, match=f"expected a model folder or run folder, got the file .*; give {trained}"):
        degrid.load(trained / "last.ckpt")
    with pytest.raises(UserError, match="got the file .*; turn a checkpoint into one with degrid convert"):
        degrid.load(__file__)
    with pytest.raises(UserError, match=f'Did you mean "{trained}"'):
        degrid.load(f"{trained}s")
    with pytest.raises(UserError, match="only models built by degrid can be saved"):
        degrid.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "n")


def test_a_model_is_not_saved_without_the_operator_that_it_has(tmp_path):
    network = degrid.deeplabv3("timm:test_resnet", 3, channels=8, pretrained=False)
    degrid.smooth_dilated_convs(network, "tent", lambda name, conv: True)
    with pytest.raises(UserError, match="was smoothed by tent after it was built, and would be loaded without it"):
        degrid.save(network, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_for_other_classes_is_refused(trained, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for k in range(3):
        Image.new("RGB", (40, 40), (k, k, k)).save(tmp_path / "images" / f"{k}.png")
        Image.new("L", (40, 40), 1).save(tmp_path / "masks" / f"{k}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    code, output = cli("eval", trained, "--data", tmp_path)
    assert code == 2
    assert "has 2 classes (cat, dog); expected 9 (sky, building" in output
    with pytest.raises(UserError, match=r"the model predicts 9 classes, the dataset has 2 \(cat, dog\)"):
        degrid.evaluate(degrid.load(trained), degrid.open_dataset(tmp_path, "val"))


def test_disk_full_keeps_the_old_model(trained, tmp_path, monkeypatch):
    model = degrid.load(trained)
    degrid.save(model, tmp_path / "m")
    before = {f.name: f.read_bytes() for f in (tmp_path / "m").iterdir()}

    def full(weights, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_folder, "save_file", full)
    with pytest.raises(UserError, match="the disk is full; what was there before is unchanged"):
        degrid.save(model, tmp_path / "m")
    assert {f.name: f.read_bytes() for f in (tmp_path / "m").iterdir()} == before


def test_a_really_full_disk(trained, small_disk):
    """Not a stand-in."""
    disk, _ = small_disk
    (disk / "m").mkdir()
    (disk / "m" / "config.json").write_text("old")
    with pytest.raises(UserError, match="the disk is full"):
        degrid.save(degrid.load(trained), disk / "m")
    assert [(f.name, f.read_text()) for f in (disk / "m").iterdir()] == [("config.json", "old")]


@pytest.mark.slow
def test_demo(tmp_path, capfd):
    """The demo in small: both networks, their scores, curves and receptive fields on one page.

    Twice in one place, by the command and then from Python.
    """
    words = ["demo", "-o", tmp_path / "demo", "--steps", 2, "--scenes", 3, "--seed", 4]
    code, output = cli(*words)
    assert code == 0, output
    page = (tmp_path / "demo" / "report.html").read_text()
    for operator in ("regular", "tent"):
        scores = degrid.evaluate(degrid.load(tmp_path / "demo" / operator), degrid.open_dataset("synthetic:3", "test"))
        assert f"{operator}: test mIoU {100 * scores.miou:.1f} %" in output
        assert f"<td>{operator}</td><td>{100 * scores.miou:.1f}</td>" in page
        seed = json.loads((tmp_path / "demo" / operator / "run.json").read_text())["config"]["train"]["seed"]
        assert seed == 4
    # image, truth and two predictions of three scenes; confusions and receptive fields; loss, mIoU and learning rate
    assert page.count("<img") == 3 * 4 + 2 * 2 + 3
    outside = re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert not outside  # nothing is loaded from elsewhere
    assert output.strip().splitlines()[-2] == f"report: {tmp_path / 'demo' / 'report.html'}"
    assert output.strip().splitlines()[-1].startswith("next, on your own images and masks: degrid train --data FOLDER")
    capfd.readouterr()
    shown, told = [], []
    made = degrid.demo(tmp_path / "demo", steps=1, scenes=3, progress=shown.append, tell=told.append)
    assert made.report.exists()
    assert [run.name for run in made.runs] == ["regular", "tent"]
    done = {f"evaluating {tmp_path / 'demo' / operator}" for operator in ("regular", "tent")}
    assert {now.task for now in shown} == {"counting", "training", "evaluating", "looking inside", "gridding"} | done
    assert told[0] == "== regular dilated convolutions"
    for run in made.runs:
        scores = degrid.evaluate(degrid.load(tmp_path / "demo" / run.name), degrid.open_dataset("synthetic:3", "test"))
        assert run.scores.confusion == scores.confusion
    assert capfd.readouterr() == ("", "")
    run = json.loads((tmp_path / "demo" / "regular" / "run.json").read_text())
    run["config"]["data"]["path"] = "/photos"
    (tmp_path / "own" / "regular").mkdir(parents=True)
    (tmp_path / "own" / "regular" / "run.json").write_text(json.dumps(run))
    code, output = cli("demo", "-o", tmp_path / "own", "--steps", 1, "--scenes", 3)
    assert code == 2
    assert "holds a run already" in output


# ---- documentation ------------------------------------------------------------------------------------------


def test_every_command_has_help_with_examples():
    for words in (
        ["train"],
        ["lr-find"],
        ["eval"],
        ["compare"],
        ["predict"],
        ["info"],
        ["data", "check"],
        ["data", "preview"],
        ["data", "export"],
        ["data", "prepare"],
        ["data", "stats"],
        ["convert"],
        ["demo"],
        ["plot"],
        ["report"],
        ["collect"],
    ):
        code, output = cli(*words, "--help")
        assert code == 0
        assert f"degrid {' '.join(words)}" in output.split("\n", 1)[1], words


@pytest.mark.slow
def test_commands_in_the_readme_run(photos, tmp_path, monkeypatch):
    """Every `degrid ...` line of the README, on a folder called my_photos, with a small network and few steps."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", readme, re.S)
    commands = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    commands = [command for command in commands if command.startswith("degrid ")]
    assert len(commands) >= 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos").symlink_to(photos)
    (tmp_path / "photos").symlink_to(photos / "images")
    (tmp_path / "street.jpg").symlink_to(photos / "images" / "p0.jpg")
    weights = originals.golden_weights(originals.shapes("eth/res50/regular"), "eth")
    with (tmp_path / "model.ckpt-20000").open("wb") as file:  # what a file is shows in its content, not in its name
        np.savez(file, **weights)
    for command in commands:
        words = command.split()[1:]
        small = [*(each for each in TINY if "--init" not in words or not each.startswith("model.")), *TWO_STEPS]
        code, output = cli(*words, *(options(small) if words[0] == "train" else []))
        assert code == 0, f"{command}: {output}"
    assert (tmp_path / "results" / "summary.json").exists()


def test_python_in_the_readme_runs(photos, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos").symlink_to(photos)
    (tmp_path / "photos").symlink_to(photos / "images")
    Image.open(photos / "images" / "p0.jpg").save(tmp_path / "photo.jpg")
    code = "\n".join(blocks)
    # Offline, and small: no weights from the network, and the classes of the test's folder.
    code = code.replace('weights="DEFAULT"', "weights=None, weights_backbone=None").replace(
        "pretrained=True", "channels=8"
    )
    code = code.replace("num_classes=21", "num_classes=9").replace("timm:resnet50", "timm:resnet18")
    code = code.replace("output_stride=16", "output_stride=8")
    code = code.replace('data="my_photos")', f'data="my_photos", settings={TINY})')
    scope = {}
    exec(code, scope)
    assert scope["ids"].shape == (72, 96)
    assert scope["scores"].num_images >= 1
