"""Workers, mistakes in workers, and settings out of range."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from degrid.data import Loaders, SyntheticScenes, TrainTransform, training, training_batches
from degrid.data.training import collate, repeat_factors, void_borders
from degrid.kernels import resample as resampling
from degrid.kernels.resample import resample
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


@pytest.mark.parametrize(
    ("loaders", "loading", "using", "number"),
    [
        (Loaders(8), 1, 3, 1),  # three times as fast as needed
        (Loaders(8), 2, 1, 3),
        (Loaders(8), 9, 1, 8),
        (Loaders(8), 1, 0, 8),
        (Loaders(1), 2, 1, 1),
        (Loaders(8, worth=0.1), 0.99, 9, 0),
        (Loaders(8, worth=0.1), 1.01, 9, 1),
        (Loaders(0, worth=0.1), 9, 1, 0),
    ],
)
def test_as_many_processes_load_as_are_needed(loaders, loading, using, number):
    assert loaders.number(loading, using) == number


def test_batches_stay_in_order_when_the_number_of_processes_is_decided():
    whole, chosen = (
        training_batches(Stripes(7), TrainTransform((8, 8)), 2, 1, 3, workers) for workers in (0, Loaders(2, trial=3))
    )
    for expected, batch in itertools.islice(zip(whole, chosen, strict=True), 9):
        assert batch.names == expected.names


def test_rare_classes_are_shown_more_often():
    """Of ten images one holds class 1, five class 2: factors sqrt(0.4 / f), and no class is shown less than once."""
    present = np.zeros((10, 3), bool)
    present[:, 0], present[3, 1], present[5:, 2] = True, True, True
    factors = repeat_factors(present, 0.4)
    assert factors == pytest.approx([1, 1, 1, 2, 1, 1, 1, 1, 1, 1])
    assert repeat_factors(present, 0.8)[5:] == pytest.approx(np.sqrt(0.8 / 0.5))
    assert repeat_factors(np.zeros((4, 2), bool), 0.5) == pytest.approx(1)


def test_repeats_are_kept_in_every_epoch_and_on_average():
    repeats = np.array([1, 1, 2.5, 1, 1.7, 1, 1, 3, 1, 1])
    length, epochs = 14, 60  # the repeats add up to 14.2, so each counts 14/14.2 of its number
    stream = training_batches(Stripes(10), TrainTransform((8, 8)), 7, seed=3, repeats=repeats)
    names = [int(name) for batch in itertools.islice(stream, 2 * epochs) for name in batch.names]
    counts = np.array([np.bincount(names[k * length : (k + 1) * length], minlength=10) for k in range(epochs)])
    wanted = repeats * length / repeats.sum()
    assert (counts >= np.floor(wanted)).all()
    assert (counts <= np.ceil(wanted)).all()
    assert counts.mean(0) == pytest.approx(wanted, abs=0.2)
    again = training_batches(Stripes(10), TrainTransform((8, 8)), 7, 3, start=5, workers=2, repeats=repeats)
    assert [int(name) for batch in itertools.islice(again, 3) for name in batch.names] == names[35:56]


def test_the_borders_of_classes_become_void():
    label = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1], [255, 255, 255, 0, 0, 0, 0]], dtype=torch.uint8)
    wanted = torch.tensor([[0, 0, 0, 255, 255, 1, 1], [0, 0, 0] + [255] * 4, [255] * 7], dtype=torch.uint8)
    wanted[2, :3] = 255
    found = void_borders(label, 1)
    assert torch.equal(found[:2], wanted[:2])
    assert found[2].tolist() == [255] * 7
    assert void_borders(torch.full((5, 5), 7, dtype=torch.uint8), 3).eq(7).all()
    assert void_borders(torch.full((5, 5), 255, dtype=torch.uint8), 3).eq(255).all()


@pytest.mark.parametrize("width", [1, 2, 5])
def test_borders_against_a_search_of_every_neighbour(width):
    rng = RNG(width)
    label = rng.integers(0, 3, (12, 15)).astype(np.uint8)
    label = np.where(rng.random((12, 15)) < 0.2, 255, np.kron(label[:4, :5], np.ones((3, 3), np.uint8))).astype(
        np.uint8
    )
    wanted = label.copy()
    for y, x in itertools.product(range(12), range(15)):
        near = label[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        if label[y, x] != 255 and np.any((near != label[y, x]) & (near != 255)):
            wanted[y, x] = 255
    assert np.array_equal(void_borders(torch.from_numpy(label), width).numpy(), wanted)
    assert 0 < (wanted == 255).mean() < 1 or width > 1


def test_a_transform_voids_borders():
    sample = Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.eye(8, dtype=torch.uint8), "a")
    plain = TrainTransform((8, 8), (1, 1), 0)(sample, RNG(0)).label
    assert torch.equal(TrainTransform((8, 8), (1, 1), 0, void_border=2)(sample, RNG(0)).label, void_borders(plain, 2))
    with pytest.raises(UserError, match="void_border: expected 0"):
        TrainTransform((8, 8), void_border=-1)


def test_dataset_and_transform_can_be_sent_to_another_process():
    scenes = pickle.loads(pickle.dumps(SyntheticScenes("val", 2, (64, 64))))
    transform = pickle.loads(pickle.dumps(TrainTransform((32, 32))))
    assert transform(scenes[1], RNG(0)).label.shape == (32, 32)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"crop": (0, 8)}, "crop: expected a height and width of at least 1 pixel"),
        ({"scale": (2, 1)}, "scale: expected 0 < smallest <= largest"),
        ({"scale": (0, 1)}, "scale: expected 0 < smallest <= largest"),
        ({"flip": 1.5}, "flip: expected a probability"),
        ({"jitter": (0, 0, 0, 0.6)}, "hue from 0 to 0.5"),
        ({"jitter": (-1, 0, 0, 0)}, "jitter: expected brightness"),
    ],
)
def test_settings_out_of_range(given_settings, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(**{"crop": (8, 8), **given_settings})


SIDE = st.integers(1, 40)
PLACE = st.floats(-50, 50, allow_nan=False) | st.integers(-20, 45).map(float)
STEP = st.floats(0.2, 3.0) | st.sampled_from([0.5, 1.0, 2.0])


@settings(max_examples=300)
@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.tuples(PLACE, PLACE), st.tuples(STEP, STEP), st.booleans())
def test_resampling_is_pillows_rounded(image_size, size, start, step, mirrored):
    """Pillow computes floating-point images in single precision, and cuts off the others."""
    image = RNG(0).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    step = (step[0], -step[1] if mirrored else step[1])
    affine = (step[1], 0.0, start[1], 0.0, step[0], start[0])
    found = resample(image, size, start, step, (1, 2, 3))
    for band in range(3):
        picture = Image.fromarray(image[..., band].astype(np.float32))
        kind = Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        exact = np.asarray(picture.transform(size[::-1], *kind, fillcolor=band + 1))
        assert np.abs(found[..., band] - exact).max() <= 0.5 + 1e-4


def test_a_row_worked_out_by_hand():
    image = np.array([[[0, 0, 0], [100, 200, 255]]], np.uint8)
    found = resample(image, (1, 5), (0.0, -0.5), (1.0, 0.5), (7, 8, 9))
    # Columns -0.25, 0.25, 0.75, 1.25, 1.75: outside; before the first centre; a quarter and three quarters of the way
    # between the centres (63.75 and 191.25 rounded); after the last centre.
    assert found[0].tolist() == [[7, 8, 9], [0, 0, 0], [25, 50, 64], [75, 150, 191], [100, 200, 255]]


def test_scaling_does_not_darken():
    """The mean error is that of rounding, as for the images that are evaluated: none."""
    image = RNG(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    size, step = (200, 180), (0.37, 0.61)
    found = resample(image, size, (3.0, 4.0), step, (0, 0, 0))
    rows, columns = (
        (start + (np.arange(n) + 0.5) * s) / side * 2 - 1
        for start, n, s, side in ((3.0, size[0], step[0], 90), (4.0, size[1], step[1], 120))
    )
    grid = torch.from_numpy(np.stack(np.meshgrid(columns, rows), -1))[None]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    exact = torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)[0]
    difference = found - exact.permute(1, 2, 0).numpy()
    assert abs(difference.mean()) < 0.01
    assert np.abs(difference).max() <= 0.5 + 1e-9


def test_without_numba_crops_are_the_same(monkeypatch):
    scenes = SyntheticScenes("train", 2, (64, 80))
    transform = TrainTransform((72, 48), jitter=(0.3, 0.3, 0.3, 0.05))
    compiled = [transform(scenes[0], RNG(seed)) for seed in range(5)]
    monkeypatch.setattr(resampling, "can_import_numba", lambda: False)
    for seed, expected in enumerate(compiled):
        found = transform(scenes[0], RNG(seed))
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.label, expected.label)


def test_a_batch_lies_in_memory_as_the_network_wants_it():
    random = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 5, 7), generator=random, dtype=torch.uint8) for _ in range(3)]
    images[1] = images[1].contiguous().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    batch = collate([Sample(image, torch.full((5, 7), i, dtype=torch.uint8), "") for i, image in enumerate(images)])
    assert torch.equal(batch.image, torch.stack(images))
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.label.dtype == torch.int64
    assert batch.label[:, 0, 0].tolist() == [0, 1, 2]


def test_loading_in_processes_leaves_the_random_generator_alone():
    """Else dropout, and so a run, would depend on the number of workers and on where it was resumed."""
    data = SyntheticScenes("train", 4, (64, 64))
    for workers in (0, 1):
        before = torch.get_rng_state()
        next(training_batches(data, TrainTransform((32, 32)), 2, seed=0, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)


def test_no_stream_of_random_numbers_is_used_twice(monkeypatch):
    """NumPy pads seeds with zeros: [7, 1] and [7, 1, 0] are one stream."""
    made, real = [], np.random.default_rng

    def note(seed):
        made.append(tuple(np.random.SeedSequence(seed).generate_state(4)))
        return real(seed)

    monkeypatch.setattr(np.random, "default_rng", note)
    batches = training_batches(SyntheticScenes("train", 2, (64, 64)), TrainTransform((16, 16)), 2, seed=7)
    for _ in range(3):
        next(batches)
    orders = 3 + 3 * 2  # three epochs of two images; drawing the scenes uses streams of its own
    assert len({*made}) >= orders
    ours = [state for state in made if made.count(state) > 1]
    assert not ours


def test_batches_end_quietly_with_the_program(monkeypatch):
    """A loop of the user's own leaves the endless batches to the end of the program, where modules are empty."""
    numbered = iter(training._Numbered(lambda number: number, 3))
    assert next(numbered) == 3
    monkeypatch.setattr(training, "UserError", None)
    numbered.close()
