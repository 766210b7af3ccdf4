# Every target sets up what it needs; a second call finds it done.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow fuzz faults lint lower-bounds audit docs clean

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed ## CIFAR-10 at two levels of detail, then a short training with a learned filter
	$(BIN)/python sample.py --n 20
	$(BIN)/python sample.py --n 20 --s 0.5 --b 1.3
	$(BIN)/python train.py --config configs/quickstart.yaml --filter butterworth
	$(BIN)/python sample.py --ckpt last --n 20

test: .venv/installed ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

test-slow: .venv/installed ## the slow tests: many resumes, two processes, kills
	$(BIN)/pytest -m slow

N ?= 2000
fuzz: .venv/installed ## damaged files of every kind: N cases of a new seed
	$(BIN)/python tests/fuzz --cases $(N)

CASES ?= 200
faults: .venv/installed ## signals, full disks, two processes ... at CASES random moments of a new seed
	$(BIN)/python tests/faults --cases $(CASES)

lint: .venv/installed ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

LOWER := .venv-lower/bin
LOWER_TESTS := filters skips uvit denoiser schedule sampler guidance muon data layouts train
lower-bounds: ## the tests of the core with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lower
	$(LOWER)/pip install --quiet --editable . pytest $$($(PYTHON) tests/lower_bounds.py)
	OMP_NUM_THREADS=1 $(LOWER)/pytest --quiet $(LOWER_TESTS:%=tests/test_%.py)

audit: .venv/installed ## known vulnerabilities of what is installed; asks the database of PyPI
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip freeze --exclude-editable | $(BIN)/pip-audit --strict --no-deps --disable-pip --requirement /dev/stdin

docs: .venv/installed ## the pages as a site, in site/
	$(BIN)/pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the set-up
	rm -rf .venv .venv-lower site .mypy_cache .pytest_cache .ruff_cache
