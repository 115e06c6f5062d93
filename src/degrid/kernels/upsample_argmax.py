"""Class ids at the image's size straight from the small logits: the enlarged logits are never in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from degrid.kernels.support import numba_installed
from degrid.kernels.upsample_argmax_numpy import compiled_upsample_argmax, places
from degrid.resize import resize
from degrid.types import UserError

BAND = {"cpu": 1 << 18}
"""Most enlarged logits, in numbers, that the PyTorch twin holds at once: 1 MiB on the CPU, which stays in its cache."""
BAND_ELSEWHERE = 1 << 24


def upsample_argmax(
    logits: Tensor, size: tuple[int, ...], convention: str = "half_pixel", compiled: bool = True
) -> Tensor:
    """The best class of every pixel of the enlarged (or shrunk) logits, as `resize(logits, size).argmax(1)` finds it.

    Ties go to the lowest class, and NaN wins as in torch.argmax, wherever `resize` spreads it to (in tf_legacy the
    PyTorch code here spreads it by one more pixel). Between two classes whose enlarged logits differ by no more than
    rounding (about 1e-7 of the largest logit around) either may win. Infinite logits are not supported: zero times
    infinity is NaN in `resize`, and need not be here.

    A class that is below another one in all four logits around a pixel is below it in every bilinear mixture of them,
    so most pixels need no arithmetic. This runs compiled on the CPU, where numba is installed; elsewhere as PyTorch,
    band by band.

    Args:
        logits: [N,C,h,w], C from 1 to 256, floating point; computed in float32 (float64 stays).
        size: (H, W), pixels.
        convention: of the coordinates, see `degrid.types.RESIZES`.
        compiled: use compiled code where there is any; the first call loads it.
    Returns:
        uint8 [N,H,W], on the logits' device.
    Raises:
        UserError: more than 256 classes, or an unknown convention.
    """
    if logits.shape[1] > 256:
        raise UserError(f"class ids are kept in 8 bits, so there can be at most 256 classes; got {logits.shape[1]}")
    logits = logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
    if compiled and logits.device.type == "cpu" and logits.dtype == torch.float32 and numba_installed():
        return _compiled(logits, size, convention)
    return _by_bands(logits, size, convention)


def _compiled(logits: Tensor, size: tuple[int, ...], convention: str) -> Tensor:
    return torch.from_numpy(compiled_upsample_argmax(logits.permute(0, 2, 3, 1).numpy(), size, convention))


def _by_bands(logits: Tensor, size: tuple[int, ...], convention: str) -> Tensor:
    """The twin: all columns first, then rows, a band at a time; channels last, which argmax is fastest on."""
    count, classes, height, _ = logits.shape
    wide = resize(logits.contiguous(memory_format=torch.channels_last), (height, size[1]), convention)
    wide = wide.permute(0, 2, 3, 1).contiguous()
    before, weight = (torch.from_numpy(values).to(logits.device) for values in places(height, size[0], convention))
    after, weight = (before + 1).clamp(max=height - 1), weight.to(logits.dtype)[:, None, None]
    ids = torch.empty(count, *size, dtype=torch.uint8, device=logits.device)
    rows = max(1, BAND.get(logits.device.type, BAND_ELSEWHERE) // (count * classes * size[1]))
    for top in range(0, size[0], rows):
        band = slice(top, top + rows)
        low, high = wide.index_select(1, before[band]), wide.index_select(1, after[band])
        ids[:, band] = low.lerp(high, weight[band]).argmax(-1)
    return ids
