"""Evaluation by several processes: real ones, with torch.distributed over Gloo."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import in_processes
from torch import nn

from degrid.engine.evaluation.evaluate import score
from degrid.engine.evaluation.metrics import ConfusionMatrix
from degrid.engine.inference.predictor import predictor_of
from degrid.engine.ranks import summed_over_ranks
from degrid.types import IGNORE_INDEX, LabelSpace, Sample, UserError

WORLDS = (1, 2, 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 5, 2, 2)

    def forward(self, x):
        return 8 * self.conv(x.float() / 255)


class Five:
    """Five images of their own sizes with void; one may be damaged."""

    labels = LabelSpace.of_size(4)

    def __init__(self, number=5, damaged=None):
        self.number, self.damaged = number, damaged

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index == self.damaged:
            raise UserError(f"image {index} is damaged or cut short")
        rng = np.random.default_rng(index)
        size = (20 + 3 * index, 31 - index)
        image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
        label = torch.from_numpy(rng.choice([0, 1, 2, 3, IGNORE_INDEX], size).astype(np.uint8))
        return Sample(image, label, f"{index}")


def evaluate(model, dataset, **options):
    with predictor_of(model, "cpu", "float32", None) as predictor:
        return score(predictor, dataset, **options)


def told(found):
    """Every number of the scores; floats in JSON come back as the same bits."""
    return json.loads(json.dumps(dataclasses.asdict(found)))


def work(rank, folder):
    """What each process does: alone, then with 1, 2 and 3 in turn, writing down what it saw."""
    torch.set_num_threads(1)
    notes = {"alone": told(evaluate(Net(), Five(), calibration=True))}
    for world in WORLDS:
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
        seen = []
        scores = evaluate(Net(), Five(), calibration=True, on_image=lambda index, *_, seen=seen: seen.append(index))
        notes[f"{world}"] = {"scores": told(scores), "seen": seen}
        notes[f"{world} with 2 images"] = told(evaluate(Net(), Five(2)))
        try:
            evaluate(Net(), Five(damaged=1))
        except UserError as error:
            notes[f"{world} with a damaged image"] = str(error)
        own = ConfusionMatrix(2)
        own.counts += rank + 1
        notes[f"{world} merged"] = [own.merged().counts.tolist(), own.counts.tolist()]
        dist.destroy_process_group()
    with open(f"{folder}/rank{rank}.json", "w", encoding="utf-8") as file:
        json.dump(notes, file)


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    in_processes(work, str(folder), max(WORLDS))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(max(WORLDS))]


@pytest.mark.parametrize("world", WORLDS)
def test_shares_give_the_scores_of_one_process_bit_for_bit(notes, world):
    alone = notes[0]["alone"]
    assert alone["ece"] > 0
    assert alone["boundary_iou"] > 0
    assert sum(map(sum, alone["confusion"])) > 1000
    for rank in range(world):
        assert notes[rank][f"{world}"]["scores"] == alone
        assert notes[rank][f"{world}"]["seen"] == list(range(rank, 5, world))


@pytest.mark.parametrize("world", WORLDS)
def test_a_process_without_any_image(notes, world):
    found = [notes[rank][f"{world} with 2 images"] for rank in range(world)]
    assert all(each == found[0] for each in found)
    assert found[0] == notes[0]["1 with 2 images"]
    assert found[0]["num_images"] == 2


@pytest.mark.parametrize("world", WORLDS)
def test_all_processes_fail_with_the_one_that_fails(notes, world):
    for rank in range(world):
        message = notes[rank][f"{world} with a damaged image"]
        own = 1 in range(rank, 5, world)
        assert message.endswith("image 1 is damaged or cut short")
        assert message.startswith("image 1" if own else "process")


@pytest.mark.parametrize("world", WORLDS)
def test_merged_counts_are_the_sum_and_ones_own_stay(notes, world):
    total = world * (world + 1) // 2
    for rank in range(world):
        assert notes[rank][f"{world} merged"] == [[[total] * 2] * 2, [[rank + 1] * 2] * 2]


def test_without_processes_counts_are_their_own_sum():
    counts = torch.arange(4)
    assert summed_over_ranks(counts) is counts
