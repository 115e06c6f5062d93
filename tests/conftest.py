"""What several files of tests share."""

import gc
import os
import subprocess

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("degrid", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("degrid")

gc.disable()  # a third of the time of importing the tests and what they import would be the collector's


def pytest_collection_finish():
    """All that was imported stays: the collector need not walk through it again during the tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def graphs():
    """No run of a test draws its network's graph for TensorBoard: a sixth of the processor time of so small a run.

    Gives what draws it: see `drawn`.
    """
    from degrid.engine.training.log import _TensorBoard

    draw = _TensorBoard.graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_TensorBoard, "graph", lambda board, model, image: None)
        yield draw


@pytest.fixture
def drawn(graphs):
    """The runs of this test draw their networks' graphs, as all do outside the tests."""
    from degrid.engine.training.log import _TensorBoard

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_TensorBoard, "graph", graphs)
        yield


@pytest.fixture
def limit_of_maps():
    """A limit of memory is that of feature maps alone, as if the process took nothing else."""
    from degrid.engine.inference import predictor
    from degrid.engine.inference.fast_network import FastNetwork

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "used_bytes", lambda device: 0)
        patch.setattr(predictor, "code_bytes", lambda: 0)
        for name in ("_ASIDE", "_ROW"):
            patch.setattr(predictor, name, 0)
        patch.setattr(FastNetwork, "bytes_to_come", lambda network: (0, 0))
        yield


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, and a function that leaves so many bytes of it free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")

    def leave(free):
        (disk / "filler").unlink(missing_ok=True)
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(room - free))

    yield disk, leave
    subprocess.run(["umount", disk], check=True)
