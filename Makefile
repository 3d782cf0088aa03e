# `make train` and `make test` each set up what they need, alone, on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Python compiles what it imports; pip would compile all files, which takes a minute.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

.PHONY: train test lint types unit smacv2 soak docs linkcheck clean

train: $(STAMP)
	$(BIN)/python examples/train.py

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python benchmarks/structure.py

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -W error::SyntaxWarning -m pytest -n 2 --dist worksteal

# SMACv2's code on a simulated game, and the stand-in for it in tests.
smacv2: $(STAMP)
	test -d build/smacv2 || git clone --quiet --depth 1 https://github.com/oxwhirl/smacv2 build/smacv2
	SMACV2_SOURCE=build/smacv2 OMP_NUM_THREADS=1 $(BIN)/pytest tests/envs -k smacv2_real

# Long tests (tests/conftest.py), runs killed thirty times each, and SOAK_MINUTES (10) of long ones.
soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m soak -s

docs: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/html
	@echo build/html/index.html

# Links to other sites: not a test, for it needs a network, and the sites.
linkcheck: $(STAMP)
	$(BIN)/sphinx-build -q -b linkcheck docs build/linkcheck

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), f"Python 3.10 or newer is needed, got {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) torch
	$(INSTALL) --editable ".[test]"
	$(INSTALL) --no-deps benchmarl id-marl-eval
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
