# Everything runs in .venv, which is made from requirements.lock: `make demo` and `make test` need Python 3.11 to 3.13,
# make, and the package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check format picture clean

help:  ## Show what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "Python 3.11 to 3.13 is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY)  ## Do the main job on the example: from its rows to a proven model and a report
	$(BIN)/tunewright run examples/support_triage/recipe.yaml

test: $(READY)  ## Pass all tests, the main job on a small scale among them
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

check: $(READY)  ## Lint, formatting, types, and which part may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Put the code into its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

picture: $(READY)  ## Make the README's picture of the demo's report (needs chromium)
	docs/picture.sh runs/support_triage/report.html docs/report.png

clean:  ## Remove the environment and the caches, but no runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
