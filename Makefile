# make train   trains CONFIG (the quickstart on embedded data, if not set) and prints its contract
# make test    runs the tests, but for the slow ones, which end real processes, join several, or train what quicker tests hold part by part
# make test-all  runs those too
# make fuzz    feeds the readers CASES spoilt and misleading files, others than the tests do; SEED repeats a run
# make docs    writes the site to build/site; nothing is read from the network but the packages of the extra "docs"
# All make the virtual environment .venv first, where it is missing or pyproject.toml has changed; with PYTHON=python3.13, say, they
# make and use .venv-3.13 beside it.
PYTHON ?= python3
CONFIG ?= configs/quickstart.py
WORKDIR ?= runs/$(basename $(notdir $(CONFIG)))
EXTRAS ?= dev
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
STAMP = $(VENV)/installed-$(subst $(comma),-,$(1))
comma := ,

CASES ?= 4000
KILLS ?= 20
SEED ?= $(shell date +%s)

.PHONY: train test test-all fuzz torture lint docs

train: $(call STAMP,core)
	$(VENV)/bin/python scripts/train.py --config $(CONFIG) --workdir $(WORKDIR) $(ARGS)

test: $(call STAMP,$(EXTRAS))
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

test-all: $(call STAMP,$(EXTRAS))
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m "slow or not slow" $(ARGS)

fuzz: $(call STAMP,$(EXTRAS))
	MTL_JAX_FUZZ_CASES=$(CASES) $(VENV)/bin/python -m pytest tests/test_fuzz.py tests/test_fuzz_meaning.py --hypothesis-seed=$(SEED) $(ARGS)

torture: $(call STAMP,$(EXTRAS))
	MTL_JAX_KILLS=$(KILLS) MTL_JAX_KILL_SEED=$(SEED) $(VENV)/bin/python -m pytest -m slow tests/test_kill.py $(ARGS)

lint: $(call STAMP,$(EXTRAS))
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

docs: $(call STAMP,docs)
	$(VENV)/bin/mkdocs build --strict

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(call STAMP,core): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(call STAMP,docs): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

$(call STAMP,$(EXTRAS)): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@
