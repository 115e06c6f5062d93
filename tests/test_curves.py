"""Training curves: the three record formats, smoothing, pictures, the page, and the archive of a run."""

import base64
import gzip
import io
import json
import math
import re
import tarfile

import numpy as np
import pytest
from PIL import Image
from test_run import cli

from degrid.analysis.curves import LOG_EPOCH_STEPS, distinct, read_curves
from degrid.analysis.plots import epoch_means, plot_runs, smoothed
from degrid.engine.training.log import RunLog, StepRecord
from degrid.types import Scores, UserError

KDD = "0, 3.250\n1, 2.500\n2, nan\n3, 1.125\n"
ETH = """Iteration: 0
Restored model parameters from ../deeplab_resnet.ckpt
0, 3.000, 0.100
1, 2.000, 0.200
2, 1.500, 0.250
The checkpoint has been created.
Pixel Accuracy: 0.801
class 0: 0.700
class 1: nan
class 2: 0.300
mIoU: 0.500
Iteration: 1
Restored model parameters from ./model/model.ckpt-2
2, 1.400, 0.300
3, 1.200, 0.400
4, 1.000, 0.450
The checkpoint has been created.
Pixel Accuracy: 0.850
class 0: 0.800
class 1: 0.100
class 2: 0.600
mIoU: 0.500
The output files have been saved to ./prediction
"""


def record(step, loss=1.0, lr=0.1):
    return json.dumps({"step": step, "loss": loss, "lr": lr, "images_per_second": 5})


def make_run(folder, steps=6, val=True, batch=2):
    """A run folder with the records of `steps` steps, loss 3/step, on 5 images."""
    folder.mkdir(parents=True)
    lines = [record(k, 3 / k, 0.1 / k) for k in range(1, steps + 1)]
    if val:
        found = {"miou": 0.5, "pixel_accuracy": 0.75, "mean_accuracy": 0.6, "class_iou": {"sky": 0.9, "no": None}}
        lines.append(json.dumps({"step": steps, "val": found}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "log.txt").write_text("2026-01-01 00:00:00 net; 5 training and 2 validation images, 2 classes; 6 steps\n")
    (folder / "run.json").write_text(json.dumps({"config": {"train": {"batch_size": batch, "accumulate": 1}}}))
    return folder


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return file


# ---- reading ------------------------------------------------------------------------------------------------


def test_run_folder(tmp_path):
    found = read_curves(make_run(tmp_path / "my run"))
    assert (found.name, found.format, found.epoch_steps) == ("my run", "degrid", 2.5)
    assert found.steps == (1, 2, 3, 4, 5, 6)
    assert found.loss[:3] == (3, 1.5, 1)
    assert found.lr[:2] == (0.1, 0.05)
    (val,) = found.validations
    assert (val.step, val.miou, val.pixel_accuracy, val.class_iou) == (6, 0.5, 0.75, {"sky": 0.9, "no": None})
    assert read_curves(tmp_path / "my run" / "metrics.jsonl") == found
    (tmp_path / "my run" / "log.txt").unlink()
    assert read_curves(tmp_path / "my run").epoch_steps is None


def test_what_a_run_writes_is_what_is_read(tmp_path):
    scores = Scores(0.5, 0.8, 0.6, 0.7, None, ("a", "b"), (0.5, None), (0.5, None), None, (3, 0), 1, 1, ((3,),))
    with RunLog(tmp_path / "run", 2) as log:
        log.step(StepRecord(1, 2.5, 0.01, 7))
        log.step(StepRecord(2, float("nan"), 0.02, 7))
        log.validation(2, scores)
    found = read_curves(tmp_path / "run")
    assert (found.steps, found.lr, found.loss[0]) == ((1, 2), (0.01, 0.02), 2.5)
    assert math.isnan(found.loss[1])
    assert found.validations[0].class_iou == {"a": 0.5, "b": None}
    assert found.validations[0].pixel_accuracy == 0.8


@pytest.mark.parametrize("tail", ["", '{"step": 3, "lo', '{"step": 3}', '{"step"', "{"])
def test_a_run_that_is_being_written(tmp_path, tail):
    file = write(tmp_path / "run" / "metrics.jsonl", f"{record(1)}\n{record(2)}\n{tail}")
    assert read_curves(file).steps == (1, 2)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_kdd_log(tmp_path, end):
    found = read_curves(write(tmp_path / "old" / "log.txt", ("Starting\n" + KDD + "done in 3 h\n").replace("\n", end)))
    assert (found.name, found.format, found.epoch_steps) == ("old", "kdd", LOG_EPOCH_STEPS)
    assert LOG_EPOCH_STEPS == 1058
    assert found.steps == (0, 1, 2, 3)
    assert found.loss[:2] == (3.25, 2.5)
    assert math.isnan(found.loss[2])
    assert (found.loss[3], found.lr, found.validations) == (1.125, (), ())


def test_kdd_line_with_trailing_text(tmp_path):
    found = read_curves(write(tmp_path / "a.log", "0, 1.500  (0.3 sec/step)\n1, -inf, so it goes\n2, 1e-3\n"))
    assert (found.name, found.format, found.loss) == ("a", "kdd", (1.5, -math.inf, 0.001))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_eth_log(tmp_path, end):
    write(tmp_path / "eth" / "log.txt", ETH.replace("\n", end))
    found = read_curves(tmp_path / "eth")  # the folder will do
    assert (found.name, found.format, found.epoch_steps) == ("eth", "eth", LOG_EPOCH_STEPS)
    assert found.steps == (0, 1, 2, 2, 3, 4)  # the border step runs twice
    assert found.loss == (3, 2, 1.5, 1.4, 1.2, 1)
    first, second = found.validations
    assert (first.step, first.miou, first.pixel_accuracy) == (2, 0.5, 0.801)
    assert first.class_iou == {"class 0": 0.7, "class 1": None, "class 2": 0.3}
    assert (second.step, second.pixel_accuracy, second.class_iou["class 2"]) == (4, 0.85, 0.6)


def test_eth_cycles_that_count_from_zero_continue_the_curve(tmp_path):
    text = "".join(f"Iteration: {k}\n0, 2.000, 0.1\n1, 1.000, 0.2\nmIoU: 0.{k + 1}00\n" for k in range(3))
    found = read_curves(write(tmp_path / "log.txt", text))
    assert found.steps == (0, 1, 1, 2, 2, 3)
    assert [(val.step, val.miou) for val in found.validations] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_log_that_was_started_again(tmp_path):
    assert read_curves(write(tmp_path / "a", KDD + "2, 9.000\n3, 8.000\n")).loss == (3.25, 2.5, 9, 8)
    again = read_curves(write(tmp_path / "b", ETH + "Iteration: 1\n2, 7.000, 0.1\n"))
    assert again.steps == (0, 1, 2)
    assert [val.step for val in again.validations] == [2]
    anew = read_curves(write(tmp_path / "c", ETH + "Iteration: 0\n0, 7.000, 0.1\n"))
    assert (anew.steps, anew.validations) == ((0,), ())


@pytest.mark.parametrize(
    ("tail", "steps", "validations"),
    [
        ("4, 1.", 5, 1),  # a value cut short would be a wrong one
        ("4, 1.000, 0.450", 6, 1),
        ("4, 1.000, 0.450\nmIoU: 0.", 6, 1),
        ("4, 1.000, 0.450\nclass 0: 0.500\nclass 1: 0.600\n", 6, 1),  # no mIoU yet
        ("4, 1.000, 0.450\nmIoU: 0.500", 6, 2),
        ("4, 1.000, 0.450\nmIoU: 0.500\nmIoU: 0.600\n", 6, 3),
    ],
)
def test_a_log_that_is_being_written(tmp_path, tail, steps, validations):
    found = read_curves(write(tmp_path / "log.txt", ETH[: ETH.index("4, 1.000")] + tail))
    assert (len(found.steps), len(found.validations)) == (steps, validations)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (record(1) + '\n{"step": 2}\n' + record(3), 'line 2: expected a JSON record with "step" and "loss" or "val"'),
        (record(1) + "\n[1, 2]\n", "line 2: expected a JSON record"),
        ('{"step": 1, "val": {"miou": null}}\n', "line 1: expected a JSON record"),
        ('{"step": Infinity, "loss": 1}\n', "line 1: expected a JSON record"),
        (KDD + "4, oops\n", 'line 5: expected "step, loss"'),
        (KDD + "4, 1.0.0\n", 'line 5: expected "step, loss"'),
        (ETH + "mIoU: high\n", "line 24: expected"),
        ("Iteration: first\n", "line 1: expected"),
        ("", "expected records of training steps, found none"),
        ("Hello\n\x00\xff", "expected records of training steps, found none"),
        ("2026-01-01 12:00:00 step 3/6: loss 1.0\n", "expected records of training steps, found none"),
    ],
)
def test_damaged_records(tmp_path, text, message):
    file = write(tmp_path / "log.txt", text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_curves(file)
    assert str(file) in str(caught.value)


def test_distinct_names():
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
    assert distinct(["a", "a", "a-2"]) == ["a", "a-3", "a-2"]
    assert distinct(["a-2", "a-2"]) == ["a-2", "a-2-2"]


# ---- numbers of the pictures --------------------------------------------------------------------------------


def test_smoothing_by_hand():
    # weight 1/2: averages 1, 2.5, 4.25 of masses 1/2, 3/4, 7/8 -> 2, 10/3, 34/7
    assert smoothed([2, 4, 6], 0.5) == pytest.approx([2, 10 / 3, 34 / 7])
    assert smoothed([3, 1, 2], 0).tolist() == [3, 1, 2]
    assert smoothed([5] * 9, 0.99) == pytest.approx([5] * 9)
    with_gap = smoothed([2, math.nan, 4, math.inf, 6], 0.5)
    assert with_gap[[0, 2, 4]] == pytest.approx([2, 10 / 3, 34 / 7])
    assert math.isnan(with_gap[1])


def test_epoch_means_by_hand():
    assert epoch_means([1, 3, 5, 7, 100], 2).tolist() == [2, 6]  # the last epoch is not complete
    assert epoch_means([1, 2, 3, 4, 5], 2.5).tolist() == [2, 4.5]
    found = epoch_means([math.nan, 3, math.nan, math.nan], 2)
    assert found[0] == 3
    assert math.isnan(found[1])
    assert epoch_means([1, 2], 3).size == 0


# ---- pictures and page --------------------------------------------------------------------------------------

ALL = ["loss.png", "loss_per_epoch.png", "miou.png", "class_iou.png", "learning_rate.png", "index.html"]


def test_plots_of_all_formats(tmp_path):
    runs = [
        make_run(tmp_path / "a" / "run"),
        make_run(tmp_path / "b" / "run", val=False),
        write(tmp_path / "_eth$x$" / "log.txt", ETH).parent,
        write(tmp_path / "<kdd>.log", KDD),
    ]
    out = tmp_path / "plots"
    code, output = cli("plot", *runs, "-o", out, "--epoch-steps", 2)
    assert code == 0
    assert output.strip() == f"5 pictures in {out}; everything on one page: {out / 'index.html'}"
    assert sorted(file.name for file in out.iterdir()) == sorted(ALL)
    pictures = {}
    for name in ALL[:-1]:
        picture = Image.open(out / name)
        # 2 classes of the run, 3 of the log, bars of 2 runs
        height = round(120 * (1.2 + 5 * (0.12 + 2 * 0.17))) if name == "class_iou.png" else 600
        assert picture.size == (1080, height)
        pictures[name] = np.asarray(picture.convert("RGB"))
        assert len(np.unique(pictures[name].reshape(-1, 3), axis=0)) > 20
    blue, orange = ((pictures["loss.png"] == color).all(2).any() for color in ((0, 114, 178), (213, 94, 0)))
    assert blue
    assert orange
    page = (out / "index.html").read_text()
    for name in ("run", "run-2", "_eth$x$", "&lt;kdd&gt;"):
        assert f"<td>{name}</td>" in page
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(data) for data in embedded] == [(out / name).read_bytes() for name in ALL[:-1]]
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)  # nothing is loaded from elsewhere


def test_final_scores(tmp_path):
    curves = [read_curves(make_run(tmp_path / "run")), read_curves(write(tmp_path / "old" / "log.txt", KDD))]
    plot_runs(curves, tmp_path / "out", smooth=0)
    rows = re.findall(r"<tr>(<td>.*?)</tr>", (tmp_path / "out" / "index.html").read_text())
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    assert cells == [
        ["run", "6", "0.5000", "0", "50.00", "75.00", "50.00 (step 6)"],
        ["old", "3", "1.1250", "1", "-", "-", "-"],
    ]


def test_what_nobody_knows_is_left_out(tmp_path):
    only_loss = read_curves(write(tmp_path / "old" / "log.txt", KDD))
    assert [file.name for file in plot_runs([only_loss], tmp_path / "out")] == ["loss.png", "index.html"]
    diverged = read_curves(write(tmp_path / "nan" / "log.txt", "0, nan\n1, nan\n"))
    files = plot_runs([diverged], tmp_path / "nan", epoch_steps=1)
    assert [file.name for file in files] == ["loss.png", "loss_per_epoch.png", "index.html"]


def test_plot_mistakes(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "file", "")
    for words, message in (
        ([tmp_path / "none"], f"cannot read {tmp_path / 'none'}: No such file"),
        ([run, tmp_path / "empty"], "holds no run: expected metrics.jsonl or log.txt"),
        ([run, "--smooth", 1], "expected a smoothing of at least 0 and below 1, got 1"),
        ([run, "--epoch-steps", 0], "expected at least 1 step per epoch, got 0"),
        ([run, "-o", tmp_path / "file" / "x"], "cannot make the folder"),
        ([], "Missing argument"),
    ):
        code, output = cli("plot", *words)
        assert code == 2, words
        assert message in output
    with pytest.raises(UserError, match="at least one run"):
        plot_runs([], tmp_path / "out")


# ---- the archive --------------------------------------------------------------------------------------------


def full_run(folder):
    make_run(folder)
    for name in ("best.ckpt", "last.ckpt", "scores.json", "notes.md", ".half.json"):
        (folder / name).write_text(f"{folder} {name}")
    write(folder / EVENTS, f"{folder} events")
    for name in ("config.json", "model.safetensors", "parts/part.bin", ".half.tmp"):
        write(folder / "model" / name, f"{folder} {name}")
    return folder


EVENTS = "log/train/events.out.tfevents.1.host.2.0"
KEPT = [EVENTS, "log.txt", "metrics.jsonl", "run.json", "scores.json"]
WEIGHTS = ["model/config.json", "model/model.safetensors", "model/parts/part.bin"]


def test_archive(tmp_path):
    first, second = full_run(tmp_path / "a" / "run"), full_run(tmp_path / "b" / "run")
    out = tmp_path / "new" / "all.tar.gz"
    code, output = cli("collect", first, second, "-o", out)
    assert code == 0
    assert re.fullmatch(rf"{re.escape(str(out))}: 10 files of 2 runs, (\d+ bytes|[\d.]+ KiB)", output.strip())
    with tarfile.open(out) as archive:
        assert archive.getnames() == [f"{top}/{name}" for top in ("run", "run-2") for name in KEPT]
        for top, folder in (("run", first), ("run-2", second)):
            for name in KEPT:
                assert archive.extractfile(f"{top}/{name}").read() == (folder / name).read_bytes()
        assert {(entry.uid, entry.uname) for entry in archive} == {(0, "")}
    assert [file.name for file in out.parent.iterdir()] == ["all.tar.gz"]


def test_archive_with_weights(tmp_path):
    run = full_run(tmp_path / "run")
    (run / "model" / "copy.bin").hardlink_to(run / "model" / "config.json")
    code, output = cli("collect", run, "--weights", "-o", tmp_path / "all.tgz")
    assert code == 0
    assert ": 9 files of 1 run" in output
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert sorted(archive.getnames()) == sorted(f"run/{name}" for name in [*KEPT, *WEIGHTS, "model/copy.bin"])
        assert all(entry.isfile() for entry in archive)
        assert archive.extractfile("run/model/parts/part.bin").read() == f"{run} parts/part.bin".encode()


def test_archive_follows_no_links_inside_a_run(tmp_path):
    run = full_run(tmp_path / "run")
    secret = write(tmp_path / "secret" / "key.json", "do not pack")
    (run / "linked.json").symlink_to(secret)
    (run / "model" / "linked").symlink_to(secret.parent)
    (run / "model" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "alias").symlink_to(run)  # the folder itself was named by the user
    code, output = cli("collect", tmp_path / "alias", "--weights", "-o", tmp_path / "all.tar.gz")
    assert code == 0
    for name in ("linked.json", "model/linked", "model/gone"):
        assert f"left out, a symbolic link: {tmp_path / 'alias' / name}" in output
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        assert sorted(archive.getnames()) == sorted(f"alias/{name}" for name in [*KEPT, *WEIGHTS])
    assert b"do not pack" not in gzip.decompress((tmp_path / "all.tar.gz").read_bytes())


def test_archive_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "here"))
    assert cli("collect", ".")[0] == 0
    with tarfile.open("runs.tar.gz") as archive:
        assert archive.getnames() == ["here/log.txt", "here/metrics.jsonl", "here/run.json"]


def test_collect_mistakes_leave_the_old_archive(tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "all.tar.gz"
    out.write_text("old")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.tar.gz").mkdir()
    for words, message in (
        ([run, tmp_path / "none", "-o", out], f"no run folder {tmp_path / 'none'}"),
        ([run, tmp_path / "empty", "-o", out], "holds no run: expected run.json, metrics.jsonl or log.txt"),
        ([run, "-o", out, "--weights"], "holds no trained model yet"),
        ([run, "-o", tmp_path / "all.zip"], "ends in .tar.gz or .tgz"),
        ([run, "-o", tmp_path / "folder.tar.gz"], "it is a folder"),
    ):
        code, output = cli("collect", *words)
        assert code == 2, words
        assert message in output
    assert out.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.tar.gz", "empty", "folder.tar.gz", "run"]


def test_archive_that_cannot_be_finished(tmp_path, monkeypatch):
    run, out = make_run(tmp_path / "run"), tmp_path / "all.tar.gz"
    out.write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    code, output = cli("collect", run, "-o", out)
    assert (code, "the disk is full" in output, out.read_text()) == (2, True, "old")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.tar.gz", "run"]


def test_archive_can_be_read_as_a_stream(tmp_path):
    assert cli("collect", make_run(tmp_path / "run"), "-o", tmp_path / "a.tgz")[0] == 0
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "a.tgz").read_bytes()), mode="r|gz") as archive:
        assert len(list(archive)) == 3
