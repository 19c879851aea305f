# Two commands do all set-up: `make demo` and `make test`. Both need Python 3.11 and make, nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test slow page lint types contract clean

demo: $(INSTALLED)
	# One thread: networks this small gain nothing from more, and lose much on a busy machine.
	OMP_NUM_THREADS=1 $(BIN)/distillens run digits --out runs/demo

test: lint types contract
	# One thread for each of two processes: threads that share two cores would wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist worksteal

slow: $(INSTALLED)
	$(BIN)/pytest -m slow

page: $(INSTALLED)
	# Needs Chromium and the run of `make demo`.
	$(BIN)/python benchmarks/page.py runs/demo --out screenshots

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/pyright --pythonpath $(BIN)/python

contract: $(INSTALLED)
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev,text,onnx,ray,browser]" --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist
