"""Workers, mistakes in workers, and settings out of range."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from degrid.data import SyntheticScenes, TrainTransform, training_batches
from degrid.types import LabelSpace, Sample, UserError

RNG = np.random.default_rng
# torch warns of more workers than cores; the tests want several on any machine.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class Stripes:
    """Sample i holds the value i; sample `broken` cannot be read."""

    labels = LabelSpace.of_size(2)

    def __init__(self, count, broken=None):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise UserError(f"image {index} is damaged")
        image = torch.full((3, 8, 8), index, dtype=torch.uint8)
        return Sample(image, torch.zeros(8, 8, dtype=torch.uint8), str(index))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_mistake_in_a_worker_is_the_same_sentence(workers):
    batches = training_batches(Stripes(5, broken=3), TrainTransform((8, 8)), 2, seed=0, workers=workers)
    with pytest.raises(UserError) as caught:
        list(itertools.islice(batches, 5))
    assert str(caught.value) == "image 3 is damaged"


def test_augmented_batches_are_the_same_with_any_number_of_workers():
    scenes = SyntheticScenes("train", 5, (64, 80))
    transform = TrainTransform((48, 48), jitter=(0.3, 0.3, 0.3, 0.05))
    whole = list(itertools.islice(training_batches(scenes, transform, 3, seed=1), 6))
    for workers, start in ((1, 0), (2, 0), (3, 2)):
        again = itertools.islice(training_batches(scenes, transform, 3, 1, start, workers), 6 - start)
        for expected, batch in zip(whole[start:], again, strict=True):
            assert batch.names == expected.names
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.label, expected.label)


def test_dataset_and_transform_can_be_sent_to_another_process():
    scenes = pickle.loads(pickle.dumps(SyntheticScenes("val", 2, (64, 64))))
    transform = pickle.loads(pickle.dumps(TrainTransform((32, 32))))
    assert transform(scenes[1], RNG(0)).label.shape == (32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (0, 8)}, "crop: expected a height and width of at least 1 pixel"),
        ({"scale": (2, 1)}, "scale: expected 0 < smallest <= largest"),
        ({"scale": (0, 1)}, "scale: expected 0 < smallest <= largest"),
        ({"flip": 1.5}, "flip: expected a probability"),
        ({"jitter": (0, 0, 0, 0.6)}, "hue from 0 to 0.5"),
        ({"jitter": (-1, 0, 0, 0)}, "jitter: expected brightness"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(**{"crop": (8, 8), **settings})
