#!/usr/bin/env bash
# Training on an Intel CPU: PyTorch takes up to four times as long for the gradient of a filter as for the matrix product
# of the same maps that it is.
#
# Version: torch 2.15.0 (oneDNN 3.13.3, MKL) on x86-64, Intel with AVX-512, two threads.
# Behaviour: for a 1x1 convolution of 2048 to 512 channels on two maps of 41x41 in channels_last, the gradient of the
# filter takes about 90 ms, and 25 as grad.T @ x. At a rate of 4, a 3x3 filter's of 512 channels takes 120 ms, and 75 as
# nine such products; at rate 1 the library is the faster one. With one thread a 1x1 convolution goes to MKL and is as
# fast as the product, until it has a dilation, which means nothing for it: then it goes to oneDNN. Outputs and
# gradients of inputs take as long either way.
# What to do: compute these gradients as products, on Intel's processors; on an AMD EPYC, where MKL reaches half of the
# processor's speed, the library is the faster one.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.6

cat > show.py <<'CODE'
import time
from pathlib import Path

import torch

if "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
    raise SystemExit("this processor is not Intel's")
torch.set_num_threads(2)
torch.manual_seed(0)


def fastest(work):
    """Milliseconds of the fastest of seven runs."""
    times = []
    for _ in range(8):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return min(times[1:])


def rows(maps):
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def of_library(grad, x, weight, rate):
    around = [weight.shape[2] // 2 * rate] * 2
    settings = (None, [1, 1], around, [rate, rate], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(grad, x, weight, *settings)[1]


def by_products(grad, x, weight, rate):
    found, size = torch.zeros_like(weight), x.shape[-1]
    taps = range(-(weight.shape[2] // 2), weight.shape[2] // 2 + 1)
    for row in taps:
        for column in taps:
            up, left = row * rate, column * rate
            ys, xs = (slice(max(0, by), size + min(0, by)) for by in (up, left))
            over, beside = (slice(max(0, -by), size + min(0, -by)) for by in (up, left))
            product = rows(grad[:, :, over, beside]).T @ rows(x[:, :, ys, xs])
            found[:, :, row + len(taps) // 2, column + len(taps) // 2] = product
    return found


for channels, out, kernel, rate, most in ((2048, 512, 1, 1, 2), (512, 512, 3, 4, 1.25)):
    maps = [torch.randn(2, count, 41, 41).to(memory_format=torch.channels_last) for count in (out, channels)]
    weight = torch.randn(out, channels, kernel, kernel)
    library = fastest(lambda: of_library(*maps, weight, rate))
    products = fastest(lambda: by_products(*maps, weight, rate))
    same = torch.allclose(of_library(*maps, weight, rate), by_products(*maps, weight, rate), rtol=1e-3, atol=1e-2)
    print(f"{kernel}x{kernel}, rate {rate}: {library:.0f} ms by the library, {products:.0f} as products")
    print(f"RESULT the same: {same}, over {most} times as slow: {library > most * products}")
CODE
cat > expected <<'TEXT'
RESULT the same: True, over 2 times as slow: True
RESULT the same: True, over 1.25 times as slow: True
TEXT
env/bin/python show.py | tee all.txt
grep "^RESULT" all.txt > found
diff expected found
echo "as described"
