"""Keras: HDF5 files that h5py wrote, and the network of bonlime/keras-deeplab-v3-plus."""

import io
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
from degrid.types import ConversionError, LabelSpace
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


def test_deeplab_of_keras_hub_is_refused_by_name():
    """The names are those of a file that keras-hub wrote, of the whole model and of its backbone alone."""
    pooling = "layers/spatial_pyramid_pooling/aspp_parallel_channels/sequential/layers/conv2d/vars/0"
    for root in ("layers/deep_lab_v3_backbone/", ""):
        tensors = {f"{root}layers/conv2d/vars/0": np.ones(1), f"{root}{pooling}": np.ones(1)}
        system, *_ = find_system(tensors, None, "x.weights.h5")
        with pytest.raises(ConversionError, match="^keras-hub's DeepLab cannot be converted: .*drop their names"):
            planned(system, tensors, {}, "x.weights.h5")
