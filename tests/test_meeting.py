"""How processes that start together meet, where others have met in the same place before."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from ranks import in_processes

from degrid import UserError
from degrid.engine.ranks import joined, met, summed_over_ranks


def meet(store, ranks, count, seconds=20):
    """These processes, here threads, in the given order."""
    with ThreadPoolExecutor(len(ranks)) as threads:
        return [each.result() for each in [threads.submit(met, store, rank, count, seconds) for rank in ranks]]


def test_each_start_has_a_part_of_the_store_for_itself():
    store = dist.HashStore()
    for ranks in ([0, 1, 2], [2, 1, 0], [1, 0]):  # of the last, one is gone for good
        parts = meet(store, ranks, len(ranks))
        assert not any(part.check(["address"]) for part in parts)
        parts[0].set("address", "here")
        assert all(part.get("address") == b"here" for part in parts)


def test_who_did_not_come_is_named():
    store = dist.HashStore()
    meet(store, [0, 1, 2, 3], 4)
    with pytest.raises(RuntimeError, match="of 4 processes, counted from 0, some did not arrive: 1, 3"):
        meet(store, [0, 2], 4, seconds=2)
    with pytest.raises(RuntimeError, match="the first process did not come"):
        meet(store, [1], 4, seconds=0.2)


@pytest.mark.parametrize("wrong", [{"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": ""}])
def test_variables_that_torchrun_would_not_set(wrong, monkeypatch):
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    words = "could not join the other processes .*(RANK|two)"
    with pytest.raises(UserError, match=words), joined(torch.device("cpu"), 1):
        pass


def join(rank, place):
    """As one of two processes of torchrun, whose store outlives them."""
    folder, again, port = place
    own = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    begun = folder / f"{again}"
    while again and rank == 0 and not begun.exists():  # the other one is ahead
        time.sleep(1)
    begun.touch()
    with joined(torch.device("cpu"), 30):
        assert summed_over_ranks(torch.tensor(rank + 1)) == 3


def test_processes_that_start_again_do_not_look_for_those_of_before(tmp_path):
    """torchrun's numbers of the attempts are no help: they may differ among machines."""
    agent = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for again in (False, True):
        in_processes(join, (tmp_path, again, agent.port), 2)
