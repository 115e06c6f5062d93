"""A run folder belongs to one process at a time."""

import errno
import os
import platform
import signal

import pytest
from claims import another

from degrid.engine.training import claim
from degrid.engine.training.claim import claimed
from degrid.types import UserError


def test_another_process_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "run"
    with another(folder) as process:
        words = rf"run is being trained by process {process.pid} on {platform.node()}; .* remove {folder}/running"
        for _ in range(2):  # whoever was refused has not taken it away
            with pytest.raises(UserError, match=words), claimed(folder, print):
                pass
        process.stdin.close()
        assert process.wait(60) == 0
    with claimed(folder, print):
        assert (folder / "running").read_text() == f"process {os.getpid()} on {platform.node()}"
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_a_process_that_was_killed_leaves_nothing_behind_even_if_its_child_lives(tmp_path):
    with another(tmp_path, "parent") as process:
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            (child,) = file.read().split()
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        try:
            with claimed(tmp_path, print):
                assert (tmp_path / "running").exists()
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_whoever_another_machine_names_is_told_of(tmp_path):
    """Killed, or its lock is not to be seen here, as through sshfs, where each machine has locks of its own."""
    for before, words in (
        ("process 7 on elsewhere", f"{tmp_path}/running names process 7 on elsewhere, which may still train there"),
        (f"process 7 on {platform.node()}", None),  # killed, as it would have the lock
    ):
        (tmp_path / "running").write_text(before)
        told = []
        with claimed(tmp_path, told.append):
            assert (tmp_path / "running").read_text() == f"process {os.getpid()} on {platform.node()}"
        assert [text.partition(":")[0] for text in told] == [words] * bool(words)


def test_a_job_that_was_started_again_takes_its_folder_from_a_lost_machine(tmp_path):
    with another(tmp_path) as process, claimed(tmp_path, print, anyway=True):
        assert str(os.getpid()) in (tmp_path / "running").read_text()
        assert process.poll() is None


def test_what_was_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    """The process before ends between the opening of the file and its lock."""
    lock, removed = claim._lock, []

    def late(file):
        if not removed:
            removed.append((tmp_path / "running").unlink())
        lock(file)

    monkeypatch.setattr(claim, "_lock", late)
    with claimed(tmp_path, print):
        assert removed
        assert str(os.getpid()) in (tmp_path / "running").read_text()


def test_folders_without_locks_are_told_of(tmp_path, monkeypatch):
    def none(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claim, "_lock", none)
    told = []
    with claimed(tmp_path, told.append):
        pass
    assert told == [f"{tmp_path} cannot be locked (No locks available): make sure that no other run trains there"]
