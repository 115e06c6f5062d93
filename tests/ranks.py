"""Processes of torch.distributed for tests, started by one that has imported PyTorch for them all."""

import multiprocessing
import warnings

import torch.multiprocessing

PRELOADED = ["degrid.engine.evaluation.evaluate", "degrid.verbs.run", "torch.distributed"]


def in_processes(work, folder, number):
    """Runs `work(rank, folder)` in some processes; an error of one is raised here."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(_strict, (work, folder), number, start_method="forkserver")


def _strict(rank, work, folder):
    warnings.simplefilter("error")  # as pytest does in its own process
    work(rank, folder)
