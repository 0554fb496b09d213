PYTHON ?= python3
BIN = .venv/bin
# With a GPU: make test EXTRAS=test,cuda13 (or cuda12).
EXTRAS ?= test
READY = .venv/ready-$(EXTRAS)
SOURCES = gpudedup kernels tests bench examples docs

.PHONY: demo test test-long check bench house clean

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: $(READY)
	$(BIN)/python examples/three_workers.py

test: $(READY)
	$(BIN)/python -m pytest

# What `make test` samples, all of it: an exception at every line of the manager's bulk operations, a
# fault at every system call of every command, mutated files, random steps of the manager with
# faults, kills of every command that writes, random layouts for KSM. GPUDEDUP_SEED gives another
# seed than 1, GPUDEDUP_AMOUNT another number of tries.
test-long: $(READY)
	GPUDEDUP_LONG=1 $(BIN)/python -m pytest -s tests/mm/test_interrupted.py tests/cli/faults \
		tests/long tests/live/test_ksm_random.py

check: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python bench/run_all.py

# The picture in docs/architecture.md, drawn from the imports.
house: $(READY)
	$(BIN)/python docs/house.py

clean:
	rm -rf .venv build dist *.egg-info
