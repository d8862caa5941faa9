# make train   set up .venv and train the character LSTM on the text inside Python
# make test    set up .venv and run the tests
# make gpu-record   on a machine with a GPU: test, check and measure there, and write hardware/<device>.json
# make check   lint and types       make bench   benchmarks       make wheel   build, and test the wheel from elsewhere

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# Processes that run tests at the same time: auto is one for each core, 0 is pytest itself, with its debugger.
WORKERS ?= auto
# The text and model of a plain `make train` are the same each time, so its results may be replaced.
TRAIN ?= --overwrite $(ARGS)

# What of the tests the wheel has to pass too: imports, kernels, layers, the command line, the laboratory's page.
WHEEL_TESTS ?= test_import.py test_activation.py test_adam.py test_lstm.py test_layers.py test_cli.py test_gpu_absent.py test_lab.py

.PHONY: train test check bench bench-setup wheel gpu-record clean

train: $(VENV)/.installed
	$(BIN)/fastgrad train $(TRAIN)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python -m pytest bench $(ARGS)

bench-setup: $(VENV)/.installed-bench

# The tests run on the installed wheel, from a temporary folder: nothing of the checkout is importable there.
wheel: $(VENV)/.installed-dev
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install -q --disable-pip-version-check "$$(ls dist/*.whl)[test]"; \
	cp -r tests "$$folder/tests"; cd "$$folder/tests"; \
	"$$folder/venv/bin/python" -m pytest -q -p no:cacheprovider -n $(WORKERS) --dist worksteal $(WHEEL_TESTS)

# With the Python that is there: it brings CuPy, torch and pytest, and nothing can be fetched. Under 9 minutes.
gpu-record:
	$(PYTHON) -m devtools.hardware run $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp is written last: an interrupted installation is taken up again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test,dev]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
