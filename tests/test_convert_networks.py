"""Whole networks of the original systems: their variables through the converter, and the logits their code computed."""

import json
from dataclasses import replace

import numpy as np
import originals
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import degrid
from degrid.checkpoints.systems.table import SYSTEMS, find_system
from degrid.config import ModelConfig
from degrid.exporters.runtime import ExportedModel
from degrid.models import describe, stated_input
from degrid.networks import build_model
from degrid.resize import resize
from degrid.types import ConversionError, LabelSpace, Preprocess
from degrid.verbs.convert import convert, fill
from degrid.verbs.modernise import modernise

# Not "decompose": the same variables and the same function as "regular", and the same logits to the bit.
TYPES = ["regular", "smooth_GI", "smooth_SSC", "average_filter", "gaussian_filter", "aggregation"]
OPERATOR = {
    "regular": "regular",
    "smooth_GI": "gi",
    "smooth_SSC": "ssc",
    "average_filter": "average",
    "gaussian_filter": "gaussian",
    "aggregation": "aggregation",
}
slow = pytest.mark.slow


def converted(tmp_path, network, system, **options):
    """A golden network's variables, written as .npz under their own names, and what the converter makes of them."""
    weights = originals.golden_weights(originals.shapes(network), system)
    np.savez(tmp_path / "weights.npz", **weights)
    report = convert(tmp_path / "weights.npz", tmp_path / "model", **options)
    (tmp_path / "weights.npz").unlink()
    return degrid.load(tmp_path / "model"), report


def image_of(name):
    return torch.from_numpy(originals.array(name)).permute(2, 0, 1)[None]


def assert_same_logits(ours, theirs):
    """Both [1,h,w,C]: within 1e-3 of the largest logit is what is promised; it is 1e-5."""
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() >= 0.999


@pytest.mark.parametrize(
    ("encoder", "original"),
    [
        *(("res50", name) for name in TYPES),
        *(pytest.param("deeplab", name, marks=slow) for name in TYPES),
    ],
)
def test_deeplab_v2_in_tensorflow(tmp_path, encoder, original):
    network = f"eth/{encoder}/{original}"
    model, report = converted(tmp_path, network, "eth")
    assert model.config.smoothing.operator == OPERATOR[original]
    # Every variable is accounted for: used, or left out for a reason.
    variables = set(originals.shapes(network))
    assert set(report.loaded.values()) | set(report.dropped) == variables
    assert not set(report.loaded.values()) & set(report.dropped)
    assert all("w_gauss_value" in name for name in report.dropped)
    encodings = []
    with torch.inference_mode(), model.encoder.register_forward_hook(lambda *passed: encodings.append(passed[2][-1])):
        logits = model(image_of("eth/image_65x97"))
    (encoding,) = encodings
    assert_same_logits(logits.permute(0, 2, 3, 1).numpy(), originals.array(f"{network}/logits"))
    mean_abs = encoding[0].abs().mean((1, 2)).numpy()
    np.testing.assert_allclose(mean_abs, originals.array(f"{network}/encoding_mean_abs"), rtol=1e-3, atol=1e-5)
    full = resize(logits, (65, 97), model.resize)
    sample = originals.array(f"{network}/upsampled_sample")
    np.testing.assert_allclose(full[0, :, ::8, ::8].permute(1, 2, 0).numpy(), sample, atol=1e-5 * np.abs(sample).max())
    ids = degrid.Predictor(model, precision="float32")(originals.array("eth/image_65x97"))
    assert (ids == originals.array(f"{network}/upsampled_argmax")[0]).mean() >= 0.999


@pytest.mark.parametrize("original", [pytest.param(name, marks=slow) for name in ["smooth_GI", *TYPES[2:]]])
def test_converted_models_export(tmp_path, original):
    """A legacy model in another runtime gives the logits of the original code, at a size it was not traced at."""
    network = f"eth/res50/{original}"
    model, _ = converted(tmp_path, network, "eth")
    degrid.export(model, tmp_path / "model.onnx", output="logits")
    logits = ExportedModel(tmp_path / "model.onnx")(image_of("eth/image_65x97"))
    assert_same_logits(logits.permute(0, 2, 3, 1).numpy(), originals.array(f"{network}/logits"))


@pytest.mark.parametrize("original", TYPES)
def test_what_the_original_trains_is_trained_here(original):
    """Frozen batch norm: as many trainable tensors as the original has, biases and operators included."""
    network = f"eth/res50/{original}"
    with torch.device("meta"):
        model = degrid.deeplabv2("res50", 21, operator=OPERATOR[original], legacy=True)
    degrid.models.freeze_batch_norm(model)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(trained) == originals.num_trainable(network)


def test_deeplab_v3_on_slim_resnet_v1(tmp_path):
    model, report = converted(tmp_path, "nd", "nd")
    assert "ND" in report.system
    with torch.inference_mode():
        logits = model(image_of("nd/image")).permute(0, 2, 3, 1).numpy()
    assert_same_logits(logits, originals.array("nd/ND/resnet_v1_50/aspp/logits"))
    assert (logits.argmax(-1) == originals.array("nd/ND/resnet_v1_50/aspp/argmax")).all()


def test_deeplab_v3_on_slim_resnet_v2(tmp_path):
    model, report = converted(tmp_path, "st", "st")
    assert all("postnorm" in name or "/logits/" in name for name in report.dropped)
    with torch.inference_mode():
        full = resize(model(image_of("st/image")), (65, 97), model.resize).permute(0, 2, 3, 1).numpy()
    assert_same_logits(full[:, ::4, ::4], originals.array("st/ST/resnet_v2_50/os16/logits"))
    assert (full.argmax(-1) == originals.array("st/ST/resnet_v2_50/os16/argmax")).mean() >= 0.999


@pytest.mark.slow
def test_multi_scale_deeplab_v2_in_pytorch(tmp_path):
    model, _ = converted(tmp_path, "is", "is")
    assert model.scales == (0.75, 0.5)
    with torch.inference_mode():
        scales = model.scale_logits(image_of("is/image"))
        fused = model(image_of("is/image"))
    ours = [scales[0], resize(scales[1], scales[0].shape[-2:], model.resize), scales[2], fused]
    for index, logits in enumerate(ours):
        theirs = originals.array(f"is/out{index}")
        assert_same_logits(logits.permute(0, 2, 3, 1).numpy(), theirs.transpose(0, 2, 3, 1))
    degrid.export(model, tmp_path / "model.onnx", output="logits")
    exported = ExportedModel(tmp_path / "model.onnx")(image_of("is/image"))
    assert_same_logits(exported.permute(0, 2, 3, 1).numpy(), originals.array("is/out3").transpose(0, 2, 3, 1))


# Modernising


@pytest.mark.parametrize("original", ["regular", "smooth_GI", "smooth_SSC", "gaussian_filter", "aggregation"])
def test_modernised_models_compute_the_same(tmp_path, original):
    if original == "aggregation":  # filters that are no longer boxes have no equivalent: start from fresh ones
        model = degrid.deeplabv2("res50", 21, operator="aggregation", legacy=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("smoothing.mix"):
                    parameter.copy_(torch.tensor([0.3, 0.2, 0.4, 0.25]))
                if name.endswith("smoothing.residual"):
                    parameter.normal_(std=0.05)
        degrid.save(model, tmp_path / "model")
    else:
        converted(tmp_path, f"eth/res50/{original}", "eth")
    report = modernise(tmp_path / "model", tmp_path / "new")
    old, new = degrid.load(tmp_path / "model"), degrid.load(tmp_path / "new")
    assert not new.config.legacy
    assert new.config.resize == "tf_legacy"
    assert "4k + 1" in str(report)
    image = torch.randint(0, 256, (1, 3, 65, 97), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = old.eval()(image), new(image)
    assert float((a - b).abs().max()) <= 2e-5 * float(a.abs().max())
    modern = {type(module).__module__ for module in new.modules()}
    assert "degrid.smoothing.legacy" not in modern


def test_modernised_gains_move_into_the_weights(tmp_path):
    model = degrid.deeplabv2("res50", 3, operator="average", legacy=True).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("smoothing.weight"):
                parameter.mul_(torch.rand(len(parameter), 1, 1, 1) + 0.5)
    degrid.save(model, tmp_path / "model")
    modernise(tmp_path / "model", tmp_path / "new")
    image = torch.randint(0, 256, (1, 3, 65, 65), dtype=torch.uint8)
    with torch.inference_mode():
        a, b = model(image), degrid.load(tmp_path / "new")(image)
    assert float((a - b).abs().max()) <= 2e-5 * float(a.abs().max())


def test_what_cannot_be_modernised_names_the_layers(tmp_path):
    converted(tmp_path, "eth/res50/average_filter", "eth")
    with pytest.raises(ConversionError, match=r"no longer boxes.*encoder\.layer4\.0\.conv2"):
        modernise(tmp_path / "model", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    model = degrid.deeplabv2("res50", 2, operator="aggregation", legacy=True)
    with torch.no_grad():
        model.encoder.layer3[0].conv2.smoothing.mix.copy_(torch.tensor([0.5, -0.1, 0.3, 0.3]))
    degrid.save(model, tmp_path / "negative")
    with pytest.raises(ConversionError, match=r"not all positive.*encoder\.layer3\.0\.conv2"):
        modernise(tmp_path / "negative", tmp_path / "new")
    degrid.save(degrid.deeplabv3("slim:resnet_v2_50", 2, legacy=True), tmp_path / "v2")
    with pytest.raises(ConversionError, match="before the encoder's last batch norm"):
        modernise(tmp_path / "v2", tmp_path / "new")
    degrid.save(degrid.deeplabv2("res50", 2), tmp_path / "default")
    with pytest.raises(degrid.UserError, match="not a legacy model"):
        modernise(tmp_path / "default", tmp_path / "new")


# Caffe, other PyTorch repositories, torchvision


def random_state(model, seed=0):
    """A state dict of plausible random values, batch norm statistics included."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 4:
            state[name] = noise * (2 / value[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            state[name] = 1 + 0.2 * noise.abs()
        elif not value.is_floating_point():
            state[name] = value
        elif name.endswith("weight"):
            state[name] = 0.7 + 0.1 * noise
        else:
            state[name] = 0.1 * noise
    return state


def test_caffe_names_and_batch_norm_in_two_layers(tmp_path):
    """A Caffe model's blobs, made from a model of ours: statistics times a factor, and a copy per scale."""
    model = degrid.deeplabv2("caffe:resnet50", 21, resize="align_corners", scales=(0.75, 0.5)).eval()
    model.load_state_dict(random_state(model))
    blobs = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            continue
        layer = caffe_name(name)
        if isinstance(module, nn.Conv2d):
            blobs[f"{layer}/0"] = module.weight
            if module.bias is not None:
                blobs[f"{layer}/1"] = module.bias
        else:
            blobs[f"{layer}/0"], blobs[f"{layer}/1"] = 999.98 * module.running_mean, 999.98 * module.running_var
            blobs[f"{layer}/2"] = torch.tensor([999.98])
            scale = layer.replace("bn", "scale", 1)
            blobs[f"{scale}/0"], blobs[f"{scale}/1"] = module.weight, module.bias
    arrays = {name: value.detach().numpy() for name, value in blobs.items()}
    for name in list(arrays):
        layer, _, blob = name.rpartition("/")
        head = layer.startswith("fc1")
        for scale in ("_res075", "_res05"):
            copy = layer.replace("_c", f"{scale}_c") if head else layer + scale
            arrays[f"{copy}/{blob}"] = arrays[name]
    system, shown_by, *_ = find_system(arrays, None, "blobs")
    assert system.title == "DeepLab v2 in Caffe"
    assert shown_by == "res2a_branch2a/0"
    plan = system.plan(arrays)
    assert not plan.unexpected
    again = degrid.deeplabv2("caffe:resnet50", 21)
    fill(again, plan, tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert plan.model["scales"] == (0.75, 0.5)
    arrays["conv1_res05/0"] = arrays["conv1_res05/0"] + 1
    with pytest.raises(ConversionError, match="do not share"):
        system.plan(arrays)


def caffe_name(name):
    """Our module's name -> Caffe's layer."""
    parts = name.split(".")
    if parts[0] == "head":
        return f"fc1_voc12_c{parts[-1]}"
    if parts[1] in ("conv1", "bn1"):
        return "conv1" if parts[1] == "conv1" else "bn_conv1"
    stage, unit = int(parts[1][-1]) + 1, int(parts[2])
    letter = "abcdefgh"[unit] if stage in (2, 5) or unit == 0 else f"b{unit}"
    branch = {"conv1": "2a", "bn1": "2a", "conv2": "2b", "bn2": "2b", "conv3": "2c", "bn3": "2c", "downsample": "1"}
    norm = parts[3].startswith("bn") or parts[3:] == ["downsample", "1"]
    return f"{'bn' if norm else 'res'}{stage}{letter}_branch{branch[parts[3]]}"


@pytest.mark.parametrize(
    ("prefix", "shortcut", "head"), [("base.", "shortcut", "aspp.c"), ("", "proj", "aspp.stages.c")]
)
def test_kazuto1011_names(tmp_path, prefix, shortcut, head):
    model = degrid.deeplabv2("caffe:resnet50", 21).eval()
    state = random_state(model)
    parts = {"conv1": "reduce.conv", "bn1": "reduce.bn", "conv2": "conv3x3.conv", "bn2": "conv3x3.bn"}
    parts |= {"conv3": "increase.conv", "bn3": "increase.bn"}
    theirs = {}
    for name, value in state.items():
        words = name.split(".")
        if words[0] == "head":
            new = f"{head}{words[2]}.{words[3]}"
        elif words[1] in ("conv1", "bn1"):
            new = f"layer1.conv1.{words[1][:-1]}.{words[2]}"
        else:
            place = f"layer{int(words[1][-1]) + 1}.block{int(words[2]) + 1}"
            inner = parts.get(words[3]) or f"{shortcut}.{('conv', 'bn')[int(words[4])]}"
            new = f"{place}.{inner}.{words[-1]}"
        theirs[prefix + new] = value
    torch.save(theirs, tmp_path / "msc.pth")
    report = convert(tmp_path / "msc.pth", tmp_path / "model")
    again = degrid.load(tmp_path / "model")
    for name, value in again.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name
    assert again.scales == ((0.75, 0.5) if prefix else ())
    assert not report.unexpected


def test_kazuto1011_heads_of_other_versions():
    trunk = {
        f"layer{stage + 2}.block{unit + 1}.reduce.conv.weight": np.ones(1)
        for stage, count in enumerate((3, 4, 6, 3))
        for unit in range(count)
    }
    system = SYSTEMS["kazuto1011"]
    one = system.plan({**trunk, "fc.weight": np.full((2, 3, 1, 1), 7.0), "fc.bias": np.ones(2)})
    assert one.model["network"] == "deeplabv2_largefov"
    weight = one.tensors["head.branches.0.weight"]
    assert weight.shape == (2, 3, 3, 3)
    assert weight.sum() == weight[:, :, 1, 1].sum() == 2 * 3 * 7
    branches = {f"aspp.stages.c{branch}.conv.weight": np.ones(1) for branch in range(3)}
    three = {**trunk, **branches, "aspp.stages.imagepool.conv.bn.bias": np.ones(1)}
    plan = system.plan({**three, "fc1.conv.weight": np.ones(1), "fc2.weight": np.ones(1)})
    assert (plan.model["network"], plan.model["output_stride"], plan.model["multi_grid"]) == ("deeplabv3", 8, (1, 2, 4))
    assert plan.model["rates"] == (6, 12)  # as many as there are branches beside the 1x1
    names = [*(f"aspp.branches.{branch}.0.weight" for branch in range(3)), "aspp.branches.3.project.1.bias"]
    names += ["aspp.project.0.weight", "classifier.weight"]
    assert {name for name in plan.tensors if name.startswith("head")} == {f"head.{name}" for name in names}
    plus = {**three, "fc1.conv.weight": np.ones(1), "fc2.conv3.weight": np.ones(1), "fc2.conv2.bn.bias": np.ones(1)}
    plan = system.plan({f"base.{name}": value for name, value in plus.items()})
    assert (plan.model["network"], plan.model["output_stride"]) == ("deeplabv3plus_kazuto1011", 16)
    assert system.plan(plus).model["network"] == "deeplabv3plus"  # of one scale
    v3 = {**three, "fc1.conv.weight": np.ones(1), "fc2.weight": np.ones(1)}
    wrapped = system.plan({f"base.{name}": value for name, value in v3.items()}).model
    assert (wrapped["network"], wrapped["output_stride"], wrapped["rates"]) == ("deeplabv3", 16, (6, 12))
    assert {"head.refine.1.1.bias", "head.classifier.weight"} <= plan.tensors.keys()
    assert not plan.unexpected
    assert system.recognise({**trunk, "fc.weight": np.ones((1000, 2048))}) is None  # trained on ImageNet
    two = system.plan({**trunk, "aspp.c0.weight": np.ones(1), "aspp.c1.weight": np.ones(1)})
    assert (two.model["network"], two.model["rates"]) == ("deeplabv2", (6, 12))


def test_multi_scale_v3plus_of_kazuto1011_takes_the_maximum_at_the_size_of_the_image():
    config = ModelConfig("deeplabv3plus", "timm:resnet18", pretrained=False)
    labels = LabelSpace.of_size(3)
    one = build_model(config, labels).eval()
    many = replace(config, network="deeplabv3plus_kazuto1011", scales=(0.75, 0.5))
    all_scales = build_model(many, labels).eval()
    all_scales.load_state_dict(one.state_dict())
    image = 255 * torch.rand(1, 3, 52, 68, generator=torch.Generator().manual_seed(1))
    enlarged = []
    with torch.inference_mode():
        for size in ((52, 68), (39, 51), (26, 34)):
            scaled = F.interpolate(image, size, mode="bilinear")
            logits = F.interpolate(one(scaled), size, mode="bilinear")
            enlarged.append(F.interpolate(logits, (52, 68), mode="bilinear"))
        found = all_scales(image)
    torch.testing.assert_close(found, torch.stack(enlarged).amax(0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, enlarged[0])


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_torchvision(tmp_path, name):
    theirs = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, aux_loss=True).eval()
    theirs.load_state_dict(random_state(theirs))
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    report = convert(tmp_path / "tv.pth", tmp_path / "model")
    model = degrid.load(tmp_path / "model")
    assert set(report.dropped.values()) >= {"second head, used for the training loss only"}
    image = torch.randint(0, 256, (1, 3, 97, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    with torch.inference_mode():
        expected = theirs((image - mean) / std)["out"]
        ours = resize(model(image), (97, 130), model.resize)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert model.labels.names[15] == "person"


@pytest.mark.parametrize("network", ["v3_resnet18", "v3plus_resnet18", "v3plus_resnet50"])
def test_segmentation_models_pytorch(tmp_path, network):
    image, shapes, expected = originals.smp_golden()
    state = {name: torch.from_numpy(originals.smp_weight(name, tuple(s))) for name, s in shapes[network].items()}
    torch.save(state, tmp_path / "smp.pth")
    report = convert(tmp_path / "smp.pth", tmp_path / "model")
    assert report.notes[0].startswith("the file does not say these settings, which are assumed: output_stride=")
    model = degrid.load(tmp_path / "model")
    with torch.inference_mode():
        logits = model(torch.from_numpy(image).permute(2, 0, 1)[None])
        full = resize(logits, (64, 96), model.resize)[0, :, ::4, ::4].numpy()
    theirs = expected[network]
    assert np.abs(full - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_settings_that_the_user_gave_are_not_called_assumed(tmp_path):
    _, shapes, _ = originals.smp_golden()
    state = {name: torch.zeros(shape) for name, shape in shapes["v3plus_resnet18"].items()}
    torch.save(state, tmp_path / "smp.pth")
    words = "the file does not say these settings, which are assumed: "
    for given, left in (
        ([], ["output_stride=16 rates=12,24,36"]),
        (["output_stride=8"], ["rates=12,24,36"]),
        (["rates=6,12,18"], ["output_stride=16"]),
        (["rates=6,12,18", "output_stride=8"], []),
    ):
        notes = [note for note in convert(tmp_path / "smp.pth", settings=given).notes if "assumed" in note]
        assert [note.removeprefix(words).partition(" (")[0] for note in notes] == left


def test_weights_that_are_no_finite_real_numbers_are_told_of(tmp_path):
    _, shapes, _ = originals.smp_golden()
    state = {name: torch.zeros(shape) for name, shape in shapes["v3plus_resnet18"].items()}
    bias = "segmentation_head.0.bias"
    for value in (float("nan"), float("-inf")):
        torch.save({**state, bias: torch.full(state[bias].shape, value)}, tmp_path / "smp.pth")
        assert f"1 tensor with NaN or infinity, as the logits will be: {bias}" in convert(tmp_path / "smp.pth").notes
    torch.save({**state, bias: torch.zeros(state[bias].shape, dtype=torch.complex64)}, tmp_path / "smp.pth")
    with pytest.raises(ConversionError, match=r"holds complex numbers in head\.classifier\.bias"):
        convert(tmp_path / "smp.pth")


def test_smp_with_another_encoder_is_refused(tmp_path):
    state = {
        "decoder.aspp.convs.0.0.weight": torch.zeros(256, 1280, 1, 1),
        "decoder.aspp.convs.1.0.0.weight": torch.zeros(1),
        "encoder.denseblock1.weight": torch.zeros(1),
    }
    torch.save(state, tmp_path / "smp.pth")
    with pytest.raises(ConversionError, match=r"an encoder \(not named in the file\) that degrid cannot convert"):
        convert(tmp_path / "smp.pth", tmp_path / "model")


@pytest.mark.parametrize(("name", "encoder"), [("resnet18", "timm:resnet18"), ("mobilenet_v2", "timm:mobilenetv2_100")])
def test_imagenet_weights_become_an_encoder_folder(tmp_path, name, encoder):
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.load_state_dict(random_state(theirs))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", tmp_path / "encoder")
    assert report.kind == "encoder"
    assert report.config["encoder"] == encoder
    assert stated_input(tmp_path / "encoder").std == pytest.approx(Preprocess().std)  # torchvision's own expect these
    state = theirs.state_dict()
    first = next(key for key in state if key.endswith("running_var"))
    torch.save({**state, first: state[first] * 1e5}, tmp_path / "caffe.pth")
    assert (
        convert(tmp_path / "caffe.pth")
        .notes[-1]
        .endswith("which --set mean=104,116.7,122.7 --set std=1,1,1 --set bgr=true (settings=...) keeps")
    )
    half = (127.5, 127.5, 127.5)
    convert(tmp_path / "net.pth", tmp_path / "other", settings=["mean=127.5,127.5,127.5", "std=127.5,127.5,127.5"])
    assert degrid.deeplabv3(encoder, 2, pretrained=str(tmp_path / "other")).preprocess == Preprocess(half, half)
    model = degrid.deeplabv3(encoder, 2, output_stride=32, pretrained=str(tmp_path / "encoder")).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        ours = model.encoder(image)[-1]
        if name == "mobilenet_v2":
            expected = theirs.features[:18](image)
        else:
            expected = nn.Sequential(*list(theirs.children())[:-2])(image)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(degrid.UserError, match="not a whole model"):
        degrid.load(tmp_path / "encoder")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_slim_imagenet_weights(tmp_path, version):
    """slim's variables, written from an encoder of ours."""
    from degrid.models import EncoderSettings, build_encoder

    net = build_encoder(f"slim:resnet_{version}_50", EncoderSettings(output_stride=32)).eval()
    net.load_state_dict(random_state(net))
    variables = slim_variables(net, version)
    variables[f"resnet_{version}_50/logits/weights"] = np.zeros((1, 1, 2048, 1000), np.float32)
    variables["global_step"] = np.array(5)
    variables[f"resnet_{version}_50/conv1/weights/Momentum"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "slim.npz", **variables)
    report = convert(tmp_path / "slim.npz", tmp_path / "encoder")
    assert sorted(report.dropped.values()) == ["ImageNet classifier", "optimiser state", "step counter"]
    settings = EncoderSettings(output_stride=32, pretrained=str(tmp_path / "encoder"))
    again = build_encoder(f"slim:resnet_{version}_50", settings)
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def slim_variables(net, version):
    leaves = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    variables = {}
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            continue
        norm = isinstance(module, nn.BatchNorm2d)
        parts = name.split(".")
        if parts[0] == "norm":
            place = "postnorm"
        elif parts[0] in ("conv1", "bn1"):
            place = "conv1" + "/BatchNorm" * norm
        else:
            inner = "shortcut" if parts[2] == "downsample" else parts[2].replace("bn", "conv")
            place = f"block{parts[0][-1]}/unit_{int(parts[1]) + 1}/bottleneck_{version}/{inner}"
            place += "/BatchNorm" * (norm and inner != "preact")
        for leaf, value in module.state_dict().items():
            if leaf == "num_batches_tracked":
                continue
            if not norm:
                new = "weights" if leaf == "weight" else "biases"
            else:
                new = leaves.get(leaf) or {"weight": "gamma", "bias": "beta"}[leaf]
            array = value.numpy()
            variables[f"resnet_{version}_50/{place}/{new}"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return variables


# Reports and refusals


def test_unknown_tensors_are_refused_unless_allowed(tmp_path):
    weights = originals.golden_weights(originals.shapes("nd"), "nd")
    weights["resnet_v1_50/surprise"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "weights.npz", **weights)
    with pytest.raises(ConversionError, match=r"1 tensor without a place.*surprise.*--allow-unused"):
        convert(tmp_path / "weights.npz", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    report = convert(tmp_path / "weights.npz", tmp_path / "model", allow_unused=True)
    assert report.unexpected == ("resnet_v1_50/surprise",)
    saved = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert saved["unexpected"] == ["resnet_v1_50/surprise"]
    assert len(saved["loaded"]) == len(report.loaded)


def test_early_names_and_training_state(tmp_path):
    """Files of early 2017 name batch norm "bn../BatchNorm/..", and training checkpoints hold slots and a counter."""
    weights = originals.golden_weights(originals.shapes("eth/res50/regular"), "eth")
    convert_from(tmp_path / "a.npz", weights, tmp_path / "plain", settings=["scales=0.75,0.5"])
    caffe = {}
    stages = {"2": "abc", "3": ["a", "b1", "b2", "b3"], "4": ["a", "b1", "b2", "b3", "b4", "b5"], "5": "abc"}
    parts = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    for name, value in weights.items():
        words = name.split("/")
        leaf = words[-1]
        norm = "BatchNorm" in words
        if words[0] == "decoder":
            layer = f"fc1_voc12_c{int(words[2][-1]) - 1}"
        elif words[1] == "conv1":
            layer = "bn_conv1" if norm else "conv1"
        else:
            stage = str(int(words[1][-1]) + 1)
            unit = stages[stage][int(words[2].split("_")[1]) - 1]
            layer = f"{'bn' if norm else 'res'}{stage}{unit}_branch{parts[words[4]]}"
        caffe[f"{layer}/BatchNorm/{leaf}" if norm else f"{layer}/{leaf}"] = value
        caffe[f"{layer}/{leaf}/Momentum"] = np.zeros(1, np.float32)
    caffe["global_step"] = np.array(20000)
    report = convert_from(tmp_path / "b.npz", caffe, tmp_path / "early")
    assert set(report.dropped.values()) == {"optimiser state", "step counter"}
    plain, early = degrid.load(tmp_path / "plain"), degrid.load(tmp_path / "early")
    for name, value in early.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name
    # The multi-scale network of the same weights is a setting: sizes and resizing as in TensorFlow.
    image = image_of("eth/image_65x97")
    with torch.inference_mode():
        large = early(image)
        x = early._normalised(image)
        small = [early.head(early.encoder(resize(x, size, "tf_legacy"))) for size in ((48, 72), (32, 48))]
        expected = torch.stack([large, *(resize(s, large.shape[-2:], "tf_legacy") for s in small)]).amax(0)
        torch.testing.assert_close(plain(image), expected)


def convert_from(file, weights, out, **options):
    np.savez(file, **weights)
    return convert(file, out, **options)


def test_missing_tensors_and_wrong_systems_are_named(tmp_path):
    weights = originals.golden_weights(originals.shapes("nd"), "nd")
    np.savez(tmp_path / "weights.npz", **weights)
    with pytest.raises(ConversionError, match=r"DeepLab v2 in Caffe; it fits NanqingD.*\(--as nd, system=\.\.\.\)"):
        convert(tmp_path / "weights.npz", tmp_path / "model", system="caffe")
    with pytest.raises(degrid.UserError, match='unknown system "caffee".* Did you mean "caffe"'):
        convert(tmp_path / "weights.npz", tmp_path / "model", system="caffee")
    del weights["resnet_v1_50/fusion/1x1conv/weights"]
    np.savez(tmp_path / "weights.npz", **weights)
    with pytest.raises(ConversionError, match=r"1 missing \(head\.aspp\.project\.0\.weight\)"):
        convert(tmp_path / "weights.npz", tmp_path / "model")
    np.savez(tmp_path / "weights.npz", some=np.zeros(2))
    with pytest.raises(ConversionError, match=r"no system that degrid can convert.*called some"):
        convert(tmp_path / "weights.npz", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_settings_and_classes_can_be_given(tmp_path):
    weights = originals.golden_weights(originals.shapes("st"), "st")
    np.savez(tmp_path / "weights.npz", **weights)
    labels = LabelSpace.of_size(21)
    convert(tmp_path / "weights.npz", tmp_path / "model", settings=["output_stride=8"], classes=labels)
    model = degrid.load(tmp_path / "model")
    assert model.output_stride == 8
    assert model.labels.names[0] == "class 0"
    rates = [conv.rate[0] for conv in describe(model, (65, 65)).dilated if "encoder" in conv.name]
    assert rates == [2] * 6 + [4, 8, 16]


def test_mobilenet_v2_voc_equals_a_direct_build(tmp_path):
    """Image pooling and a 1x1 branch on torchvision's MobileNetV2 at output stride 8, put together here by hand."""
    features = torchvision.models.mobilenet_v2(weights=None).features[:18]
    for index, block in enumerate(features):
        for conv in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
            if index in (7, 14) and conv.stride == (2, 2):
                conv.stride = (1, 1)
            if index >= 8 and conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (2, 2) if index <= 14 else (4, 4)

    def unit(inside, outside):
        return nn.Sequential(nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())

    head = nn.ModuleDict(
        {"aspp0": unit(320, 256), "image_pooling": unit(320, 256), "concat_projection": unit(512, 256)}
    )
    head["logits"] = nn.Conv2d(256, 21, 1)
    theirs = nn.ModuleDict({"features": features, "head": head}).eval()
    theirs.load_state_dict(random_state(theirs))
    torch.save({name: value.half() for name, value in theirs.state_dict().items()}, tmp_path / "voc.pth")
    theirs.load_state_dict({name: value.half().to(value.dtype) for name, value in theirs.state_dict().items()})
    convert(tmp_path / "voc.pth", tmp_path / "model")
    model = degrid.load(tmp_path / "model")
    image = torch.randint(0, 256, (1, 3, 97, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        wide = features(image / 127.5 - 1)
        pooled = head["image_pooling"](wide.mean((2, 3), keepdim=True)).expand(-1, -1, *wide.shape[-2:])
        expected = head["logits"](head["concat_projection"](torch.cat([pooled, head["aspp0"](wide)], 1)))
        ours = model(image)
    assert float((ours - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert model.resize == "align_corners"
    assert model.labels.names[0] == "background"
