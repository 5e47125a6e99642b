PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TASKS ?= .venv-tasks
export HF_HUB_OFFLINE := 1
# One thread a rank: two ranks on a small machine otherwise fight for its cores.
export OMP_NUM_THREADS ?= 1
# Tests side by side: half of the list each, which keeps a file's tests beside what they share.
JOBS ?= 2
PYTEST := python -m pytest --numprocesses $(JOBS) --dist worksteal

.PHONY: setup generate test test-slow test-tasks test-slurm test-nodes test-chaos gpu-check bench lint

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

generate: setup
	$(BIN)/torchrun --standalone --nproc-per-node 2 scripts/generate.py

# Everything that does not take long alone; CI runs the slow ones as well.
test: setup
	$(BIN)/$(PYTEST) -m "not slow and not chaos and not slurm"

test-slow: setup
	$(BIN)/$(PYTEST) -m "slow and not chaos and not slurm"

# The census of pipelines and the recipes once more, with torchvision: a second environment, of 6 GB and two minutes.
test-tasks: $(TASKS)/.installed
	$(TASKS)/bin/$(PYTEST) -m "slow or not slow" tests/census tests/recipes/test_recipes_run.py

# constraints.txt, but for the torch that this torchvision was built for.
$(TASKS)/.installed: setup.cfg pyproject.toml constraints.txt constraints-tasks.txt
	$(PYTHON) -m venv $(TASKS)
	grep -v '^torch==' constraints.txt | cat - constraints-tasks.txt > $(TASKS)/constraints.txt
	$(TASKS)/bin/pip install --quiet --constraint $(TASKS)/constraints.txt --editable '.[dev,tasks]'
	touch $@

# As root, on Debian: two nodes in network namespaces, and a Slurm over them.
test-slurm: setup
	scripts/slurm/install.sh
	$(BIN)/python -m pytest -s -m slurm tests/slurm/test_slurm.py

# The same two nodes without Slurm: broken ranks, agents and links.
test-nodes: setup
	$(BIN)/python -m pytest -s -m slurm tests/slurm/test_two_nodes.py

test-chaos: setup
	$(BIN)/python -m pytest -s -m chaos tests/distributed/test_chaos.py

# On a machine with one or more GPUs: ten minutes at most, and one file to send back.
gpu-check: setup
	$(BIN)/python scripts/gpu_check.py

# Twenty-two minutes on two quiet cores, forty at most: benchmarks/RESULTS.md and its plots. BENCH="--parts first" or --go-on for less.
bench: setup
	$(BIN)/python scripts/bench_all.py $(BENCH)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
