"""Shared by all tests: one thread per test run keeps results and times repeatable."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _quiet_torch():
    torch.set_num_threads(2)
