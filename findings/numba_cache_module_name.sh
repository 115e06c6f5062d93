#!/usr/bin/env bash
# numba's cache on disk belongs to a file, but what is in it names the module that the file was first imported as.
#
# Version: numba 0.68.1 with numpy 2.3.5.
# Behaviour: one file is run under two module names, as happens when a tool loads a source file by its path
# (importlib.util.spec_from_file_location) and a program imports it later. Both find the same entry in __pycache__,
# since its name has the file, its time stamp and the signature only. The second process then raises
# ModuleNotFoundError for a name that it has never heard of, at the first call and not at the import, instead of
# compiling anew. Deleting the *.nbi and *.nbc files mends it.
# What to do: never load a file with cached functions under another name; run copies from folders of their own.
set -euo pipefail
python=$(command -v "${PYTHON:-python3}")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
"$python" -m venv env
env/bin/python -m pip install --quiet numba==0.68.1 numpy==2.3.5

cat > kernel.py <<'CODE'
import numba


@numba.njit(cache=True)
def increment(x):
    return x + 1


@numba.njit(cache=True)
def total(x):
    return increment(x) + x
CODE
cat > by_path.py <<'CODE'
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("elsewhere", "kernel.py")
module = importlib.util.module_from_spec(spec)
sys.modules["elsewhere"] = module
spec.loader.exec_module(module)
print("by its path:", module.total(1))
CODE
cat > by_name.py <<'CODE'
import kernel

print("imported")
print("by its name:", kernel.total(1))
CODE

env/bin/python by_path.py | grep -x "by its path: 3"
output=$(env/bin/python by_name.py 2>&1) && { echo "no error any more: $output"; exit 1; }
grep -x "imported" <<< "$output"
grep -x "ModuleNotFoundError: No module named 'elsewhere'" <<< "$output"
rm __pycache__/*.nbi __pycache__/*.nbc
env/bin/python by_name.py | grep -x "by its name: 3"
echo "as described"
