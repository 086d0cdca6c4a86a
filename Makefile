# Each target sets up what it needs by itself: the environment is built once, in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per test worker: two workers on two cores are faster than one with two threads.
WORKERS ?= 2
# The exporters' libraries leave threads behind that a later fork of the same process (loader processes) does not survive:
# their tests run in processes of their own.
EXPORT := tests/unit/export tests/e2e/test_export.py
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all coverage lint format bench clean

help:
	@echo "make demo      fine-tune the embedded model on phantom images and report (under 5 minutes on 2 cores)"
	@echo "make test      the tests (under 8 minutes on 2 cores)"
	@echo "make test-all  with the slow ones"
	@echo "make coverage  the tests and how much of the package they run"
	@echo "make lint      ruff and mypy"
	@echo "make bench     this package beside the usual way: ratios as table, JSON and plot in build/performance"
	@echo "make setup     only build the environment in $(VENV)"

setup: $(VENV)/.dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.core
	rm -rf demo
	$(BIN)/vlsm data phantoms demo/phantoms --cases 70
	$(BIN)/vlsm train --config configs/demo.yaml --out demo/run
	$(BIN)/vlsm evaluate demo/run
	$(BIN)/vlsm predict demo/run "demo/phantoms/images/*endoscopy*0000*" --prompt polyp --overlays --out demo/predictions
	@echo "report: demo/run/evaluation/test-p1/report.md    pictures: demo/predictions"

test: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(addprefix --ignore=,$(EXPORT))
	$(PYTEST) -m "not slow" $(EXPORT)

test-all: $(VENV)/.dev
	$(PYTEST) $(addprefix --ignore=,$(EXPORT))
	$(PYTEST) $(EXPORT)

# Counting lines makes the tests half as long again, so they are counted here alone.
coverage: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(addprefix --ignore=,$(EXPORT)) --cov=vlsm_adapter --cov-report=
	$(PYTEST) -m "not slow" $(EXPORT) --cov=vlsm_adapter --cov-append --cov-report=term:skip-covered --cov-fail-under=88

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/performance.py --out build/performance

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
