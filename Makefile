PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
# One thread a rank: two ranks on a small machine otherwise fight for its cores.
export OMP_NUM_THREADS ?= 1

.PHONY: setup generate test lint

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

generate: setup
	$(BIN)/torchrun --standalone --nproc-per-node 2 scripts/generate.py

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
