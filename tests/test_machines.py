"""Training by several processes started by the command line, on one machine and on three with hosts of their own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

import degrid
from degrid.engine.training.log import read_metrics
from degrid.engine.training.loop import load_state

pytestmark = pytest.mark.slow

SMALL = [
    *("--data", "synthetic", "--quiet"),
    *("--set", "model.encoder=timm:test_resnet", "--set", "model.pretrained=false", "--set", "model.dropout=0"),
    *("--set", "data.crop=48,48", "--set", "train.batch_norm=frozen", "--set", "train.precision=float32"),
]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")} | {
    "OMP_NUM_THREADS": "1",
}
DEGRID = [sys.executable, "-m", "degrid", "train"]


def train(*arguments):
    return subprocess.run([*DEGRID, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def wait_for_step(folder, step, process):
    """Until a step is on record, or the process has ended."""
    until = time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < until, f"step {step} has not come within 5 minutes"
        with contextlib.suppress(OSError):
            if f'{{"step": {step},' in (folder / "metrics.jsonl").read_text():
                return
        time.sleep(0.05)


def losses(folder):
    """The loss of each step; rounding errors grow from step to step, to some thousandths here."""
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """60 steps of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    steps = ["--set", "train.steps=60", "--set", "train.eval_every=60", "--set", "train.batch_size=6"]
    assert train(*SMALL, *steps, "-o", str(folder)).returncode == 0
    return folder


SIX = ["--set", "train.steps=60", "--set", "train.eval_every=60", "--set", "train.save_every=10"]


def test_a_run_of_two_processes_is_stopped_and_goes_on_with_three(alone, tmp_path):
    folder = tmp_path / "run"
    command = [*DEGRID, *SMALL, *SIX, "--set", "train.batch_size=3", "-o", str(folder), "--devices", "2"]
    started = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for_step(folder, 7, started)
    started.send_signal(signal.SIGINT)
    output, errors = started.communicate(timeout=120)
    assert started.returncode == 130, errors
    assert (output, errors.count("continue with: degrid train --resume")) == ("", 1)
    stopped_at = load_state(folder / "last.ckpt")["step"]
    assert 7 <= stopped_at < 60
    again = train("--resume", str(folder), "--devices", "3", "--quiet")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("best val mIoU") == 1  # one of the processes speaks
    assert losses(folder) == pytest.approx(losses(alone), rel=0.01)
    assert losses(folder)[:5] == pytest.approx(losses(alone)[:5], rel=1e-5)
    assert torch.load(folder / "last.ckpt", weights_only=True)["other_generators"][1] is not None


def test_a_mistake_is_said_once_with_exit_code_2(tmp_path):
    done = train("--data", str(tmp_path / "nothing"), "--devices", "2", "-o", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("no data at") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_killed_is_told_of(tmp_path):
    code = "import os\ndef loss(logits, labels):\n    os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else None\n"
    (tmp_path / "deadly.py").write_text(code + "    return logits.mean()\n")
    places = os.pathsep.join([str(tmp_path), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])])
    own = ["--data", "synthetic:8", "--set", "train.class_weights=none", "--set", "train.loss=deadly:loss"]
    command = [*DEGRID, *SMALL, *own, "--devices", "2", "-o", str(tmp_path / "run")]
    environment = ENVIRONMENT | {"PYTHONPATH": places}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "degrid: process 1 was ended by SIGKILL, as happens when the system runs out of memory" in done.stderr


@pytest.fixture
def silent():
    """The port of something that takes connections and never answers."""
    with socket.create_server(("localhost", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def talkative():
    """The port of something that answers as no torchrun does."""

    def answer():
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(b"220 ready\r\n" * 9)

    with socket.create_server(("localhost", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("master", ["nobody", "silent", "talkative", "no-such-host.invalid"])
def test_a_master_that_is_not_there_or_something_else(master, request, tmp_path):
    port = request.getfixturevalue(master) if master in ("silent", "talkative") else 1
    host = master if "." in master else "localhost"
    alone = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": host, "MASTER_PORT": str(port)}
    command = [*DEGRID, *SMALL, "--set", "train.timeout=3", "-o", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT | alone, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    words = f"degrid: could not join the other processes through {host}:{port} within 3 seconds (train.timeout)"
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1
    assert ("is not a machine name known here" in done.stderr) == (host == master)


MACHINES = (1, 2, 3)


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def machines(tmp_path):
    """Three network namespaces with host names and addresses of their own, joined by a bridge: the words that run a
    command on one of them, and a function that takes one off the grid."""
    if os.geteuid() or not all(shutil.which(tool) for tool in ("ip", "unshare", "mount")):
        pytest.skip("network namespaces need root, and the commands ip, unshare and mount")
    mark = f"dg{os.getpid() % 10**6}"
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"10.77.13.{each} node{each}\n" for each in MACHINES))
    try:
        run("ip", "link", "add", f"{mark}b", "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")

    def kill(each):
        inside = subprocess.run(["ip", "netns", "pids", f"{mark}n{each}"], capture_output=True, text=True)
        for process in inside.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)

    try:
        run("ip", "link", "set", f"{mark}b", "up")
        for each in MACHINES:
            place = f"{mark}n{each}"
            run("ip", "netns", "add", place)
            run("ip", "link", "add", f"{mark}v{each}", "type", "veth", "peer", "name", "eth0", "netns", place)
            run("ip", "link", "set", f"{mark}v{each}", "master", f"{mark}b", "up")
            run("ip", "-n", place, "address", "add", f"10.77.13.{each}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                run("ip", "-n", place, "link", "set", device, "up")
        script = 'hostname "$0"; mount --bind "$1" /etc/hosts; shift; exec "$@"'
        words = f"ip netns exec {mark}n{{}} unshare --uts --mount sh -c"
        yield lambda each: [*words.format(each).split(), script, f"node{each}", str(hosts)], kill
    finally:
        for each in MACHINES:
            kill(each)
            subprocess.run(["ip", "netns", "del", f"{mark}n{each}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{mark}b"], check=False, capture_output=True)


def test_a_machine_is_lost_and_the_others_go_on_from_the_checkpoint(alone, machines, tmp_path):
    """It has process 0; only that of the endpoint must stay."""
    folder = tmp_path / "run"
    environment = ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:3", "--nproc-per-node=1", "--max-restarts=3"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=node3:29512", "--rdzv-id=job", "--rdzv-conf=last_call_timeout=5"),
        *("-m", "degrid", "train", *SMALL, *SIX, "--set", "train.batch_size=2", "-o", str(folder)),
    ]
    on, kill = machines
    logs = [tmp_path / f"node{each}.txt" for each in MACHINES]
    with contextlib.ExitStack() as stack:
        nodes = []
        for each, log in zip(MACHINES, logs, strict=True):
            errors = stack.enter_context(log.open("w"))
            nodes.append(stack.enter_context(subprocess.Popen([*on(each), *torchrun], env=environment, stderr=errors)))
            stack.callback(kill, each)
        wait_for_step(folder, 15, nodes[2])
        kill(1)
        codes = [node.wait(timeout=900) for node in nodes]  # a busy machine takes minutes to start again
    assert codes == [-signal.SIGKILL, 0, 0], logs[1].read_text()
    assert "in 2 processes, from step" in (folder / "log.txt").read_text()
    assert losses(folder) == pytest.approx(losses(alone), rel=0.01)
    assert losses(folder)[:5] == pytest.approx(losses(alone)[:5], rel=1e-5)


def test_sharded_processes_validate_and_save_whole_models(alone, tmp_path):
    folder, two = tmp_path / "run", ["--devices", "2", "--set", "train.batch_size=3"]
    sharded = ["--set", "train.sharding=fsdp2", "--set", "train.ema=0.9"]
    done = train(*SMALL, *SIX, *two, *sharded, "--set", "train.keep_checkpoints=true", "-o", str(folder))
    assert done.returncode == 0, done.stderr
    assert losses(folder) == pytest.approx(losses(alone), rel=5e-3)
    weights, best = (load_state(folder / name)["average"] for name in ("last.ckpt", "best.ckpt"))
    assert all(torch.equal(best[name], value) for name, value in weights.items())
    model = degrid.load(folder).state_dict()
    assert all(torch.equal(model[name], weights[f"module.{name}"]) for name in model)
