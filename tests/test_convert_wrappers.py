"""What programs wrap their weights in, and what they keep beside them, neither hides the network nor is ever run."""

import argparse
import collections
import datetime
import enum
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from degrid.checkpoints.readers.files import read_tensors
from degrid.checkpoints.systems.table import SYSTEMS, find_system
from degrid.models import EncoderSettings, build_encoder
from degrid.types import ConversionError, UserError
from degrid.verbs.convert import convert

UNITS = [(stage, unit) for stage, count in enumerate((3, 4, 6, 3), 1) for unit in range(count)]
NAMES = [f"backbone.layer{stage}.{unit}.conv{conv}.weight" for stage, unit in UNITS for conv in (1, 2, 3)]


class Color(enum.Enum):
    RED = 1


class Buffer:
    """As a logger keeps its values."""

    def __init__(self):
        self._history, self._window = np.ones(3), collections.deque([1.5, 2.5], maxlen=9)


def network():
    """Names of torchvision's DeepLab v3 on ResNet-50, with small values that all differ."""
    names = ["classifier.0.convs.0.0.weight", "classifier.4.bias", *NAMES]
    return {name: torch.tensor([index, 0.5]) for index, name in enumerate(names)}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def optimiser():
    """The state of a real Adam after one step."""
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([weight])
    weight.sum().backward()
    adam.step()
    return adam.state_dict()


def assert_found(path):
    found = find_system(read_tensors(path).tensors, None, path)
    assert found.system.title.startswith("torchvision: deeplabv3_*")
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        name: value.tolist() for name, value in network().items()
    }
    return found


@pytest.mark.parametrize(
    "wrapper",
    [
        *("state_dict", "model", "model_state", "model_state_dict", "net", "network", "weights", "ema", "model_ema"),
        *("params", "params_ema", "a name of their own"),
    ],
)
def test_keys_above_the_weights(tmp_path, wrapper):
    torch.save({"optimizer": optimiser(), wrapper: network(), "epoch": 3}, tmp_path / "x.pth")
    assert_found(tmp_path / "x.pth")
    torch.save({"model": {"state_dict": network()}, "ema": None}, tmp_path / "x.pth")
    assert_found(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_only_network_in_a_list_is_read(tmp_path, zipped):
    for values in (
        (3, network()),
        [network(), optimiser()],
        (optimiser(), {"state_dict": prefixed("module.", network())}),
    ):
        torch.save(values, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        assert_found(tmp_path / "x.pth")
    torch.save([network(), network()], tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match="a list of 2 values without names"):
        read_tensors(tmp_path / "x.pth")


def write_shards(folder, ending, save):
    """A checkpoint in two files and their list, as transformers and accelerate write them."""
    values = list(network().items())
    parts = {f"{{}}-0000{number}-of-00002.{ending}": values[number - 1 :: 2] for number in (1, 2)}
    name = "model" if ending == "safetensors" else "pytorch_model"
    for file, part in parts.items():
        save(dict(part), folder / file.format(name))
    listed = {key: file.format(name) for file, part in parts.items() for key, _ in part}
    (folder / f"{name}.{ending}.index.json").write_text(json.dumps({"weight_map": listed}))
    return [folder / file.format(name) for file in parts]


@pytest.mark.parametrize(("ending", "save"), [("safetensors", save_file), ("bin", torch.save)])
def test_shards_are_read_from_their_list_one_of_them_or_their_folder(tmp_path, ending, save):
    parts = write_shards(tmp_path, ending, save)
    for path in (tmp_path, *tmp_path.glob("*.index.json"), *parts):
        assert_found(path)
    parts[1].unlink()
    with pytest.raises(UserError, match=rf"no file .*{parts[1].name}"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "beside",
    [
        ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"),
        ("optimizer.pt", "rng_state.pth", "training_args.bin", "scaler.pt"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt",),
    ],
)
def test_what_a_training_keeps_beside_the_weights_is_not_taken_for_them(tmp_path, beside):
    torch.save(network(), tmp_path / "mp_rank_00_model_states.pt")
    for name in beside:
        torch.save(optimiser(), tmp_path / name)
    assert_found(tmp_path)
    torch.save(network(), tmp_path / "other.pt")
    with pytest.raises(UserError, match="expected one checkpoint .* found 2: mp_rank_00_model_states.pt, other.pt"):
        read_tensors(tmp_path)


def test_weights_that_are_elsewhere_or_of_no_kind_that_is_read_are_told_of(tmp_path):
    torch.save({"module": {name: torch.empty(0) for name in network()}}, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=r"holds 50 tensors without values.*ZeRO-3.*zero_to_fp32\.py"):
        read_tensors(tmp_path / "x.pth")
    (tmp_path / ".metadata").write_bytes(b"")
    for path in (tmp_path, tmp_path / "__0_0.distcp"):
        with pytest.raises(UserError, match="a distributed checkpoint of PyTorch; join it .* dcp_to_torch"):
            read_tensors(path)
    for change in (lambda value: value.to(torch.float8_e4m3fn), torch.Tensor.to_sparse):
        weights = {name: change(value) for name, value in network().items() if name.endswith("weight")}
        torch.save(network() | weights, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match="holds 49 weights of a kind that degrid does not read .quantised"):
            convert(tmp_path / "x.pth")


BESIDE = ["optimizer", "epoch", "args", "rng", "best", "scheduler"]
KEYS = ["state_dict", "model", "model_state", "model_state_dict", "net", "weights", "ema", "params", "my own"]
PARTS = ["module.", "model.", "net.", "_orig_mod.", "student."]


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    keys=st.lists(st.sampled_from(KEYS), max_size=3),
    parts=st.lists(st.sampled_from(PARTS), max_size=4),
    beside=st.lists(st.sampled_from(BESIDE), max_size=4),
    zipped=st.booleans(),
)
def test_any_nesting_of_keys_and_prefixes(tmp_path_factory, keys, parts, beside, zipped):
    extras = dict(zip(BESIDE, EXTRAS.values(), strict=False))
    values = prefixed("".join(parts), network())
    for key in reversed(keys):
        values = {**{name: extras[name] for name in beside}, key: values}
    path = tmp_path_factory.mktemp("nested") / "x.pth"
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    assert_found(path)


def test_settings_called_as_a_wrapper_are_none(tmp_path):
    torch.save({"model": {"name": "deeplab", "depth": 50}, "weights": network()}, tmp_path / "x.pth")
    assert_found(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "net.", "_orig_mod.", "module.module.", "model._orig_mod.", "_orig_mod.module.", "student."],
)
def test_prefixes(tmp_path, prefix):
    torch.save(prefixed(prefix, network()), tmp_path / "x.pth")
    assert_found(tmp_path / "x.pth")


@pytest.mark.parametrize("inner", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module._orig_mod."])
def test_names_of_wrapped_parts_of_a_network(tmp_path, inner):
    parts = {
        name.replace("backbone.layer1.", f"backbone.{inner}layer1.{inner}"): value for name, value in network().items()
    }
    assert len(parts.keys() - network().keys()) == 9
    for prefix in ("", "model."):
        torch.save(prefixed(prefix, parts), tmp_path / "x.pth")
        assert_found(tmp_path / "x.pth")


def test_layers_that_keras_numbers_are_to_be_saved_with_names():
    numbered = {f"layers/conv2d_{layer}/vars/0": np.ones(1) for layer in range(30)}
    with pytest.raises(ConversionError, match=r"x\.weights\.h5 numbers its layers.* save the whole model as \.h5"):
        find_system(numbered, None, "x.weights.h5")


@pytest.mark.parametrize(
    "parts",
    [
        ["weight_orig", "weight_mask"],
        ["weight_g", "weight_v"],
        ["weight_orig", "weight_u"],
        ["parametrizations.weight.original0", "parametrizations.weight.original1"],
        ["parametrizations.weight.original", "parametrizations.weight.0._u"],
        ["weight", "lora_A", "lora_B"],
        ["weight", "lora_A.default.weight", "lora_B.default.weight"],
    ],
)
@pytest.mark.parametrize("every", [True, False])
def test_weights_in_parts_are_to_be_merged_first(tmp_path, parts, every):
    state, last = {}, "classifier.4.weight"
    for name, value in {**network(), last: torch.ones(2, 2)}.items():
        stem, _, leaf = name.rpartition(".")
        split = leaf == "weight" and (every or name == last)
        state |= {f"{stem}.{part}": value for part in parts} if split else {name: value}
    torch.save(prefixed("module.", state), tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=r"x\.pth holds weights in parts .*merge them first, by torch\.nn\.utils"):
        convert(tmp_path / "x.pth")
    beside = prefixed("discriminator.", {f"{layer}.weight_orig": torch.ones(2) for layer in range(30)})
    torch.save(prefixed("generator.", network()) | beside, tmp_path / "y.pth")
    assert_found(tmp_path / "y.pth")


def test_what_modules_keep_beside_a_network(tmp_path):
    """Lightning's module with its own buffers; torch's AveragedModel; counters of thop."""
    beside = {"mean": torch.ones(1, 3, 1, 1), "loss.weight": torch.ones(2)}
    torch.save({"state_dict": prefixed("model.", network()) | beside}, tmp_path / "x.ckpt")
    assert dict(assert_found(tmp_path / "x.ckpt").beside) == dict.fromkeys(beside, 'outside of "model."')
    counted = network() | {"total_ops": torch.zeros(1), "backbone.layer1.0.total_params": torch.zeros(1)}
    torch.save(counted, tmp_path / "x.pth")
    assert set(assert_found(tmp_path / "x.pth").beside) == {"total_ops", "backbone.layer1.0.total_params"}
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 1)).state_dict()
    torch.save({"n_averaged": averaged["n_averaged"], **prefixed("module.", network())}, tmp_path / "x.pth")
    assert "n_averaged" in assert_found(tmp_path / "x.pth").beside


def test_of_two_networks_the_usual_one_is_taken(tmp_path):
    both = prefixed("model.", network()) | prefixed("teacher.", network())
    torch.save(both, tmp_path / "x.pth")
    assert assert_found(tmp_path / "x.pth").beside["teacher.classifier.4.bias"] == 'outside of "model."'
    torch.save(prefixed("teacher.", network()) | prefixed("student.", network()), tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=r"several networks: teacher\., student\."):
        assert_found(tmp_path / "x.pth")


EXTRAS = {
    "numpy number": np.float64(0.5),
    "numpy array": np.arange(4),
    "namespace": argparse.Namespace(lr=0.1, classes=["a"], path=pathlib.PurePosixPath("data")),
    "defaultdict": collections.defaultdict(list, a=[1.0]),
    "date": datetime.datetime(2026, 11, 29),
    "enum": Color.RED,
    "logger": {"loss": Buffer()},
    "random state": np.random.default_rng(0).bit_generator.state,
    "optimiser": optimiser(),
    "device": torch.device("cpu"),
    "set": {1, 2},
    "class": Buffer,
    "nested": [({"a": Buffer()},)],
}


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights(tmp_path, zipped):
    for protocol in (2, 4):
        for values in ({"state_dict": network(), **EXTRAS}, {**EXTRAS, **network()}, {**EXTRAS, "mine": network()}):
            torch.save(values, tmp_path / "x.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            assert_found(tmp_path / "x.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays(tmp_path, protocol):
    arrays = {name: value.numpy() for name, value in network().items()}
    for values in (arrays, {"model": arrays, "__author__": "x"}, {**EXTRAS, "weights": arrays}, {**arrays, "step": 3}):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
        source = read_tensors(tmp_path / "x.pkl")
        assert source.format == "pickle"
        assert_found(tmp_path / "x.pkl")


def test_tensors_of_many_kinds(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    values = {
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "expanded": torch.ones(1, 3).expand(2, 3),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base),
        "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "flag": torch.tensor([True, False]),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "unsigned": torch.tensor([65535], dtype=torch.uint16),
    }
    for zipped in (True, False):
        torch.save(values, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        found = read_tensors(tmp_path / "x.pth").tensors
        assert list(found) == list(values)
        for name, value in values.items():
            assert found[name].tolist() == value.tolist(), name
            assert found[name].shape == tuple(value.shape)
        assert not found["transposed"].flags.owndata  # a view of the file


def test_an_archive_of_a_big_endian_machine(tmp_path):
    torch.save({"a": torch.tensor([1.0, 2.0])}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as archive:
        for name, content in parts.items():
            swapped = {"data/0": content[3::-1] + content[:3:-1], "byteorder": b"big"}
            archive.writestr(name, swapped.get(name.partition("/")[2], content))
    assert read_tensors(tmp_path / "big.pth").tensors["a"].tolist() == [1.0, 2.0]


def test_a_network_with_a_head_is_no_encoder(tmp_path):
    """Also where unknown tensors are allowed, an encoder alone is never what becomes of it."""
    trunk = {name.removeprefix("backbone."): value for name, value in network().items() if "backbone" in name}
    trunk["conv1.weight"] = torch.ones(2)
    trunk["layer1.0.conv2.weight"] = torch.ones(64, 64, 1, 1)
    torch.save(trunk | {"aspp1.weight": torch.ones(2)}, tmp_path / "x.pth")
    for allow in (False, True):
        with pytest.raises(ConversionError, match=r"1 tensor beyond it: aspp1\.weight; it is another network"):
            convert(tmp_path / "x.pth", tmp_path / "out", allow_unused=allow)
    assert not (tmp_path / "out").exists()
    nested = prefixed("backbone.", trunk) | prefixed(
        "decode_head.", {f"convs.{i}.weight": torch.ones(2) for i in range(9)}
    )
    torch.save(nested, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match="of no system that degrid can convert"):
        convert(tmp_path / "x.pth", tmp_path / "out", allow_unused=True)


def test_a_whole_pickled_network_is_refused(tmp_path):
    for values in (torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2), "epoch": 1}):
        torch.save(values, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match=r"torch\.nn\.modules\.linear Linear.*could run code.*state_dict"):
            read_tensors(tmp_path / "x.pth")


def test_settings_beside_the_weights(tmp_path):
    torch.save(network(), tmp_path / "x.pth")
    for text, expected in (('{"a": [1]}', {"a": [1]}), ("[1]", {}), ("{", {}), ("[" * 100_000, {})):
        (tmp_path / "config.json").write_text(text)
        assert read_tensors(tmp_path / "x.pth").config == expected
        assert read_tensors(tmp_path).config == expected  # a folder


def test_an_encoder_of_timm_must_be_named(tmp_path):
    head = {f"decoder.aspp.{name}.weight": torch.ones(1, 1, 1, 1) for name in ("convs.0.0", "convs.1.0")}
    head["segmentation_head.0.weight"] = torch.ones(2, 1, 1, 1)
    deep_stem = {f"encoder.model.{name.removeprefix('backbone.')}": torch.ones(64, 64, 1, 1) for name in NAMES}
    deep_stem["encoder.model.conv1.0.weight"] = torch.ones(1, 3, 1, 1)
    for encoder in (deep_stem, {"encoder.model.stages_0.weight": torch.ones(1)}):
        torch.save(head | encoder, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match=r"name it with --set encoder=smp:tu-NAME"):
            convert(tmp_path / "x.pth")
    (tmp_path / "config.json").write_text('{"encoder_name": "tu-resnet18"}')
    with pytest.raises(ConversionError, match="does not fit the network"):
        convert(tmp_path / "x.pth")


def test_names_of_segmentation_models_pytorch_up_to_0_3_4():
    new = ["decoder.aspp.convs.0.0.weight", "decoder.conv.weight", "decoder.bn.bias", "segmentation_head.0.bias"]
    old = ["decoder.0.convs.0.0.weight", "decoder.1.weight", "decoder.2.bias", "segmentation_head.0.bias"]
    resnet = {f"encoder.layer{s}.{u}.conv{c}.weight": np.ones((64, 64)) for s, u in UNITS for c in (1, 2, 3)}
    plans = [SYSTEMS["smp"].plan({**resnet, **dict.fromkeys(names, np.ones(1))}) for names in (new, old)]
    assert plans[0].tensors.keys() == plans[1].tensors.keys()
    assert plans[1].origins["head.refine.0.weight"] == "decoder.1.weight"
    assert not plans[1].unexpected


def test_mobilevit_of_transformers():
    """Names of every part; nothing is dilated at output stride 16, and one convolution at 8."""
    unit = "mobilevit.encoder.layer.3.transformer.layer.2"
    names = {
        "mobilevit.conv_stem.normalization.bias": "encoder.net.stem.bn.bias",
        "mobilevit.encoder.layer.1.layer.2.conv_3x3.convolution.weight": "encoder.net.stages_1.2.conv2_kxk.conv.weight",
        "mobilevit.encoder.layer.2.downsampling_layer.reduce_1x1.normalization.bias": (
            "encoder.net.stages_2.0.conv3_1x1.bn.bias"
        ),
        "mobilevit.encoder.layer.4.conv_kxk.convolution.weight": "encoder.net.stages_4.1.conv_kxk.conv.weight",
        "mobilevit.encoder.layer.4.conv_1x1.convolution.weight": "encoder.net.stages_4.1.conv_1x1.weight",
        "mobilevit.encoder.layer.4.fusion.normalization.weight": "encoder.net.stages_4.1.conv_fusion.bn.weight",
        "mobilevit.encoder.layer.2.layernorm.weight": "encoder.net.stages_2.1.norm.weight",
        f"{unit}.attention.attention.query.bias": "encoder.net.stages_3.1.transformer.2.attn.qkv.bias",
        f"{unit}.attention.output.dense.weight": "encoder.net.stages_3.1.transformer.2.attn.proj.weight",
        f"{unit}.intermediate.dense.bias": "encoder.net.stages_3.1.transformer.2.mlp.fc1.bias",
        f"{unit}.output.dense.bias": "encoder.net.stages_3.1.transformer.2.mlp.fc2.bias",
        f"{unit}.layernorm_after.bias": "encoder.net.stages_3.1.transformer.2.norm2.bias",
        "segmentation_head.aspp.convs.0.convolution.weight": "head.aspp.branches.0.0.weight",
        "segmentation_head.aspp.convs.4.conv_1x1.normalization.bias": "head.aspp.branches.4.project.1.bias",
        "segmentation_head.aspp.project.convolution.weight": "head.aspp.project.0.weight",
        "segmentation_head.classifier.convolution.bias": "head.classifier.bias",
    }
    tensors = {name: np.full(64, index) for index, name in enumerate(names)}
    tensors |= {
        f"{unit}.attention.attention.{part}.bias": np.full(64, value) for part, value in (("key", 91), ("value", 92))
    }
    system = SYSTEMS["transformers_mobilevit"]
    plan = system.plan_beside(tensors, {"output_stride": 8})
    assert plan.origins == {ours: theirs for theirs, ours in names.items()}
    assert not plan.unexpected
    assert plan.tensors["encoder.net.stages_3.1.transformer.2.attn.qkv.bias"][63::64].tolist() == [7, 91, 92]
    for stride, expected in ((16, []), (8, [2])):
        encoder = build_encoder("transformers:mobilevit_xxs", EncoderSettings(stride))
        with torch.inference_mode():
            last = encoder(torch.zeros(1, 3, 64, 96))[-1]
        assert last.shape == (1, 80, 64 // stride, 96 // stride)
        convs = [module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d)]
        assert [conv.dilation[0] for conv in convs if conv.dilation[0] > 1] == expected


def test_mobilevit_v2_of_transformers():
    """Names of the parts that the first version lacks, and sides that are odd, where rows and columns stay zero."""
    unit, ours = "mobilevitv2.encoder.layer.3.transformer.layer.2", "encoder.net.stages_3.1.transformer.2"
    names = {
        "mobilevitv2.conv_stem.convolution.weight": "encoder.net.stem.conv.weight",
        "mobilevitv2.encoder.layer.1.layer.1.conv_3x3.normalization.bias": "encoder.net.stages_1.1.conv2_kxk.bn.bias",
        "mobilevitv2.encoder.layer.2.layernorm.weight": "encoder.net.stages_2.1.norm.weight",
        "mobilevitv2.encoder.layer.4.conv_kxk.normalization.bias": "encoder.net.stages_4.1.conv_kxk.bn.bias",
        f"{unit}.attention.qkv_proj.convolution.weight": f"{ours}.attn.qkv_proj.weight",
        f"{unit}.attention.out_proj.convolution.bias": f"{ours}.attn.out_proj.bias",
        f"{unit}.ffn.conv1.convolution.weight": f"{ours}.mlp.fc1.weight",
        f"{unit}.ffn.conv2.convolution.bias": f"{ours}.mlp.fc2.bias",
        f"{unit}.layernorm_before.bias": f"{ours}.norm1.bias",
        "segmentation_head.aspp.convs.0.convolution.weight": "head.aspp.branches.0.0.weight",
    }
    tensors = {name: np.zeros((96, 3)) for name in names}
    system = SYSTEMS["transformers_mobilevit"]
    assert system.recognise(tensors)
    plan = system.plan_beside(tensors, {"output_stride": 32, "hidden_act": "swish"})
    assert plan.origins == {after: before for before, after in names.items()}
    assert (plan.model["encoder"], plan.model["output_stride"]) == ("transformers:mobilevitv2_075", 32)
    with pytest.raises(ConversionError, match="mobilevitv2 whose first transformer has 100 channels"):
        system.plan(tensors | {"mobilevitv2.encoder.layer.2.layernorm.weight": np.zeros(100)})
    encoder = build_encoder("transformers:mobilevitv2_050", EncoderSettings(16)).eval()
    block = encoder.get_submodule("net.stages_2.1")
    with torch.inference_mode():
        assert encoder(torch.zeros(1, 3, 97, 129))[-1].shape == (1, 256, 7, 9)
        for height, width in ((6, 8), (7, 9)):
            x = torch.randn(2, 128, height, width, generator=torch.Generator().manual_seed(1))
            wide = block.conv_1x1(block.conv_kxk(x))
            patches = torch.nn.functional.unfold(wide, 2, stride=2).reshape(2, 64, 4, -1)
            patches = block.norm(block.transformer(patches)).reshape(2, 256, -1)
            expected = block.conv_proj(torch.nn.functional.fold(patches, (height, width), 2, stride=2))
            torch.testing.assert_close(block(x), expected)


def test_the_arguments_of_a_module_of_lightning_name_the_encoder(tmp_path):
    values = {"state_dict": network(), "hyper_parameters": {"encoder_name": "tu-resnet18", "lr": Buffer()}}
    torch.save(values, tmp_path / "x.ckpt")
    assert read_tensors(tmp_path / "x.ckpt").config["encoder_name"] == "tu-resnet18"
