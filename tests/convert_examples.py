"""Small contents of checkpoints that several tests use."""

import numpy as np
import torch

from degrid.protobuf import Span


def span(data: bytes) -> Span:
    return Span(memoryview(data), "x")


def two_variables():
    return {"a": np.arange(4, dtype=np.float32), "b": np.ones((4, 2), np.float32)}


def blobs():
    rng = np.random.default_rng(0)
    return {
        "conv1": [rng.normal(size=(4, 3, 2, 2)).astype(np.float32), rng.normal(size=4).astype(np.float32)],
        "relu": [],
        "bn_conv1": [np.zeros(4, np.float32), np.ones(4, np.float32), np.array([0.5], np.float32)],
    }


def state():
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    return {
        "module.conv.weight": weight,
        "tied": weight.t(),
        "module.bn.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(2).half(),
        "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "flag": torch.tensor([True, False]),
    }


def python2_dictionary() -> bytes:
    """What numpy.save of Python 2 wrote for {"conv1": {"weights": float32 [2], all bytes}}, put together by hand."""
    body = np.array([-1.5, 3e-39], "<f4").tobytes()
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    weights = empty + b"(K\x01K\x02\x85" + dtype + b"\x89U" + bytes([len(body)]) + body + b"tb"
    entries = b"}U\x05conv1}U\x07weights" + weights + b"ss"
    objects = dtype.replace(b"f4", b"O8").replace(b"U\x01<", b"U\x01|").replace(b"K\x00tb", b"K?tb")
    data = b"\x80\x02" + empty + b"(K\x01)" + objects + b"\x89]" + entries + b"atb."
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(69) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data
