#!/usr/bin/env bash
# OpenCV 4's ONNX importer cannot reverse a whole axis by Slice, the usual export of RGB to BGR inside a network.
#
# Version: OpenCV 4.14.0 (opencv-python-headless 4.14.0.94); onnx 1.22.0 and onnxruntime 1.27.0 for comparison; OpenCV
# 5.0.0 (opencv-python-headless 5.0.0.93) beside it.
# Behaviour: torch.export writes image.flip(1) as Slice from -1 down to the smallest integer with step -1, which ONNX
# defines. OpenCV 4.14.0 gives that axis the length -2 ("total(os[i]) is -60", with 5x6 pixels) and the first run
# ends in cv2.error. OpenCV 5.0.0 and onnxruntime reverse it.
# What to do: take the channels one by one (Slice of length 1 each) and Concat them in the other order.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
for version in 4.14.0.94 5.0.0.93; do
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

image = np.random.default_rng(0).normal(size=(1, 3, 5, 6)).astype(np.float32)


def integers(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def network(way):
    """The channels in the other order."""
    if way == "one Slice":
        nodes = [helper.make_node("Slice", ["image", "from", "to", "axis", "step"], ["out"])]
        weights = [integers("from", -1), integers("to", -(2**63) + 1), integers("axis", 1), integers("step", -1)]
    else:
        nodes = [helper.make_node("Slice", ["image", f"{c}", f"{c + 1}", "axis"], [f"channel{c}"]) for c in range(3)]
        nodes.append(helper.make_node("Concat", ["channel2", "channel1", "channel0"], ["out"], axis=1))
        weights = [integers("axis", 1), *(integers(f"{c}", c) for c in range(4))]
    values = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 5, 6])]
    found = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 5, 6])]
    graph = helper.make_graph(nodes, "g", values, found, weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    onnx.save(model, "m.onnx")


for way in ("one Slice", "three and Concat"):
    network(way)
    assert np.array_equal(onnxruntime.InferenceSession("m.onnx").run(None, {"image": image})[0], image[:, ::-1])
    try:
        net = cv2.dnn.readNetFromONNX("m.onnx")
        net.setInput(image)
        answer = "reversed" if np.array_equal(net.forward(), image[:, ::-1]) else "different"
    except cv2.error as error:
        answer = "refused" if "total(os[i])" in str(error) else str(error)
    print(f"OpenCV {cv2.__version__}, {way}: {answer}")
CODE
cat > expected <<'TEXT'
OpenCV 4.14.0, one Slice: refused
OpenCV 4.14.0, three and Concat: reversed
OpenCV 5.0.0, one Slice: reversed
OpenCV 5.0.0, three and Concat: reversed
TEXT
for version in 4.14.0.94 5.0.0.93; do
    "env$version/bin/python" -W ignore show.py 2>/dev/null
done | tee found
diff expected found
echo "as described"
