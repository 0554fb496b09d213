PYTHON ?= python3
BIN = .venv/bin

.PHONY: test check clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

test: .venv/ready
	$(BIN)/python -m pytest

check: .venv/ready
	$(BIN)/ruff check gpudedup kernels tests
	$(BIN)/ruff format --check gpudedup kernels tests
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
