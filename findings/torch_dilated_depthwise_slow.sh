#!/usr/bin/env bash
# On a CPU a depthwise convolution gets tens of times slower at a large rate, although ever fewer of its taps matter, and
# its input gradient does at any rate above 1.
#
# Version: torch 2.15.0 on x86-64 with AVX-512, one thread.
# Behaviour: a 3x3 depthwise convolution of 1024 channels at 20x20 in channels_last takes about 0.3 ms at rates 1 to 6,
# 5 ms at 12 and 20 ms at 24, where only the centre tap still meets the image: the result is a product with one number
# per channel, which takes 0.3 ms. The gradient of its input takes 0.4 ms at rate 1 and 7 to 8 ms at rates 2 and 6.
# What to do: at rates at which taps reach only padding, leave these out; compute dilated depthwise convolutions tap by
# tap where they are trained.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.6

cat > show.py <<'CODE'
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(2, 1024, 20, 20).to(memory_format=torch.channels_last)
gradient, weight = torch.randn_like(x), torch.randn(1024, 1, 3, 3)
centre = weight[:, :, 1, 1].reshape(1, -1, 1, 1)


def fastest(work):
    """Milliseconds of the fastest of seven runs."""
    times = []
    for _ in range(8):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return min(times[1:])


def forward(rate):
    return F.conv2d(x, weight, None, 1, rate, rate, 1024)


def backward(rate):
    settings = (None, [1, 1], [rate, rate], [rate, rate], False, [0, 0], 1024, [True, False, False])
    return torch.ops.aten.convolution_backward(gradient, x, weight, *settings)


slow, product = fastest(lambda: forward(24)), fastest(lambda: x * centre)
print(f"forward: {fastest(lambda: forward(6)):.2f} ms at rate 6, {slow:.2f} at 24, as a product {product:.2f}")
at_1, at_2 = fastest(lambda: backward(1)), fastest(lambda: backward(2))
print(f"gradient of the input: {at_1:.2f} ms at rate 1, {at_2:.2f} at 2")
print("RESULT the same as the product:", torch.allclose(forward(24), x * centre, atol=1e-5))
print("RESULT over 10 times as slow as the product:", slow > 10 * product)
print("RESULT gradient over 5 times as slow at rate 2:", at_2 > 5 * at_1)
CODE
cat > expected <<'TEXT'
RESULT the same as the product: True
RESULT over 10 times as slow as the product: True
RESULT gradient over 5 times as slow at rate 2: True
TEXT
env/bin/python show.py | tee all.txt
grep "^RESULT" all.txt > found
diff expected found
echo "as described"
