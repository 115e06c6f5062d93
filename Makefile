# Everything here makes its own virtual environment in .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-original test-all lint bench docs clean

demo: .venv/ready
	$(BIN)/degrid demo -o demo

# A process of tests for each core, with one thread each: threads of several would starve one another.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-original: .venv/ready  ## the slow comparisons with numbers of the original code
	$(BIN)/python -m pytest -m "original and slow"

test-all: .venv/ready  ## also the tests marked slow
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
