#!/usr/bin/env bash
# OpenCV 5 cannot add one pixel to the map of a convolution: Conv and Add become one layer that wants a whole map.
#
# Version: OpenCV 5.0.0 (opencv-python-headless 5.0.0.93), its default engine; onnx 1.22.0 and onnxruntime 1.27.0 for
# comparison.
# Behaviour: ONNX lets Add spread a tensor [1,C,1,1] over a map [1,C,H,W], as after global pooling (squeeze and
# excitation, the image pooling of DeepLab). If the map is the output of a Conv, OpenCV 5 takes the sum for the shortcut
# of a residual block and fuses both; the file loads, and its first run ends in cv2.error, "residual added after
# convolution must have the same shape". OpenCV 4.13.0 runs the file, as does onnxruntime. Sub, or Add with an
# operation between, is not fused and runs.
# What to do: subtract the negative (negate the weights that make the pixel): the same values, and nothing to fuse.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
for version in 4.13.0.92 5.0.0.93; do
    "$python" -m venv "env$version"
    "env$version/bin/python" -m pip install --quiet numpy==2.3.5 onnx==1.22.0 onnxruntime==1.27.0 \
        "opencv-python-headless==$version"
done

cat > show.py <<'CODE'
import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
weight = rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
image = rng.normal(size=(1, 3, 5, 6)).astype(np.float32)


def network(sign, operation):
    """A 1x1 convolution of an image, and one of its mean pixel, joined."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["map"]),
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Conv", ["mean", "v"], ["pixel"]),
        helper.make_node(operation, ["map", "pixel"], ["sum"]),
    ]
    values = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 5, 6])]
    found = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 4, 5, 6])]
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(sign * weight, "v")]
    graph = helper.make_graph(nodes, "g", values, found, weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    onnx.save(model, "m.onnx")


for sign, operation in ((1, "Add"), (-1, "Sub")):
    network(sign, operation)
    wanted = onnxruntime.InferenceSession("m.onnx").run(None, {"image": image})[0]
    net = cv2.dnn.readNetFromONNX("m.onnx")
    net.setInput(image)
    try:
        answer = "equal" if np.allclose(net.forward(), wanted, atol=1e-5) else "different"
    except cv2.error as error:
        answer = "refused" if "residual added after convolution" in str(error) else str(error)
    print(f"OpenCV {cv2.__version__}, {operation}: {answer}")
CODE
cat > expected <<'TEXT'
OpenCV 4.13.0, Add: equal
OpenCV 4.13.0, Sub: equal
OpenCV 5.0.0, Add: refused
OpenCV 5.0.0, Sub: equal
TEXT
for version in 4.13.0.92 5.0.0.93; do
    "env$version/bin/python" -W ignore show.py 2>/dev/null
done | tee found
diff expected found
echo "as described"
