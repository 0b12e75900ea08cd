PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint docs format bench package clean

help:  ## show these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 11

setup: $(STAMP)  ## install hpff and its tools into .venv

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing PyTorch and hpff into $(VENV) (once; a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) --editable '.[test]'
	@touch $@

demo: $(STAMP)  ## train a small ResNet on digits with BP, DGL and DGL+HPFF
	@$(BIN)/hpff compare demo

test: $(STAMP)  ## run the tests but for the long ones, on all cores (under ten minutes on two)
	@$(PYTEST) -m "not long"

test-long: $(STAMP)  ## run the long ones: whole trainings, full sizes, several processes
	@$(PYTEST) -m long

lint: $(STAMP)  ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(DOCS_STAMP): $(STAMP)
	@$(PIP) --editable '.[docs]'
	@touch $@

docs: $(DOCS_STAMP)  ## build the documentation into site/, warnings being errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@$(BIN)/python .ci/links.py site

format: $(STAMP)  ## put the code into the one format
	@$(BIN)/ruff check --fix --select I .
	@$(BIN)/ruff format .

bench: $(STAMP)  ## measure speed and memory
	@$(BIN)/python benchmarks/speed.py
	@$(BIN)/python benchmarks/memory.py

package:  ## build wheel and sdist into dist/, install each afresh and check it
	@$(PYTHON) .ci/package.py

clean:  ## remove .venv and caches
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
