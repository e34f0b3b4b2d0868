# Both main commands set up .venv themselves: `make demo` classifies images, `make test` runs every check.
#   make demo IMAGES="a.jpg b.png"       your own images beside the built-in photograph
#   make test PYTEST_WORKERS=8           on a machine with more cores
#   make test PYTEST_ARGS="-k slic -x"   a part of the tests
#   make docs                            the documentation site, in site/
#   make demo PYTHON=/path/to/python3.12 another interpreter for .venv (after `make clean`)

IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$name >/dev/null && $$name -c "$(IS_NEW_ENOUGH)" 2>/dev/null && echo $$name && break; done)

BIN := .venv/bin
STAMP := .venv/.installed
# The pin is named on the command line as well: a bare `torch` may resolve to a build for other hardware.
TORCH := $(shell grep '^torch==' constraints.txt)
# Of 16,000 Python files a third is ever imported: each is compiled when it is, instead of all of them now.
PIP_OPTIONS := --no-compile --disable-pip-version-check
# torchao talks whenever transformers is imported, so it lies apart, for the tests that need it.
TORCHAO := .venv/torchao

# PICTURES is the older name.
PICTURES ?=
IMAGES ?= $(PICTURES)
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
TYPED := src $(wildcard examples/*.py) experiments

.PHONY: help setup demo test docs lint format clean
help:
	@echo "make demo | test | docs | lint | format | setup | clean"

setup: $(STAMP)

# A working .venv is kept; a broken one is replaced whole, since `venv` over another interpreter's folder mixes the two.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c "$(IS_NEW_ENOUGH)" 2>/dev/null || { echo "error: expected Python 3.11 or newer, got" \
		"'$(PYTHON)': $$("$(PYTHON)" --version 2>&1). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(BIN)/python -c "import pip, ssl" 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt $(TORCH) -e ".[dev]"
	@touch $@

# Nothing here may depend on a network; one thread a worker keeps the workers from fighting over the cores.
demo test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1

demo: $(STAMP)
	$(BIN)/focusvit demo $(IMAGES)

test: lint $(TORCHAO)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)
ifeq ($(strip $(PYTEST_ARGS)),)
	PYTHONPATH=$(TORCHAO) $(BIN)/python -m pytest tests/export/test_torchao.py
endif

# The variable silences a notice of the theme about its successor.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(TORCHAO): $(STAMP)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps --upgrade --target $(TORCHAO) $(shell grep '^torchao==' constraints.txt)
	@touch $(TORCHAO)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build demo site src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
