#!/usr/bin/env bash
# Training in bfloat16 on a CPU: the gradient of the filter of a dilated depthwise convolution is wrong, silently.
#
# Version: torch 2.15.0 (oneDNN 3.13.3) on x86-64 with AVX-512 BF16, with one thread or two.
# Behaviour: for maps in channels_last that are at least 32 pixels wide, the gradient of a 3x3 depthwise filter at rate 2
# differs from double precision by more than its own size, and by other numbers, or NaN, where other numbers were in
# memory before. The same holds for other grouped convolutions, for transposed ones, and for convolutions of all channels
# whose number is not a multiple of 16, whenever rows are dilated. Outputs and gradients of inputs are right, as is
# everything at rate 1, with the channels first, in maps of 20 pixels, and in float32. Under autocast a MobileNetV2 at
# output stride 8 has ten such layers; its loss becomes NaN within some 20 steps, or it learns from wrong gradients.
# What to do: compute these gradients in float32, which for depthwise filters takes less time, too.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.6

cat > show.py <<'CODE'
import torch

torch.manual_seed(0)
if not torch.cpu._is_avx512_bf16_supported():
    raise SystemExit("this processor has no AVX-512 BF16")


def gradients(x, weight, rate, layout, kind):
    leaves = [each.to(kind).contiguous(memory_format=layout).requires_grad_() for each in (x, weight)]
    y = torch.conv2d(*leaves, None, 1, rate, rate, len(weight) // weight.shape[1])
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.double).reshape(y.shape).sin().bfloat16()
    return y.detach(), *torch.autograd.grad(y, leaves, seed.to(kind).contiguous(memory_format=layout))


def wrong(width, rate, layout=torch.channels_last):
    """Which of output, gradient of the input, and gradient of the filter differ by more than 2 %."""
    x = torch.randn(2, 64, 40, width).bfloat16()
    weight = torch.randn(64, 1, 3, 3).bfloat16()
    truths = gradients(x, weight, rate, layout, torch.double)
    found = gradients(x, weight, rate, layout, torch.bfloat16)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, truths)]
    print(f"width {width}, rate {rate}, {layout}:", [f"{each:.2g}" for each in errors])
    return [not error < 0.02 for error in errors]


print("RESULT rate 1:", wrong(40, 1))
print("RESULT rate 2:", wrong(40, 2))
print("RESULT rate 2, 20 pixels wide:", wrong(20, 2))
print("RESULT rate 2, channels first:", wrong(40, 2, torch.contiguous_format))
CODE
cat > expected <<'TEXT'
RESULT rate 1: [False, False, False]
RESULT rate 2: [False, False, True]
RESULT rate 2, 20 pixels wide: [False, False, False]
RESULT rate 2, channels first: [False, False, False]
TEXT
env/bin/python show.py | tee all.txt
grep "^RESULT" all.txt > found
diff expected found
echo "as described"
