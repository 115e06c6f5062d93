"""Files that are something else than a checkpoint are named, with the way on; a zip around a checkpoint is read."""

import gzip
import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save

from degrid.checkpoints.readers.files import read_tensors
from degrid.protobuf import encode_field
from degrid.types import ConversionError, UserError

STATE = {"a": torch.ones(2), "b": torch.arange(600.0)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
SAVED = encode_field(1, 1) + encode_field(2, encode_field(1, b"graph"))
ONNX = encode_field(1, 10) + encode_field(2, b"pytorch") + encode_field(7, encode_field(2, b"main"))
BITMAP = b"BM" + (134).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + b"\x28" + bytes(119)
CORE = encode_field(1, 8) + encode_field(2, encode_field(1, b"in")) + encode_field(502, encode_field(1, 1))


def tensors_file():
    stream = io.BytesIO()
    torch.save(STATE, stream)
    return stream.getvalue()


def archive(parts, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as out:
        for name, content in parts.items():
            out.writestr(name, content)
    return stream.getvalue()


def tar():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as out:
        out.addfile(tarfile.TarInfo("a"))
    return stream.getvalue()


def program():
    stream = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.pth", LFS, "a Git LFS pointer .* git lfs pull"),
        ("x.pth", PAGE, "a web page .* with a browser"),
        ("x.ckpt", b"backbone: resnet50\nclasses: 21\n", "a text that begins 'backbone: resnet50"),
        ("x.pth", b"", "empty; download"),
        ("x.pth", bytes(5000), "nothing but zeros"),
        ("x.tar", tar(), r"an archive \(tar\); unpack it"),
        ("x.pth.gz", gzip.compress(b"abc", mtime=0), r"packed \(gzip\); unpack it"),
        ("x.tflite", b"\x1c\0\0\0TFL3" + bytes(40), "TensorFlow Lite, .* convert the checkpoint"),
        ("x.onnx", ONNX, "a model of ONNX, .* convert the checkpoint"),
        ("x.mlmodel", CORE, "a model of Core ML, .* convert the checkpoint"),
        ("saved_model.pb", SAVED, "SavedModel .*variables.variables"),
        ("x.pt", archive({"x/data.pkl": b"x", "x/constants.pkl": b"x"}), "TorchScript program; .*torch.jit.load"),
        ("x.zip", archive({"a.pth": b"x", "b.txt": b"x"}), r"an archive of 2 files, a\.pth, b\.txt; unpack it"),
        ("x.png", b"\x89PNG\r\n\x1a\n" + bytes(40), r"a picture \(PNG\).*degrid predict"),
        ("x.gif", b"GIF89a" + bytes(40), r"a picture \(GIF\).*degrid predict"),
        ("x.bmp", BITMAP, r"a picture \(BMP\).*degrid predict"),
        ("x.ppm", b"P6\n2 2\n255\n" + bytes(range(12)), r"a picture \(Netpbm\).*degrid predict"),
        ("x.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), r"a picture \(JPEG 2000\).*degrid predict"),
        ("x.zip", archive({}), r"an archive \(zip\) with no file in it; download"),
        ("x.pth", archive({"a/": b"", "a/b/": b""}), r"an archive \(zip\) with no file in it; download"),
        ("x.mp4", b"\0\0\0\x20ftypisom" + bytes(40), "a video .*degrid predict"),
        ("x.pth", b"\xef\xbb\xbf" + PAGE, "a web page .* with a browser"),
        ("x.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "a web page .* with a browser"),
        ("x.pte", bytes(4) + b"ET12" + bytes(40), "a program of ExecuTorch.*convert the checkpoint"),
        ("data.mdb", bytes(16) + b"\xde\xc0\xef\xbe" + bytes(40), r"a database \(LMDB\)"),
        ("x.pdf", b"%PDF-1.7\n" + bytes(range(256)), "a document .*weights"),
        ("x.engine", b"ftrt" + bytes(40), "an engine of TensorRT.*convert the checkpoint"),
        ("x.pkl", pickle.dumps({"a": np.ones(2)}, 0), "a pickle of protocol 0 or 1; .*protocol=2"),
        ("x.pkl", pickle.dumps({"a": np.ones(2)}, 1), "a pickle of protocol 0 or 1; .*protocol=2"),
        ("x.pkl", pickle.dumps(OrderedDict(a=1), 0), "a pickle of protocol 0 or 1; .*protocol=2"),
        ("x.csv", "é, loss\n1".encode(), "a text that begins 'é, loss.*weights"),
        ("x.json", b'{"a": "' + "é".encode() * 4096 + b'"}', "a text that begins .*weights"),
    ],
)
def test_other_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=rf"{name} is {words}|{name} is .*{words}"):
        read_tensors(tmp_path / name)


@pytest.mark.slow
def test_programs_that_pytorch_wrote_are_named(tmp_path):
    (tmp_path / "x.pt2").write_bytes(program())
    with pytest.raises(ConversionError, match="a program of torch.export; save its weights"):
        read_tensors(tmp_path / "x.pt2")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", ["pytorch", "safetensors", "numpy"])
def test_a_zip_around_a_checkpoint_is_read(tmp_path, kind, method):
    arrays = io.BytesIO()
    np.savez(arrays, **{name: value.numpy() for name, value in STATE.items()})
    content = {"pytorch": tensors_file(), "safetensors": save(STATE), "numpy": arrays.getvalue()}[kind]
    parts = {"folder/": b"", "folder/net.bin": content, "__MACOSX/._net.bin": b"\0"}
    (tmp_path / "x.zip").write_bytes(archive(parts, method))
    source = read_tensors(tmp_path / "x.zip")
    assert source.format == f"zip, {kind}"
    assert {name: value.tolist() for name, value in source.tensors.items()} == {
        name: value.tolist() for name, value in STATE.items()
    }


def test_arrays_without_names_are_told_how_to_get_them(tmp_path):
    arrays = [np.ones(2), np.zeros(3)]
    np.savez(tmp_path / "two.npz", *arrays)
    with pytest.raises(ConversionError, match=r"two\.npz.*2 arrays without names; .* numpy\.savez\(FILE, \*\*arrays\)"):
        read_tensors(tmp_path / "two.npz")
    np.savez(tmp_path / "one.npz", arrays[0])
    with pytest.raises(
        ConversionError, match=r"one\.npz.*one array without a name; .* numpy\.savez\(FILE, \*\*arrays\)"
    ):
        read_tensors(tmp_path / "one.npz")


def test_a_dictionary_that_numpy_saved_as_its_only_array_is_read(tmp_path):
    np.savez(tmp_path / "x.npz", np.array({"a": np.ones(2), "b": np.zeros(3)}, object))
    assert {name: len(value) for name, value in read_tensors(tmp_path / "x.npz").tensors.items()} == {"a": 2, "b": 3}


def test_a_zip_that_claims_more_than_twice_its_size_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(archive({"net.pth": bytes(4 << 20)}))
    with pytest.raises(ConversionError, match="twice its"):
        read_tensors(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.ones(2), torch.ones(3)], "a list of 2 values without names"),
        ((torch.ones(2),), "a list of 1 value without names"),
        (torch.ones(2), "one tensor without a name"),
        (5, r"a value \(int\)"),
        ({}, "nothing"),
        ({"state_dict": {}, "epoch": 3}, "no tensors by name, only state_dict, epoch"),
    ],
)
def test_what_a_file_holds_in_place_of_tensors_by_name(tmp_path, value, words):
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=rf"x\.pth holds {words}; expected a state dict, tensors by name: save"):
        read_tensors(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:300])
    with pytest.raises(ConversionError, match="a damaged archive .* download or copy it again"):
        read_tensors(tmp_path / "x.pth")


def test_a_folder_of_core_ml_is_named(tmp_path):
    folder = tmp_path / "x.mlpackage"
    folder.mkdir()
    (folder / "Manifest.json").write_text("{}")
    with pytest.raises(UserError, match="a model of Core ML; convert the checkpoint it was made from"):
        read_tensors(folder)
