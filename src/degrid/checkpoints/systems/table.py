"""The systems whose checkpoints can be converted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from degrid.checkpoints.systems.adaptsegnet import AdaptSegNet
from degrid.checkpoints.systems.bonlime import Bonlime
from degrid.checkpoints.systems.bubbliiiing import Bubbliiiing
from degrid.checkpoints.systems.caffe import Caffe
from degrid.checkpoints.systems.chenxi116 import Chenxi116
from degrid.checkpoints.systems.detectron2 import Detectron2
from degrid.checkpoints.systems.eth import Eth, EthSlim
from degrid.checkpoints.systems.fregu856 import Fregu856
from degrid.checkpoints.systems.gluoncv import GluonCV
from degrid.checkpoints.systems.google_deeplab import GoogleDeepLab, TransformersMobileNetV2
from degrid.checkpoints.systems.isht7 import Isht7
from degrid.checkpoints.systems.jfzhang95 import Jfzhang95
from degrid.checkpoints.systems.kazuto1011 import Kazuto1011
from degrid.checkpoints.systems.keras_hub import KerasHub
from degrid.checkpoints.systems.mlearing import MLearing
from degrid.checkpoints.systems.mmseg import Mmseg
from degrid.checkpoints.systems.mobilenet_v2_voc import MobileNetV2Voc
from degrid.checkpoints.systems.mobilevit import TransformersMobileViT
from degrid.checkpoints.systems.nanqingd import NanqingD
from degrid.checkpoints.systems.nvidia import Nvidia
from degrid.checkpoints.systems.paddleseg import PaddleSeg
from degrid.checkpoints.systems.plan import System, Tensors, planned
from degrid.checkpoints.systems.slim import Slim
from degrid.checkpoints.systems.smp import Smp
from degrid.checkpoints.systems.speedinghzl import Speedinghzl
from degrid.checkpoints.systems.sthalles import Sthalles
from degrid.checkpoints.systems.torchvision import Torchvision, TorchvisionImageNet
from degrid.checkpoints.systems.tramac import Tramac
from degrid.checkpoints.systems.vainf import VainF
from degrid.lookup import counted, lookup, some
from degrid.types import ConversionError, UserError
from degrid.weight_names import is_counter_beside

_MOST_WRAPPERS = 8  # names of wrappers before a network's
_FEWEST = 20  # a network has more tensors
# Names that torch.compile, FSDP and activation checkpointing put before those of a part of a network.
_INNER = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Names of weights that a program makes of several tensors: pruning, weight and spectral norm, low-rank adapters.
_MADE = re.compile(r"(.*\.)?((weight|bias)_(orig|mask|[guv])|parametrizations\.\w+\..+|lora_[AB](\..+)?)")
_USUAL = ("model.", "module.", "net.", "network.")  # which of several networks in a file to take

# ImageNet weights come last: the networks that start from them have their names, too.
SYSTEMS: dict[str, System] = {
    "eth": Eth(),
    "eth_slim": EthSlim(),
    "caffe": Caffe(),
    "isht7": Isht7(),
    "kazuto1011": Kazuto1011(),
    "nd": NanqingD(),
    "st": Sthalles(),
    "torchvision": Torchvision(),
    "smp": Smp(),
    "google_deeplab": GoogleDeepLab(),
    "bonlime": Bonlime(),
    "keras_hub": KerasHub(),
    "transformers_mobilenet_v2": TransformersMobileNetV2(),
    "transformers_mobilevit": TransformersMobileViT(),
    "mobilenet_v2_voc": MobileNetV2Voc(),
    "jfzhang95": Jfzhang95(),
    "vainf": VainF(),
    "bubbliiiing": Bubbliiiing(),
    "mmseg": Mmseg(),
    "detectron2": Detectron2(),
    "paddleseg": PaddleSeg(),
    "tramac": Tramac(),
    "gluoncv": GluonCV(),
    "chenxi116": Chenxi116(),
    "mlearing": MLearing(),
    "speedinghzl": Speedinghzl(),
    "nvidia": Nvidia(),
    "adaptsegnet": AdaptSegNet(),
    "fregu856": Fregu856(),
    "slim_v1": Slim("v1"),
    "slim_v2": Slim("v2"),
    "torchvision_imagenet": TorchvisionImageNet(),
}


class Found(NamedTuple):
    """The program that wrote a file.

    Attributes:
        system: the program. shown_by: the tensor that shows it.
        tensors: the network's, without what stands before all of their names.
        beside: reasons why other tensors are left out, by the file's names.
    """

    system: System
    shown_by: str
    tensors: Tensors
    beside: dict[str, str]


def find_system(tensors: Tensors, name: str | None, file: object, skipped: Collection[str] = ()) -> Found:
    """The system that wrote a file, and the network's tensors in it.

    A network may be part of a larger program, such as Lightning's "model." beside a loss, or in several wrappers.

    Args:
        tensors: what the file holds.
        name: a row of SYSTEMS or one of its aliases; "module:Class" of the user's own; None: whichever recognises it.
        file: for messages.
        skipped: names of what the file holds besides, in which weights may be that cannot be read.
    Raises:
        ConversionError: no known system's tensors, another's than asked for (the message says which it fits), or
            several networks.
        UserError: an unknown name, or a class that is no System.
    """
    beside = {key: "counter of a program beside the network" for key in tensors if is_counter_beside(key)}
    rest = {_INNER.sub("", key): value for key, value in tensors.items() if key not in beside}
    known = list(SYSTEMS.values()) if name is None else [_named(name)]
    for parts in _in_wrappers(rest):
        fits = {prefix: fit for prefix, part in parts.items() if (fit := _first_fit(known, part, len(rest), file))}
        if fits:
            prefix = _one_of(fits, file)
            _refuse_made(parts[prefix], file)
            outside = {key: f'outside of "{prefix}"' for key in rest if not key.startswith(prefix)}
            return Found(*fits[prefix], parts[prefix], beside | outside)
    _refuse_made(rest, file)
    raise ConversionError(f"{file} {_no_fit(rest, None if name is None else known[0], skipped)}")


def _refuse_made(tensors: Tensors, file: object) -> None:
    """Weights that are products of several tensors must be computed by the program that has the formula."""
    if found := [name for name in tensors if _MADE.fullmatch(name)]:
        raise ConversionError(
            f"{file} holds weights in parts (pruned, normalised or with low-rank adapters): {some(found)}; merge them "
            "first, by torch.nn.utils.prune.remove, parametrize.remove_parametrizations, remove_weight_norm, "
            "remove_spectral_norm or peft's merge_and_unload, and save the state dict again"
        )


def _no_fit(tensors: Tensors, wanted: System | None, skipped: Collection[str]) -> str:
    """Why no system, or not the requested one, has tensors of these names."""
    if unread := [name for name in skipped if name.endswith(".weight")]:
        return (
            f"holds {counted(len(unread), 'weight')} of a kind that degrid does not read (quantised, sparse or 8-bit "
            f"numbers): {some(unread)}; save them in single precision"
        )
    if wanted is None and any("layers/" in name and "/vars/" in name for name in tensors):
        return (
            "numbers its layers, as Keras 3 does in .weights.h5 and .keras, and is of no system that degrid knows by "
            "such numbers (keras-hub); save the whole model as .h5, which keeps the layers' names: model.save('x.h5')"
        )
    if wanted is None:
        return (
            f"is of no system that degrid can convert; its tensors are called {some(tensors) or 'none'}; "
            f'known: {"; ".join(row.title for row in SYSTEMS.values())}; your own: --as "module:Class" (system=...)'
        )
    others = (f"it fits {row.title} (--as {key}, system=...)" for key, row in SYSTEMS.items() if row.recognise(tensors))
    return f"does not hold the tensors of {wanted.title}; {next(others, 'it fits no system that degrid knows')}"


def _one_of(prefixes: Collection[str], file: object) -> str:
    """Which of the networks in a file to take."""
    usual = [prefix for prefix in _USUAL if prefix in prefixes]
    if len(prefixes) > 1 and not usual:
        raise ConversionError(f"{file} holds several networks: {', '.join(prefixes)}; save the state dict of one alone")
    return next(iter([*usual, *prefixes]))


def _in_wrappers(tensors: Tensors) -> Iterator[dict[str, Tensors]]:
    """All tensors, then those below each first part of the names, below each two parts, ...: by what is taken off."""
    parts: dict[str, dict[str, np.ndarray]] = {"": dict(tensors)}
    for _ in range(_MOST_WRAPPERS):
        yield {**parts}
        inner: dict[str, dict[str, np.ndarray]] = {}
        for prefix, part in parts.items():
            for name, value in part.items():
                first, dot, rest = name.partition(".")
                if dot:
                    inner.setdefault(f"{prefix}{first}.", {})[rest] = value
        parts = {prefix: part for prefix, part in inner.items() if len(part) > _FEWEST}


def _first_fit(systems: Iterable[System], tensors: Tensors, total: int, file: object) -> tuple[System, str] | None:
    """The first system that recognises tensors; one of encoders only where they are all that the file holds."""
    for system in systems:
        shown_by = system.recognise(tensors)
        if shown_by and (len(tensors) == total or planned(system, tensors, {}, file).kind == "model"):
            return system, shown_by
    return None


def _named(name: str) -> System:
    aliases = {alias: system for system in SYSTEMS.values() for alias in system.aliases}
    found: object = aliases.get(name) or lookup(SYSTEMS, name, "system")
    system = found() if isinstance(found, type) else found
    if not isinstance(system, System):
        raise UserError(f'system "{name}" must be a class derived from degrid.checkpoints.systems.plan.System')
    return system
