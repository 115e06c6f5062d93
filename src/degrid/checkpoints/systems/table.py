"""The systems whose files are understood, recognised by the names of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from degrid.checkpoints.systems import deeplab_v2, deeplab_v3, imagenet
from degrid.checkpoints.systems.plan import Plan, Tensors
from degrid.lookup import lookup
from degrid.types import ConversionError


@dataclass(frozen=True)
class System:
    """One kind of file: what it is, how its names are told, and what becomes of its tensors."""

    title: str
    recognise: Callable[[Tensors], bool]
    plan: Callable[[Tensors], Plan]


# ImageNet files come last: their names are a part of those of the networks built on them.
SYSTEMS: dict[str, System] = {
    "eth": System("DeepLab v2 in TensorFlow (ETH, KDD, ZW, DS)", deeplab_v2.is_tensorflow, deeplab_v2.tensorflow),
    "eth_slim": System(
        "DeepLab v2 in TensorFlow with res50 or res101 (ETH, KDD, ZW)",
        deeplab_v2.is_tensorflow_slim,
        deeplab_v2.tensorflow_slim,
    ),
    "caffe": System("DeepLab v2 in Caffe", deeplab_v2.is_caffe, deeplab_v2.caffe),
    "isht7": System("multi-scale DeepLab v2 in early PyTorch (IS)", deeplab_v2.is_isht7, deeplab_v2.isht7),
    "kazuto1011": System("kazuto1011/deeplab-pytorch", deeplab_v2.is_kazuto1011, deeplab_v2.kazuto1011),
    "nd": System("NanqingD/DeepLabV3-Tensorflow (ND)", deeplab_v3.is_nd, deeplab_v3.nd),
    "st": System("sthalles/deeplab_v3 (ST)", deeplab_v3.is_st, deeplab_v3.st),
    "torchvision": System("torchvision deeplabv3_*", deeplab_v3.is_torchvision, deeplab_v3.torchvision),
    "smp": System("segmentation_models.pytorch DeepLabV3, DeepLabV3Plus", deeplab_v3.is_smp, deeplab_v3.smp),
    "mobilenet_v2_voc": System(
        "DeepLab v3 on MobileNetV2 with torchvision names",
        deeplab_v3.is_mobilenet_v2_voc,
        deeplab_v3.mobilenet_v2_voc,
    ),
    "slim_v1": System("slim ResNet v1, ImageNet", imagenet.is_slim_v1, imagenet.slim_resnet_v1),
    "slim_v2": System("slim ResNet v2, ImageNet", imagenet.is_slim_v2, imagenet.slim_resnet_v2),
    "torchvision_imagenet": System(
        "torchvision ResNet or MobileNetV2, ImageNet", imagenet.is_torchvision, imagenet.torchvision
    ),
}

# The names of the systems that wrote the same files as another.
_SAME = {"kdd": "eth", "zw": "eth", "ds": "eth", "is": "isht7"}


def plan_for(tensors: Tensors, system: str | None, file: object) -> Plan:
    """Recognise a file and say where its tensors go.

    Args:
        tensors: what is in it.
        system: a name in SYSTEMS, or None to find out.
        file: for messages.
    Raises:
        ConversionError: no known system's names, or another's than asked for; the message says which it fits.
    """
    fits = next((name for name, known in SYSTEMS.items() if known.recognise(tensors)), None)
    if system is not None:
        system = _SAME.get(system, system)
        wanted = lookup(SYSTEMS, system, "system")
        if not wanted.recognise(tensors):
            hint = f"it fits {SYSTEMS[fits].title} (--as {fits})" if fits else "it fits no system that degrid knows"
            raise ConversionError(f"{file} does not hold the tensors of {wanted.title}; {hint}")
        return wanted.plan(tensors)
    if fits is None:
        names = ", ".join(list(tensors)[:4]) or "none"
        raise ConversionError(
            f"{file} is of no system that degrid can convert; its tensors are called {names}{', ...' * bool(tensors)}; "
            f"known: {'; '.join(known.title for known in SYSTEMS.values())}"
        )
    return SYSTEMS[fits].plan(tensors)
