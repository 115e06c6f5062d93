#!/usr/bin/env bash
# torchrun --nnodes=1:2: a machine that joins a job after it began ends the job on all machines, unless TCP stores are not shared.
#
# Version: torch 2.15.0.
# Behaviour: a running torchrun notices the newcomer and stops its workers to begin again with both, as documented. It then does not tell
# the address of the first machine again, which it keeps from its first round (`_bootstrap_store_info`), so that the newcomer
# waits for the key MASTER_ADDR of the new round, and the old machine for the newcomer; after 60 s both end with
# DistStoreError. Machines that were there from the beginning remember the address: losing one works,
# unless it was that of process 0: another one takes its place at a new address, and the rest look for it at the old one.
# What to do: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on all machines; the address is then told in every round.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.0

cat > work.py <<'CODE'
import os, time

with open(os.environ["NOTES"], "a") as notes:
    notes.write(f"world {os.environ['WORLD_SIZE']}\n")
until = time.monotonic() + (15 if os.environ["WORLD_SIZE"] == "2" else 120)
while time.monotonic() < until:
    time.sleep(0.1)
CODE

job() {  # NOTES PORT: one machine of the job
    NOTES=$1 OMP_NUM_THREADS=1 env/bin/python -m torch.distributed.run --nnodes=1:2 --nproc-per-node=1 --rdzv-backend=c10d \
        --rdzv-endpoint="127.0.0.1:$2" --rdzv-id=job --rdzv-conf=last_call_timeout=5 work.py > "$1.log" 2>&1
}
try() {  # NAME PORT: one machine begins, another joins once it works
    job "$1.first" "$2" & first=$!
    until [ -e "$1.first" ]; do sleep 0.5; done
    job "$1.later" "$2" & later=$!
    wait $first && echo "first: ends well" || echo "first: $(grep -o 'DistStoreError: wait timeout after 60000ms' "$1.first.log" | head -1)"
    wait $later && echo "later: ends well" || echo "later: $(grep -o 'wait timeout.*/MASTER_ADDR' "$1.later.log" | head -1 | sed 's#/torch.*/#.../#')"
    echo "worlds of the first: $(tr '\n' ' ' < "$1.first")"
}
{
    echo "shared stores, the default"
    try shared 29541
    echo "not shared"
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 try apart 29542
} | tee found
cat > expected <<'TEXT'
shared stores, the default
first: DistStoreError: wait timeout after 60000ms
later: wait timeout after 60000ms, keys: .../MASTER_ADDR
worlds of the first: world 1 
not shared
first: ends well
later: ends well
worlds of the first: world 1 world 2 
TEXT
diff expected found
echo "as described"
