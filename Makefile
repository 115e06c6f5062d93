# Everything here makes its own virtual environment in .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
# Compiled modules are kept, whatever the shell says: the tests start degrid hundreds of times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-all lint bench docs clean

demo: .venv/ready
	$(BIN)/degrid demo -o demo

# A process of tests for each core, with one thread each: threads of several would starve one another.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: .venv/ready  ## whole networks of the original code, processes that are killed, the pages' code: minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "slow and not long"

test-all: .venv/ready  ## all of them, by hand
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m ""

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## speed and memory on this machine, in 10 to 12 minutes; more in benchmarks/
	$(BIN)/degrid bench -o build/bench

docs: .venv/ready  ## API pages in build/docs, and the pages of docs/ that are made from others
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/api.py build/docs

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "degrid needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build demo runs
