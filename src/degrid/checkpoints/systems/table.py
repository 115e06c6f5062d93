"""The systems whose checkpoints can be converted."""

from __future__ import annotations

from degrid.checkpoints.systems.bubbliiiing import Bubbliiiing
from degrid.checkpoints.systems.caffe import Caffe
from degrid.checkpoints.systems.detectron2 import Detectron2
from degrid.checkpoints.systems.eth import Eth
from degrid.checkpoints.systems.eth_slim import EthSlim
from degrid.checkpoints.systems.isht7 import Isht7
from degrid.checkpoints.systems.jfzhang95 import Jfzhang95
from degrid.checkpoints.systems.kazuto1011 import Kazuto1011
from degrid.checkpoints.systems.mmseg import Mmseg
from degrid.checkpoints.systems.mobilenet_v2_voc import MobileNetV2Voc
from degrid.checkpoints.systems.nanqingd import NanqingD
from degrid.checkpoints.systems.paddleseg import PaddleSeg
from degrid.checkpoints.systems.plan import System, Tensors
from degrid.checkpoints.systems.slim import Slim
from degrid.checkpoints.systems.smp import Smp
from degrid.checkpoints.systems.sthalles import Sthalles
from degrid.checkpoints.systems.torchvision import Torchvision
from degrid.checkpoints.systems.torchvision_imagenet import TorchvisionImageNet
from degrid.checkpoints.systems.vainf import VainF
from degrid.lookup import lookup, some
from degrid.types import ConversionError, UserError

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
    "mobilenet_v2_voc": MobileNetV2Voc(),
    "jfzhang95": Jfzhang95(),
    "vainf": VainF(),
    "bubbliiiing": Bubbliiiing(),
    "mmseg": Mmseg(),
    "detectron2": Detectron2(),
    "paddleseg": PaddleSeg(),
    "slim_v1": Slim("v1"),
    "slim_v2": Slim("v2"),
    "torchvision_imagenet": TorchvisionImageNet(),
}


def find_system(tensors: Tensors, name: str | None, file: object) -> tuple[System, str]:
    """The system that wrote a file, and the tensor that shows it.

    Args:
        tensors: what the file holds.
        name: a row of SYSTEMS or one of its aliases; "module:Class" of the user's own; None: whichever recognises it.
        file: for messages.
    Raises:
        ConversionError: no known system's tensors, or another's than asked for; the message says which it fits.
        UserError: an unknown name, or a class that is no System.
    """
    fits = {key: system for key, system in SYSTEMS.items() if system.recognise(tensors)}
    if name is not None:
        system = _named(name)
        shown_by = system.recognise(tensors)
        if shown_by is None:
            hints = [f"it fits {known.title} (--as {key}, system=...)" for key, known in fits.items()]
            hint = hints[0] if hints else "it fits no system that degrid knows"
            raise ConversionError(f"{file} does not hold the tensors of {system.title}; {hint}")
        return system, shown_by
    for system in fits.values():
        return system, system.recognise(tensors) or ""
    raise ConversionError(
        f"{file} is of no system that degrid can convert; its tensors are called {some(tensors) or 'none'}; "
        f'known: {"; ".join(known.title for known in SYSTEMS.values())}; your own: --as "module:Class" (system=...)'
    )


def _named(name: str) -> System:
    aliases = {alias: system for system in SYSTEMS.values() for alias in system.aliases}
    found: object = aliases.get(name) or lookup(SYSTEMS, name, "system")
    system = found() if isinstance(found, type) else found
    if not isinstance(system, System):
        raise UserError(f'system "{name}" must be a class derived from degrid.checkpoints.systems.plan.System')
    return system
