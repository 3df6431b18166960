PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.vlkd-installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint type clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

setup: $(STAMP) ## make .venv and install vlkd with its development tools

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[dev]"
	touch $@

demo: $(STAMP) ## train a small student on the procedural world and segment with it (minutes on a CPU)
	$(BIN)/python tools/demo.py

test: $(STAMP) ## the tests that need neither a GPU nor much time
	$(BIN)/python -m pytest -m "not slow and not gpu" --durations=10

test-all: $(STAMP) ## all tests; those that lack data or a GPU skip and say why
	$(BIN)/python -m pytest --durations=20

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP) ## mypy
	$(BIN)/mypy

clean: ## remove caches and build leftovers; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
