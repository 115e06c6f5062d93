"""One conversion: an old file in, a model folder out, and a report that accounts for every tensor."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from degrid import config as configs
from degrid.checkpoints.readers.files import read_tensors
from degrid.checkpoints.systems.plan import Plan
from degrid.checkpoints.systems.table import plan_for
from degrid.config import ModelConfig
from degrid.data import CITYSCAPES, VOC
from degrid.files import atomic_write, write_json
from degrid.model_folder import save
from degrid.models import EncoderSettings, build_encoder
from degrid.networks import build_model
from degrid.types import ConversionError, LabelSpace

ENCODER_FORMAT = "degrid encoder 1"


@dataclass(frozen=True)
class ConversionReport:
    """What became of every tensor.

    source, format, system: where the weights come from.
    kind: "model" or "encoder".
    config: the settings of the network.
    loaded: our names to the file's. dropped: the file's names to the reason. unexpected: the file's names that were
    left out only because the user allowed it. notes: what the user should know.
    """

    source: str
    format: str
    system: str
    kind: str
    config: dict[str, Any]
    loaded: dict[str, str]
    dropped: dict[str, str]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"file      {self.source} ({self.format})",
            f"system    {self.system}",
            f"network   {self._network()}",
            f"loaded    {len(set(self.loaded.values()))} tensors into {len(self.loaded)}",
            *(f"dropped   {count}: {reason}" for reason, count in Counter(self.dropped.values()).most_common()),
        ]
        if self.unexpected:
            lines.append(f"unused    {len(self.unexpected)}: {_some(self.unexpected)}")
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])

    def _network(self) -> str:
        model = self.config
        if self.kind == "encoder":
            return f"encoder {model['encoder']}"
        return (
            f"{model['network']} on {model['encoder']}, output stride {model['output_stride']}, "
            f"{model['smoothing']['operator']} dilated convolutions{', legacy' if model['legacy'] else ''}"
        )


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    system: str | None = None,
    allow_unused: bool = False,
    settings: list[str] | None = None,
    labels: LabelSpace | None = None,
) -> ConversionReport:
    """Convert a checkpoint of another system into a model folder, or ImageNet weights into an encoder folder.

    Args:
        source: the file: a TensorFlow checkpoint (V1, or the prefix of a V2), a caffemodel, .pth, .npz, .npy or
            safetensors.
        out: the folder to write: config.json, model.safetensors (or encoder.safetensors) and conversion.json.
        system: a name in `degrid.checkpoints.systems.table.SYSTEMS`; None: recognised by the tensors' names.
        allow_unused: leave out tensors that nothing is known of, instead of refusing.
        settings: changes to the network's settings as "field=value", such as "output_stride=8".
        labels: the classes; None: VOC's or Cityscapes' for 21 and 19, else numbered.
    Raises:
        ConversionError: a damaged file, one of no known system, or tensors that are unknown, missing or of another
            shape.
        UserError: settings that do not exist, or a place that cannot be written to.
    """
    read = read_tensors(source)
    plan = plan_for(read.tensors, system, read.path)
    if plan.unexpected and not allow_unused:
        raise ConversionError(
            f"{read.path} ({plan.system}) holds {len(plan.unexpected)} tensors that have no place in the network: "
            f"{_some(plan.unexpected)}; leave them out with --allow-unused"
        )
    chosen = configs.override(configs.from_dict(ModelConfig, {"pretrained": False, **plan.model}), settings or [])
    folder = Path(out)
    if plan.kind == "encoder":
        _write_encoder(plan, chosen, folder, read.path)
    else:
        model = build_model(chosen, labels or _labels(plan, read.path))
        fill(model, plan, read.path)
        save(model.eval(), folder)
    report = ConversionReport(
        str(source),
        read.format,
        plan.system,
        plan.kind,
        configs.to_dict(chosen),
        plan.origins,
        plan.dropped | dict.fromkeys(read.skipped, "no numbers"),
        tuple(plan.unexpected),
        tuple(plan.notes),
    )
    write_json(folder / "conversion.json", report.to_dict())
    return report


def fill(model: nn.Module, plan: Plan, file: Path, prefix: str = "") -> None:
    """Put a plan's tensors into a network. Only batch norm's counters of batches may be missing.

    Args:
        prefix: of the plan's names, taken off.
    Raises:
        ConversionError: missing tensors, tensors of another shape, or tensors that the network does not have.
    """
    state = model.state_dict()
    given = {name.removeprefix(prefix): value for name, value in plan.tensors.items()}
    unknown = [name for name in given if name not in state]
    missing = [name for name in state if name not in given and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} is {list(value.shape)}, the network has {list(state[name].shape)}"
        for name, value in given.items()
        if name in state and tuple(value.shape) != tuple(state[name].shape)
    ]
    if unknown or missing or shapes:
        problems = "; ".join(
            f"{len(names)} {what} ({_some(names)})"
            for what, names in (("missing", missing), ("unknown to it", unknown), ("of another shape", shapes))
            if names
        )
        raise ConversionError(f"{file} does not fit the network it was taken for ({plan.system}): {problems}")
    with torch.no_grad():
        for name, value in given.items():
            state[name].copy_(_tensor(value))


def _tensor(value: np.ndarray) -> Tensor:
    """A copy in memory of our own, single precision: the file may be mapped read-only."""
    return torch.from_numpy(np.array(value, dtype=np.float32))


def _write_encoder(plan: Plan, config: ModelConfig, folder: Path, file: Path) -> None:
    """encoder.safetensors under the encoder's own names, and what it is."""
    net = build_encoder(config.encoder, EncoderSettings(output_stride=32))
    inner: nn.Module = getattr(net, "net", net)
    fill(inner, plan, file, "encoder.net." if inner is not net else "encoder.")
    weights = {key: value.contiguous() for key, value in inner.state_dict().items()}
    with atomic_write(folder / "encoder.safetensors") as temporary:
        save_file(weights, temporary)
    write_json(folder / "config.json", {"format": ENCODER_FORMAT, "encoder": config.encoder})


def _labels(plan: Plan, file: Path) -> LabelSpace:
    heads = [name for name in ("head.classifier.weight", "head.branches.0.weight") if name in plan.tensors]
    if not heads:
        raise ConversionError(f"{file} has no classifier among its tensors ({plan.system})")
    count = len(plan.tensors[heads[0]])
    known = {len(labels): labels for labels in (VOC, CITYSCAPES)}
    if count > 255:
        raise ConversionError(f"{file} predicts {count} classes; degrid has at most 255")
    return known.get(count) or LabelSpace.of_size(count)


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
