# make train   environment, a rendered dataset, a trained and scored model, a report
# make test    environment, the tests
# make gpu STAGE=bench RESULTS=folder   checks and benchmarks on a CUDA device, all stages or one (docs/gpu.md)
# make train RUN=shuffled EXTRA=--shuffle-labels   a control: the score must be that of chance
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= data/synth
RUN ?= demo
PYTEST := $(BIN)/python -m pytest

# What the demonstration trains: HSTA at small widths on 960 rendered clips of 40 subjects, four folds of whole subjects.
TRAIN_FLAGS ?= --model hsta_tiny --num-layers 2 --n-video 1 --image-size 112 --labels emotion3 \
	--protocol kfold --folds 4 --epochs 12 --warmup-epochs 1 --lr 5e-4 --batch-size 18 --clip-grad 1.0 \
	--balance matched --flip --crop 2 --dtype float32

.PHONY: env train test test-full check lint bench docs gpu resources compat cuda-build clean help

help:
	@grep -E '^# make' Makefile | sed 's/^# //'; echo "also: test-full check bench docs gpu resources compat cuda-build clean"

# torchvision, which timm needs, comes with ops for CUDA. Beside a CPU build of torch they are not loaded, and then
# one of its files cannot be imported: the one that gives the shapes of their results.
NO_TORCHVISION_OPS := : > $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torchvision/_meta_registrations.py

env: $(READY)

# Python compiles what is imported, once; pip would compile all that is installed, in more time than it takes to unpack.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,dev]'
	@$(BIN)/python -c "import torchvision" 2>/dev/null || $(NO_TORCHVISION_OPS)
	@touch $@

train: $(READY)
	$(BIN)/hsta-fast synth --out $(DATA)
	$(BIN)/hsta-fast train --data $(DATA) --name $(RUN) $(if $(wildcard runs/$(RUN)/config.json),--resume) \
	  $(TRAIN_FLAGS) $(EXTRA)

# As many at a time as there are cores. A file's tests stay together, and so do their fixtures;
# tests/conftest.py orders the files.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) $(PARALLEL) -m "not full and not gpu"

test-full: $(READY)
	$(PYTEST) $(PARALLEL) -m "not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# Ours against its peers on this CPU, at most ten minutes; then models of other libraries, as long; then the tables of the docs.
bench: $(READY)
	$(PYTEST) benchmarks --ignore benchmarks/bench_drop_in.py --benchmark-only --results benchmarks/results
	$(PYTEST) benchmarks/bench_drop_in.py --benchmark-only --results benchmarks/results
	$(BIN)/python -m benchmarks.docs

# The measured tables of README.md and docs/, from benchmarks/results.
docs: $(READY)
	$(BIN)/python -m benchmarks.docs

# Installs nothing: with the PYTHON that is named, in the environment that was made, or else with the interpreter at hand;
# each brings its own CUDA build of torch.
gpu: AT_HAND := $(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(BIN)/python) $(PYTHON)),$(PYTHON))
gpu:
	@PYTHONPATH=. $(AT_HAND) benchmarks/gpu.py $(if $(STAGE),--stage $(STAGE)) $(if $(RESULTS),--results "$(RESULTS)")

# What each kernel needs of a multiprocessor, read off the machine code; no GPU.
resources: $(READY)
	$(BIN)/python -m hsta_fast.kernels.report --write docs/resources.md

# Every shipped kernel in the oldest and the newest Triton, beside the pinned one; no GPU.
compat: $(READY)
	$(BIN)/python -m hsta_fast.kernels.report --check 80 86 89 90 100 120
	set -e; for version in 3.6.0 3.9.0; do \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
	    --target build/triton-$$version triton==$$version; \
	  PYTHONPATH=build/triton-$$version:. $(BIN)/python -m hsta_fast.kernels.report --check 80 86 89 90 100 120; \
	done

# The extension against the CUDA build of torch, 5 GB of it in an environment of its own; needs nvcc but no GPU.
cuda-build:
	$(PYTHON) -m venv build/cuda
	build/cuda/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir \
	  torch==2.11.0 numpy einops safetensors
	rm -rf build/cuda/cache
	HSTA_FAST_CACHE=build/cuda/cache PYTHONPATH=. build/cuda/bin/python benchmarks/cuda_build.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
