#!/usr/bin/env bash
# IREE's compiler gets ONNX's DepthToSpace in the mode CRD wrong, as which PyTorch exports its pixel shuffle.
#
# Version: iree-base-compiler and iree-base-runtime 3.13.0; onnx 1.22.0 and onnxruntime 1.27.0 for comparison.
# Behaviour: the result is right in the mode DCR, and in the mode CRD only where there are as many channels as a block has
# rows. Otherwise pixels of other channels and places stand there, without a word.
# What to do: reorder the channels (Gather along axis 1), and use the mode DCR.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet numpy==2.3.5 onnx==1.22.0 onnxruntime==1.27.0 sympy \
    iree-base-compiler==3.13.0 iree-base-runtime==3.13.0

cat > show.py <<'CODE'
import subprocess
import sys

import iree.compiler
import iree.runtime
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

for mode, channels in (("DCR", 3), ("CRD", 2), ("CRD", 3)):
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode)
    given, made = [1, 4 * channels, 4, 5], [1, channels, 8, 10]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, size)] for n, size in (("x", given), ("y", made))]
    graph = helper.make_graph([node], "main_graph", *ends)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), "m.onnx")
    x = np.arange(np.prod(given), dtype=np.float32).reshape(given)
    (right,) = onnxruntime.InferenceSession("m.onnx").run(None, {"x": x})
    subprocess.run([sys.executable, "-m", "iree.compiler.tools.import_onnx", "m.onnx", "-o", "m.mlir"], check=True)
    words = ["--iree-llvmcpu-target-cpu=generic"]
    iree.compiler.compile_file(
        "m.mlir", input_type="onnx", target_backends=["llvm-cpu"], extra_args=words, output_file="m.vmfb"
    )
    found = iree.runtime.load_vm_flatbuffer_file("m.vmfb", driver="local-task").main_graph(x).to_host()
    print(f"{mode}, {channels} channels: {'right' if np.array_equal(found, right) else 'other values'}")
CODE
cat > expected <<'TEXT'
DCR, 3 channels: right
CRD, 2 channels: right
CRD, 3 channels: other values
TEXT
env/bin/python -W ignore show.py 2>/dev/null | tee found
diff expected found
echo "as described"
