"""Damaged and hostile checkpoints: each gives one clear error, runs nothing, and takes no memory."""

import os
import pickle
import tempfile
import tracemalloc
import zipfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tf_writer as tf
import torch
from convert_examples import blobs, python2_dictionary, span, state, two_variables
from fuzz.edits import EDIT, edited
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from degrid.checkpoints.readers.files import Source, read_tensors
from degrid.checkpoints.readers.leveldb import unpack_snappy
from degrid.protobuf import encode_field, encode_varint
from degrid.types import ConversionError, UserError

MIB = 1 << 20
WRITERS = {"v1": tf.write_v1, "v2": tf.write_v2}


@pytest.mark.parametrize(
    ("packed", "problem"),
    [
        (b"\x0a\x08abc\x0d\x04", "before its beginning"),
        (b"\x0a\x08abc\x0d\x00", "before its beginning"),
        (b"\x09\x08abc\x0d\x03", "more than the 9 bytes"),
        (b"\x0b\x08abc\x0d\x03", "unpacks to 10 bytes and not to the 11"),
        (b"\xff\xff\x03\x08abc", "is said to unpack to 65535"),
        (b"\x0a\x20abc", "beyond the end at byte 2"),
        (b"\x0a\xfcab", "beyond the end at byte 2"),
        (b"\x80", "cut short"),
        (b"", "cut short"),
    ],
)
def test_malformed_snappy(packed, problem):
    with pytest.raises(ConversionError, match=problem):
        unpack_snappy(span(packed), 1 << 20)


# --- damaged checkpoints of TensorFlow


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([[(0, 2), None]], "hold 4 values"),
        ([[(0, 2), None], [(0, 2), None]], "listed twice|out of order"),
        ([[(0, 2), None], [(1, 2), None]], "overlap"),
    ],
)
def test_slices_must_cover(tmp_path, parts, problem):
    for version, writer in WRITERS.items():
        writer(tmp_path / version, two_variables(), {"b": parts})
        with pytest.raises(ConversionError, match=problem):
            read_tensors(tmp_path / version)


def v2_with(path, header=((1, 1),), **entry):
    """A V2 checkpoint of one float32 [4], of which fields are changed."""
    data = np.arange(4, dtype="<f4").tobytes()
    path.with_name("x.data-00000-of-00001").write_bytes(data)
    fields = {"kind": 1, "shape": (4,), "shard": 0, "offset": 0, "size": 16} | entry
    body = tf.message((1, fields["kind"]), (2, tf.shape_message(fields["shape"])))
    body += tf.message((3, fields["shard"]), (4, fields["offset"]), (5, fields["size"]))
    body += b"\x35" + tf.masked_checksum(data).to_bytes(4, "little")
    path.with_name("x.index").write_bytes(tf.table([(b"", tf.message(*header)), (b"a", body), (b"b", body)]))
    return path.with_name("x")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, "b overlaps another variable"),
        ({"size": 2**40}, "beyond the end of .*data-00000"),
        ({"offset": 2**63}, "beyond the end"),
        ({"offset": -16}, "beyond the end"),
        ({"shard": 3}, "shard 3 of 1"),
        ({"shape": (2**40, 2**40)}, "absurd shape"),
        ({"shape": (-4,)}, "absurd shape"),
        ({"shape": (1,) * 100}, "absurd shape"),
        ({"shape": (0, 2**62)}, "absurd shape"),
        ({"kind": 99}, "type 99"),
        ({"header": ((1, 1), (2, 1))}, "big-endian"),
        ({"header": ((3, b""),)}, "no index of a V2 checkpoint"),
    ],
)
def test_absurd_v2(tmp_path, change, problem):
    with pytest.raises(ConversionError, match=problem) as caught:
        read_tensors(v2_with(tmp_path / "x", **change))
    assert str(tmp_path) in str(caught.value)


def test_wrong_number_of_values(tmp_path):
    entries = [
        (b"", tf.message((1, tf.message((1, tf.message((1, b"a"), (2, tf.shape_message([5])), (3, 1))))))),
        (
            b"\0a",
            tf.message((2, tf.message((1, b"a"), (2, tf.slice_message([None])), (3, tf.message((5, bytes(16))))))),
        ),
    ]
    (tmp_path / "x").write_bytes(tf.table(entries))
    with pytest.raises(ConversionError, match=r"has 4 values for the shape \[5\]"):
        read_tensors(tmp_path / "x")
    (tmp_path / "x").write_bytes(tf.table(entries[:1]))
    with pytest.raises(ConversionError, match="a is listed, but its values are missing"):
        read_tensors(tmp_path / "x")


def test_cyclic_and_overlapping_blocks(tmp_path):
    value = tf.message((1, tf.message((1, b""))))
    for offsets in ([0, 0], [40, 0], "self"):
        out = bytearray()
        handles = [tf.add_block(out, [(b"" if not i else b"k", value * 20)], False) for i in range(2)]
        if offsets == "self":  # the index names itself as a block
            index = tf.add_block(out, [(b"z", encode_varint(len(out)) + encode_varint(30))], False)
        else:
            index = tf.add_block(out, [(b"a", handles[0]), (b"b", handles[0])], False)
        footer = (encode_varint(0) * 2 + index).ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
        (tmp_path / "x").write_bytes(out + footer)
        with pytest.raises(ConversionError, match="overlap|checksum|beyond"):
            read_tensors(tmp_path / "x")


def test_every_flipped_bit_of_a_table_is_found(tmp_path):
    tf.write_v1(tmp_path / "a", two_variables())
    good = (tmp_path / "a").read_bytes()
    unused = good.index(b"\0\0\0\0\1\0\0\0\0\xc0\xf2\xa1\xb0")  # the block of meta data
    for at in [*range(0, unused, 3), *range(unused + 13, len(good) - 48, 3)]:
        (tmp_path / "b").write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(ConversionError, match=r"b: .* at byte \d+"):
            read_tensors(tmp_path / "b")


def test_flipped_data_of_v2_is_found(tmp_path):
    tf.write_v2(tmp_path / "a", two_variables())
    data = tmp_path / "a.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[20] ^= 4
    data.write_bytes(content)
    with pytest.raises(ConversionError, match=r"data-00000-of-00001: damaged: the checksum of b is wrong at byte 16"):
        read_tensors(tmp_path / "a")


# --- damaged files of other kinds


@pytest.mark.parametrize("content", [b"", b"x", b"hello, this is no checkpoint", b"\x89PNG\r\n\x1a\n" + b"\0" * 90])
@pytest.mark.parametrize("name", ["a.ckpt", "a.caffemodel", "a.pth", "a.npz"])
def test_other_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=name):
        read_tensors(tmp_path / name)


def test_caffe_faults(tmp_path):
    file = tmp_path / "a.caffemodel"

    def layer(blob):
        return encode_field(100, encode_field(1, b"conv") + encode_field(7, blob))

    def shaped(*sizes):
        return encode_field(7, encode_field(1, b"".join(encode_varint(size % 2**64) for size in sizes)))

    data = encode_field(5, bytes(16))
    for content, problem in [
        (layer(shaped(5) + data), r"conv/0 has 4 values for the shape \[5\] at byte 11"),
        (layer(shaped(-4) + data), "absurd shape"),
        (layer(shaped(2**40, 2**40)), "absurd shape"),
        (layer(shaped(*[1] * 2000) + data), "absurd shape"),
        (layer(encode_field(5, bytes(15))), "no multiple of 4"),
        (layer(data[:-3]), "beyond the end"),
        (layer(shaped(4) + data) * 2, "a second conv/0"),
        (encode_field(100, encode_field(1, b"\xff") + encode_field(7, data)), "not text"),
        (encode_field(100, 3), "a number where a message is expected"),
        (encode_field(1, b"net"), "no layers with weights"),
    ]:
        file.write_bytes(content)
        with pytest.raises(ConversionError, match=problem):
            read_tensors(file)


def npy_of(opcodes: bytes) -> bytes:
    """An .npy file of objects with this pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\x80\x04" + opcodes


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(NNNtR(K\x01%scnumpy\ndtype\nU\x02f4\x85R(K\x03U\x01<tb\x89U\x04abcdtb"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (npy_of(b"}U\x01a" + ARRAY % b"(J\xff\xff\xff\x7ft" + b"s."), "1 values for the shape"),
        (npy_of(b"}U\x01a" + ARRAY % b"(J\xff\xff\xff\xfft" + b"s."), "absurd shape"),
        (npy_of(b"}U\x01a" + ARRAY % b"K\x01" + b"s."), "not described as numpy does"),
        (npy_of(b"}q\x00U\x01ah\x00s."), "deeply nested"),  # a dictionary in itself
        (npy_of(b"}\x94" + b"}U\x01ah\x00sq\x00" * 400 + b"."), "deeply nested"),
        (npy_of(b"}(" + b"U\x01a)" * 3 + b"U\x01bu."), "damaged pickle"),
        (npy_of(b"}" + b")" * 90 + b"\x85" * 999 + b"Ns."), "no dictionary of arrays"),
        (npy_of(b"}" * 400_000 + b"."), "more objects"),
        (npy_of(b"\x8e" + (2**62).to_bytes(8, "little") + b"abc."), "damaged pickle"),
        (npy_of(b"cbuiltins\neval\nU\x011\x85R."), "refused: it refers to 'builtins eval'"),
        (npy_of(b"cos\nsystem\n)R."), "refused"),
        (npy_of(b"]."), "no dictionary of arrays"),
        (npy_of(b"."), "damaged pickle"),
        (npy_of(b"}"), "damaged pickle"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "beyond the end"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "header .* is damaged"),
    ],
)
def test_absurd_npy(tmp_path, content, problem):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ConversionError, match=rf"x\.npy: .*{problem}|x\.npy.*{problem}"):
        read_tensors(tmp_path / "x.npy")


# --- pickles that would run code


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_run_nothing(tmp_path):
    trap = tmp_path / "trap"
    evil = {"a": torch.ones(2), "evil": Evil(trap)}
    for zipped in (True, False):
        torch.save(evil, tmp_path / "x", _use_new_zipfile_serialization=zipped)
        assert list(read_tensors(tmp_path / "x").tensors) == ["a"]
        assert read_tensors(tmp_path / "x").skipped == ("evil",)
        torch.save({"evil": Evil(trap)}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            ConversionError, match=r"refused to load .*x: .* evil \((posix|nt) mkdir\), .* could run code"
        ):
            read_tensors(tmp_path / "x")
    array = np.array({"a": np.ones(2), "evil": Evil(trap)}, object)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "x.npz", b=array)
    assert read_tensors(tmp_path / "x.npy").skipped == ("evil",)
    assert list(read_tensors(tmp_path / "x.npz").tensors) == ["b/a"]
    (tmp_path / "x").write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(ConversionError, match=r"refused to load .*x: it holds (posix|nt) mkdir"):
        read_tensors(tmp_path / "x")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil(trap)))
    assert trap.exists()  # the trap works


# --- memory: what a file claims is checked against what it can hold


def peak_of(path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ConversionError):
            read_tensors(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bombs():
    header = "{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}\n"

    def npy(size, data=b""):
        text = header.format(size).encode()
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data

    def archive(path, content, method):
        with zipfile.ZipFile(path, "w", method) as out:
            out.writestr("a.npy", content)

    huge = b"\xff" * 8 + b"\x7f"
    slots = 3 * 10**9
    yield "zip.npz", lambda path: archive(path, npy(10 * MIB, bytes(40 * MIB)), zipfile.ZIP_DEFLATED)
    yield "bz2.npz", lambda path: archive(path, npy(16, bytes(64)), zipfile.ZIP_BZIP2)
    yield "packed.npz", lambda path: path.write_bytes(large_member())
    yield "claim.npz", lambda path: archive(path, npy(10**12), zipfile.ZIP_STORED)
    yield "a.npy", lambda path: path.write_bytes(npy_of(b"X" + (2**32 - 1).to_bytes(4, "little") + b"abc."))
    yield "b.npy", lambda path: path.write_bytes(npy_of(b"}r" + (2**32 - 1).to_bytes(4, "little") + b"."))
    yield "a.caffemodel", lambda path: path.write_bytes(b"\xa2\x06" + huge + b"abc")
    yield "a.ckpt", lambda path: path.write_bytes(snappy_bomb())
    yield (
        "b.ckpt",
        lambda path: path.write_bytes(bytes(99) + (huge * 4)[:40] + (0xDB4775248B80FB57).to_bytes(8, "little")),
    )
    yield "keys", lambda path: path.write_bytes(endless_keys())
    yield "a.pth", lambda path: lie(path, {"a": torch.ones(4)}, slots, zipped=True)
    yield "b.pth", lambda path: lie(path, {"a": torch.ones(4)}, slots, zipped=False)


def snappy_bomb() -> bytes:
    out = bytearray()
    content = encode_varint(2**40) + b"\0a"
    start = encode_varint(0) + encode_varint(len(content))
    out += content + b"\1" + tf.masked_checksum(content, b"\1").to_bytes(4, "little")
    index = tf.add_block(out, [(b"a", start)], False)
    return bytes(out) + (b"\0\0" + index).ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def large_member() -> bytes:
    """An archive whose list of contents claims a gigabyte of packed data."""
    data = bytearray(valid_files()["packed.npz"])
    at = data.index(b"PK\1\2") + 20
    data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    return bytes(data)


def endless_keys() -> bytes:
    """Keys of 64 KiB, each of which takes five bytes more."""
    header = tf.message((1, tf.message((1, b""))))
    keys = [b"a" * 65536 + number.to_bytes(2, "big") for number in range(60)]
    return tf.table([(b"", header), *((key, b"") for key in keys)], block_size=2**40)


def lie(path, values, size, zipped):
    """Save tensors, and state another size of the first one in the pickle."""
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    small, large = b"K\x04\x85", b"\x8a\x05" + size.to_bytes(5, "little") + b"\x85"
    if not zipped:
        path.write_bytes(path.read_bytes().replace(small, large))
        return
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(small, large))


def zeros_in_npz(path):
    np.savez_compressed(path, a=np.zeros(1 << 20, np.float32), b=np.zeros(1 << 20, np.float32))


def zeros_in_blocks(path):
    tf.write_v1(path, {"a": np.zeros(1 << 20, np.float32)}, snappy=True)


@pytest.mark.parametrize(("name", "write"), [("a.npz", zeros_in_npz), ("a.ckpt", zeros_in_blocks)])
def test_what_unpacks_to_more_than_twice_its_size_is_refused(tmp_path, name, write):
    """Four or eight megabytes of zeros, packed to a hundredth."""
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < MIB / 2
    with pytest.raises(ConversionError, match="twice its"):
        read_tensors(tmp_path / name)
    assert peak_of(tmp_path / name) < 2 * (tmp_path / name).stat().st_size + 2 * MIB


@pytest.mark.parametrize(("name", "write"), [pytest.param(*bomb, id=bomb[0]) for bomb in bombs()])
def test_claims_take_no_memory(tmp_path, name, write):
    write(tmp_path / name)
    assert peak_of(tmp_path / name) < 2 * (tmp_path / name).stat().st_size + 2 * MIB


# --- mutations: any bytes give arrays or one clear error


@cache
def valid_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return {file.name: file.read_bytes() for file in write_valid_files(Path(folder)).iterdir()}


def write_valid_files(folder: Path) -> Path:
    values = two_variables() | {"n": np.arange(5), "h": np.ones(3, np.float16)}
    tf.write_v1(folder / "v1", values, {"b": [[(0, 1), None], [(1, 3), None]]})
    tf.write_v1(folder / "packed", values, snappy=True)
    tf.write_v2(folder / "v2", values, {"b": [[(0, 1), None], [(1, 3), None]]})
    (folder / "caffe").write_bytes(tf.caffemodel(blobs()))
    (folder / "caffe_v1").write_bytes(tf.caffemodel(blobs(), old=True))
    torch.save(state(), folder / "zipped.pth")
    torch.save(state(), folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "dict.pkl").write_bytes(pickle.dumps({"model": values, "score": np.float64(0.5)}))
    np.savez(folder / "stored.npz", **values)
    np.savez_compressed(folder / "packed.npz", **values)
    np.save(folder / "dict.npy", np.array({"conv1": {"weights": np.ones((2, 3))}, "b": [np.arange(3)]}, object))
    (folder / "python2.npy").write_bytes(python2_dictionary())
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2).half()}, folder / "net.safetensors")
    return folder


KINDS = [
    *("v1", "packed", "v2.index", "v2.data-00000-of-00001", "caffe", "caffe_v1", "zipped.pth", "old.pth", "dict.pkl"),
    *("stored.npz", "packed.npz", "dict.npy", "python2.npy", "net.safetensors"),
]


def outcome(path: Path) -> Source | UserError:
    try:
        return read_tensors(path)
    except UserError as error:
        return error


def check(path: Path, size: int) -> None:
    tracemalloc.start()
    found = outcome(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB
    if isinstance(found, UserError):
        assert type(found) is ConversionError or "no file" in str(found)
        assert path.name.partition(".")[0] in str(found)
        return
    assert found.tensors
    assert all(type(value) is np.ndarray and len(value.tobytes()) < 16 * size for value in found.tensors.values())


def rewrite(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # arrays of the last round may still view the old file
    path.write_bytes(data)


ROUNDS = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@ROUNDS
@given(edits=st.lists(EDIT, min_size=1, max_size=5))
def test_mutations(tmp_path_factory, kind, trusting, edits):
    """trusting: with checksums that always fit, so that mutations reach what they protect."""
    if trusting and not kind.startswith(("v1", "v2", "packed")):
        return
    folder, files = tmp_path_factory.getbasetemp() / "mutated", valid_files()
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        if name == kind:
            rewrite(folder / name, edited(data, edits))
        elif name.partition(".")[0] == kind.partition(".")[0]:
            rewrite(folder / name, data)
    with ExitStack() as stack:
        for part in ("leveldb", "tensorflow") if trusting else ():
            stack.enter_context(mock.patch(f"degrid.checkpoints.readers.{part}.masked_checksum", return_value=mock.ANY))
        check(folder / kind, len(files[kind]))


@ROUNDS
@given(st.sampled_from(KINDS), st.binary(max_size=300), st.sampled_from(KINDS), st.floats(0, 1))
def test_random_bytes_and_halves_of_two_files(tmp_path_factory, kind, noise, other, share):
    folder, files = tmp_path_factory.getbasetemp() / "random", valid_files()
    folder.mkdir(exist_ok=True)
    both = files[kind][: int(share * len(files[kind]))] + files[other][int(share * len(files[other])) :]
    for data in (noise, files[kind][:9] + noise, noise + files[kind][-48:], both):
        rewrite(folder / "x", data)
        check(folder / "x", 4096 + len(data))
