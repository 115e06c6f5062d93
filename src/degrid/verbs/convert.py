"""Convert a checkpoint of another program into a model folder, with a report that accounts for every tensor."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from degrid import config as configs
from degrid.arguments import checked
from degrid.chance import drawing_for_itself
from degrid.checkpoints.readers.files import read_tensors
from degrid.checkpoints.systems.plan import FILE_NAME, Plan, planned
from degrid.checkpoints.systems.smp import UNSAID
from degrid.checkpoints.systems.table import find_system
from degrid.config import ModelConfig, Settings
from degrid.data import CITYSCAPES, VOC, class_table
from degrid.files import atomic_write, check_place, write_json
from degrid.lookup import counted, some
from degrid.model_folder import save
from degrid.models import Encoder, EncoderSettings, as_settings, build_encoder, likely_input
from degrid.models.library_encoders import TimmEncoder, TorchvisionEncoder
from degrid.models.weights import WithoutRandomValues
from degrid.networks import build_model, preprocess_of
from degrid.types import ConversionError, LabelSpace, UserError, voc_palette
from degrid.weight_names import misfit

_LAST = re.compile(r"head\.(classifier|branches\.\d+)\.(weight|bias)")  # the convolutions that give logits
ENCODER_FORMAT = "degrid encoder 1"


@dataclass(frozen=True)
class ConversionReport:
    """What became of every tensor.

    Attributes:
        source: the file. format: its kind.
        system: the program that wrote it. recognised_by: the tensor that shows this.
        kind: "model" or "encoder".
        config: the settings of the network.
        loaded: the file's names by ours. dropped: reasons by the file's names.
        unexpected: the file's names that no rule knows, left out because the user allowed it.
        notes: what the user should know.
    """

    source: str
    format: str
    system: str
    recognised_by: str
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
            f"system    {self.system}, recognised by {self.recognised_by}",
            f"network   {self._network()}",
            f"loaded    {counted(len(set(self.loaded.values())), 'tensor')} into {len(self.loaded)}",
            *(f"dropped   {count}: {reason}" for reason, count in Counter(self.dropped.values()).most_common()),
        ]
        if self.unexpected:
            lines.append(f"unused    {len(self.unexpected)}: {some(self.unexpected)}")
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])

    def _network(self) -> str:
        model = self.config
        if self.kind == "encoder":
            return f"encoder {model['encoder']}"
        return (
            f"{model['network']} on {model['encoder']}, output stride {model['output_stride']}, "
            f"{model['smoothing']['operator']} dilated convolutions{', legacy' if model['legacy'] else ''}"
        )


@checked
@drawing_for_itself
def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    system: str | None = None,
    reader: str | None = None,
    settings: Settings = (),
    classes: LabelSpace | str | os.PathLike[str] | None = None,
    allow_unused: bool = False,
) -> ConversionReport:
    """Convert a checkpoint of another program into a model folder, or ImageNet weights into an encoder folder.

    Args:
        source: the file: a TensorFlow checkpoint (V1, or the prefix of a V2) or frozen graph, a caffemodel, .pth,
            pickle, .npz, .npy or safetensors; or a folder with one of them, and perhaps its config.json.
        out: the folder to write: config.json, model.safetensors (or encoder.safetensors) and conversion.json. None:
            write nothing; the report says what the file holds and whether all of it fits.
        system: the program that wrote the file: a name in `degrid.checkpoints.systems.table.SYSTEMS`, or
            "module:Class" of your own. None: recognised by the tensors' names.
        reader: the kind of file: a name in `degrid.checkpoints.readers.files.READERS`, or "module:Class" of your own.
            None: recognised by its bytes.
        settings: changes to the network's settings, such as {"output_stride": 8} or "output_stride=8".
        classes: the classes, or a folder with classes.csv or classes.txt. None: VOC's if there are 21, Cityscapes' if
            there are 19, background and foreground if there is one logit, else numbered.
        allow_unused: leave out tensors that no rule knows, instead of refusing the file.
    Raises:
        ConversionError: a damaged file, one of no known system, or tensors that are unknown, missing or of another
            shape.
        UserError: settings or classes that do not exist, or a place that cannot be written to.
    """
    if out is not None:
        check_place(Path(out) / "config.json")
    given, given_settings = _given_classes(classes), configs.parse_settings(settings)
    read = read_tensors(source, reader)
    writer, recognised_by, tensors, beside = find_system(read.tensors, system, read.path, read.skipped)
    origin = f"{read.path} ({writer.title})"
    plan = planned(writer, tensors, {**read.config, FILE_NAME: read.path.name}, read.path)
    _refuse_unexpected(plan, origin, allow_unused)
    plan.notes += _not_finite(plan, origin)
    labels = _classes(plan, given or plan.labels, origin) if plan.kind == "model" else None
    chosen = _settings(plan, given_settings, origin)
    _write(plan, chosen, labels, origin, Path(out) if out is not None else None)
    said = configs.to_dict(chosen)
    report = ConversionReport(
        str(source),
        read.format,
        writer.title,
        recognised_by,
        plan.kind,
        said,
        plan.origins,
        plan.dropped | beside | dict.fromkeys(read.skipped, "no tensor of the network"),
        tuple(plan.unexpected),
        (*plan.assumption(said, given_settings), *plan.notes),
    )
    if out is not None:
        write_json(Path(out) / "conversion.json", report.to_dict())
    return report


def _settings(plan: Plan, given: Mapping[str, object], origin: str) -> ModelConfig:
    """The network's settings, including those given by the user."""
    chosen = configs.override(configs.from_dict(ModelConfig, {"pretrained": False, **plan.model}), given)
    if chosen.encoder == UNSAID:
        raise ConversionError(
            f"{origin}: the file does not say which network of timm its encoder is; name it with --set "
            "encoder=smp:tu-NAME (settings=...), or keep the program's config.json beside the file"
        )
    for name in plan.fixed:
        if getattr(chosen, name) != plan.model[name]:
            raise ConversionError(
                f"{origin}: the program's networks on {chosen.encoder} have {name}={plan.model[name]}, and degrid "
                f"cannot convert others; leave out --set {name}={getattr(chosen, name)} (settings=...)"
            )
    return chosen


def _refuse_unexpected(plan: Plan, origin: str, allowed: bool) -> None:
    """An encoder with more tensors is another network, whose head must not get lost."""
    if not plan.unexpected:
        return
    count, names = counted(len(plan.unexpected), "tensor"), some(plan.unexpected)
    if plan.kind == "encoder":
        raise ConversionError(
            f"{origin} has the names of this encoder and {count} beyond it: {names}; it is another network, which "
            "degrid cannot convert"
        )
    if not allowed:
        raise ConversionError(
            f"{origin} holds {count} without a place in the network: {names}; leave them out with --allow-unused "
            "(allow_unused=True)"
        )


def _not_finite(plan: Plan, origin: str) -> list[str]:
    """A warning about weights that training has ruined.

    Raises:
        ConversionError: weights are complex numbers.
    """
    if found := [name for name, value in plan.tensors.items() if np.iscomplexobj(value)]:
        raise ConversionError(f"{origin} holds complex numbers in {some(found)}; networks here have real weights")
    with np.errstate(all="ignore"):
        sums = {name: np.sum(value, dtype=np.float64) for name, value in plan.tensors.items()}
    found = [plan.origins.get(name, name) for name, value in sums.items() if not np.isfinite(value)]
    return (
        [f"{counted(len(found), 'tensor')} with NaN or infinity, as the logits will be: {some(found)}"] if found else []
    )


def _write(plan: Plan, config: ModelConfig, labels: LabelSpace | None, origin: str, folder: Path | None) -> None:
    """Build the network, fill it, and write it if there is a folder."""
    if labels is None:
        _write_encoder(plan, config, folder, origin)
        return
    with WithoutRandomValues():  # `fill` gives every tensor its value
        model = build_model(config, labels)
    fill(model, plan, origin)
    if folder:
        save(model.eval(), folder)


def fill(model: nn.Module, plan: Plan, origin: object, prefix: str = "") -> None:
    """Put a plan's tensors into a network. Only batch norm's counters of batches may be missing.

    Args:
        model: the network; filled in place, in single precision.
        plan: where the tensors go.
        origin: the file, for messages.
        prefix: taken off the plan's names.
    Raises:
        ConversionError: missing tensors, tensors of another shape, or tensors that the network does not have.
    """
    state = model.state_dict()
    given = {name.removeprefix(prefix): value for name, value in plan.tensors.items()}
    if problems := misfit(state, given):
        raise ConversionError(f"{origin} does not fit the network it was taken for: {problems}{_bands(state, given)}")
    with torch.no_grad():
        for name, value in given.items():
            # Copied: the file may be mapped read-only.
            state[name].copy_(torch.from_numpy(np.array(value, dtype=np.float32)))


def _bands(state: Mapping[str, torch.Tensor], given: Mapping[str, np.ndarray]) -> str:
    """What to do if the first convolution differs only in its input."""
    first = next((name for name, value in state.items() if value.ndim == 4 and name.startswith("encoder.")), "")
    ours, theirs = (tuple(values[first].shape) if first in values else () for values in (state, given))
    if len(theirs) != 4 or ours[1] == theirs[1] or (*ours[:1], *ours[2:]) != (*theirs[:1], *theirs[2:]):
        return ""
    return f"; a network for images of {counted(theirs[1], 'band')} has --set in_channels={theirs[1]} (settings=...)"


def _write_encoder(plan: Plan, config: ModelConfig, folder: Path | None, origin: str) -> None:
    """encoder.safetensors under the encoder's own names, what it is, and the input that it expects."""
    with WithoutRandomValues():
        net = build_encoder(config.encoder, EncoderSettings(output_stride=32, preprocess=preprocess_of(config)))
    inner, prefix = net, "encoder."
    if isinstance(net, TimmEncoder | TorchvisionEncoder):
        inner, prefix = net.get_submodule("net"), "encoder.net."
    fill(inner, plan, origin, prefix)
    if config.mean is None and (words := likely_input(net)):
        changes = " ".join(f"--set {each}" for each in as_settings(words))
        plan.notes.append(f"batch norm looks as if the weights expect {words}, which {changes} (settings=...) keeps")
    if folder is None:
        return
    weights = {key: value.contiguous() for key, value in inner.state_dict().items()}
    with atomic_write(folder / "encoder.safetensors") as temporary:
        save_file(weights, temporary)
    expects = dataclasses.asdict(cast(Encoder, net).preprocess)
    write_json(folder / "config.json", {"format": ENCODER_FORMAT, "encoder": config.encoder, "preprocess": expects})


def _given_classes(classes: LabelSpace | str | os.PathLike[str] | None) -> LabelSpace | None:
    if classes is None or isinstance(classes, LabelSpace):
        return classes
    labels, _ = class_table(Path(classes))
    if labels is None:
        raise UserError(f"no classes.csv and no classes.txt in {classes}")
    return labels


def _classes(plan: Plan, given: LabelSpace | None, origin: str) -> LabelSpace:
    """The classes of the network; a single logit becomes two classes, and the plan says what was assumed."""
    last = [name for name in plan.tensors if _LAST.fullmatch(name)]
    count = len(plan.tensors[last[0]]) if last and plan.tensors[last[0]].ndim else 0
    if count == 1:
        # x > 0 exactly where x is larger than the 0 of a class whose weights are all zero.
        plan.tensors |= {
            name: np.concatenate([np.zeros_like(value), value]) for name in last for value in [plan.tensors[name]]
        }
        labels = LabelSpace(("background", "foreground"), voc_palette(2)) if given is None else given
        if len(labels) == 1:
            labels = LabelSpace(("background", *labels.names), voc_palette(2))
        plan.notes.append(f"one logit: two classes by its sign, {labels.names[0]} and {labels.names[-1]}")
        return labels
    if given is not None:
        return given
    if not count:
        raise ConversionError(f"{origin} has no classifier among its tensors")
    if count > 255:
        raise ConversionError(f"{origin} predicts {count} classes; degrid has at most 255")
    for name, known in (("VOC", VOC), ("Cityscapes", CITYSCAPES)):
        if len(known) == count:
            plan.notes.append(f"{count} classes are taken to be those of {name}; --classes FOLDER gives others")
            return known
    return LabelSpace.of_size(count)
