"""Processes of torch.distributed for tests, started by one that has imported PyTorch for them all."""

import multiprocessing

import torch.multiprocessing

PRELOADED = ["degrid.engine.evaluation.evaluate", "degrid.verbs.run", "torch.distributed"]


def in_processes(work, folder, number):
    """Runs `work(rank, folder)` in some processes; an error of one is raised here."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(work, (folder,), number, start_method="forkserver")
