"""Jobs for clusters: what they ask for, that bash can read them, and that they run on stand-ins for the job systems."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import degrid
from degrid import Cluster, UserError
from degrid.engine.training.log import read_metrics
from degrid.engine.training.loop import load_state

SMALL = {
    "model.encoder": "timm:test_resnet",
    "model.pretrained": False,
    "data.crop": "48,48",
    "train.batch_norm": "frozen",
    "train.steps": 40,
    "train.eval_every": 40,
    "train.batch_size": 2,
}


def asked(script, mark):
    return dict(re.findall(rf"^#{mark} (\S+?)[= ](.*)$", script.read_text(), flags=re.M))


def test_what_a_job_of_slurm_asks_for(tmp_path):
    cluster = Cluster("slurm", 2, 4, 8, "1-06:30", "64G", "a100", "long", "me@uni.org", ("module load cuda",))
    script = degrid.launch(data="synthetic", settings=SMALL, out=tmp_path / "a run", cluster=cluster)
    assert script == tmp_path / "a run/job.sh"
    assert asked(script, "SBATCH") == {
        "--job-name": "synthetic",
        "--nodes": "2",
        "--ntasks-per-node": "1",
        "--gpus-per-node": "a100:4",
        "--cpus-per-task": "32",
        "--mem": "64G",
        "--time": "1-06:30:00",
        "--partition": "long",
        "--output": f"'{tmp_path}/a run/job_%j.txt'",
        "--open-mode": "append",
        "--signal": "B:USR1@300",
        "--mail-type": "END,FAIL",
        "--mail-user": "me@uni.org",
    }
    text = script.read_text()
    assert "\n#SBATCH --requeue\n" in text
    assert "\nmodule load cuda\n" in text
    assert "--nnodes=2 --nproc-per-node=4" in text
    assert f"-o '{tmp_path}/a run' &" in text


def test_what_a_job_of_lsf_asks_for(tmp_path):
    cluster = Cluster("lsf", nodes=2, gpus=2, cpus=5, memory="20G", gpu_model="TeslaV100", queue="gpu", mail="me")
    script = degrid.launch(data="synthetic", settings=SMALL, out=tmp_path / "run", cluster=cluster)
    assert asked(script, "BSUB") == {
        "-J": "synthetic",
        "-n": "20",
        "-R": '"span[ptile=10] rusage[mem=2048]"',
        "-gpu": '"num=2:mode=exclusive_process:gmodel=TeslaV100"',
        "-W": "24:00",
        "-q": "gpu",
        "-o": f"{tmp_path}/run/job_%J.txt",
        "-wa": "URG",
        "-wt": "5",
        "-Q": "99",
        "-u": "me",
    }


def test_names_that_job_systems_read_in_their_own_way(tmp_path):
    """Slurm's pattern for a percent sign is two; LSF takes few characters in the name of a job, and [1] as an array."""
    for system, mark, output, name in (
        ("slurm", "SBATCH", "--output", "--job-name"),
        ("lsf", "BSUB", "-o", "-J"),
    ):
        out = tmp_path / system / "50% of \u00e9t\u00e9 #1, $HOME & 'it'"
        settings = {**SMALL, "name": "my photos[1] \u00e9 #2"}
        script = degrid.launch(data="synthetic", settings=settings, out=out, cluster=Cluster(system))
        lines = asked(script, mark)
        place = f"{out}/".replace("%", "%%" if system == "slurm" else "%")
        assert shlex.split(lines[output]) == [f"{place}job_{'%j' if system == 'slurm' else '%J'}.txt"]
        assert lines[name] == "my_photos_1_____2"
        assert subprocess.run(["bash", "-n", script]).returncode == 0
    for system, name in (("slurm", "a\\b"), ("lsf", "a\nb"), ("lsf", "100%Iron")):
        with pytest.raises(UserError, match="the name of a job's folder cannot have '.{1,4}' in it"):
            degrid.launch(data="synthetic", settings=SMALL, out=tmp_path / name, cluster=Cluster(system))
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("system", ["slurm", "lsf"])
def test_bash_reads_every_job(tmp_path, system):
    grid = {"optim.lr": [0.01, 0.02], "data.path": ["it's $HOME", "b c"]}
    for number, chosen in enumerate([{}, {"grid": grid}]):
        out = tmp_path / f"a 'run' {number}"
        script = degrid.launch(data="synthetic", settings=SMALL, out=out, cluster=Cluster(system), **chosen)
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    words = r"""printf '%s\n' "${variant[@]}" """
    part = script.read_text().partition("variants=(")[2].partition("\nexport")[0]
    found = [
        subprocess.run(
            ["bash", "-c", f"variants=({part}\n{words}"],
            env={"SLURM_ARRAY_TASK_ID": str(job), "LSB_JOBINDEX": str(job)},
            capture_output=True,
            text=True,
        ).stdout.split("\n")
        for job in (1, 2, 3, 4)
    ]
    assert [(words[1], words[3]) for words in found] == [
        ("optim.lr=0.01", "data.path=it's $HOME"),
        ("optim.lr=0.01", "data.path=b c"),
        ("optim.lr=0.02", "data.path=it's $HOME"),
        ("optim.lr=0.02", "data.path=b c"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"system": "pbs"}, 'expected slurm or lsf, got "pbs"'),
        ({"nodes": 0}, "expected 1 or more"),
        ({"time": "soon"}, "HH:MM or D-HH:MM"),
        ({"time": "0:05"}, "more than 5 minutes"),
        ({"memory": "64"}, "a number with M or G"),
        ({"queue": "a; rm"}, "expected one word"),
    ],
)
def test_what_no_cluster_takes(wrong, message):
    with pytest.raises(UserError, match=message):
        Cluster(**wrong)


def test_mistakes_are_found_before_anything_is_written(tmp_path, monkeypatch):
    for grid in ({"optim.lr": [0.1, "fast"]}, {"optim.lr": []}):
        with pytest.raises(UserError):
            degrid.launch(data="synthetic", out=tmp_path / "run", grid=grid)
    monkeypatch.setattr("degrid.verbs.launch.check_settings", lambda config: None)  # which asks for Ray
    asked = {"settings": {"train.asynchronous.workers": 4}, "cluster": Cluster(gpus=4)}
    with pytest.raises(UserError, match="expected --nodes 1 and --gpus 0 or 1, got 1 and 4"):
        degrid.launch(data="synthetic", out=tmp_path / "run", **asked)
    monkeypatch.undo()
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no command sbatch here"):
        degrid.launch(data="synthetic", settings=SMALL, out=tmp_path / "run", submit=True)
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run already"):
        degrid.launch(data="synthetic", settings=SMALL, out=tmp_path / "run")


# Job systems of one machine with two hosts of one name: they run the script, and again if it says so. As in Slurm, srun
# turns SIGTERM into SIGKILL for what it runs, and to scancel and scontrol the number of an array means all of its jobs.
# LSF sends its warning to all processes of the job.
FAKES = {
    "sbatch": """asked() { sed -n "s/^#SBATCH --$1=//p" "$2"; }
export SLURM_JOB_NODELIST=nodes SLURM_CPUS_PER_TASK=$(asked cpus-per-task "$1") number=3001
jobs=$(asked array "$1" | sed 's/^1-//'); [ -z "$jobs" ] || export SLURM_ARRAY_JOB_ID=3001
for job in $(seq "${jobs:-1}"); do
    [ -z "$jobs" ] || { export SLURM_ARRAY_TASK_ID=$job; number=3001_$job; }
    again=yes; while [ -n "$again" ]; do
        rm -f again; SLURM_JOB_ID=$((3000 + job)) bash "$1" & echo $! > pid; wait $! || true
        again=$(cat again 2>/dev/null || true); [ "${again:-$number}" = "$number" ] || exit 7
    done
done""",
    "scontrol": '[ "$1" = show ] && echo localhost || echo "$2" > again',
    "scancel": 'echo "$*" >> cancelled; kill -TERM $(cat step)',
    "srun": """[ "$1" = "--cpus-per-task=$SLURM_CPUS_PER_TASK" ] || exit 9; shift
"$@" & one=$!; "$@" & two=$!; echo $one $two > step; trap "kill -KILL $one $two" TERM; wait $one; wait $two""",
    "bsub": """cat > script; echo localhost > hosts; export LSB_DJOB_HOSTFILE=hosts LSB_JOBID=3002
jobs=$(sed -n 's/^#BSUB -J .*\\[1-\\([0-9]*\\)\\].*/\\1/p' script)
for job in $(seq "${jobs:-1}"); do
    [ -z "$jobs" ] || export LSB_JOBINDEX=$job
    code=99; while [ $code = 99 ]; do
        code=0; setsid bash script & echo -$! > pid; wait $! || code=$?
    done
done""",
    "blaunch": 'shift 2; "$@" & one=$!; "$@" & two=$!; trap "kill $one $two" TERM; wait $one; wait $one; wait $two',
}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["slurm", "lsf"])
def test_a_job_runs_on_two_hosts_and_goes_on_after_its_time_is_over(tmp_path, stand_ins, system):
    options = [word for path, value in SMALL.items() for word in ("--set", f"{path}={value}".replace("False", "false"))]
    command = [sys.executable, "-m", "degrid", "launch", "--data", "synthetic", *options, "-o", "run"]
    asked = [f"--{system}", "--nodes", "2", "--gpus", "0", "--submit"]
    started = subprocess.Popen([*command, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = Path("run/metrics.jsonl")
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()) and started.poll() is None:
        time.sleep(0.05)
    warning = signal.SIGUSR1 if system == "slurm" else signal.SIGURG
    os.kill(int(Path("pid").read_text()), warning)
    output, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    assert output.startswith("submitted: ")
    assert load_state(Path("run/last.ckpt"))["step"] == 40
    assert [record["step"] for record in read_metrics(Path("run")) if "loss" in record] == list(range(1, 41))
    assert "in 2 processes, from step" in Path("run/log.txt").read_text()
    if system == "slurm":
        assert Path("cancelled").read_text() == "--signal=TERM 3001\n"


PYTHON = """#!/usr/bin/env bash
words=; for word; do case $word in --rdzv-endpoint=*|--rdzv-id=*|optim.lr=*) words="$words ${word#*=}";; esac; done
echo $words >> seen
[ -e saved ] || [ "${words##* }" != 0.1 ] || {
    trap 'kill $!; touch saved; exit 130' TERM
    sleep 60 & echo >> ready; wait
}
"""


@pytest.mark.parametrize("system", ["slurm", "lsf"])
def test_jobs_of_an_array_meet_apart_and_only_one_that_was_stopped_queues_again(
    tmp_path, stand_ins, system, monkeypatch
):
    """The first of three is stopped; in place of PyTorch there is what waits for it. Modules use what is not set."""
    fake = tmp_path / "a python"
    fake.write_text(PYTHON)
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    monkeypatch.delenv("LOADEDMODULES", raising=False)
    cluster = Cluster(system, gpus=0, environment=('echo "module $LOADEDMODULES" > loaded',))
    grid = {"optim.lr": [0.1, 0.2, 0.3]}
    script = degrid.launch(data="synthetic", settings=SMALL, out=tmp_path / "an 'array'", cluster=cluster, grid=grid)
    with script.open() as text:
        words = ["sbatch", str(script)] if system == "slurm" else ["bsub"]
        started = subprocess.Popen(words, stdin=text, stderr=subprocess.PIPE, text=True)
    ready = Path("ready")
    with started:
        while not (ready.exists() and ready.read_text() == "\n\n") and started.poll() is None:
            time.sleep(0.05)
        os.kill(int(Path("pid").read_text()), signal.SIGUSR1 if system == "slurm" else signal.SIGURG)
        _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors) == (0, "")
    assert Path("loaded").read_text() == "module \n"
    meetings = {
        "slurm": ["localhost:13001 3001_1 0.1", "localhost:13002 3001_2 0.2", "localhost:13003 3001_3 0.3"],
        "lsf": ["localhost:13103 3002_1 0.1", "localhost:13204 3002_2 0.2", "localhost:13305 3002_3 0.3"],
    }[system]
    seen = Path("seen").read_text().splitlines()  # by two hosts each
    assert seen == [meetings[0]] * 4 + [meetings[1]] * 2 + [meetings[2]] * 2
