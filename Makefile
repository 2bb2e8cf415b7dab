# make help lists the targets. VENV and PYTHON may be set: make test VENV=/elsewhere PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# Tests run in so many processes at once: one more than there are cores, because a third of their time is waiting.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
BIN := $(VENV)/bin
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: help install system-packages demo test test-fast drill doctest notebooks lint format types imports bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

install: $(BIN)/.installed ## make the virtual environment and install cnnlab with all that development needs

$(BIN)/.installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@

system-packages: ## install what some tests need besides (Debian, as root); without it they skip
	for program in chromium slurmctld munged ip; do command -v $$program > /dev/null || missing=yes; done; test -z "$$missing" || \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation iproute2 munge slurm-wlm)

demo: install ## train on 5,000 real digits, test, predict, and say where the results lie
	$(BIN)/cnnlab fit --config digits --run $(RUN)
	$(BIN)/cnnlab test $(RUN)
	$(BIN)/cnnlab predict $(RUN)

test: install ## run all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

test-fast: install ## run the tests that take no more than some seconds each
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup -m "not slow"

drill: install ## kill a run 30 times at random moments, and queue one again on a real SLURM
	CNNLAB_KILLS=30 $(BIN)/python -m pytest -k "kills_at_random or the_drill"

doctest: install ## run the examples in docstrings
	$(BIN)/python -m pytest --doctest-modules cnnlab

notebooks: install ## run the notebooks, and write what they show into notebooks/*.ipynb
	$(BIN)/python benchmarks/lite0.py build/weights
	CNNLAB_WEIGHTS=$(CURDIR)/build/weights $(BIN)/python notebooks/execute.py

lint: install ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install ## check the types
	$(BIN)/mypy

imports: install ## check the direction of imports, and that private names of other packages stay in two modules
	$(BIN)/lint-imports
	$(BIN)/python .ci/private_access.py

bench: install ## run the benchmarks; MNIST_ROOT=DIR names the folder that holds MNIST/raw
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/average_precision.py
	$(BIN)/python benchmarks/mnist.py --root $(or $(MNIST_ROOT),data)

clean: ## remove the virtual environment and what tools left behind (never runs/ or data/)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
