# make: list the commands
.DEFAULT_GOAL := help
.PHONY: help audit test test-all dev check bench canary docs install clean

VENV := .venv
BIN := $(VENV)/bin
STORE ?= data/store
# a URL of an object store stays as it is; Dagster's own database is then kept here
export FBMEM_STORE := $(if $(findstring ://,$(STORE)),$(STORE),$(abspath $(STORE)))
export FBMEM_DAGSTER := $(abspath $(if $(findstring ://,$(STORE)),data/store,$(STORE)))/dagster
export DAGSTER_HOME := $(CURDIR)
export HF_HUB_DISABLE_TELEMETRY := 1

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

audit: $(BIN)/.installed ## audit the shipped canary and print its label table (AUDIT=FILE for another audit file)
	$(BIN)/fbmem audit $(AUDIT)

test: $(BIN)/.installed-dev ## run the tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(BIN)/.installed-dev ## run the tests that take long, too
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

dev: $(BIN)/.installed ## open the Dagster UI on http://localhost:3000
	$(BIN)/fbmem register $(AUDIT)
	$(BIN)/dagster dev --host 127.0.0.1 --port 3000

check: $(BIN)/.installed-dev ## format, lint, types, imports, file sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@large=$$(git ls-files -z -- ':!data' | xargs -0 -I{} find {} -size +100k); \
	  test -z "$$large" || { echo "tracked files over 100 kB outside data/: $$large"; exit 1; }

bench: $(BIN)/.installed-dev ## measure speed, as ratios within one run
	$(BIN)/python -m tests.benchmarks

canary: $(BIN)/.installed-dev ## draw and train the canary anew (hours on a CPU; goes on where it was stopped)
	$(BIN)/fbmem canary routed

docs: $(BIN)/.installed-dev ## write docs/tables.md anew from the definitions of the tables
	$(BIN)/python docs/write_tables.py

install: $(BIN)/.installed-dev ## create the environment with everything

clean: ## remove the environment and everything produced
	rm -rf $(VENV) $(STORE)

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ui]'
	touch $@

$(BIN)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(BIN)/.installed $@
