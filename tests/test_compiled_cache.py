"""Compiled code is kept on disk, for this processor, whichever of several processes made it."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

CODE = """
import numpy as np
from degrid.kernels import smoothing_numba as kernels
out = np.empty((1, 2, 2, 1), np.float32)
weight = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]], np.float32)
kernels.mix_groups(np.arange(1, 5, dtype=np.float32).reshape(1, 2, 2, 1), weight, 2, out)
stats = kernels.mix_groups.stats
print(out.ravel().tolist(), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
MIXED = "[2.0, 1.0, 6.0, 4.0]"


@pytest.mark.slow
def test_code_is_compiled_once_for_a_processor(tmp_path):
    def started(**settings):
        settings = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **settings}
        return subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, env=settings)

    def said(process):
        return process.communicate(timeout=300)[0].strip()

    for process in [started(), started()]:  # at once, into the same empty folder
        assert said(process).startswith(MIXED)
    assert said(started()) == f"{MIXED} 1 0"
    assert said(started(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")) == f"{MIXED} 0 1"
    assert said(started()) == f"{MIXED} 1 0"
