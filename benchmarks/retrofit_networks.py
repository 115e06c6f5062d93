"""Smooths the networks of other libraries, and compares what they compute with a literal version of the definitions.

    python benchmarks/retrofit_networks.py                                  all networks; minutes on two cores
    python benchmarks/retrofit_networks.py --only smp --operators tent gi   some of them

segmentation_models.pytorch and transformers are needed for their networks, which are left out otherwise. No weights are
downloaded. For each network and operator one line: how many layers were smoothed and how many skipped, the largest
difference of any output relative to that output's largest value (in double precision, with random parameters in the
operators), and what did not hold. It ends with exit status 1 if anything did not.

The literal version shares nothing with the package: of a plain copy, each smoothed layer gets a forward that filters
its map channel by channel and then calls the layer, or pads the map to whole blocks, calls the layer, and adds up the
outputs of each block group by group.
"""

import argparse
import copy
import importlib.util
import itertools
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import degrid
from degrid.smoothing import OPERATORS

TIMM = """
resnet50 resnet101d resnext50_32x4d seresnet50 skresnet18 resnest14d res2net50_26w_4s regnety_002 repvgg_a2
gernet_s mobilenetv2_100 mobilenetv3_large_100 efficientnet_b0 efficientnet_cc_b0_4e tf_efficientnet_b0
tf_efficientnetv2_s mixnet_s hardcorenas_a convnext_tiny xception41 xception65p nf_resnet50 nf_seresnet26
nf_regnet_b0 nf_ecaresnet26 nfnet_l0 dm_nfnet_f0 eca_nfnet_l0 nfnet_f0 resnetv2_50 resnetv2_50x1_bit
resnetv2_50d_gn resnetv2_50t
"""
SMP = """
resnet18 resnet50 resnext50_32x4d se_resnet50 se_resnext50_32x4d efficientnet-b0 timm-efficientnet-b0
mobilenet_v2 timm-regnetx_002 timm-res2net50_26w_4s timm-resnest14d timm-skresnet18 timm-mobilenetv3_small_100
tu-resnet50
"""


def torchvision_networks() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    from torchvision.models import segmentation

    for name in ("deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"):
        yield name, lambda name=name: getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)


def timm_networks() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    import timm

    for name in TIMM.split():
        yield name, lambda name=name: timm.create_model(name, features_only=True, output_stride=8)


def smp_networks() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    import segmentation_models_pytorch as smp

    for name in SMP.split():
        yield (
            f"DeepLabV3Plus {name}",
            lambda name=name: smp.DeepLabV3Plus(name, encoder_weights=None, encoder_output_stride=8, classes=5),
        )
    yield "DeepLabV3 resnet18", lambda: smp.DeepLabV3("resnet18", encoder_weights=None, classes=5)


def transformers_networks() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    import transformers as t

    for padding in (True, False):
        config = t.MobileNetV2Config(tf_padding=padding, output_stride=8, num_labels=5, image_size=96)
        yield f"MobileNetV2 tf_padding={padding}", lambda config=config: t.MobileNetV2ForSemanticSegmentation(config)
    config = t.MobileViTConfig(output_stride=8, num_labels=5, image_size=96)
    yield "MobileViT", lambda config=config: t.MobileViTForSemanticSegmentation(config)
    config = t.MobileViTV2Config(output_stride=8, num_labels=5, image_size=96)
    yield "MobileViTV2", lambda config=config: t.MobileViTV2ForSemanticSegmentation(config)
    yield (
        "UPerNet on timm resnet50",
        lambda: t.UperNetForSemanticSegmentation(
            t.UperNetConfig(
                backbone_config=t.TimmBackboneConfig(
                    backbone="resnet50", use_pretrained_backbone=False, output_stride=8, out_indices=[1, 2, 3, 4]
                ),
                num_labels=5,
                auxiliary_in_channels=1024,
            )
        ),
    )
    yield (
        "DETR with dilation",
        lambda: t.DetrForObjectDetection(
            t.DetrConfig(
                use_timm_backbone=True,
                use_pretrained_backbone=False,
                backbone_config=None,
                backbone="resnet50",
                dilation=True,
                encoder_layers=1,
                decoder_layers=1,
                num_queries=5,
            )
        ),
    )


LIBRARIES = {
    "torchvision": ("torchvision", torchvision_networks),
    "timm": ("timm", timm_networks),
    "smp": ("segmentation_models_pytorch", smp_networks),
    "transformers": ("transformers", transformers_networks),
}


def outputs(model: nn.Module, image: Tensor) -> list[Tensor]:
    """All tensors that a network gives, whatever it packs them in."""
    with torch.no_grad():
        found = model(image)
    flat, _ = torch.utils._pytree.tree_flatten(dict(found) if hasattr(found, "keys") else found)
    return [leaf for leaf in flat if isinstance(leaf, Tensor)]


class DilatedCalls(TorchFunctionMode):
    """Counts the convolutions that are called with a rate that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Size] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.conv1d, torch.conv2d, torch.conv3d):
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            rate = given.get("dilation", 1)
            sides = given["weight"].shape[2:]
            rates = [rate] * len(sides) if isinstance(rate, int) else rate
            if any(r > 1 and side > 1 for r, side in zip(rates, sides, strict=True)):
                self.weights.append(given["weight"].shape)
        return func(*args, **(kwargs or {}))


def filter_of(operator: str, rate: int, layer: nn.Module) -> Tensor:
    """The filter of a square kernel, from its definition; layer: the smoothed one, for what it has learned."""
    side = rate - 1 if rate % 2 == 0 else rate
    offsets = range(-(side // 2), side // 2 + 1)
    box = torch.ones(side, side, dtype=torch.float64) / side**2
    gaussian = torch.tensor([[-(y * y + x * x) / 2 for x in offsets] for y in offsets], dtype=torch.float64).exp()
    gaussian /= gaussian.sum()
    wide = range(1 - rate, rate)
    tent = (
        torch.tensor([[(rate - abs(y)) * (rate - abs(x)) for x in wide] for y in wide], dtype=torch.float64) / rate**4
    )
    if operator in ("average", "gaussian", "tent"):
        return {"average": box, "gaussian": gaussian, "tent": tent}[operator]
    shared = layer.smoothing.residual.detach().clone()
    shared[rate - 1, rate - 1] += 1
    if operator == "ssc":
        return shared
    rim = (rate - 1 - side // 2,) * 4
    one = torch.zeros_like(shared)
    one[rate - 1, rate - 1] = 1
    weights = torch.softmax(layer.smoothing.mix.detach(), 0)
    return weights[0] * one + weights[1] * F.pad(box, rim) + weights[2] * F.pad(gaussian, rim) + weights[3] * shared


def literal_forward(operator: str, plain: nn.Module, smoothed: nn.Module) -> Callable[..., Tensor]:
    """What a layer computes after smoothing, in terms of the layer before it."""
    rate, own = plain.dilation[0], type(plain).forward
    rim = plain.dilation[0] * (plain.kernel_size[0] // 2)
    outside = type(plain) is nn.Conv2d and plain.padding in (0, (0, 0), "valid")

    def around(x: Tensor, *more: Tensor) -> Tensor:
        if outside:
            x = x[..., rim:-rim, rim:-rim]

        def conv(y: Tensor) -> Tensor:
            return own(plain, F.pad(y, (rim, rim, rim, rim)) if outside else y, *more)

        if operator in ("regular", "decompose"):
            return conv(x)
        if operator != "gi":
            kernel = filter_of(operator, rate, smoothed)
            channels = [F.conv2d(x[:, c : c + 1], kernel[None, None], padding="same") for c in range(x.shape[1])]
            return conv(torch.cat(channels, 1))
        mixing = smoothed.smoothing.weight.detach()
        height, width = x.shape[-2:]
        y = conv(F.pad(x, (0, -width % rate, 0, -height % rate)))
        bias = 0 if plain.bias is None else plain.bias[:, None, None]
        result = torch.zeros_like(y)
        places = [(slice(i, None, rate), slice(j, None, rate)) for i in range(rate) for j in range(rate)]
        for (i, to), (j, of) in itertools.product(enumerate(places), repeat=2):
            result[(..., *to)] += mixing[j, i] * (y - bias)[(..., *of)]
        return result[..., :height, :width] + bias

    return around


def enliven(model: nn.Module, image: Tensor) -> nn.Module:
    """Weights and statistics with which every layer matters for the output, as after training, not as at its start."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif hasattr(module, "running_var"):  # batch norm, also frozen ones of other classes
            module.momentum = 1.0
            if getattr(module, "weight", None) is not None:
                nn.init.ones_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "gain")):  # of a residual branch or a layer, often 0 at the start
            nn.init.ones_(parameter)
    outputs(model.train(), torch.cat([image, image.flip(3), image.flip(2), 1 - image]))
    return model.eval()


def check(build: Callable[[], nn.Module], operator: str) -> tuple[str, bool]:
    """One line about one network and operator, and whether everything held."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    plain = enliven(build().double(), image)
    model = copy.deepcopy(plain)
    names = set(model.state_dict())
    with DilatedCalls() as calls:
        outputs(model, image)
    try:
        report = degrid.smooth_dilated_convs(model, operator, where=lambda name, conv: max(conv.dilation) <= 4)
    except degrid.UserError as error:
        return f"nothing smoothed of {len(calls.weights)}: {' / '.join(str(error).splitlines()[1:-1])}", False
    wrong = []
    reported = [name for name, _ in (*report.replaced, *report.skipped)]
    if len(calls.weights) > len(reported):
        wrong.append(f"{len(calls.weights)} dilated convolutions are called, {len(reported)} reported")
    if not names <= set(model.state_dict()):
        wrong.append("names are lost")
    if operator in ("regular", "decompose", "gi", "ssc"):
        error = difference(outputs(model, image), outputs(plain, image))
        if error > 1e-9:
            wrong.append(f"differs by {error:.1e} before training")
    with torch.no_grad():
        for layer in (model.get_submodule(name) for name, _ in report.replaced):
            for parameter in layer.smoothing.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    unsmoothed = outputs(plain, image)
    for name, _ in report.replaced:
        layer = plain.get_submodule(name)
        layer.forward = literal_forward(operator, layer, model.get_submodule(name))
    found, expected = outputs(model, image), outputs(plain, image)
    error = difference(found, expected)
    if not error < 1e-7:  # the filters themselves are made in single precision
        wrong.append("differs from the definition")
    moved = difference(unsmoothed, expected)
    if moved < 1e-4 and not (
        (operator in ("regular", "decompose")) or len(report.unchanged) == len({r for _, r in report.replaced})
    ):
        wrong.append(f"smoothing matters by {moved:.1e} only")
    for kind, copied in (("copy", copy.deepcopy(model)), ("pickle", pickle.loads(pickle.dumps(model)))):
        if difference(outputs(copied, image), found) > 1e-12:
            wrong.append(f"its {kind} differs")
    reasons = sorted({reason.split(":")[0] for _, reason in report.skipped})
    line = f"{len(report.replaced):3} smoothed, {len(report.skipped):2} skipped, {error:.1e} of {moved:.1e}"
    return f"{line}  {'; '.join(wrong)}{' (' + '; '.join(reasons) + ')' if reasons else ''}", not wrong


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest, relative to the largest value of each output."""
    if len(found) != len(expected):
        return float("inf")
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(found, expected, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS))
    parser.add_argument("--networks", nargs="+", default=[""], help="parts of names")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = 0
    for library in given.only:
        module, networks = LIBRARIES[library]
        if importlib.util.find_spec(module) is None:
            print(f"{library}: not installed, left out")
            continue
        for name, build in networks():
            if not any(part in name for part in given.networks):
                continue
            for operator in given.operators:
                begin = time.perf_counter()
                line, held = check(build, operator)
                failed += not held
                print(f"{library:12} {name:34} {operator:12} {line}  {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"{failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
