"""Numbers that the original code computed, and the weights it computed them with.

tests/golden/originals.npz holds each different array once; `index` (JSON) gives their names, the shapes of every
network's variables, and how many of them the original trains. The networks' weights follow from the variables' names.
"""

import json
import zlib
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


@cache
def _file():
    file = np.load(GOLDEN / "originals.npz")
    return file, json.loads(file["index"].tobytes())


def names(prefix: str) -> list[str]:
    """Names of the arrays below a prefix, without it."""
    return [name.removeprefix(prefix) for name in _file()[1]["arrays"] if name.startswith(prefix)]


def array(name: str) -> np.ndarray:
    """One array; TensorFlow's are NHWC and HWIO, those of `is` NCHW and OIHW."""
    file, index = _file()
    return file[index["arrays"][name]]


def shapes(network: str) -> dict[str, list[int]]:
    """Shapes of a network's variables by their original names: "eth/deeplab/regular", "nd", "st", "is"."""
    return _file()[1]["shapes"][network]


def num_trainable(network: str) -> int:
    """How many variables the original trains."""
    return _file()[1]["num_trainable"][network]


def golden_weights(shapes: dict[str, list[int]], system: str) -> dict[str, np.ndarray]:
    """Values of all variables, under their original names."""
    return {name: golden_weight(name, tuple(shape), system) for name, shape in shapes.items()}


@lru_cache(maxsize=300)  # those of one network: the next one has mostly the same
def golden_weight(name: str, shape: tuple[int, ...], system: str) -> np.ndarray:
    """One variable; `system` is eth, nd, st or is."""
    v = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    rule = _pytorch if system == "is" else _tensorflow
    value = rule(name, shape, system, v).astype(np.float32)
    value.flags.writeable = False  # shared by all that ask
    return value


def smp_golden():
    """What segmentation_models.pytorch 0.6.0 computed: image uint8 [64,96,3], shapes by network, logits by network.

    Logits are at image size, every fourth row and column [C,16,24]; the weights are `smp_weight` of each name.
    """
    file = np.load(GOLDEN / "smp.npz")
    return file["image"], json.loads(file["shapes"].tobytes()), file


def smp_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of those networks."""
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    v = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 4:
        value = v * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 1 + 0.2 * np.abs(v)
    else:
        value = 0.7 + 0.1 * v if name.endswith("weight") else 0.1 * v
    return value.astype(np.float32)


def _tensorflow(name, shape, system, v):
    leaf = name.rpartition("/")[2]
    if leaf == "weights":
        value = v * np.sqrt(2 / np.prod(shape[:-1]))
        return 0.3 * value if system == "st" and "/conv3/" in name else value
    if leaf == "gamma":
        last = "/conv3/" in name or (system == "eth" and "branch2c" in name)
        return 0.3 + 0.03 * v if last else 1 + 0.1 * v
    if leaf in ("beta", "moving_mean", "biases"):
        return 0.1 * v
    if leaf == "moving_variance":
        return 1 + 0.2 * np.abs(v)
    if leaf.startswith("w_avg"):
        return 1 / (shape[0] * shape[1]) + 0.05 * v
    if leaf == "c_vector":
        return 0.25 + 0.05 * v
    if leaf == "fix_w":
        return np.eye(shape[0]) + 0.05 * v if len(shape) == 2 else 0.02 * v
    if leaf.startswith("w_gauss_value"):
        return 0 * v
    raise ValueError(name)


def _pytorch(name, shape, system, v):
    if len(shape) == 4:
        return v * np.sqrt(2 / np.prod(shape[1:]))
    if name.endswith("running_var"):
        return 1 + 0.2 * np.abs(v)
    if name.endswith(".weight") and (".bn" in name or "downsample.1" in name):
        return 0.3 + 0.03 * v if ".bn3." in name else 1 + 0.1 * v
    return 0.1 * v
