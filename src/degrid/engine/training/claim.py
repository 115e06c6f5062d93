"""One run folder, one run at a time, whichever machines see the folder."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from degrid.files import explained, make_folder
from degrid.types import Tell, UserError

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

NAME = "running"
"""The file in a run folder that the process training there keeps locked; it names it. Removed when the run ends."""
TAKEN = (errno.EACCES, errno.EAGAIN)
"""What a lock is refused with that another process has; other errors mean that there are no locks there."""


@contextmanager
def claimed(folder: Path, tell: Tell, anyway: bool = False) -> Iterator[None]:
    """Keep other processes from training in a folder; on network folders those of other machines, too.

    The system gives the lock back when this process ends, however it does; on a network folder, whose server may wait
    for a machine that was lost, when the file is removed.

    Args:
        tell: hears where the folder cannot be locked.
        anyway: whoever has it is known to be gone.
    Raises:
        UserError: another process is training there.
    """
    make_folder(folder)
    path = folder / NAME
    with explained(path):
        file = _locked(path, tell, anyway)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def _locked(path: Path, tell: Tell, anyway: bool) -> IO[str]:
    """The open file, locked and with this process's name in it."""
    while True:
        # Not truncated, since it may belong to another process.
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in TAKEN:
                tell(f"{path.parent} cannot be locked ({error.strerror}): make sure that no other run trains there")
            elif anyway:
                file.close()
                path.unlink(missing_ok=True)
                continue
            else:
                file.seek(0)
                who = file.read() or "another process"
                file.close()
                raise UserError(
                    f"{path.parent} is being trained by {who}; wait for it, or choose another -o (out=...). If that "
                    f"machine was lost, remove {path}"
                ) from error
        # The previous process may have removed the file opened here just before it was locked.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            file.seek(0)
            before = file.read()  # left by a killed process, or by one whose lock is not visible here, as through sshfs
            if before and not anyway and before.rpartition(" on ")[2] != platform.node():
                tell(f"{path} names {before}, which may still train there: not every network disk passes on locks")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            return file
        file.close()


def _lock(file: IO[str]) -> None:
    """Lock a file for this process, and not, as `flock` does, for its children, which may live longer.

    Raises:
        OSError: another process has it, or there are no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "no locks on this system")
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
