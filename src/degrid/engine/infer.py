"""From an image to class ids, at the image's own size."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from degrid.engine.device import autocast, pick_device
from degrid.engine.looks import Inference, fused_scores, slide_in_bands
from degrid.image import read_image, to_array
from degrid.resize import convention_of, resize
from degrid.types import UserError

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    ids: uint8 [H,W], at the image's size. logits: float32 [C,h,w], see `Predictor.scores`; None where windows slide, so
    that they are never all in memory. image: uint8 [H,W,3].
    """

    ids: np.ndarray
    logits: np.ndarray | None
    image: np.ndarray


class Predictor:
    """Predict class ids with a model, one image at a time.

    Args:
        model: any module from RGB images [1,3,H,W] (0-255) to logits [1,C,h,w]. It is moved to the device and
            put in evaluation mode.
        device: "auto", "cpu", "cuda", ...
        precision: "float32", "bfloat16" (faster where the hardware has it, less exact) or "auto".
        how: scales, flips and windows; by default the image is looked at once, as it is.
    """

    def __init__(
        self, model: nn.Module, device: str = "auto", precision: str = "float32", how: Inference | None = None
    ) -> None:
        self.device = pick_device(device)
        self.precision = precision
        self.how = how or Inference()
        self.num_classes: int | None = None
        """Classes of the model's logits; known after the first image."""
        self.stride = max(getattr(getattr(model, "encoder", None), "reductions", (1,)))
        self.resize = convention_of(model)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()

    def __call__(self, image: ImageLike) -> np.ndarray:
        """Class ids of an image, uint8 [H,W].

        Args:
            image: a file, a PIL image, a uint8 array [H,W,3] or [H,W], or a uint8 tensor [3,H,W]; RGB.
        Raises:
            UserError: the file is missing or damaged, or the array is of another kind.
        """
        return self.predict(image).ids

    def predict(self, image: ImageLike) -> Prediction:
        """Class ids together with the logits and the image as the model saw it."""
        pixels = _pixels(image)
        image_tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        if self._in_bands(pixels.shape[:2]):
            return Prediction(self.class_ids(image_tensor).cpu().numpy(), None, pixels)
        found = self.scores(image_tensor)
        ids = self.ids(found, pixels.shape[:2])
        return Prediction(ids.cpu().numpy(), found[0].float().cpu().numpy(), pixels)

    def scores(self, image: Tensor) -> Tensor:
        """Scores [1,C,h,w], float32, of a uint8 image [3,H,W].

        Plainly: logits at the head's stride; with scales, flips or windows see `degrid.engine.looks.fused_scores`.
        """
        with torch.inference_mode():
            batch = image[None].to(self.device, memory_format=torch.channels_last)
            plain = self.how.looks_once and self.how.crf is None
            if plain and not self.how.slides_over(tuple(image.shape[-2:])):
                return self._forward(batch)
            return fused_scores(self._forward, batch, self.how, self.resize, self.stride)

    def class_ids(self, image: Tensor) -> Tensor:
        """Class ids, uint8 [H,W], of a uint8 image [3,H,W]; with windows in bounded memory."""
        size = tuple(image.shape[-2:])
        if not self._in_bands(size):
            return self.ids(self.scores(image), size)
        with torch.inference_mode():
            batch = image[None].to(self.device, memory_format=torch.channels_last)
            bands = slide_in_bands(self._forward, batch, self.how, self.resize)
            return torch.cat([band[0].argmax(0).to(torch.uint8) for _, band in bands])

    def _in_bands(self, size: tuple[int, ...]) -> bool:
        """Whether the class ids of an image can come band by band, without all scores in memory."""
        return self.how.looks_once and self.how.crf is None and self.how.slides_over(size)

    def _forward(self, batch: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            logits: Tensor = self.model(batch)
        self.num_classes = logits.shape[1]
        return logits.float()

    def ids(self, scores: Tensor, size: tuple[int, ...]) -> Tensor:
        """Enlarge scores [1,C,h,w] to `size`, as the model's `resize` says, and take the best class; uint8 [H,W]."""
        with torch.inference_mode():
            return resize(scores, size, self.resize)[0].argmax(0).to(torch.uint8)


def _pixels(image: ImageLike) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_array(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise UserError(f"expected a uint8 tensor [3,H,W], got {image.dtype} {list(image.shape)}")
        return np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise UserError(f"expected a uint8 array [H,W,3] or [H,W], got {pixels.dtype} {list(pixels.shape)}")
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else np.array(pixels)
