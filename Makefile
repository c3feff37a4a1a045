# Everything a newcomer or CI types. Needs Python 3.10 to 3.13, make and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test lint types unit wheel sweep clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## Compile the two example models, run held-out digits, print one table
	$(BIN)/python -m examples.demo

test: lint types unit wheel ## What CI runs: lint, types, tests, and a smoke test of the built wheel

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

wheel: $(VENV)/.dev ## Build the wheel, install it elsewhere, compile and run a model with it
	rm -rf build dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python tests/smoke_wheel.py dist

sweep: $(VENV)/.sweep ## The slow, wide coverage: model families, every ONNX node case
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m sweep

clean: ## Remove everything these targets made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned, so that no other package pulls in a larger build of it.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(INSTALL) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml setup.py
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml setup.py
	$(INSTALL) --editable '.[dev]'
	touch $@

# torchvision's wheel is compiled against another build of torch; its Python code is all the sweep needs.
$(VENV)/.sweep: $(VENV)/.dev
	$(INSTALL) --no-deps torchvision timm
	$(INSTALL) transformers
	touch $@
