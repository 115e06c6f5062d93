"""How many threads are used, in containers and beside other programs, and that they let others work."""

import ast
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import degrid
from degrid import threads
from degrid.kernels.support import can_import_numba, use_torch_threads
from degrid.threads import PILLOW, limited_threads, num_threads, settle_threads, usable_cores


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr("sys.platform", "linux")


def put(root, groups, **files):
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("10000 50000", 1), ("max 100000", 8), ("", 8)]
)
def test_cores_by_quota(quota, cores, eight_cores, tmp_path):
    put(tmp_path, "0::/pod/box\n", pod__box__cpuDOTmax=quota)
    assert usable_cores(tmp_path) == cores


def test_the_smallest_quota_of_the_groups_around_counts(eight_cores, tmp_path):
    put(tmp_path, "0::/pod/box\n", pod__box__cpuDOTmax="500000 100000", pod__cpuDOTmax="300000 100000")
    assert usable_cores(tmp_path) == 3


@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("-1", 8), ("900000", 8)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_control_groups_of_version_1(quota, cores, controllers, eight_cores, tmp_path):
    """In a container the path is that of the host, and the group is the top of its tree."""
    put(tmp_path, f"7:cpuset:/x\n4:{controllers}:/docker/12\n", cpu__cpuDOTcfs_quota_us=quota)
    put(tmp_path, f"7:cpuset:/x\n4:{controllers}:/docker/12\n", cpu__cpuDOTcfs_period_us="100000")
    assert usable_cores(tmp_path) == cores


def test_cores_without_control_groups(eight_cores, tmp_path):
    assert usable_cores(tmp_path) == 8


@pytest.fixture
def two_threads_for_one_core(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    yield
    torch.set_num_threads(before)


def test_a_quota_limits_pytorch_and_numba_meanwhile(two_threads_for_one_core):
    seen = []

    class Net(nn.Module):
        def forward(self, image):
            seen.append(torch.get_num_threads())
            return torch.cat([image[:, :1], -image[:, :1]], 1)

    degrid.Predictor(Net(), "cpu")(np.zeros((8, 8, 3), np.uint8))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), limited_threads():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    if can_import_numba():
        import numba

        use_torch_threads()
        assert (numba.get_num_threads(), torch.get_num_threads()) == (1, 2)


def test_who_asks_for_threads_gets_them(two_threads_for_one_core, monkeypatch):
    assert num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert num_threads() == 2
    with limited_threads():
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("quotas", "given", "expected"),
    [
        ((), {}, {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1", "OPENBLAS_THREAD_TIMEOUT": "10"}),
        (
            (1.5,),
            {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "5", "OPENBLAS_THREAD_TIMEOUT": "26"},
            {"OMP_NUM_THREADS": "3", "DEGRID_THREADS": "3"},
        ),
        ((1.5,), {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "active", "PILLOW_BLOCKS_MAX": "0"}, {}),
    ],
)
def test_a_program_settles_before_pytorch_is_loaded(quotas, given, expected, monkeypatch):
    """These are read when PyTorch is loaded, which the command line has not done by then (test_architecture)."""
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(threads, "cores_of_groups", lambda: iter(quotas))
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    settle_threads()
    assert os.environ == PILLOW | given | expected


def test_pillow_keeps_the_memory_of_a_picture():
    """As its own counters say, of what it asked the system for."""
    code = (
        "from PIL import Image; Image.new('L', (640, 480)); Image.core.reset_stats()\n"
        "for _ in range(5): Image.new('L', (640, 480))\n"
        "print({name: Image.core.get_stats()[name] for name in ('new_count', 'allocated_blocks', 'reused_blocks')})"
    )
    for settings, expected in (({}, (5, 5, 0)), (PILLOW, (5, 0, 5))):
        given = {name: value for name, value in os.environ.items() if name not in PILLOW} | settings
        done = subprocess.run([sys.executable, "-c", code], env=given, stdout=subprocess.PIPE, text=True, check=True)
        assert tuple(ast.literal_eval(done.stdout).values()) == expected


@pytest.mark.parametrize(
    ("quotas", "given", "each"), [((), {}, "3"), ((6.0,), {}, "3"), ((6.0,), {"OMP_NUM_THREADS": "5"}, "5")]
)
def test_processes_divide_the_cores_of_a_quota_too(quotas, given, each, monkeypatch):
    """Two on six cores; what was asked for by somebody is kept."""
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(threads, "cores_of_groups", lambda *place: iter(quotas))
    monkeypatch.setattr(threads, "usable_cores", lambda: 6)
    settle_threads()
    threads.divide_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == each
