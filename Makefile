PYTHON ?= python3
BIN = .venv/bin
# With a GPU: make test EXTRAS=test,cuda13 (or cuda12).
EXTRAS ?= test
SOURCES = gpudedup kernels tests bench

.PHONY: demo test check bench clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: .venv/ready
	$(BIN)/python bench/demo.py

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python bench/run_all.py

clean:
	rm -rf .venv build dist *.egg-info
