#!/usr/bin/env bash
# torch.onnx.export fails at chunk over a dimension of free size, in the folding of constants.
#
# Version: torch 2.15.0 with onnxscript 0.7.2, opset 18.
# Behaviour: x.chunk(2, dim=0) of an input whose first dimension is Dim.DYNAMIC passes torch.export, and the export to ONNX ends in a
# PassError whose innermost cause is "AttributeError: 'NoneType' object has no attribute 'ndim'" at SplitToSequence: its split
# sizes are no constant. Over a dimension of known size the same chunk is exported. Without folding (optimize=False) the file
# is written, and right at every even size.
# What to do: slices from 0 to size // 2 and from there on in its place.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0

cat > show.py <<'CODE'
import numpy as np
import onnxruntime
import torch


class Halves(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        first, second = x.chunk(2, dim=self.dim)
        return first + second


def tried(dim, optimize):
    free = ({0: torch.export.Dim.DYNAMIC},)
    try:
        torch.onnx.export(
            Halves(dim), (torch.rand(4, 6),), "x.onnx", dynamo=True, dynamic_shapes=free, opset_version=18,
            optimize=optimize, verbose=False,
        )  # fmt: skip
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__
        return f"{type(error).__name__}: {error}"
    session = onnxruntime.InferenceSession("x.onnx")
    for size in (4, 6, 10):
        x = np.random.rand(size, 6).astype(np.float32)
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
        if not np.array_equal(found, Halves(dim)(torch.from_numpy(x)).numpy()):
            return f"other values at {size}"
    return "right"


print("free dimension:", tried(0, True))
print("free dimension, without folding:", tried(0, False))
print("known dimension:", tried(1, True))
CODE
cat > expected <<'TEXT'
free dimension: AttributeError: 'NoneType' object has no attribute 'ndim'
free dimension, without folding: right
known dimension: right
TEXT
env/bin/python -W ignore show.py 2> /dev/null | tee found
diff expected found
echo "as described"
