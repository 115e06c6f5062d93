#!/usr/bin/env bash
# torchrun --max-restarts: processes that start again look for one another where they were before.
#
# Version: torch 2.15.0.
# Behaviour: torchrun keeps one store for all rounds of a job, and `init_process_group` puts nothing of the round into its
# keys. A process that is ready before another one reads the address of that one's predecessor, connects to it until its
# time is over ("connection refused"), and fails. The number of the attempt, TORCHELASTIC_RESTART_COUNT, would not
# separate the rounds: each machine counts failures of its own only.
# What to do: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on all machines; each round then has a store of its own.
# degrid needs no variable: its processes agree on a new part of the store at each start.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet torch==2.15.0 numpy==2.4.0

cat > work.py <<'CODE'
import datetime, os, sys, time
import torch.distributed as dist

notes, rank = os.environ["NOTES"], os.environ["RANK"]
again = os.path.exists(f"{notes}.{rank}")
open(f"{notes}.{rank}", "w").close()
if again and rank == "1":
    open(f"{notes}.ahead", "w").close()
if again and rank == "0":
    while not os.path.exists(f"{notes}.ahead"):
        time.sleep(0.1)
    time.sleep(40)
try:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
except RuntimeError as error:
    print("process", rank, "refused" if "Connection refused" in str(error) else error, file=open(f"{notes}.said", "a"))
    raise
dist.barrier()
print("process", rank, "meets", "again" * again, "in attempt", os.environ["TORCHELASTIC_RESTART_COUNT"],
      file=open(f"{notes}.said", "a"))
if not again and rank == "1":
    sys.exit(3)
dist.barrier()
CODE

machine() {  # NOTES PORT: one machine of the job
    NOTES=$1 OMP_NUM_THREADS=1 env/bin/python -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --max-restarts=1 \
        --rdzv-backend=c10d --rdzv-endpoint="127.0.0.1:$2" --rdzv-id=job work.py >> "$1.log" 2>&1
}
try() {  # NOTES PORT: two machines; process 1 fails once, and is ready first when both start again
    machine "$1" "$2" & first=$!
    machine "$1" "$2" & second=$!
    wait $first && wait $second && echo "$1: ends well" || echo "$1: fails"
    wait
    sort "$1.said" | uniq
}
{
    try shared 29551
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 try apart 29552
} | tee found
cat > expected <<'TEXT'
shared: fails
process 0 meets  in attempt 0
process 1 meets  in attempt 0
process 1 refused
apart: ends well
process 0 meets  in attempt 0
process 0 meets again in attempt 0
process 1 meets  in attempt 0
process 1 meets again in attempt 1
TEXT
diff expected found
echo "as described"
