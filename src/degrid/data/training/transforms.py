"""Augmentation for training: image and label move as one, and only the crop's pixels are ever computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from degrid.kernels.resample import nearest, resample
from degrid.types import IGNORE_INDEX, Sample, UserError

# Where the crop reaches beyond the image: a colour near the mean of photographs, and void.
_FILL = (124, 116, 104)


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, crop, flip and colour, drawn from the generator that is passed in and from nothing else.

    Scale, crop and flip are composed into one affine map from the crop back into the image, which is resampled once:
    bilinear for the image, nearest for the label, at the same (half-pixel) positions. Where the scaled image is smaller
    than the crop, the rest is filled and void.

    crop: height and width, pixels; scale: smallest and largest factor; flip: probability, 0 to 1;
    jitter: strength of brightness, contrast, saturation (0 to 1) and hue (0 to 0.5);
    centred: crop, or pad evenly, around the middle of the image instead of at random.

    Raises:
        UserError: a value out of its range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    centred: bool = False

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise UserError(f"crop: expected a height and width of at least 1 pixel, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale: expected 0 < smallest <= largest, got {self.scale}")
        if not 0 <= self.flip <= 1:
            raise UserError(f"flip: expected a probability from 0 to 1, got {self.flip}")
        if not all(0 <= s <= 1 for s in self.jitter[:3]) or not 0 <= self.jitter[3] <= 0.5:
            raise UserError(
                f"jitter: expected brightness, contrast, saturation from 0 to 1, hue from 0 to 0.5, got {self.jitter}"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A crop of one sample: image uint8 [3,h,w], label uint8 [h,w]."""
        height, width = sample.label.shape
        crop_height, crop_width = self.crop
        factor = rng.uniform(*self.scale)
        scaled_height, scaled_width = max(1, round(height * factor)), max(1, round(width * factor))
        spare_height, spare_width = scaled_height - crop_height, scaled_width - crop_width
        top, left = int(spare_height / 2), int(spare_width / 2)
        if not self.centred:
            top, left = int(rng.integers(0, max(0, spare_height) + 1)), int(rng.integers(0, max(0, spare_width) + 1))
        step_y, step_x = height / scaled_height, width / scaled_width
        # The centre (i + 0.5, j + 0.5) of an output pixel is mapped to a place in the input, in the same convention.
        start_y, start_x, dx = top * step_y, left * step_x, step_x
        if rng.random() < self.flip:
            # Read from right to left; padding that is on the right stays there.
            shown = crop_width if self.centred else min(crop_width, scaled_width)
            start_x, dx = (left + shown) * step_x, -step_x
        start, step = (start_y, start_x), (step_y, dx)
        pixels = resample(sample.image.permute(1, 2, 0).numpy(), self.crop, start, step, _FILL)
        if any(self.jitter):
            pixels = np.array(jitter_colors(Image.fromarray(pixels), self.jitter, rng))
        label = nearest(sample.label.numpy(), self.crop, start, step, IGNORE_INDEX)
        return Sample(torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(label), sample.name)


# Weights of red, green and blue in brightness (ITU-R BT.601), and the two colour-difference axes of YIQ.
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.stack([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def jitter_colors(
    image: Image.Image, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> Image.Image:
    """Brightness, contrast, saturation and hue changed by random amounts, as one matrix that is applied once.

    Hue turns the colour-difference plane of YIQ, which keeps brightness.

    Args:
        image: RGB.
        strength: factors are drawn from 1 - s to 1 + s; the hue shift from -h to h turns.
    """
    if not any(strength):
        return image
    brightness, contrast, saturation = (rng.uniform(max(0.0, 1 - s), 1 + s) for s in strength[:3])
    angle = 2 * np.pi * rng.uniform(-strength[3], strength[3])
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    hue = np.linalg.inv(_YIQ) @ turn @ _YIQ
    grey = np.outer(np.ones(3), _LUMA)
    linear = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey) @ hue
    # Contrast is a stretch about the image's mean brightness.
    mean = brightness * np.array(image.resize((16, 16), Image.Resampling.BOX).convert("L")).mean()
    matrix = np.column_stack([linear, np.full(3, (1 - contrast) * mean)])
    return image.convert("RGB", tuple(matrix.ravel().tolist()))
