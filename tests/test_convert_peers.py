"""Networks of other projects: their tensors through the converter, and the logits that their code computed."""

import numpy as np
import peers
import pytest
import torch

from degrid.checkpoints.systems.plan import planned
from degrid.checkpoints.systems.table import SYSTEMS, find_system
from degrid.config import ModelConfig, from_dict
from degrid.networks import build_model
from degrid.types import ConversionError, LabelSpace
from degrid.verbs.convert import convert, fill

slow = pytest.mark.slow
CONFIGS = {  # what the program's config.json says
    "smp_DeepLabV3_resnet18_os16": {"encoder_output_stride": 16, "decoder_atrous_rates": [2, 3, 5]},
    "smp_DeepLabV3Plus_tu-resnet50": {"encoder_name": "tu-resnet50"},
    "smp_DeepLabV3Plus_tu-gernet_s": {"encoder_name": "tu-gernet_s"},
    "keras_hub_deeplabv3_resnetv2_18": {
        "config": {
            "backbone": {"config": {"dilation_rates": [2, 3, 5], "upsampling_size": [8, 8]}},
            "preprocessor": {"config": {"image_converter": {"config": {"scale": 1 / 127.5, "offset": -1}}}},
        }
    },
}
SET = {"tf_deeplab_resnet_v1_50_beta_os8": {"output_stride": 8, "rates": (12, 24, 36)}}  # what no file says


def converted(name, key, **given):
    """A network's plan by the row of the table that recognises it, and the model; `given` are other settings."""
    tensors = peers.tensors(name)
    system, *_ = find_system(tensors, None, name)
    assert system is SYSTEMS[key]
    plan = system.plan_beside(tensors, CONFIGS.get(name, {}))
    plan.model |= SET.get(name, {}) | given
    assert not plan.unexpected
    assert set(plan.origins.values()) | set(plan.dropped) == set(tensors)
    config = from_dict(ModelConfig, {"pretrained": False, **plan.model})
    model = build_model(config, LabelSpace.of_size(peers.spec(name)["classes"]))
    fill(model, plan, name)
    return plan, model.eval()


def rates(module):
    """Of all 3x3 convolutions above 1, in order."""
    found = [m.dilation[0] for m in module.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1]
    return [rate for rate in found if rate > 1]


@slow
def test_rates_of_mmsegmentations_resnest():
    """The first unit of a dilated stage keeps the rate before it, by mmsegmentation's contract_dilation."""
    config = ModelConfig(encoder="mmseg:resnest50d", output_stride=8, pretrained=False)
    encoder = build_model(config, LabelSpace.of_size(3)).encoder.eval()
    assert rates(encoder) == [*[2] * 5, 2, 4, 4]
    assert encoder(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 2048, 8, 8)


@pytest.mark.parametrize(
    ("name", "system", "encoder_rates", "aspp_rates"),
    [
        ("smp_DeepLabV3Plus_mobilenet_v2", "smp", [2, 2, 2, 2], [12, 24, 36]),
        ("smp_DeepLabV3Plus_efficientnet-b0", "smp", [2] * 7, [12, 24, 36]),
        # Both paths of a dilated selective kernel have one rate; the second is 2 where it is not dilated.
        ("smp_DeepLabV3Plus_timm-skresnet18", "smp", [*[2] * 6, *[2] * 6], [12, 24, 36]),
        pytest.param("smp_DeepLabV3Plus_dpn68", "smp", [2] * 3, [12, 24, 36], marks=slow),
        pytest.param("smp_DeepLabV3Plus_mobileone_s0", "smp", [2] * 4, [12, 24, 36], marks=slow),
        pytest.param("smp_DeepLabV3Plus_tu-resnet50", "smp", [2, 2], [12, 24, 36], marks=slow),
        pytest.param("smp_DeepLabV3_resnet18_os16", "smp", [2] * 4, [2, 3, 5], marks=slow),
        pytest.param("smp_DeepLabV3Plus_resnet18", "smp", [2] * 4, [12, 24, 36], marks=slow),
        # timm leaves the last stage, which has no stride of its own, undilated.
        pytest.param("smp_DeepLabV3Plus_tu-gernet_s", "smp", [2], [12, 24, 36], marks=slow),
        pytest.param("smp_DeepLabV3Plus_timm-tf_efficientnet_lite0", "smp", [2] * 5, [12, 24, 36], marks=slow),
        ("tf_deeplab_mobilenet_v2_os8", "google_deeplab", [*[2] * 7, *[4] * 3], []),
        ("tf_deeplab_mobilenet_v2_dm050_plus", "google_deeplab", [2, 2, 2], [6, 12, 18]),
        pytest.param(
            "tf_deeplab_resnet_v1_50_beta_os8", "google_deeplab", [*[2] * 6, 4, 4, 4], [12, 24, 36], marks=slow
        ),
        ("transformers_mobilenet_v2", "transformers_mobilenet_v2", [*[2] * 7, *[4] * 3], []),
        pytest.param("tf_deeplab_xception_65_os16", "google_deeplab", [2] * 3, [6, 12, 18], marks=slow),
        pytest.param("jfzhang95_resnet101", "jfzhang95", [2, 4, 8], [6, 12, 18], marks=slow),
        ("jfzhang95_mobilenet", "jfzhang95", [2], [6, 12, 18]),
        pytest.param("VainF_deeplabv3_resnet50", "vainf", [2, 2], [6, 12, 18], marks=slow),
        pytest.param("VainF_deeplabv3plus_resnet50", "vainf", [2, 2], [6, 12, 18], marks=slow),
        ("VainF_deeplabv3plus_mobilenet", "vainf", [2, 2, 2], [6, 12, 18]),
        ("VainF_deeplabv3plus_mobilenet_separable", "vainf", [2, 2, 2], [6, 12, 18]),
        ("bubbliiiing_mobilenet", "bubbliiiing", [2, 2, 2], [6, 12, 18]),
        pytest.param("jfzhang95_xception", "jfzhang95", [2, 2, 2], [6, 12, 18], marks=slow),
        pytest.param("jfzhang95_drn", "jfzhang95", [*[2] * 6, 4, 4, 4, 2], [12, 24, 36], marks=slow),
        pytest.param("VainF_deeplabv3plus_xception", "vainf", [2, 2, 2, 2], [6, 12, 18], marks=slow),
        pytest.param("VainF_deeplabv3plus_hrnetv2_32", "vainf", [], [12, 24, 36], marks=slow),
        pytest.param("bubbliiiing_xception", "bubbliiiing", [], [6, 12, 18], marks=slow),
        pytest.param("YudeWang_res50", "bubbliiiing", [2], [6, 12, 18], marks=slow),
        pytest.param("chenxi116_resnet50", "chenxi116", [2, 2], [6, 12, 18], marks=slow),
        pytest.param("speedinghzl_resnet50", "speedinghzl", [*[2] * 6, 4, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("NVIDIA_DeepWV3Plus", "nvidia", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("Tramac_deeplabv3_resnet50", "tramac", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("Tramac_deeplabv3plus_xception", "tramac", [*[2] * 51, *[4] * 3], [12, 24, 36], marks=slow),
        pytest.param("GluonCV_deeplabv3_resnet50", "gluoncv", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("GluonCV_deeplabv3plus_xception", "gluoncv", [*[2] * 51, *[4] * 3], [12, 24, 36], marks=slow),
        ("mmseg_deeplabv3plus_r18-d8", "mmseg", [2, 2, 4], [12, 24, 36]),
        ("mmseg_deeplabv3_m-v2-d8", "mmseg", [2, 2, 4, 4], [12, 24, 36]),
        pytest.param("mmseg_deeplabv3_r50d-d8", "mmseg", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("mmseg_deeplabv3_r50-d8", "mmseg", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("mmseg_deeplabv3plus_r50-d8", "mmseg", [*[2] * 6, 4, 4], [12, 24, 36], marks=slow),
        pytest.param("detectron2_deeplabv3_R103", "detectron2", [2, 4, 8], [6, 12, 18], marks=slow),
        pytest.param("detectron2_deeplabv3plus_R103", "detectron2", [2, 4, 8], [6, 12, 18], marks=slow),
        pytest.param("detectron2_deeplabv3plus_R103_separable", "detectron2", [2, 4, 8], [6, 12, 18], marks=slow),
        pytest.param("NVIDIA_se_resnext50", "nvidia", [*[2] * 6, *[4] * 3], [12, 24, 36], marks=slow),
        ("fregu856_resnet18_os8", "fregu856", [*[2] * 4, *[4] * 4], [6, 12, 18]),
        ("keras_hub_deeplabv3plus_resnet18", "keras_hub", [], [6, 12, 18]),
        ("keras_hub_deeplabv3_resnetv2_18", "keras_hub", [], [2, 3, 5]),
        pytest.param("keras_hub_deeplabv3plus_resnet50", "keras_hub", [], [6, 12, 18], marks=slow),
        ("paddleseg_deeplabv3p_resnet50", "paddleseg", [*[2] * 6, 4, 8, 16], [12, 24, 36]),
    ],
)
def test_same_logits_as_the_projects_own_code(name, system, encoder_rates, aspp_rates):
    plan, model = converted(name, system)
    assert rates(model.encoder) == encoder_rates
    assert rates(model.head.aspp) == aspp_rates == list(plan.model["rates"])
    with torch.inference_mode():
        logits = model(peers.image(name))[0].numpy()
    expected = peers.logits(name)
    assert logits.shape == expected.shape
    assert abs(logits - expected).max() <= 1e-4 * abs(expected).max()


def with_untrained_branches(tensors, layer):
    """The tensors of AdaptSegNet, whose code leaves the third and the fourth branch as they start."""
    random, changed = np.random.default_rng(0), dict(tensors)
    for branch in (2, 3):
        weight, bias = (f"{layer}.conv2d_list.{branch}.{leaf}" for leaf in ("weight", "bias"))
        largest = changed[weight][0].size ** -0.5
        changed[weight] = random.normal(0, 0.01, changed[weight].shape).astype(np.float32)
        changed[bias] = random.uniform(-largest, largest, changed[bias].shape).astype(np.float32)
    return changed


def test_a_network_for_other_bands_is_told_how_to_be_converted(tmp_path):
    tensors = {name: torch.from_numpy(value) for name, value in peers.tensors("VainF_deeplabv3plus_mobilenet").items()}
    stem = "backbone.low_level_features.0.0.weight"
    torch.save({**tensors, stem: torch.cat([tensors[stem], tensors[stem][:, :1]], 1)}, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=r"for images of 4 bands has --set in_channels=4 \(settings=\.\.\.\)"):
        convert(tmp_path / "x.pth")
    assert convert(tmp_path / "x.pth", settings=["in_channels=4"]).config["in_channels"] == 4


@pytest.mark.slow
def test_branches_of_adaptsegnet_that_were_never_trained_do_not_count():
    tensors = peers.tensors("ADVENT_resnet50")
    _, model = converted("ADVENT_resnet50", "adaptsegnet")
    assert [branch.dilation[0] for branch in model.head.branches] == [6, 12, 18, 24]
    with torch.inference_mode():
        features = model.encoder(model._normalised(peers.image("ADVENT_resnet50")))
        logits, expected = model.head(features)[0].numpy(), peers.logits("ADVENT_resnet50")
        of_two = sum(branch(features[-1]) for branch in model.head.branches[:2])[0]
    assert abs(logits - expected).max() <= 1e-4 * abs(expected).max()
    plan = SYSTEMS["adaptsegnet"].plan(with_untrained_branches(tensors, "layer6"))
    assert plan.model["rates"] == (6, 12)
    model = build_model(from_dict(ModelConfig, {"pretrained": False, **plan.model}), LabelSpace.of_size(5)).eval()
    fill(model, plan, "file")
    with torch.inference_mode():
        torch.testing.assert_close(model(peers.image("ADVENT_resnet50"))[0], of_two)


def units_of_resnet_101():
    units = enumerate((3, 4, 23, 3), start=2)
    return [f"backbone.res{stage}.{unit}.conv1.weight" for stage, count in units for unit in range(count)]


GOOGLE = [
    *(f"{layer}/weights" for layer in ("MobilenetV2/Conv", "aspp0", "image_pooling", "logits/semantic")),
    "decoder/feature_projection0/weights",
]
SEPARABLE = ["decoder/decoder_conv0_depthwise/depthwise_weights", "decoder/decoder_conv1_pointwise/weights"]
NO_WEIGHTS = np.zeros((4, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["bot_fine.weight", "aspp.img_conv.0.weight"], "DeepV3Plus of NVIDIA.*WideResNet-38.*skip m1"),
        (["aspp.aspp1.atrous_conv.weight", "backbone.other.weight"], "jfzhang95.*ResNet-101, MobileNet, Xception and"),
        (["classifier.aspp.convs.0.0.weight", "backbone.other.weight"], "VainF.*ResNet, MobileNet, Xception and HRNet"),
        (["aspp.branch5_conv.weight", "cat_conv.0.weight"], "bubbliiiing.*MobileNet, Xception and ResNet"),
        (["decode_head.aspp_modules.0.conv.weight"], "mmsegmentation.*ResNet, ResNeSt and MobileNetV2"),
        (["head.aspp.aspp_blocks.0._conv.weight"], "PaddleSeg.*ResNet_vd"),
        (["aspp.aspp5_bn.weight", "layer4.0.conv3.weight"], "chenxi116.*--groups or --beta"),
        (["sem_seg_head.aspp.convs.0.weight", *units_of_resnet_101()], "detectron2.*deep stem of 128 channels"),
        (["aspp.bn_conv_1x1_2.weight", "resnet.layer5.0.conv1.weight"], "fregu856/deeplabv3 is on no known ResNet"),
        (["aspp1.atrous_convolution.weight", "conv1.weight"], "MLearing.*ResNet-101 only"),
        (["aspp1.atrous_convolution.weight", "image_pool.1.weight"], "doiken23.*maximum over the image.*no ReLU"),
        (
            ["backbone.conv1.weight", "classifier.cbr.0.weight"],
            "torchvision.*MobileNetV3-Large, where its head",
        ),
        (["MobilenetV3/Conv/weights", "decoder/decoder_conv0/biases"], "mobilenet_v3 of research/deeplab has 0 units"),
        ([*GOOGLE, "meta_architecture/branch0/weights"], "research/deeplab has a dense prediction cell"),
        ([*GOOGLE, "decoder/feature_projection0_1/weights"], "research/deeplab has a decoder of several steps"),
        (
            [*GOOGLE, "aspp1/weights", *SEPARABLE],
            "research/deeplab has separable convolutions in ASPP or",
        ),
    ],
)
def test_networks_that_are_recognised_and_cannot_be_converted(names, reason):
    tensors = dict.fromkeys(names, NO_WEIGHTS)
    system, *_ = find_system(tensors, None, "file.pth")
    with pytest.raises(ConversionError, match=reason) as caught:
        planned(system, tensors, {}, "file.pth")
    assert "cannot convert this variant" not in str(caught.value)  # the refusal stands for itself


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("VainF_deeplabv3plus_mobilenet", {"classifier.classifier.0.weight": np.float32(1)}, "VainF.*IndexError"),
        ("bubbliiiing_mobilenet", {"aspp.branch1.0.bias": np.ones(3, np.float32)}, "bubbliiiing.*ValueError"),
    ],
)
def test_a_tensor_of_another_shape_is_told_of(name, changed, words):
    system, *_ = find_system(peers.tensors(name), None, name)
    with pytest.raises(ConversionError, match=f"x.pth has the names of {words}.*cannot convert this variant"):
        planned(system, {**peers.tensors(name), **changed}, {}, "x.pth")


def test_a_setting_of_another_type_is_told_of():
    tensors = peers.tensors("smp_DeepLabV3Plus_mobilenet_v2")
    with pytest.raises(ConversionError, match="x has the names of segmentation_models.pytorch.*TypeError"):
        planned(SYSTEMS["smp"], tensors, {"decoder_atrous_rates": 5}, "x")


def test_bounded_activations_of_research_deeplab_as_its_frozen_graphs_say():
    """Its head runs relu6 in the place of relu (model.py), where its blocks stay as they are: not on Xception."""
    name, system = "tf_deeplab_mobilenet_v2_dm050_plus", SYSTEMS["google_deeplab"]
    frozen = {"Relu6": ["MobilenetV2/Conv/Relu6", "image_pooling/Relu6"]}
    assert system.plan_beside(peers.tensors(name), frozen).model["network"] == "deeplabv3plus_bounded"
    plan, expected = converted(name, "google_deeplab")
    assert "--set network=deeplabv3plus_bounded" in plan.notes[0]
    _, found = converted(name, "google_deeplab", network="deeplabv3plus_bounded")
    with torch.inference_mode():
        image = 4.0 * peers.image(name)  # so that activations exceed 6
        unbounded = expected(image)
        relus = [module for module in expected.head.modules() if isinstance(module, torch.nn.ReLU)]
        for relu in relus:
            relu.register_forward_hook(lambda module, args, output: output.clamp(max=6))
        torch.testing.assert_close(found(image), expected(image), rtol=0, atol=0)
    assert abs(unbounded - found(image)).max() > 0.1 * abs(unbounded).max()
    assert len(relus) == 14
    with pytest.raises(ConversionError, match="degrid has no bounded activations in Xception"):
        system.plan_beside(peers.tensors("tf_deeplab_xception_65_os16"), frozen)
    with pytest.raises(ConversionError, match="degrid has no bounded activations in Lite R-ASPP"):
        system.plan_beside(peers.tensors("tf_deeplab_mobilenet_v3_large"), frozen)
