#!/usr/bin/env bash
# After fully_shard (FSDP2), torch.optim.SGD(fused=True) and Adagrad(fused=True) cannot take a step; fused Adam and AdamW can.
#
# Version: torch 2.15.0.
# Behaviour: optimisers with fused=True are made without complaint over sharded parameters (DTensors). At the first step() Adam and
# AdamW work, while the others stop with "NotImplementedError: Operator aten._fused_sgd_.default does not have a sharding
# strategy registered". Without fused=True all work, and with plain DDP.
# What to do: leave fused out for these two where weights are sharded.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.0

cat > show.py <<'CODE'
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/meet", rank=0, world_size=1)
for optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD):
    for fused in (False, True):
        net = fully_shard(nn.Linear(3, 2), mesh=init_device_mesh("cpu", (1,)))
        steps = optimizer(net.parameters(), lr=0.1, fused=fused)
        net(torch.ones(1, 3)).sum().backward()
        try:
            steps.step()
            print(optimizer.__name__, "fused:", fused, "steps")
        except NotImplementedError as error:
            print(optimizer.__name__, "fused:", fused, error)
dist.destroy_process_group()
CODE
cat > expected <<'TEXT'
AdamW fused: False steps
AdamW fused: True steps
Adam fused: False steps
Adam fused: True steps
Adagrad fused: False steps
Adagrad fused: True Operator aten._fused_adagrad_.default does not have a sharding strategy registered.
SGD fused: False steps
SGD fused: True Operator aten._fused_sgd_.default does not have a sharding strategy registered.
TEXT
env/bin/python show.py 2> errors | tee found || { cat errors; exit 1; }
diff expected found
echo "as described"
