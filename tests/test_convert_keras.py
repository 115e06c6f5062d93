"""Keras: HDF5 files that h5py wrote, and the network of bonlime/keras-deeplab-v3-plus."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import peers
import pytest
import torch

from degrid.checkpoints.readers.files import read_tensors
from degrid.checkpoints.systems.plan import planned
from degrid.checkpoints.systems.table import SYSTEMS, find_system
from degrid.config import ModelConfig, from_dict
from degrid.networks import build_model
from degrid.types import ConversionError, LabelSpace, UserError
from degrid.verbs.convert import fill

GOLDEN = Path(__file__).parent / "golden"
TYPES = {"f2": "<f2", "f8": "<f8", "i8": "<i8", "u1": "u1", "big": ">f4"}
LAYERS = {"earliest": 12, "latest": 3}


def assert_what_was_written(source, layers):
    """h5py 3.16 wrote arange(6 * layer) to each layer, in files of the oldest and of the newest layout."""
    names = {f"layer{index}/layer{index}/kernel:0" for index in range(layers)}
    assert set(source.tensors) == {*names, *(f"types/{name}" for name in TYPES), "types/empty", "scalar"}
    for index in range(layers):
        values = np.arange(6 * index, dtype=np.float32).reshape(3, 2, index)
        np.testing.assert_array_equal(source.tensors[f"layer{index}/layer{index}/kernel:0"], values)
    for name, code in TYPES.items():
        array = source.tensors[f"types/{name}"]
        np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))
        assert array.dtype == np.dtype(code).newbyteorder("=")
    assert source.tensors["types/empty"].shape == (0, 3)
    assert source.tensors["scalar"] == np.float32(3.5)
    assert source.skipped == ("text",)


@pytest.mark.parametrize("layout", LAYERS)
def test_datasets_by_their_names(layout):
    assert_what_was_written(read_tensors(GOLDEN / f"{layout}.h5"), LAYERS[layout])


def test_weights_in_a_keras_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as out:
        out.writestr("metadata.json", "{}")
        out.writestr("config.json", "{}")
        out.write(GOLDEN / "earliest.h5", "model.weights.h5")
    assert_what_was_written(read_tensors(tmp_path / "net.keras"), LAYERS["earliest"])


def test_every_damaged_file_ends_in_a_sentence(tmp_path):
    content = (GOLDEN / "earliest.h5").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for index in range(100):
        data = bytearray(content[: rng.integers(9, len(content))] if index % 2 else content)
        for place in rng.integers(8, len(data), 8):
            data[place] = rng.integers(256)
        (tmp_path / "x.h5").write_bytes(data)
        try:
            read_tensors(tmp_path / "x.h5")
        except ConversionError:
            refused += 1
    assert refused > 50


def keras_name(name):
    """As the project names the variables of research/deeplab (its extract_weights.py), in a file of Keras."""
    layer, _, leaf = name.removeprefix("MobilenetV2/").replace("/BatchNorm", "_BN").rpartition("/")
    layer = layer.replace("/", "_")
    leaf = {"weights": "kernel", "biases": "bias", "depthwise_weights": "depthwise_kernel"}.get(leaf, leaf)
    return f"model_weights/{layer}/{layer}/{leaf}:0"


def test_bonlime_has_googles_network_under_its_own_names():
    """With corners aligned; that its own code gives the same logits was tried by hand (docs/convert.md)."""
    golden = "tf_deeplab_mobilenet_v2_os8"
    tensors = {keras_name(name): value for name, value in peers.tensors(golden).items()}
    tensors["optimizer_weights/iteration:0"] = np.ones(())
    system, *_ = find_system(tensors, None, "x.h5")
    assert system is SYSTEMS["bonlime"]
    plan = system.plan(tensors)
    assert not plan.unexpected
    assert plan.dropped == {"optimizer_weights/iteration:0": "optimiser state"}
    assert set(plan.origins.values()) | set(plan.dropped) == set(tensors)
    assert (plan.model["resize"], plan.model["head_resize"]) == ("half_pixel", "half_pixel")
    aligned = {"resize": "align_corners", "head_resize": "align_corners"}
    config = from_dict(ModelConfig, {"pretrained": False, **plan.model, **aligned})
    model = build_model(config, LabelSpace.of_size(21))
    fill(model, plan, golden)
    with torch.inference_mode():
        logits = model.eval()(peers.image(golden))[0].numpy()
    expected = peers.logits(golden)
    assert abs(logits - expected).max() <= 1e-4 * abs(expected).max()


def test_an_archive_of_two_weights_is_refused(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        for name in ("a.weights.h5", "b.weights.h5"):
            out.write(GOLDEN / "earliest.h5", name)
    (tmp_path / "x.keras").write_bytes(stream.getvalue())
    with pytest.raises(ConversionError, match="an archive of 2 files"):
        read_tensors(tmp_path / "x.keras")


KERAS_HUB = SYSTEMS["keras_hub"]


def in_keras_hub(backbone=None, encoder=None, **segmenter):
    """What keras-hub writes of a network's settings."""
    image_encoder = {"class_name": "ResNetBackbone", "config": {}} | (encoder or {})
    return {"config": {"backbone": {"config": {"image_encoder": image_encoder} | (backbone or {})}} | segmenter}


def test_whole_networks_and_presets_of_keras_hub_hold_the_same():
    """A preset has the backbone in one file, and the classifier in another."""
    root, classifier = "layers/deep_lab_v3_backbone/", "layers/conv2d/vars/0"
    tensors = peers.tensors("keras_hub_deeplabv3plus_resnet18")
    whole = KERAS_HUB.plan({**tensors, "optimizer/vars/0": np.ones(())})
    backbone = {name.removeprefix(root): value for name, value in tensors.items() if name.startswith(root)}
    preset = KERAS_HUB.plan({**backbone, f"task/{classifier}": tensors[classifier]})
    assert whole.dropped == {"optimizer/vars/0": "optimiser state"}
    assert whole.model == preset.model
    assert whole.tensors.keys() == preset.tensors.keys()
    assert all(np.array_equal(value, preset.tensors[name]) for name, value in whole.tensors.items())
    with pytest.raises(ConversionError, match="without its classifier.*put that file beside model.weights.h5"):
        KERAS_HUB.plan(backbone)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (in_keras_hub(encoder={"class_name": "EfficientNetBackbone"}), "its ResNets, and not EfficientNetBackbone$"),
        (in_keras_hub({"spatial_pyramid_pooling_key": "P4"}), "spatial_pyramid_pooling_key is 'P4'.*'P5'"),
        (in_keras_hub({"low_level_feature_key": "P3"}), "low_level_feature_key is 'P3'.*'P2'"),
        (in_keras_hub({"upsampling_size": [4, 4]}), "upsampling_size is"),
        (in_keras_hub(encoder={"config": {"stackwise_num_strides": [1, 2, 2, 1]}}), "stackwise_num_strides is"),
        (in_keras_hub({"dilation_rates": 3}), "another tensor or setting"),
    ],
)
def test_networks_of_keras_hub_that_degrid_does_not_have_are_refused(config, message):
    with pytest.raises(ConversionError, match=message):
        planned(KERAS_HUB, peers.tensors("keras_hub_deeplabv3plus_resnet18"), config, "x.keras")


def test_what_keras_hub_does_to_images_becomes_mean_and_deviation():
    converter = {"config": {"scale": [0.02, 0.01, 0.05], "offset": [-2, -1, 0.5]}}
    config = in_keras_hub(preprocessor={"config": {"image_converter": converter}})
    plan = KERAS_HUB.plan_beside(peers.tensors("keras_hub_deeplabv3plus_resnet18"), config)
    assert plan.model["mean"] == pytest.approx((100, 100, -10))
    assert plan.model["std"] == pytest.approx((50, 100, 20))
    assert plan.assumed == ("rates",)


def test_the_two_files_of_a_preset_are_read_together_with_its_settings(tmp_path):
    shutil.copy(GOLDEN / "earliest.h5", tmp_path / "model.weights.h5")
    shutil.copy(GOLDEN / "latest.h5", tmp_path / "task.weights.h5")
    (tmp_path / "config.json").write_text('{"config": 1, "class_name": "Backbone"}')
    (tmp_path / "task.json").write_text('{"config": 2}')
    for place in (tmp_path, tmp_path / "model.weights.h5", tmp_path / "task.weights.h5"):
        source = read_tensors(place)
        assert source.path == tmp_path / "model.weights.h5"
        assert source.config == {"config": 2, "class_name": "Backbone"}
        np.testing.assert_array_equal(source.tensors["task/layer2/layer2/kernel:0"].ravel(), np.arange(12))
        assert len([name for name in source.tensors if not name.startswith("task/")]) == 12 + len(TYPES) + 2
    (tmp_path / "other.weights.h5").touch()
    with pytest.raises(UserError, match="found 3"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("text", "settings"), [('{"config": {"a": [1]}}', {"config": {"a": [1]}}), ("[1", {}), ("7", {})]
)
def test_settings_of_a_keras_archive(tmp_path, text, settings):
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as out:
        out.writestr("config.json", text)
        out.write(GOLDEN / "earliest.h5", "model.weights.h5")
    assert read_tensors(tmp_path / "net.keras").config == settings
