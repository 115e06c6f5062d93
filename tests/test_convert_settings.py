"""Settings that a checkpoint says beside its weights: in a configuration, in tensors, in the name of the file."""

import re

import numpy as np
import peers
import pytest
import torch

from degrid.checkpoints.readers.files import read_tensors
from degrid.checkpoints.systems.plan import FILE_NAME
from degrid.checkpoints.systems.table import SYSTEMS, find_system
from degrid.types import ConversionError
from degrid.verbs.convert import _settings

UNITS = [(stage, unit) for stage, count in enumerate((3, 4, 6, 3), 1) for unit in range(count)]
OPENMMLAB = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='ResNetV1c', depth=50, dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1),
                  contract_dilation=True, multi_grid=(1, 2, 4)),
    decode_head=dict(type='ASPPHead', dilations=(1, 6, 12, 18), dropout_ratio=0.3, align_corners=True))
img_norm_cfg = dict(mean=[103.5, 116.25, 123.75], std=[57.5, 57, 58], to_rgb=False)
lr_config = dict(step=[-1, other], by=__import__('os'))
"""
OPENMMLAB_1 = (
    "model = dict(backbone=dict(type='ResNetV1c', strides=[1, 2, 1, 1], dilations=[1, 1, 2, 4]), decode_head=dict("
    "dilations=[1, 12, 24, 36]), data_preprocessor={'mean': [1.0, 2, 3], 'std': [4, 5, 6], 'bgr_to_rgb': True})"
)


def mmsegmentation():
    """Names of its DeepLab v3 on ResNet-50 v1c, of three classes, and of what its trainings keep beside it."""
    names = [f"backbone.layer{stage}.{unit}.conv{conv}.weight" for stage, unit in UNITS[1:] for conv in (1, 2, 3)]
    tensors = dict.fromkeys([*names, "backbone.stem.0.weight", "ema_decode_head_conv_seg_bias"], torch.ones(1))
    tensors |= {f"backbone.layer1.0.conv{conv}.weight": torch.ones(64, 64, 1, 1) for conv in (1, 2, 3)}
    return tensors | {
        "decode_head.aspp_modules.0.conv.weight": torch.ones(4, 1, 1, 1),
        "decode_head.conv_seg.weight": torch.ones(3, 4, 1, 1),
    }


@pytest.mark.parametrize(
    ("meta", "expected", "names"),
    [
        (
            {"config": OPENMMLAB, "CLASSES": ("a", "b", "c"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]},
            {
                **{"output_stride": 16, "rates": (6, 12, 18), "multi_grid": (1, 2, 4), "uniform_rates": False},
                **{"dropout": 0.3, "resize": "align_corners", "head_resize": "align_corners"},
                **{"mean": (103.5, 116.25, 123.75), "std": (57.5, 57.0, 58.0), "bgr": True},
            },
            ("a", "b", "c"),
        ),
        (
            {"cfg": OPENMMLAB_1, "dataset_meta": {"classes": ["x", "y", "z"], "palette": "voc"}},
            {
                **{"output_stride": 8, "rates": (12, 24, 36), "multi_grid": None, "uniform_rates": True},
                **{"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "bgr": False},
            },
            ("x", "y", "z"),
        ),
        ({"config": "model = (", "CLASSES": ("a", "b")}, {"output_stride": 8, "rates": (12, 24, 36)}, None),
        ({"config": "(" * 100_000}, {"output_stride": 8}, None),
        ({"config": None, "CLASSES": ("a", "a", "b")}, {"output_stride": 8}, None),
    ],
)
def test_the_configuration_in_a_file_of_mmsegmentation(tmp_path, meta, expected, names):
    torch.save({"meta": meta, "state_dict": mmsegmentation(), "optimizer": {"state": {}}}, tmp_path / "x.pth")
    source = read_tensors(tmp_path / "x.pth")
    plan = SYSTEMS["mmseg"].plan_beside(find_system(source.tensors, None, "x").tensors, source.config)
    assert {name: plan.model[name] for name in expected} == expected
    assert (plan.labels and plan.labels.names) == names
    assert bool(plan.assumed) == ("multi_grid" not in expected)
    assert len(plan.notes) + bool(plan.assumed) == 1
    assert plan.dropped["ema_decode_head_conv_seg_bias"] == "moving average of a weight"


@pytest.mark.parametrize(
    ("threshold", "said"),
    [("", "above 0.3, its default;"), ("threshold=0.6, ", "above 0.6;"), ("threshold=0.5, ", None)],
)
def test_the_threshold_of_mmsegmentations_one_logit_is_told(threshold, said):
    tensors = {
        name: value[:1] if name.startswith("decode_head.conv_seg.") else value
        for name, value in mmsegmentation().items()
    }
    text = OPENMMLAB.replace("dilations=(1, 6, 12, 18)", f"{threshold}dilations=(1, 6, 12, 18)")
    plan = SYSTEMS["mmseg"].plan_beside(tensors, {"meta": {"config": text, "CLASSES": ("dry", "wet")}})
    assert plan.labels is not None
    assert plan.labels.names == ("dry", "wet")
    notes = plan.notes[1:]
    assert [said in note and "here it is taken above 0.5" in note for note in notes] == ([True] if said else [])


def test_a_configuration_that_degrid_cannot_build_is_refused():
    other = OPENMMLAB.replace("(1, 1, 1, 2)", "(1, 1, 2, 4)"), OPENMMLAB.replace("depth", "style='caffe', depth")
    for changed in other:
        with pytest.raises(ConversionError, match="the configuration in the file has a backbone with the strides"):
            SYSTEMS["mmseg"].plan_beside(mmsegmentation(), {"meta": {"config": changed}})


@pytest.mark.parametrize(
    ("name", "stride", "said"),
    [("best_deeplabv3_mobilenet_voc_os8.pth", 8, True), ("latest_os16.pth", 16, True), ("x_os160.pth", 16, False)],
)
def test_vainfs_output_stride_is_in_the_name_of_the_file(name, stride, said):
    plan = SYSTEMS["vainf"].plan_beside(peers.tensors("VainF_deeplabv3plus_mobilenet"), {FILE_NAME: name})
    assert plan.model["output_stride"] == stride
    assert plan.model["rates"] == ((12, 24, 36) if stride == 8 else (6, 12, 18))
    assert bool(plan.notes) == said == (not plan.assumed)


def test_widths_and_normalisation_of_detectron2_are_those_of_the_file():
    """Files of before March 2021 hold the normalisation; three channels of the fine feature come first there."""
    head = "sem_seg_head.decoder."
    tensors = {f"backbone.res{stage + 1}.{unit}.conv1.weight": np.ones(1) for stage, unit in UNITS} | {
        "backbone.stem.conv3.weight": np.ones((128, 1, 1, 1)),
        f"{head}res5.project_conv.convs.0.weight": np.ones((4, 1, 1, 1)),
        f"{head}res2.project_conv.weight": np.ones((3, 1, 1, 1)),
        f"{head}res2.fuse_conv.0.weight": np.arange(7.0).reshape(1, 7, 1, 1),
    }
    system = SYSTEMS["detectron2"]
    plan = system.plan(tensors)
    assert plan.tensors["head.refine.0.0.weight"].ravel().tolist() == [3, 4, 5, 6, 0, 1, 2]
    assert (plan.model["channels"], plan.model["low_level_channels"], plan.model["bgr"]) == (4, 3, False)
    pixels = {"pixel_mean": np.array([[[103.5]], [[116.25]], [[123.75]]]), "pixel_std": np.full((3, 1, 1), 57.5)}
    plan = system.plan(tensors | pixels)
    assert not plan.unexpected
    assert (plan.model["mean"], plan.model["std"]) == ((103.5, 116.25, 123.75), (57.5, 57.5, 57.5))
    assert plan.model["bgr"]


@pytest.mark.parametrize(
    ("system", "changed"),
    [
        ("transformers_mobilenet_v2", {"hidden_act": "relu"}),
        ("transformers_mobilenet_v2", {"expand_ratio": 4.0}),
        ("transformers_mobilevit", {"num_attention_heads": 2}),
        ("transformers_mobilevit", {"patch_size": 4}),
    ],
)
def test_settings_of_transformers_that_degrid_does_not_have_are_refused(system, changed):
    """Their tensors have the usual shapes, so only config.json tells them apart."""
    (name, value), *_ = changed.items()
    with pytest.raises(ConversionError, match=rf"its config.json says that {name} is {value!r}; degrid can convert"):
        SYSTEMS[system].plan_beside({}, changed)


@pytest.mark.parametrize(("padding", "ours"), [(True, 1e-3), (False, 1e-5)])
@pytest.mark.parametrize("epsilon", [1e-3, 0.25])
def test_the_epsilon_in_transformers_config_is_kept(padding, ours, epsilon):
    tensors = peers.tensors("transformers_mobilenet_v2")
    config = {"layer_norm_eps": epsilon, "tf_padding": padding}
    plan = SYSTEMS["transformers_mobilenet_v2"].plan_beside(tensors, config)
    found = {name: value for name, value in plan.tensors.items() if name.endswith("running_var")}
    assert {name.partition(".")[0] for name in found} == {"encoder", "head"}
    for name, value in found.items():
        given = tensors[plan.origins[name]]
        np.testing.assert_allclose(value, given + (epsilon - ours if name.startswith("encoder.") else 0), rtol=1e-6)


@pytest.mark.parametrize(("prefix", "resize"), [("", "align_corners"), ("backbone.", "half_pixel")])
def test_resizing_of_nvidias_code_is_that_of_its_version(prefix, resize):
    """The later code has the trunk below `backbone`, and does not align corners."""
    trunk = [f"layer{stage}.{unit}.conv1.weight" for stage, unit in UNITS] + ["layer0.0.weight", "layer0.1.bias"]
    tensors = {prefix + name: np.ones(1) for name in trunk} | {
        "bot_fine.weight": np.ones((48, 256, 1, 1)),
        "aspp.img_conv.0.weight": np.ones(1),
    }
    system, *_ = find_system(tensors, None, "x")
    plan = system.plan(tensors)
    assert (plan.model["encoder"], plan.model["resize"], plan.model["head_resize"]) == ("timm:resnet50", resize, resize)
    assert {"encoder.net.conv1.weight", "encoder.net.bn1.bias", "encoder.net.layer4.2.conv1.weight"} <= set(
        plan.tensors
    )
    assert not plan.unexpected


def test_another_stride_of_nvidias_se_resnext_is_refused():
    """Its last two stages have no stride, so that D16 halves the rates there, and no file says which it is."""
    trunk = [f"layer{stage}.{unit}.conv1.weight" for stage, unit in UNITS] + ["layer0.conv1.weight"]
    tensors = {name: np.ones(1) for name in trunk} | {"bot_fine.weight": np.ones((48, 256, 1, 1))}
    plan = SYSTEMS["nvidia"].plan(tensors)
    assert _settings(plan, ["dropout=0.2", "output_stride=8"], "x").output_stride == 8
    with pytest.raises(
        ConversionError, match=r"x: .* on timm:legacy_seresnext50_32x4d have output_stride=8, .* cannot"
    ):
        _settings(plan, ["output_stride=16"], "x")


def test_no_rates_are_advised_for_a_head_without_any():
    plan = SYSTEMS["google_deeplab"].plan(peers.tensors("tf_deeplab_mobilenet_v2_os8"))
    assert plan.assumption(plan.model, []) == [
        "the file does not say these settings, which are assumed: output_stride=8 (for a network of the other stride "
        "--set output_stride=16, settings=...)"
    ]
    assert "--image_pyramid" in plan.notes[0]
    assert "--set scales=0.5,0.75" in plan.notes[0]


def test_multi_grid_of_research_deeplabs_resnets_is_assumed_and_said():
    plan = SYSTEMS["google_deeplab"].plan(peers.tensors("tf_deeplab_resnet_v1_50_beta_os8"))
    (words,) = plan.assumption(plan.model, [])
    assert "output_stride=16 rates=6,12,18 multi_grid=none (" in words
    assert "its instructions have --set multi_grid=1,2,4 for resnet_v1_*_beta" in words


def test_dense_decoders_and_other_widths_of_research_deeplab():
    """With --aspp_with_separable_conv=false and --decoder_use_separable_conv=false its names are others."""
    tensors = dict(peers.tensors("tf_deeplab_mobilenet_v2_dm050_plus"))
    width = tensors["concat_projection/weights"].shape[-1]
    separable = [name for name in tensors if re.match(r"(aspp[1-3]|decoder/decoder_conv\d)_", name)]
    kept = {name: value for name, value in tensors.items() if name not in separable}
    layers = {f"aspp{branch}": 160 for branch in (1, 2, 3)}
    layers |= {"decoder/decoder_conv0/decoder_conv0_1": width + 48, "decoder/decoder_conv0/decoder_conv0_2": width}
    for layer, channels in layers.items():
        kept[f"{layer}/weights"] = np.random.default_rng(channels).random((3, 3, channels, width), np.float32)
        kept |= {f"{layer}/BatchNorm/{leaf}": np.ones(width, np.float32) for leaf in ("gamma", "beta")}
    plan = SYSTEMS["google_deeplab"].plan(kept)
    assert (plan.model["separable"], plan.model["channels"], plan.unexpected) == (False, width, [])
    for place, (layer, _) in zip((0, 1), list(layers.items())[3:], strict=True):
        expected = kept[f"{layer}/weights"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(plan.tensors[f"head.refine.{place}.0.weight"], expected)
        assert f"head.refine.{place}.1.bias" in plan.tensors
