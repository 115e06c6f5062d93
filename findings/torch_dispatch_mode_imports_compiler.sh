#!/usr/bin/env bash
# The first operation under any TorchDispatchMode imports PyTorch's compiler: hundreds of modules, over a second.
#
# Version: torch 2.15.0.
# Behaviour: a mode that only counts or watches operations (profilers of FLOPs, tracers, checks) makes PyTorch import
# torch._dynamo at the first operation under it, which took about as long as importing torch itself. Neither creating nor entering
# the mode does; a TorchFunctionMode never does.
# What to do: where the start of a command matters, watch with a TorchFunctionMode, or with forward hooks.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.0

cat > show.py <<'CODE'
import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def report(when):
    print(when, "compiler imported:", "torch._dynamo" in sys.modules)


report("at import")
with Functions():
    torch.ones(2) + 1
report("operations under a function mode")
modules = len(sys.modules)
with Operations():
    report("dispatch mode entered")
    torch.ones(2)
    report("first operation under it")
print("more than 500 further modules:", len(sys.modules) - modules > 500)
CODE
cat > expected <<'TEXT'
at import compiler imported: False
operations under a function mode compiler imported: False
dispatch mode entered compiler imported: False
first operation under it compiler imported: True
more than 500 further modules: True
TEXT
env/bin/python show.py | tee found
diff expected found
echo "as described"
