"""The networks: encoder, head, and the Segmenter that joins them. Nothing here knows about smoothing.

The encoders of libraries are loaded when first used: importing timm and torchvision takes longer than torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from degrid.models.activation_checkpointing import checkpoint_activations
from degrid.models.aspp import ASPP
from degrid.models.batch_norm import freeze_batch_norm
from degrid.models.encoder import ENCODERS, Encoder, EncoderSettings, build_encoder
from degrid.models.heads import NETWORKS, DeepLabV2Head, DeepLabV3Head, DeepLabV3PlusHead, HeadSettings
from degrid.models.info import ModelInfo, describe
from degrid.models.input_statistics import USUAL_INPUTS, as_settings, likely_input
from degrid.models.resnet import RESNETS, ResNet
from degrid.models.segmenter import Segmenter, build_network
from degrid.models.synchronised_batch_norm import synchronise_batch_norm
from degrid.models.weights import read_weights, stated_input

if TYPE_CHECKING:
    from degrid.models.library_encoders import TimmEncoder, TorchvisionEncoder

__all__ = [
    "ASPP",
    "ENCODERS",
    "NETWORKS",
    "RESNETS",
    "USUAL_INPUTS",
    "DeepLabV2Head",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "Encoder",
    "EncoderSettings",
    "HeadSettings",
    "ModelInfo",
    "ResNet",
    "Segmenter",
    "TimmEncoder",
    "TorchvisionEncoder",
    "as_settings",
    "build_encoder",
    "build_network",
    "checkpoint_activations",
    "describe",
    "freeze_batch_norm",
    "likely_input",
    "read_weights",
    "stated_input",
    "synchronise_batch_norm",
]


def __getattr__(name: str) -> Any:
    if name not in ("TimmEncoder", "TorchvisionEncoder"):
        raise AttributeError(f"module 'degrid.models' has no attribute {name!r}")
    value = getattr(importlib.import_module("degrid.models.library_encoders"), name)
    globals()[name] = value
    return value
