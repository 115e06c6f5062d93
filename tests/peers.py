"""Networks of other projects: the logits that their own code computed, and the weights it computed them with.

tests/golden/peers.npz holds the logits [C,h,w] of each network by its name, the images uint8 [H,W,3], and `specs` (JSON
in xz): the project, its version and preprocessing, the shapes of the network's tensors by the project's own names, and
how their values follow from those names.
"""

import json
import lzma
import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
# Offset and factor on a normal value; `weight` and `depthwise` are scaled by their fan-in.
_KINDS = {"counter": (0, 0), "shift": (0, 0.1), "variance": (1, 0.2), "scale": (1, 0.1), "last_scale": (0.3, 0.03)}


@cache
def _file():
    file = np.load(GOLDEN / "peers.npz")
    return file, json.loads(lzma.decompress(file["specs"].tobytes()))


def spec(name: str) -> dict:
    """What is known of a network."""
    return _file()[1][name]


def logits(name: str) -> np.ndarray:
    """[C,h,w], before they are enlarged to the image."""
    return _file()[0][name]


def image(name: str) -> torch.Tensor:
    """uint8 [1,3,H,W]: what the network saw, before the project's preprocessing."""
    times = spec(name).get("times", 1)  # repeated, for a network that needs a larger one
    return torch.from_numpy(np.tile(_file()[0][spec(name)["image"]], (times, times, 1))).permute(2, 0, 1)[None]


def tensors(name: str) -> dict[str, np.ndarray]:
    """The network's tensors by the project's own names."""
    of = spec(name)
    return {key: _value(of, of["same_as"].get(key, key), shape) for key, shape in of["tensors"].items()}


def _value(of, name, shape):
    v = np.asarray(np.random.default_rng(zlib.crc32((of["salt"] + name).encode())).standard_normal(shape))
    kind = next((kind for kind, pattern in of["patterns"].items() if re.search(pattern, name)), None)
    kind = kind or ("scale" if len(shape) == 1 else "weight")
    fan_in = v.size / shape[of["output_axis"][kind]] if kind in of["output_axis"] else 1
    offset, factor = _KINDS.get(kind) or (0, (2 / fan_in) ** 0.5)
    value = offset + factor * (abs(v) if kind == "variance" else v)
    return np.asarray(value, "int64" if kind == "counter" else "float32")
