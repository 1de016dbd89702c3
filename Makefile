# `make demo` and `make test` need Python 3.11+ with venv; both first set up .venv with pinned versions, from the network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.ready
	$(BIN)/lustral demo

# One process for each core, each of one thread.
test: $(VENV)/.ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.ready-test
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(VENV)/.ready-test
	$(BIN)/python -m benchmarks.speed

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Lustral needs Python 3.11 or newer; name one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

# torchattacks asks for torchvision and an old requests that it needs for its model zoo alone.
$(VENV)/.ready-test: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt torchattacks
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
