import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import tf_writer as tf
import torch
from convert_examples import blobs, python2_dictionary, span, state, two_variables
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from degrid.checkpoints.readers.files import read_tensors
from degrid.checkpoints.readers.leveldb import unpack_snappy
from degrid.checkpoints.readers.slices import slice_key
from degrid.protobuf import encode_field
from degrid.types import ConversionError, UserError

GOLDEN = Path(__file__).parent / "golden" / "tf_formats"


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == np.asarray(value).tobytes(), name


def test_the_contents_of_an_archive_are_not_listed_anew_for_each_array(tmp_path, monkeypatch):
    listed, real = [], zipfile.ZipFile._RealGetContents
    np.savez(tmp_path / "a.npz", **{f"{number}": np.full(2, number) for number in range(9)})
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda archive: (listed.append(1), real(archive)))
    found = read_tensors(tmp_path / "a.npz").tensors
    assert [int(found[f"{number}"][0]) for number in range(9)] == list(range(9))
    assert len(listed) < 9  # by each way of reading that asks what the file is, and then once


# --- files that TensorFlow wrote


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("tiny_v1.ckpt", "tensorflow v1"),
        ("tiny_v2.ckpt", "tensorflow v2"),
        ("tiny_v2.ckpt.index", "tensorflow v2"),
        ("tiny_v2.ckpt.data-00000-of-00001", "tensorflow v2"),
        ("tiny_values.npz", "numpy"),
    ],
)
def test_real_files(file, kind):
    source = read_tensors(GOLDEN / file)
    assert source.format == kind
    with np.load(GOLDEN / "tiny_values.npz") as expected:
        assert_same(source.tensors, dict(expected))


def graph(values, reads=True, single=()):
    """A GraphDef with a constant for each value, the nodes that read them, and a constant that is no variable."""

    def node(name, kind, *attributes):
        return encode_field(1, tf.message((1, name.encode()), (2, kind.encode()), *((5, each) for each in attributes)))

    def constant(name, value):
        shown = value.ravel()[:1] if name in single else value
        tensor = tf.message((1, tf.kind_of(value)), (2, tf.shape_message(value.shape))) + tf.tensor_message(shown)
        return node(
            name, "Const", tf.message((1, b"dtype"), (2, b"")), tf.message((1, b"value"), (2, encode_field(8, tensor)))
        )

    out = node("input", "Placeholder") + node("a/Relu6", "Relu6")
    out += constant("Reshape/shape", np.array([1, -1], np.int32))
    for name, value in values.items():
        out += constant(name, value) + (node(f"{name}/read", "Identity") if reads else b"")
    return out


def test_frozen_graph(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "a/weights": rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "a/BatchNorm/gamma": np.ones(4, np.float32),
    }
    for reads, others in ((True, {"odd": np.arange(3)}), (False, {})):
        (tmp_path / "x.pb").write_bytes(graph(values | others, reads, single=["a/BatchNorm/gamma"]))
        source = read_tensors(tmp_path / "x.pb")
        assert (source.format, source.settings) == ("tensorflow graph", {"Relu6": ["a/Relu6"]})
        assert_same(source.tensors, values | others)
    whole = graph(values)
    for end in (len(whole) - 5, 40):
        (tmp_path / "x.pb").write_bytes(whole[:end])
        with pytest.raises(ConversionError, match=r"x\.pb"):
            read_tensors(tmp_path / "x.pb")


# --- features that no small real file has


def many_types():
    rng = np.random.default_rng(0)
    values = {
        name: rng.integers(0, 256, (2, 3, np.dtype(name).itemsize), dtype=np.uint8).view(name)[..., 0]
        for name in tf.KINDS
        if name != "bool"
    }
    for name in ("float16", "float32", "float64", "complex64", "complex128"):
        values[name] = rng.normal(0, 100, (2, 3)).astype(name)
    values |= {
        "bool": np.array([True, False, True]),
        "scalar": np.array(-5, np.int64),
        "empty": np.empty((0, 4), np.float32),
        "zero": np.zeros((3, 50), np.float32),
        "smallest": np.array([np.iinfo(np.int64).min, -1, 0, np.iinfo(np.int64).max]),
    }
    return values


def brain(values):
    """float32 values whose lower half is zero, and their bfloat16 bits."""
    bits = np.array(values, np.float32).view(np.uint32) >> 16
    return (bits << 16).view(np.float32), bits.astype(np.uint16).view(tf.BFloat16)


PARTITIONED = {
    "rows": [[(0, 4), None], [(4, 3), None], [(7, 3), None]],
    "grid": [[(r, 5), (c, 2)] for r in (0, 5) for c in (2, 0)],
    "deep": [[None, (0, 70), None], [None, (70, 30), None]],
}


def partitioned():
    rng = np.random.default_rng(1)
    return {
        "rows": rng.normal(size=(10, 4)).astype(np.float32),
        "grid": rng.normal(size=(10, 4)).astype(np.float16),
        "deep": rng.integers(-9, 9, (2, 100, 3)),
    }


WRITERS = {"v1": tf.write_v1, "v2": tf.write_v2}


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("version", WRITERS)
def test_round_trip(tmp_path, version, shards, snappy):
    truth, bits = brain([[1.5, -2.25], [3e38, 0]])
    text = np.array([b"some", b"", b"text" * 20], object)
    values = many_types() | partitioned()
    path = tmp_path / "model.ckpt-7"
    WRITERS[version](path, values | {"brain": bits, "text": text}, PARTITIONED, shards=shards, snappy=snappy)
    source = read_tensors(path)
    assert_same(source.tensors, values | {"brain": truth})
    assert source.skipped == ("text",)
    assert source.format == f"tensorflow {version}"
    assert source.path == path
    for file in tmp_path.iterdir():
        assert_same(read_tensors(file).tensors, source.tensors)


@pytest.mark.parametrize("how", ["raw", "single"])
def test_v1_other_ways_to_hold_values(tmp_path, how):
    truth, bits = brain([1.5, -2.25])
    values = many_types() | {"weights": np.arange(300, dtype=np.int16)}
    tf.write_v1(tmp_path / "a.ckpt", values | {"brain": bits}, **{how: True})
    assert_same(read_tensors(tmp_path / "a.ckpt").tensors, values | {"brain": truth})


def test_long_lists_of_numbers(tmp_path):
    values = {"a": np.random.default_rng(0).integers(-(2**31), 2**31, 160_000).astype(np.int32)}
    tf.write_v1(tmp_path / "a.ckpt", values)
    assert_same(read_tensors(tmp_path / "a.ckpt").tensors, values)


def test_large_values_are_views(tmp_path):
    value = np.arange(1000, dtype=np.float32)
    tf.write_v1(tmp_path / "a.ckpt", {"a": value})
    tf.write_v2(tmp_path / "b.ckpt", {"a": value})
    (tmp_path / "c.caffemodel").write_bytes(tf.caffemodel({"a": [value]}))
    for name in ("a.ckpt", "b.ckpt", "c.caffemodel"):
        (array,) = read_tensors(tmp_path / name).tensors.values()
        assert not array.flags.owndata
        assert not array.flags.writeable


@given(
    st.sampled_from(["", "conv1/weights", "a\0b", "\0", "größe"]),
    st.lists(st.none() | st.tuples(st.integers(0, 2**61), st.integers(0, 2**61)), max_size=5),
)
def test_keys_of_slices(name, extents):
    expected = tuple((0, None) if extent is None else extent for extent in extents)
    assert slice_key(span(tf.slice_key(name, extents))) == (name, expected)


@pytest.mark.parametrize(
    ("packed", "data"),
    [
        (b"\x0a\x08abc\x0d\x03", b"abcabcabca"),  # copy of 7 from 3 back
        (b"\x06\x00x\x12\x01\x00", b"x" * 6),  # two bytes of offset
        (b"\x08\x0cabcd\x0f\x04\x00\x00\x00", b"abcdabcd"),  # four
        (b"\x3d\xf0\x3c" + b"q" * 61, b"q" * 61),  # a literal with one byte of length
        (b"\x00", b""),
    ],
)
def test_snappy_by_hand(packed, data):
    assert unpack_snappy(span(packed), 1 << 20) == data


@given(st.lists(st.sampled_from([b"ab", b"abc" * 9, bytes(range(90)), b"\0" * 700]), max_size=60).map(b"".join))
def test_snappy_round_trip(data):
    assert unpack_snappy(span(tf.pack_snappy(data)), 1 << 20) == data


def test_snappy_with_far_copies():
    noise = np.random.default_rng(0).bytes(90_000)
    assert unpack_snappy(span(tf.pack_snappy(noise + noise[:500])), 1 << 20) == noise + noise[:500]


# --- finding the file


def test_folders(tmp_path):
    with pytest.raises(UserError, match=r"expected one checkpoint in .*, found none"):
        read_tensors(tmp_path)
    tf.write_v2(tmp_path / "model.ckpt-5", two_variables(), shards=2)
    (tmp_path / "model.ckpt-5.meta").write_bytes(b"graph")
    assert read_tensors(tmp_path).path == tmp_path / "model.ckpt-5"
    assert read_tensors(tmp_path / "model.ckpt-5.meta").format == "tensorflow v2"
    tf.write_v1(tmp_path / "model.ckpt-6", two_variables(), shards=2)
    with pytest.raises(UserError, match=r"found 2: model.ckpt-5, model.ckpt-6; name the file"):
        read_tensors(tmp_path)
    for named in ("model.ckpt-6", "/train/run 1/model.ckpt-6", r"C:\train\model.ckpt-6"):
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "x"\n')
        assert read_tensors(tmp_path).path.name == "model.ckpt-6"
        assert read_tensors(tmp_path / "checkpoint").format == "tensorflow v1"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "gone"')
    with pytest.raises(UserError, match="not there: looked for .*gone"):
        read_tensors(tmp_path)
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{"x" * 5000}"')
    with pytest.raises(UserError, match="cannot read"):
        read_tensors(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "."')
    with pytest.raises(UserError):
        read_tensors(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*gone: looked for this file, for .*gone.index"):
        read_tensors(tmp_path / "gone")
    with pytest.raises(UserError, match=r"looked for .*gone\.index"):
        read_tensors(tmp_path / "gone.data-00000-of-00001")
    tf.write_v2(tmp_path / "b", two_variables(), shards=2)
    (tmp_path / "b.data-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"no file .*b\.data-00001-of-00002"):
        read_tensors(tmp_path / "b")
    tf.write_v1(tmp_path / "c", two_variables(), shards=2)
    (tmp_path / "c-00000-of-00002").unlink()
    for name in ("c", "c-00001-of-00002"):
        with pytest.raises(UserError, match=r"no file .*c-00000-of-00002, a part of"):
            read_tensors(tmp_path / name)
    (tmp_path / "c-00000-of-00003").touch()
    with pytest.raises(UserError, match="several numbers of shards"):
        read_tensors(tmp_path / "c")
    tf.write_v2(tmp_path / "d", two_variables())
    (tmp_path / "d.index").rename(tmp_path / "renamed")
    with pytest.raises(UserError, match=r"\.index"):
        read_tensors(tmp_path / "renamed")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no checkpoint at"):
        read_tensors(tmp_path / "pipe")


# --- Caffe


@pytest.mark.parametrize("how", [{}, {"pieces": 3}, {"double": True}, {"single": True}, {"double": True, "pieces": 2}])
@pytest.mark.parametrize("old", [False, True])
def test_caffe(tmp_path, old, how):
    (tmp_path / "net").write_bytes(tf.caffemodel(blobs(), old=old, **how))
    source = read_tensors(tmp_path / "net")
    assert source.format == "caffe"
    expected = {f"{layer}/{i}": value for layer, values in blobs().items() for i, value in enumerate(values)}
    if old:
        expected = {name: value.reshape((1,) * (4 - value.ndim) + value.shape) for name, value in expected.items()}
    assert_same(source.tensors, expected)


# --- PyTorch, numpy, safetensors


def expected_state():
    found = {name.removeprefix("module."): value.detach() for name, value in state().items()}
    return {name: (value.float() if value.dtype == torch.bfloat16 else value).numpy() for name, value in found.items()}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch(tmp_path, zipped, wrap):
    torch.save(wrap(OrderedDict(state())), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    source = read_tensors(tmp_path / "net.pth")
    assert source.format == "pytorch"
    assert_same(source.tensors, expected_state())


def test_pytorch_types_that_numpy_lacks_are_listed(tmp_path):
    values = {"a": torch.ones(2), "sparse": torch.eye(2).to_sparse(), "small": torch.ones(2, dtype=torch.float8_e5m2)}
    torch.save(values, tmp_path / "net.pth")
    source = read_tensors(tmp_path / "net.pth")
    assert set(source.tensors) == {"a"}
    assert set(source.skipped) == {"sparse", "small"}


def test_safetensors(tmp_path):
    values = {name.removeprefix("module."): value.detach().contiguous().clone() for name, value in state().items()}
    save_file(values, tmp_path / "net.bin")
    source = read_tensors(tmp_path / "net.bin")
    assert source.format == "safetensors"
    assert_same(source.tensors, expected_state())


def test_numpy_dictionaries(tmp_path):
    rng = np.random.default_rng(0)
    plain = many_types() | {"fortran": np.asfortranarray(rng.normal(size=(3, 4))), "big": np.arange(3, dtype=">f4")}
    expected = plain | {"big": np.arange(3, dtype=np.float32)}
    nested = {"conv1": {b"weights": plain["float32"], "n": 3}, 4: [plain["big"], np.float32(3)], "all": plain}
    flat = {"conv1/weights": plain["float32"], "4/0": expected["big"], "4/1": np.array(3, np.float32)}
    flat |= {f"all/{name}": value for name, value in expected.items()}
    wrapped = np.array(OrderedDict(nested), object)
    np.save(tmp_path / "a.npy", wrapped, allow_pickle=True)
    assert_same(read_tensors(tmp_path / "a.npy").tensors, flat)
    assert read_tensors(tmp_path / "a.npy").skipped == ("conv1/n",)
    for protocol in (2, 3, 4):
        with (tmp_path / "b.npy").open("wb") as stream:
            np.lib.format.write_array_header_2_0(stream, np.lib.format.header_data_from_array_1_0(wrapped))
            pickle.dump(wrapped, stream, protocol=protocol)
        assert_same(read_tensors(tmp_path / "b.npy").tensors, flat)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "c.npz", **plain, text=np.array(["x"]), nested=wrapped)
        source = read_tensors(tmp_path / "c.npz")
        assert source.format == "numpy"
        assert_same(source.tensors, expected | {f"nested/{name}": value for name, value in flat.items()})
        assert source.skipped == ("text", "nested/conv1/n")


def test_numpy_dictionary_of_python2(tmp_path):
    (tmp_path / "a.npy").write_bytes(python2_dictionary())
    expected = {"conv1/weights": np.array([-1.5, 3e-39], np.float32)}
    assert_same(read_tensors(tmp_path / "a.npy").tensors, expected)
    old = np.load(tmp_path / "a.npy", allow_pickle=True, encoding="latin1").item()  # numpy agrees
    assert old["conv1"]["weights"].tolist() == expected["conv1/weights"].tolist()


@pytest.mark.parametrize("byte", [None, 0x7F, 0x80, 0xBF, 0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xE2, 0xFF])
def test_bytes_that_protocol_2_keeps_as_text(tmp_path, byte):
    rng = np.random.default_rng(0)
    beyond = {f"beyond{size}": np.full(size, 0xC3, np.uint8) for size in (65534, 65535, 65536, 65537, 131073)}
    values = beyond | {"ascii": rng.integers(0, 128, 200_000, np.uint8), "all": rng.integers(0, 256, 9999, np.uint8)}
    values |= {"floats": rng.standard_normal((3, 50_000)).astype(np.float32), "last": np.ones(4096, np.uint8)}
    content = pickle.dumps(values, protocol=2)
    places = [0] if byte is None else rng.integers(0, 131_073 * 2, 9)  # within "beyond131073", its ends too
    if byte is not None:
        places = [0, 1, 65535, 65536, 131_070, 131_071, 131_072, 131_073, 262_144, 262_145, *places]
    start = content.index(b"\xc3\x83" * 131_073)
    for place in places:
        changed = bytearray(content)
        changed[start + place] = content[start + place] if byte is None else byte
        (tmp_path / "a.pkl").write_bytes(changed)
        text = changed[start : start + 131_073 * 2]
        try:
            expected = np.frombuffer(text.decode().encode("latin1"), np.uint8)
            assert len(expected) == 131_073
        except (UnicodeError, AssertionError):
            with pytest.raises(ConversionError):
                read_tensors(tmp_path / "a.pkl")
        else:
            assert_same(read_tensors(tmp_path / "a.pkl").tensors, values | {"beyond131073": expected})


def test_an_array_without_name(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(ConversionError, match="one array without a name"):
        read_tensors(tmp_path / "x.npy")


# --- size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
@pytest.mark.parametrize("version", WRITERS)
def test_large_checkpoints_take_less_than_twice_their_size(tmp_path, version):
    rng = np.random.default_rng(0)
    values = {f"block{i}/weights": rng.random((3, 3, 512, 512), np.float32) for i in range(19)}
    WRITERS[version](tmp_path / "large.ckpt", values)
    script = Path(__file__).parents[1] / "benchmarks" / "read_checkpoint.py"
    command = [sys.executable, script, "--read", tmp_path / "large.ckpt"]
    _, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(peak) < 2 * sum(value.nbytes for value in values.values())


# --- MXNet

# What nd.save of mxnet 1.9.1 wrote for {"arg:a": float32 [2,3], "aux:b": float16 [2], "c": int64 [1], "d": uint8 [1]}.
MXNET = bytes.fromhex(
    "120100000000000000000000000000000400000000000000c9fa93f90000000002000000020000000000000003000000000000000100000000000000"
    "000000000000803f0000004000004040000080400000a0400000d040c9fa93f900000000010000000200000000000000010000000000000002000000"
    "003e00c0c9fa93f9000000000100000001000000000000000100000000000000060000000300000000000000c9fa93f9000000000100000001000000"
    "00000000010000000000000003000000ff040000000000000005000000000000006172673a6105000000000000006175783a62010000000000000063"
    "010000000000000064"
)
ARRAYS = {
    "a": np.array([[1, 2, 3], [4, 5, 6.5]], np.float32),
    "b": np.array([1.5, -2], np.float16),
    "c": np.array([3]),
    "d": np.array([255], np.uint8),
}


def old_mxnet(kind, shape, code, values, number=0):
    """One array without a storage, of MXNet 1.0 (with a kind) or before."""
    head = [0x112, 0, 1]
    sizes = [len(shape), *shape]
    entry = np.array(sizes, "<u4").tobytes() if kind is None else np.array([kind, len(shape)], "<u4").tobytes()
    entry += b"" if kind is None else np.array(shape, "<i8").tobytes()
    entry += np.array([1, 0, number], "<u4").tobytes() + np.array(values, code).tobytes()
    return np.array(head, "<u8").tobytes() + entry + np.array([1, 1], "<u8").tobytes() + b"w"


def test_arrays_of_mxnet(tmp_path):
    file = tmp_path / "x.params"
    file.write_bytes(MXNET)
    assert read_tensors(file).format == "mxnet"
    assert_same(read_tensors(file).tensors, ARRAYS)
    for content in (
        old_mxnet(None, (2, 1), "<f4", [1.5, 2.5]),
        old_mxnet(0xF993FAC8, (2, 1), "<f8", [1.5, 2.5], 1),
        old_mxnet(0xF993FAC8, (2, 1), "<u2", [0x3FC0, 0x4020], 12),
    ):
        file.write_bytes(content)
        assert read_tensors(file).tensors["w"].tolist() == [[1.5], [2.5]]


def test_damaged_arrays_of_mxnet(tmp_path):
    file = tmp_path / "x.params"
    for end in range(8, len(MXNET), 7):
        file.write_bytes(MXNET[:end])
        with pytest.raises(ConversionError, match=r"reaches beyond the end at byte \d+"):
            read_tensors(file)
    for place, byte, words in ((16, 5, "beyond the end|no text|absurd|type"), (28, 1, "sparse"), (60, 99, "type 99")):
        file.write_bytes(MXNET[:place] + bytes([byte]) + MXNET[place + 1 :])
        with pytest.raises(ConversionError, match=words):
            read_tensors(file)
    file.write_bytes(old_mxnet(0xF993FAC8, (1 << 40, 1 << 40), "<f4", []))
    with pytest.raises(ConversionError, match="absurd shape"):
        read_tensors(file)
