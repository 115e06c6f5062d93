"""Rewrite a legacy model, which computes what the original code did, as a default one with the same logits."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from degrid.arguments import checked
from degrid.chance import drawing_for_itself
from degrid.config import SmoothingConfig
from degrid.files import check_place
from degrid.lookup import counted, some
from degrid.model_folder import load, read_settings, save
from degrid.networks import build_model
from degrid.smoothing import SmoothedConv2d, filters, legacy
from degrid.types import ConversionError, UserError

# Whatever its sigma, the original Gaussian is exp(-(x^2 + y^2)): a true Gaussian of this width.
LEGACY_SIGMA = 1 / math.sqrt(2)
# How close to a box a trained filter must be to count as one, relative to its largest tap.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ModernisationReport:
    """What was rewritten, and what still differs from a default model."""

    changes: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*self.changes, *(f"note: {note}" for note in self.notes)])


@checked
@drawing_for_itself
def modernise(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> ModernisationReport:
    """Rewrite a legacy model folder as a default one that computes the same logits.

    Exact at every size for the smoothing operators, batch norm and resizing. The padding of stem and pooling becomes
    symmetric, which gives the same result where the image and the stem's feature map have odd sides (321, 513, ...).

    Raises:
        UserError: not a model folder, or not a legacy model; or a place that cannot be written to.
        ConversionError: a layer has no exact equivalent; the message names the layers.
    """
    check_place(Path(out) / "config.json")
    old = load(source)
    config = read_settings(source)
    if not config.legacy:
        raise UserError(f"{source} is not a legacy model: there is nothing to modernise")
    if config.encoder.startswith("slim:resnet_v2"):
        raise ConversionError(
            f"{source}: the head reads encoder.layer4 before the encoder's last batch norm and ReLU, which the default "
            "network has in between: no exact equivalent"
        )
    smoothing, changes = config.smoothing, []
    state = {key: value.clone() for key, value in old.state_dict().items()}
    layers = {name: module for name, module in old.named_modules() if isinstance(module, SmoothedConv2d)}
    if layers:
        smoothing, what = _smoothing(layers, state, smoothing)
        changes.append(what)
    resize = config.resize or "tf_legacy"
    wanted = dataclasses.replace(config, legacy=False, resize=resize, smoothing=smoothing)
    new = build_model(wanted, old.labels)
    rewritten = _batch_norm(old, new, state)
    if rewritten:
        changes.append(
            f"batch norm: epsilon of {counted(rewritten, 'layer')} from 1e-3 to 1e-5, compensated in their weights"
        )
    new.load_state_dict(state)
    save(new.eval(), out)
    return ModernisationReport(
        tuple(changes or ["the parameters are the same"]),
        (
            "padding is symmetric now: the logits are the same for images with sides of 4k + 1 pixels (321, 513, ...)",
            f"logits are still enlarged the way {resize} does it; choose another with model.resize",
        ),
    )


def _smoothing(
    layers: dict[str, SmoothedConv2d], state: dict[str, Tensor], config: SmoothingConfig
) -> tuple[SmoothingConfig, str]:
    """Rewrite the parameters of the operators in `state`."""
    operator = next(iter(layers.values())).smoothing
    rewrite = _REWRITES.get(type(operator))
    if rewrite is None:  # the same in both
        return config, f"{operator.name}: unchanged"
    uneven = [name for name, conv in layers.items() if cast(int, conv.smoothing.rate) % 2 and config.operator != "gi"]
    if uneven:
        raise ConversionError(
            "the original filters of odd rates are not centred, the default ones are: no exact equivalent for "
            + some(uneven)
        )
    return rewrite(layers, state, config)


def _group_interaction(
    layers: dict[str, SmoothedConv2d], state: dict[str, Tensor], config: SmoothingConfig
) -> tuple[SmoothingConfig, str]:
    for name, conv in layers.items():
        operator = conv.smoothing
        assert isinstance(operator, legacy.GroupInteraction)
        state[f"{name}.smoothing.weight"] = operator.mixing().detach()
    return config, f"gi: the mixing of {counted(len(layers), 'layer')} rewritten with the first group in its place"


def _gaussian(
    layers: dict[str, SmoothedConv2d], state: dict[str, Tensor], config: SmoothingConfig
) -> tuple[SmoothingConfig, str]:
    for name in layers:
        state.pop(f"{name}.smoothing.sigma", None)
    fixed = dataclasses.replace(config, options={"sigma": LEGACY_SIGMA})
    return fixed, f"gaussian: sigma fixed at {LEGACY_SIGMA:.4f}, which is what the original computes for any sigma"


def _average(
    layers: dict[str, SmoothedConv2d], state: dict[str, Tensor], config: SmoothingConfig
) -> tuple[SmoothingConfig, str]:
    """A box times a number per channel: the number becomes a factor of the convolution's input channel."""
    gains = {name: _gains(state[f"{name}.smoothing.weight"]) for name in layers}
    lost = [name for name, gain in gains.items() if gain is None]
    if lost:
        raise ConversionError(f"the trained filters are no longer boxes: no exact equivalent for {some(lost)}")
    for name, gain in gains.items():
        assert gain is not None
        conv = layers[name]
        per_group = gain.reshape(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, 0)
        state[f"{name}.weight"] = state[f"{name}.weight"] * per_group[:, :, None, None]
        state.pop(f"{name}.smoothing.weight")
    said = f"average: the gains of the boxes of {counted(len(layers), 'layer')} moved into the convolutions' weights"
    return config, said


def _aggregation(
    layers: dict[str, SmoothedConv2d], state: dict[str, Tensor], config: SmoothingConfig
) -> tuple[SmoothingConfig, str]:
    """Weights c that are positive become log(c / sum c), and the sum a factor of the convolution.

    The default's Gaussian is wider than the original's; the separable-and-shared part, which can be any filter, makes
    up for the difference.
    """
    for name, conv in layers.items():
        operator = conv.smoothing
        assert isinstance(operator, legacy.Aggregation)
        mix = operator.mix.detach()
        if operator.sigma is not None:  # that variant swaps box and Gaussian
            mix = mix[[0, 2, 1, 3]]
        if not bool((mix > 0).all()):
            raise ConversionError(
                f"the aggregation weights {[round(value, 4) for value in mix.tolist()]} are not all positive, so no "
                f"softmax gives them: no exact equivalent for {some(list(layers))}"
            )
        if (gain := _shared_gain(conv)) is None:
            lost = [key for key, layer in layers.items() if _shared_gain(layer) is None]
            raise ConversionError(f"the trained filter is no longer a box: no exact equivalent for {some(lost)}")
        mix = mix * torch.tensor([1, gain, 1, 1])
        total = mix.sum()
        weights = mix / total
        rate = cast(int, operator.rate)  # legacy layers have one rate
        size, side = 2 * rate - 1, filters.default_size(rate)
        narrow, wide = (filters.gaussian(side, torch.tensor(sigma)) for sigma in (LEGACY_SIGMA, 1.0))
        missing = filters.embed(narrow - wide, size) * weights[2] / weights[3]
        state[f"{name}.weight"] = state[f"{name}.weight"] * total
        state[f"{name}.smoothing.residual"] = state[f"{name}.smoothing.residual"] + missing
        state[f"{name}.smoothing.mix"] = weights.log()
        state.pop(f"{name}.smoothing.weight")
        state.pop(f"{name}.smoothing.sigma", None)
    return dataclasses.replace(
        config, options={}
    ), f"aggregation: the weights of {counted(len(layers), 'layer')} as a softmax"


def _gains(kernels: Tensor) -> Tensor | None:
    """The sum of each channel's filter [C,1,k,k], if all of them are boxes; else None."""
    spread = kernels.amax((1, 2, 3)) - kernels.amin((1, 2, 3))
    flat = bool((spread <= _TOLERANCE * kernels.abs().amax((1, 2, 3))).all())
    return kernels.sum((1, 2, 3)) if flat else None


def _shared_gain(conv: SmoothedConv2d) -> float | None:
    """The sum of the filter that all channels share, if it is a box; else None."""
    gains = _gains(conv.smoothing.get_parameter("weight").detach())
    return None if gains is None or float(gains.max() - gains.min()) > _TOLERANCE else float(gains.mean())


_REWRITES = {
    legacy.GroupInteraction: _group_interaction,
    legacy.Gaussian: _gaussian,
    legacy.Average: _average,
    legacy.Aggregation: _aggregation,
}


def _batch_norm(old: nn.Module, new: nn.Module, state: dict[str, Tensor]) -> int:
    """Change epsilon without changing the result: the scale compensates. Returns the number of changed layers."""
    count = 0
    theirs = dict(new.named_modules())
    for name, module in old.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.eps != theirs[name].eps:
            variance = state[f"{name}.running_var"].double()
            ratio = torch.sqrt((variance + theirs[name].eps) / (variance + module.eps))
            state[f"{name}.weight"] = (state[f"{name}.weight"].double() * ratio).float()
            count += 1
    return count
