# Everything goes through one virtual environment; constraints.txt pins what was measured. A second
# one holds the newest transformers that moescope is tested with, for what depends on its modules.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEWEST := .venv-newest

.PHONY: demo test test-newest test-slow lint bench docs clean

demo: $(STAMP)
	$(BIN)/moescope demo -o demo-run

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest -n 2 -m "not slow" tests/models tests/trace

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/engine_speed.py --out benchmarks/engine_speed.json
	$(BIN)/python benchmarks/train_speed.py

docs: $(STAMP)
	$(BIN)/python tools/build_reference.py

clean:
	rm -rf $(VENV) $(NEWEST) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

CONSTRAINTS := constraints.txt
$(NEWEST)/.installed: CONSTRAINTS := constraints-newest.txt
%/.installed: pyproject.toml constraints.txt constraints-newest.txt
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install -q -U pip
	$*/bin/python -m pip install -q -c $(CONSTRAINTS) -e ".[dev]"
	touch $@
