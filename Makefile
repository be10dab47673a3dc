# Thin names only; the work is done by pip, pytest, ruff, mypy and the project's own command.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
RUN ?= runs/$(if $(DATA),$(notdir $(patsubst %/,%,$(DATA))),demo)
# The trunk that lies beside the data sets, if it is there.
TRUNK ?= $(wildcard $(DATA)/../weights/shufflenetv2_x0.5_imagenet_trunk.pth)

.PHONY: setup demo test test-all lint bench checkpoint clean

setup: $(VENV)/.ready  ## virtual environment with everything

$(VENV)/.ready: pyproject.toml
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup  ## the whole chain on the embedded digits, or on DATA=<a VOC folder>
	$(BIN)/warploom demo --run $(RUN) $(if $(DATA),--data $(DATA) $(if $(TRUNK),--trunk $(TRUNK)))

test: setup  ## everything that a change must pass, under 20 minutes on two cores
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: setup  ## adds the tests marked slow: training runs, proofs, and CoDeNet's d and e whole: up to three hours more
	$(BIN)/python -m pytest -q -n 2

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## speed of the backends in one run, as ratios
	$(BIN)/warploom bench

checkpoint: setup  ## train anew the small checkpoint that the demo starts from (hours)
	$(BIN)/python -m models.checkpoints.make

clean:  ## builds and caches; runs/ and data/ stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
