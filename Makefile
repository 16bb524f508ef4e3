# `make quickstart` and `make test` need python3 >= 3.11, pip and make, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
CONFIGS ?= $(wildcard configs/*.yaml)

.PHONY: quickstart test slow browser tpu faults lint types unit configs bench docs clean

quickstart: $(VENV)/.installed
	$(BIN)/deltaflow train configs/quickstart.yaml

# Types along with the tests: either alone leaves a core without work for a while.
test: lint
	$(MAKE) -j2 types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Plugins by name: else pytest rewrites every module of every package that has one, a second or two a process. Files in
# their order, of which the last are short, so that no worker ends long before the other; those that share a training
# go to one of them (tests/conftest.py).
UNIT := PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p xdist -p _hypothesis_pytestplugin
unit: $(VENV)/.installed-dev
	$(UNIT) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not tpu_aot and not browser"

# The full grid of laws, and what takes minutes.
slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

# Looks at pages in chromium; without one the tests are skipped, with a line that says so.
browser: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -rs -m browser tests/browser

# Compiles every config for TPUs, on a machine without one: libtpu needs Python >= 3.12, and one process at a time. Half an
# hour on two cores, so not in CI. ONLY=colab_tpu, or ONLY='v5e:1x1 and markov', tries some.
ONLY ?= tpu
tpu: $(VENV)-tpu/.installed
	$(VENV)-tpu/bin/python -m pytest -rs -s -m tpu_aot -k "$(ONLY)" tests/device/test_lowering.py

# Hundreds of faults (docs/faults.md) within 15 minutes on two cores. FAULTS='--write docs/faults.md' replaces the table
# in that page.
faults: $(VENV)/.installed-dev
	$(BIN)/python scripts/faults --jobs $(WORKERS) $(FAULTS)

# Runs every config and checks what it promises under `expect:`; goes on after one that fails, and fails then.
# shakespeare_char wants a GPU. Without a network: make configs CONFIGS=configs/quickstart.yaml, or
# make configs CONFIGS=configs/shakespeare_char_cpu.yaml SET='data.corpus=null data.path=FILE'.
configs: $(VENV)/.installed-dev  # digits need scikit-learn
	@failed=; for config in $(CONFIGS); do \
	  echo "== $$config"; $(BIN)/deltaflow train $$config $(SET) || failed="$$failed $$config"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

bench: $(VENV)/.installed
	$(BIN)/python scripts/bench

# The site of docs/ in build/site, which opens from disk; a warning is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -f .mkdocs.yml

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "deltaflow needs python3 >= 3.11; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e . -c constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

$(VENV)-tpu/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo "jax[tpu] compiles without a TPU from python3.12 on; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install -q --disable-pip-version-check -e '.[tpu,digits]' pytest -c constraints.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-tpu .pytest_cache .ruff_cache build dist
