"""W&B and MLflow by their own clients, offline, and read back from what they wrote."""

import json
import struct
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from degrid.engine.training import trackers
from degrid.engine.training.trackers import check_trackers, make_trackers, mlflow_name
from degrid.lookup import flat
from degrid.types import UserError

CONFIG = {"name": "tiny", "optim": {"lr": 0.007, "head": {"factor": 10}}, "data": {"crop": (48, 64)}}
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture(autouse=True, scope="module")
def temporary_files(tmp_path_factory):
    """W&B makes folders for temporary files when it is imported, and leaves some behind."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("temporary"))
        patch.setenv("TMPDIR", place)
        patch.setattr("tempfile.tempdir", place)
        yield


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Neither client may reach out, or write elsewhere than here."""
    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("WANDB_MODE", "offline"),
        ("WANDB_SILENT", "true"),
        ("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config")),
        ("WANDB_CACHE_DIR", str(tmp_path / "wandb_cache")),
        ("WANDB_DATA_DIR", str(tmp_path / "wandb_data")),
        ("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri()),
        ("MLFLOW_ALLOW_FILE_STORE", "true"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    return folder


def tell(names, run, steps, **how):
    """Begin or go on, and tell of some steps."""
    found = make_trackers(names, run, CONFIG)
    for step in steps:
        for tracker in found:
            tracker.scalars(step, {"train/loss": 1 / step, "train/learning rate": 0.1})
            if step % 2 == 0:
                tracker.scalars(step, {"val/mIoU": step / 10, "val/IoU class pole (thin)": 0.25})
                tracker.image(step, "val/picture", PICTURE)
    for tracker in found:
        tracker.close(**how)


def run_ids(run):
    return json.loads((run / "trackers.json").read_text())


# ---- Weights & Biases ---------------------------------------------------------------------------------------


def wandb_records(file):
    """The records of a .wandb file: blocks of 32 KiB, in each chunks of (checksum, length, kind) and bytes.

    It is the log format of LevelDB (https://github.com/google/leveldb/blob/main/doc/log_format.md) after 7 bytes of
    heading: kind 1 is a whole record; 2, 3 and 4 are its first, middle and last part.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def wandb_files(run):
    """The files of a run and its resumptions in order: their folders are named by date and second.

    Its service may still be writing when a run has ended; it is done when it ends, as it does with our process.
    """
    import wandb

    wandb.teardown()
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


def wandb_history(file):
    """Value by (step, tag), as the client wrote it down for its server."""
    found = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            values = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
            }
            found |= {(values["_step"], tag): value for tag, value in values.items() if not tag.startswith("_")}
    return found


@pytest.fixture
def wandb_ended():
    """Its service is a process of its own, which would outlive the test."""
    import wandb

    yield
    wandb.teardown()


@pytest.mark.usefixtures("wandb_ended")
def test_wandb_has_every_value_and_a_resumed_run_goes_on(run):
    tell("wandb", run, [1, 2], failed=True)
    first = run_ids(run)
    assert len(wandb_files(run)) == 1
    time.sleep(1.1)  # else the client takes the same folder again
    tell("wandb", run, [3, 4])
    assert run_ids(run) == first
    one, two = wandb_files(run)
    assert one.name == two.name == f"run-{first['wandb']}.wandb"
    for file, steps, code in ((one, (1, 2), 1), (two, (3, 4), 0)):
        found = wandb_history(file)
        even = steps[1]
        assert {key: value for key, value in found.items() if not key[1].startswith("val/picture")} == {
            **{(step, "train/loss"): 1 / step for step in steps},
            **{(step, "train/learning rate"): 0.1 for step in steps},
            (even, "val/mIoU"): even / 10,
            (even, "val/IoU class pole (thin)"): 0.25,
        }
        with Image.open(file.parent / "files" / found[even, "val/picture.path"]) as image:
            assert np.array_equal(np.asarray(image), PICTURE)
        [begun] = [record.run for record in wandb_records(file) if record.WhichOneof("record_type") == "run"]
        assert (begun.project, begun.display_name, begun.run_id) == ("degrid", "tiny", first["wandb"])
        config = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert config["optim"] == {"lr": 0.007, "head": {"factor": 10}}
        assert config["data"] == {"crop": [48, 64]}
        [end] = [record.exit for record in wandb_records(file) if record.WhichOneof("record_type") == "exit"]
        assert end.exit_code == code


@pytest.mark.usefixtures("wandb_ended")
def test_wandb_without_a_login_is_one_sentence(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(run / "no_netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"W&B cannot begin a run: .*; log in with wandb login, or set WANDB_MODE=off"):
        make_trackers("wandb", run, CONFIG)
    assert not (run / "trackers.json").exists()


# ---- MLflow -------------------------------------------------------------------------------------------------


def mlflow_run(run):
    import mlflow

    client = mlflow.MlflowClient()
    return client, client.get_run(run_ids(run)["mlflow"])


@pytest.mark.parametrize("store", ["file", pytest.param("sqlite", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")  # of SQLAlchemy's newest, in MLflow's own code
def test_mlflow_has_every_value_and_a_resumed_run_goes_on(run, tmp_path, monkeypatch, store):
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    tell("mlflow", run, [1, 2], failed=True)
    client, first = mlflow_run(run)
    assert (first.info.status, first.info.run_name) == ("FAILED", "tiny")
    [resumed] = make_trackers("mlflow", run, CONFIG)
    assert client.get_run(first.info.run_id).info.status == "RUNNING"
    resumed.close()
    tell("mlflow", run, [3, 4])
    client, found = mlflow_run(run)
    assert found.info.run_id == first.info.run_id
    assert found.info.status == "FINISHED"
    experiment = client.get_experiment(found.info.experiment_id)
    assert experiment.name == "degrid"
    assert len(client.search_runs([experiment.experiment_id])) == 1

    def history(tag):
        return [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, tag)]

    assert history("train/loss") == [(step, 1 / step) for step in (1, 2, 3, 4)]
    assert history("val/mIoU") == [(2, 0.2), (4, 0.4)]
    assert history("val/IoU class pole _thin_") == [(2, 0.25), (4, 0.25)]
    assert found.data.params == {
        "name": "tiny",
        "optim.lr": "0.007",
        "optim.head.factor": "10",
        "data.crop": "(48, 64)",
    }
    pictures = sorted(tmp_path.glob("mlruns/**/val~picture*.png"))
    assert ["+step+2+" in pictures[0].name, "+step+4+" in pictures[1].name] == [True, True]
    for picture in pictures:
        with Image.open(picture) as image:
            assert np.array_equal(np.asarray(image), PICTURE)


def test_mlflow_takes_many_settings_and_long_ones(run):
    config = {f"k{index}": "x" * 600 for index in range(130)}
    [tracker] = make_trackers("mlflow", run, config)
    tracker.close()
    params = mlflow_run(run)[1].data.params
    assert len(params) == 130
    assert set(params.values()) == {"x" * 500}


def test_an_mlflow_store_that_fails_does_not_stop_the_run(run, monkeypatch):
    told = []
    [tracker] = make_trackers("mlflow", run, CONFIG, told.append)
    tracker.scalars(1, {"loss": 1.0})
    asked = []

    def fail(*words, **settings):
        asked.append(words)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracker._client, "log_batch", fail)
    tracker.scalars(2, {"loss": 0.5})
    tracker.scalars(3, {"loss": 0.4})
    tracker.close()
    assert len(asked) == 1  # it is not tried again: a client tries for minutes
    assert told == [
        "MLflow gets no more of this run ([Errno 28] No space left on device); the run folder has everything"
    ]


@pytest.mark.parametrize("uri", ["sqlite:///m.db", "quilt://nowhere"])
def test_an_mlflow_store_that_cannot_be_used_is_one_sentence(run, monkeypatch, uri):
    if uri.startswith("sqlite") and find_spec("sqlalchemy"):
        pytest.skip("SQLite can be used here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"^MLflow cannot use the store .*; (pip|set) .*$") as error:
        make_trackers("mlflow", run, CONFIG)
    assert len(str(error.value).splitlines()) == 1
    assert ("; pip install sqlalchemy alembic, or set" in str(error.value)) == uri.startswith("sqlite")
    assert not (run / "trackers.json").exists()


def test_a_run_that_mlflow_does_not_know(run, tmp_path, monkeypatch):
    tell("mlflow", run, [1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    with pytest.raises(UserError, match=f"this run has the id {run_ids(run)['mlflow']} there"):
        make_trackers("mlflow", run, CONFIG)


# ---- both ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wandb_ended")
def test_both_hear_the_same(run):
    tell(" wandb + mlflow ", run, [2])
    _, found = mlflow_run(run)
    assert list(run_ids(run)) == ["wandb", "mlflow"]
    [file] = wandb_files(run)
    history = wandb_history(file)
    assert history[2, "train/loss"] == found.data.metrics["train/loss"] == 0.5
    assert history[2, "val/mIoU"] == found.data.metrics["val/mIoU"] == 0.2


def test_the_first_is_closed_where_the_second_cannot_begin(run, monkeypatch):
    closed = []

    class First(trackers.Tracker):
        run_id = "1"

        def close(self, failed=False):
            closed.append(failed)

    monkeypatch.setitem(trackers.TRACKERS, "wandb", First)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "quilt://nowhere")
    with pytest.raises(UserError, match="MLflow cannot use"):
        make_trackers("wandb+mlflow", run, CONFIG)
    assert closed == [True]


def test_none_are_none(run):
    assert make_trackers("", run, CONFIG) == []
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("names", ["wandbb", "wandb+", "mlflow,wandb", "+"])
def test_unknown_names(run, names):
    with pytest.raises(UserError, match=r'"train.trackers": expected wandb or mlflow, or both joined by \+, got "'):
        make_trackers(names, run, CONFIG)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_client_that_is_not_installed(monkeypatch, tmp_path, name):
    message = rf"the tracker {name} is not installed; pip install degrid\[{name}\]"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=message):
        check_trackers(name)
    # Nor is a folder of that name, which both clients leave behind, the client.
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / "here" / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here")])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    with pytest.raises(UserError, match=message):
        check_trackers(name)


def test_flattened_and_names():
    assert flat({"a": {"b": {"c": 1}, "d": 2}, "e": (3,)}) == {"a.b.c": 1, "a.d": 2, "e": (3,)}
    assert flat({}) == {}
    assert mlflow_name("val/IoU class traffic sign") == "val/IoU class traffic sign"
    assert mlflow_name("val/IoU class größe: a(b), //c") == "val/IoU class größe_ a_b__ /c"


@pytest.mark.usefixtures("wandb_ended")
@pytest.mark.slow
def test_a_training_from_the_command_line_and_its_resumption(tmp_path):
    from test_run import TINY, cli, options

    settings = [*TINY, "train.steps=4", "train.eval_every=2", "train.trackers=wandb+mlflow"]
    folder = tmp_path / "out"
    code, output = cli("train", "--data", "synthetic:4", *options(settings), "-q", "-o", folder)
    assert code == 0, output
    client, first = mlflow_run(folder)
    ids = run_ids(folder)
    assert first.info.status == "FINISHED"
    assert first.data.params["train.trackers"] == "wandb+mlflow"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loss = next(record["loss"] for record in records if "loss" in record)
    mious = [(record["step"], record["val"]["miou"]) for record in records if "val" in record]
    history = {tag: client.get_metric_history(ids["mlflow"], tag) for tag in ("train/loss", "val/mIoU")}
    assert [(each.step, each.value) for each in history["train/loss"]] == [(1, loss)]
    assert [(each.step, each.value) for each in history["val/mIoU"]] == mious
    [file] = wandb_files(folder)
    written = wandb_history(file)
    assert written[1, "train/loss"] == loss
    assert [(step, written[step, "val/mIoU"]) for step in (2, 4)] == mious
    # There is nothing left to do; but both go on with the run that they have.
    time.sleep(1.1)
    code, output = cli("train", "--resume", folder, "-q")
    assert code == 0, output
    assert run_ids(folder) == ids
    assert len(client.search_runs([first.info.experiment_id])) == 1
    assert len(wandb_files(folder)) == 2


def test_a_training_with_an_unknown_tracker_writes_nothing(tmp_path):
    from test_run import TINY, cli, options

    words = ["train", "--data", "synthetic:4", *options([*TINY, "train.trackers=wandbb"]), "-o", tmp_path / "out"]
    code, output = cli(*words)
    assert code == 2
    assert 'setting "train.trackers": expected wandb or mlflow' in output
    assert not (tmp_path / "out").exists()
