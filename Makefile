# `make quickstart` and `make test` need python3 >= 3.11, pip and make, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
CONFIGS ?= $(wildcard configs/*.yaml)

.PHONY: quickstart test torture lint types unit configs bench clean

quickstart: $(VENV)/.installed
	$(BIN)/deltaflow train configs/quickstart.yaml

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not tpu_aot"

# The slow tests: the full grid of laws.
torture: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

# Runs every config and checks what it promises under `expect:`. shakespeare_char wants a GPU.
configs: $(VENV)/.installed
	set -e; for config in $(CONFIGS); do $(BIN)/deltaflow train $$config; done

bench: $(VENV)/.installed
	$(BIN)/python scripts/bench

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "deltaflow needs python3 >= 3.11; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e . -c constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
