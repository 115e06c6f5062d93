"""A process that trains in a folder, as far as others can see; tests start it."""

import subprocess
import sys
from contextlib import contextmanager

CODE = """
import os, sys, time
from pathlib import Path
from degrid.engine.training.claim import claimed
with claimed(Path(sys.argv[1]), print):
    if sys.argv[2] == "parent" and not os.fork():
        sys.stdout.close()
        time.sleep(600)
    print("here", os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(folder, kind="alone"):
    """Its process, from when it has the folder; the one of kind "parent" has a child that has all it has."""
    words = [sys.executable, "-c", CODE, str(folder), kind]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == f"here {process.pid}\n"
            yield process
        finally:
            process.kill()
