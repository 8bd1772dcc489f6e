# Everything sets itself up: `make demo` and `make test` work on a fresh clone, and a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Most of 20,000 files are never imported; those that are compile when they first are.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

# Programs start hundreds of times: what they import is to be compiled once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo test lint format clean

help:
	@echo "make install the virtual environment .venv, which all others make where it is missing"
	@echo "make demo    articles -> shards -> tensor-parallel training -> Hugging Face model, on this CPU (RANKS=4: also pipeline-parallel)"
	@echo "make test    all tests (as root on Debian or Ubuntu: installs Slurm, for those that run jobs on it)"
	@echo "make lint    ruff, format check, mypy"

# torch first and by exact version: a range could bring a newer build than the one the other pins were tried with.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; run: make PYTHON=python3.11 ...")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	@# torch is compiled on another core meanwhile
	$(BIN)/python -m compileall -q $(VENV)/lib > $(VENV)/compiled 2>&1 & \
	    $(PIP_INSTALL) --constraint constraints.txt --editable '.[test]'
	touch $(INSTALLED)

install: $(INSTALLED)

demo: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" RANKS=$(or $(RANKS),2) bash configs/demo/run.sh

test: $(INSTALLED)
	BIOMEDGPT_INSTALL_PACKAGES=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache
