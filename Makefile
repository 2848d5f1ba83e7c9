# make demo   environment, then the main job on data that comes with the packages; names the report to open
# make test   environment for development, then the tests with coverage, without those that take long
# make slow   those
# make storm  a study that is killed a hundred times; half an hour
# make check  what CI runs: lint, types, tests, docs

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORE := branch functional gate in_weight residual stack zero_last optim transformer layers/* kernels/*

.PHONY: setup demo test slow storm check lint types docs bench peers gpu clean
.DEFAULT_GOAL := check

setup: .venv/.dev

.venv/.lab: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[lab]'
	touch $@

.venv/.dev: .venv/.lab
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps --upgrade --target .venv/rezero-0.1.0 rezero==0.1.0  # the tests hold ours against it
	touch $@

demo: .venv/.lab
	$(BIN)/rezero compare fc-digits

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/core tests/kernels tests/layers -m 'not slow' -n 2 --dist loadgroup --cov
	OMP_NUM_THREADS=1 $(BIN)/pytest tests src -m 'not slow' --ignore tests/core --ignore tests/kernels --ignore tests/layers -n 2 --dist loadgroup
	OMP_NUM_THREADS=1 $(BIN)/pytest README.md docs -n 2 --dist loadfile  # the blocks of a page build on each other
	$(BIN)/coverage report --fail-under=95 --include='$(shell echo $(CORE:%=src/rezero/%.py) | tr " " ",")'

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m slow -n 2 --dist loadgroup

storm: setup
	REZERO_KILLS=100 OMP_NUM_THREADS=1 $(BIN)/pytest tests/lab/test_jobs.py -k storm

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/zensical build --strict --clean

check: lint types test slow docs

bench: setup
	$(BIN)/python benchmarks/block.py
	$(BIN)/python benchmarks/layer.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/layer.py --compiled 1
	$(BIN)/python benchmarks/folded.py
	$(BIN)/python benchmarks/deep_stack.py
	$(BIN)/python benchmarks/deep_stack.py --dtype bfloat16
	$(BIN)/python benchmarks/encoder_stack.py
	$(BIN)/python benchmarks/graft.py
	$(BIN)/python benchmarks/recorder.py
	$(BIN)/python benchmarks/lab.py
	$(BIN)/python benchmarks/diagnose.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/import_time.py
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 benchmarks/processes.py
	$(BIN)/python benchmarks/pictures.py

peers: setup  # what others offer, in an environment of its own beside this one
	test -d .venv-peers || $(BIN)/python -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --constraint constraints.txt --editable .[lab] transformers timm
	.venv-peers/bin/pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt
	.venv-peers/bin/pip install --quiet --no-deps --upgrade --target .venv-peers/rezero-0.1.0 rezero==0.1.0  # our name, so aside
	PYTHONPATH=tests/shim .venv-peers/bin/python benchmarks/layer.py --peers 1
	PYTHONPATH=tests/shim .venv-peers/bin/python benchmarks/graft.py --peers 1  # torchvision for CUDA, torch for the CPU

gpu: setup
	$(BIN)/python -c 'import torch; assert torch.cuda.is_available(), "make gpu needs a CUDA device, torch finds none"'
	$(BIN)/pytest -m gpu tests
	$(BIN)/pytest tests/kernels tests/core/test_stack.py  # on the GPU, where there is one
	$(BIN)/python benchmarks/gate.py
	$(BIN)/python benchmarks/layer.py --device cuda
	$(BIN)/python benchmarks/layer.py --device cuda --dropout 0.1
	$(BIN)/python benchmarks/layer.py --device cuda --compiled 1
	$(BIN)/python benchmarks/deep_stack.py --device cuda
	$(BIN)/python benchmarks/deep_stack.py --device cuda --paper --deepest
	$(BIN)/python benchmarks/block.py --device cuda
	$(BIN)/python benchmarks/training_step.py --device cuda
	$(BIN)/python benchmarks/pictures.py

clean:
	rm -rf .venv .venv-peers .cache .coverage .mypy_cache .pytest_cache .ruff_cache site
