"""From an image to class ids, at the image's own size."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from degrid.contracts import ExportedNetwork, convention_of, declared
from degrid.engine.device import pick_device
from degrid.engine.inference.activation_memory import activation_bytes, available_bytes
from degrid.engine.inference.fast_network import FastNetwork
from degrid.engine.inference.tta import InferenceOptions, fused_scores, slide_in_bands
from degrid.image import read_image, to_array
from degrid.kernels.upsample_argmax import upsample_argmax
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


_LARGE = 2_000_000
"""Pixels of an image from which on it is worth finding out whether it fits into memory."""
_SHARE = 0.8
"""Share of the free memory that feature maps may take where the user names no limit."""
_SMALLEST, _GRID = 128, 32
"""Side of the smallest window worth looking through, and what the sides of windows are multiples of, pixels."""


class Predictor:
    """Predict class ids with a model, one image at a time, as fast as the machine can; see `FastNetwork` for how.

    Args:
        model: any module from RGB images [1,3,H,W] (0-255) to logits [1,C,h,w], or an exported model. It is moved to
            the device and put in evaluation mode; later changes of its weights have no effect here.
        device: "auto", "cpu", "cuda", ...
        precision: "float32"; "bfloat16" (faster where the hardware has it, less exact); or "auto": bfloat16 where the
            hardware has it and it agrees with float32 on at least 99.5 % of the pixels of the first images.
        how: scales, flips and windows; by default the image is looked at once, as it is.
        compiled: also use torch.compile, which needs a C++ compiler and some 20 seconds for each size of image.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "auto",
        precision: str = "auto",
        how: InferenceOptions | None = None,
        compiled: bool = False,
    ) -> None:
        self.device = pick_device(device)
        self.how = how or InferenceOptions()
        self.num_classes: int | None = None
        """Classes of the model's logits; known after the first image."""
        network = declared(model)
        self.stride = 1 if network is None else network.stride
        self.resize = convention_of(model)
        self.model = model.to(self.device).eval()
        self.gives_ids = isinstance(model, ExportedNetwork) and model.output == "ids"
        """Whether it is an exported model that gives class ids at the image's size, and no logits."""
        if self.gives_ids and not (self.how.is_plain and self.how.memory is None):
            raise UserError(
                "this exported model gives class ids, which cannot be fused over scales, flips or windows or sharpened "
                "by a CRF; export it with --output logits"
            )
        self.network = FastNetwork(self.model, self.device, precision, self.resize, compiled)
        self._bytes_per_pixel: float | None = None

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
        if self.gives_ids or self._in_bands(self._looks(pixels.shape[:2]), pixels.shape[:2]):
            return Prediction(self.class_ids(image_tensor).cpu().numpy(), None, pixels)
        found = self.scores(image_tensor)
        ids = self.ids(found, pixels.shape[:2])
        return Prediction(ids.cpu().numpy(), found[0].float().cpu().numpy(), pixels)

    def scores(self, image: Tensor) -> Tensor:
        """Scores [1,C,h,w], float32, of a uint8 image [3,H,W].

        Plainly: logits at the head's stride; with scales, flips or windows see `tta.fused_scores`.
        """
        if self.gives_ids:
            raise UserError("this exported model gives class ids, no logits; export it with --output logits")
        with torch.inference_mode():
            batch = image[None].to(self.device, memory_format=torch.channels_last)
            size = tuple(image.shape[-2:])
            how = self._looks(size)
            if how.looks_once and how.crf is None and not how.slides_over(size):
                return self._forward(batch)
            return fused_scores(self._forward, batch, how, self.resize, self.stride)

    def class_ids(self, image: Tensor) -> Tensor:
        """Class ids, uint8 [H,W], of a uint8 image [3,H,W]; with windows in bounded memory."""
        size = tuple(image.shape[-2:])
        if self.gives_ids:
            return self._forward(image[None].to(self.device))[0]
        how = self._looks(size)
        if not self._in_bands(how, size):
            return self.ids(self.scores(image), size)
        with torch.inference_mode():
            batch = image[None].to(self.device, memory_format=torch.channels_last)
            bands = slide_in_bands(self._forward, batch, how, self.resize)
            return torch.cat([band[0].argmax(0).to(torch.uint8) for _, band in bands])

    @staticmethod
    def _in_bands(how: InferenceOptions, size: tuple[int, ...]) -> bool:
        """Whether the class ids of an image can come band by band, without all scores in memory."""
        return how.looks_once and how.crf is None and how.slides_over(size)

    def _looks(self, size: tuple[int, ...]) -> InferenceOptions:
        """How to look at an image of this size: through windows where its feature maps would take too much memory.

        Raises:
            UserError: a memory limit that is too small for any window.
        """
        how, scale = self.how, max(self.how.scales)
        pixels = size[0] * size[1] * scale**2
        exported = isinstance(self.model, ExportedNetwork)  # whose memory its own runtime rules
        if how.window or exported or (how.memory is None and pixels < _LARGE):
            return how
        if self._bytes_per_pixel is None:
            # Feature maps grow with the image, so one size tells of all; a little more where sides are rounded up.
            self._bytes_per_pixel = 1.05 * activation_bytes(self.model, (512, 512)) / 512**2
        limit = how.memory or int(_SHARE * available_bytes(self.device))
        most = limit / self._bytes_per_pixel
        if pixels <= most:
            return how
        height, width = (round(side * scale) for side in size)
        tall = min(height, int(most**0.5) // _GRID * _GRID)
        wide = min(width, int(most / max(tall, 1)) // _GRID * _GRID)
        if min(tall, wide) < min(_SMALLEST, height, width):
            need = self._bytes_per_pixel * _SMALLEST**2
            raise UserError(
                f"a memory limit of {limit / 2**20:.0f} MiB leaves windows of {wide}x{tall} pixels; this network needs "
                f"at least {need / 2**20:.0f} MiB, for {_SMALLEST}x{_SMALLEST}"
            )
        return dataclasses.replace(how, memory=None, window=(tall, wide))

    def _forward(self, batch: Tensor) -> Tensor:
        logits = self.network(batch)
        network = declared(self.model)
        self.num_classes = len(network.labels) if network and self.gives_ids else logits.shape[1]
        return logits

    def ids(self, scores: Tensor, size: tuple[int, ...]) -> Tensor:
        """Enlarge scores [1,C,h,w] to `size`, as the model's `resize` says, and take the best class; uint8 [H,W]."""
        with torch.inference_mode():
            return upsample_argmax(scores, size, self.resize)[0]


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
