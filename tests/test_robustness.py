"""Scores under noise, blur and shifts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import degrid
from degrid import LabelSpace, Measures, Sample, UserError
from degrid.engine.evaluation.robustness import SEVERITIES, Corrupted, corrupt, parse_corruptions


class Images:
    """Two images of noise whose label is whether the red channel is at least 128."""

    labels = LabelSpace.of_size(2)

    def __init__(self, side=24):
        self.side = side

    def __len__(self):
        return 2

    def __getitem__(self, index):
        random = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, self.side, self.side + 3), generator=random, dtype=torch.uint8)
        return Sample(image, (image[0] >= 128).byte(), f"folder/{index}")


class Pixel(nn.Module):
    """Logits of the label, pixel by pixel; with a step, of the first pixel of each block of that side."""

    def __init__(self, step=1):
        super().__init__()
        self.step = step

    def forward(self, image):
        red = image[:, :1].float() - 127.5
        height, width = red.shape[-2:]
        if self.step > 1:
            red = red[..., :: self.step, :: self.step]
            red = red.repeat_interleave(self.step, 2).repeat_interleave(self.step, 3)[..., :height, :width]
        return torch.cat([-red, red], 1)


def measured(model, dataset=None, **measures):
    return degrid.evaluate(model, dataset or Images(), device="cpu", measures=Measures(boundary=False, **measures))


def test_words_for_corruptions():
    assert parse_corruptions(["noise:2", "blur"]) == [("noise", 2), *(("blur", number) for number in range(1, 6))]
    assert parse_corruptions(["noise:2", "noise:2"]) == [("noise", 2)]


@pytest.mark.parametrize("word", ["fog", "noise:0", "noise:6", "noise:x", "noise:", ""])
def test_other_corruptions_are_refused(word):
    with pytest.raises(UserError, match=f'corruption "{word}": expected noise or blur, alone for all severities'):
        Measures(corruptions=(word,))


def test_noise_has_its_deviation_and_its_seed():
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    for severity, amount in enumerate(SEVERITIES["noise"][:2], start=1):  # stronger noise is cut off at 0 and 255
        noisy = corrupt(grey, "noise", severity)
        assert float(noisy.float().std()) == pytest.approx(255 * amount, rel=0.02)
        assert float(noisy.float().mean()) == pytest.approx(128, abs=0.5)
    assert torch.equal(corrupt(grey, "noise", 1, seed=3), corrupt(grey, "noise", 1, seed=3))
    assert not torch.equal(corrupt(grey, "noise", 1, seed=3), corrupt(grey, "noise", 1, seed=4))


def test_blur_spreads_a_point_as_a_gaussian():
    image = torch.zeros(1, 21, 21, dtype=torch.uint8)
    image[0, 10, 10] = 255
    found = corrupt(image, "blur", 1)[0]
    line = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    line /= line.sum()
    assert found[6:15, 6:15].tolist() == np.round(255 * np.outer(line, line)).tolist()
    assert corrupt(torch.full((3, 5, 9), 77, dtype=torch.uint8), "blur", 5).unique().tolist() == [77]


def test_each_image_is_made_worse_in_its_own_way_and_always_the_same():
    grey = Sample(torch.full((3, 8, 8), 100, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8), "")

    class Grey(Images):
        def __getitem__(self, index):
            return Sample(grey.image, grey.label, f"{index}")

    worse = Corrupted(Grey(), "noise", 3)
    assert torch.equal(worse[0].image, worse[0].image)
    assert not torch.equal(worse[0].image, worse[1].image)
    assert (worse[1].name, len(worse)) == ("1", 2)


def test_the_miou_is_that_of_the_worse_images():
    found = measured(Pixel(), corruptions=("noise:5", "noise:1"))
    assert found.miou == 1
    by_severity = {point.severity: point.miou for point in found.corrupted}
    for severity, miou in by_severity.items():
        assert miou == degrid.evaluate(Pixel(), Corrupted(Images(), "noise", severity), device="cpu").miou
    assert by_severity[5] < by_severity[1] < 1
    assert measured(Pixel()).corrupted == ()


def test_a_network_that_treats_all_pixels_alike_agrees_with_its_shifts():
    assert [point.agreement for point in measured(Pixel(), shift=3).shifts] == [1, 1, 1]


def test_a_network_with_steps_agrees_at_their_multiples():
    found = measured(Pixel(2), Images(60), shift=4).shifts
    assert [point.shift for point in found] == [1, 2, 3, 4]
    assert (found[1].agreement, found[3].agreement) == (1, 1)
    for odd in (found[0], found[2]):  # it compares pixels that have nothing to do with one another
        assert odd.agreement == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / (2 * 30 * 30)))


def test_images_too_small_for_a_shift():
    with pytest.raises(UserError, match="folder/0: 24x27 is too small for shifts of 12"):
        measured(Pixel(), shift=12)


def test_bytes_only():
    class Floats(Images):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return Sample(sample.image.float(), sample.label, sample.name)

    with pytest.raises(UserError, match="folder/0: noise and blur are defined for 8-bit images"):
        Corrupted(Floats(), "blur", 1)[0]
