# One way to run everything. `make help` lists it.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,13))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than cores: the two that have end-to-end tests mostly wait for servers.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 3 ] && echo 4 || echo $$((n + 1)))
# An index with CPU builds of torch, for machines where plain pip would take the CUDA build (see README).
TORCH_INDEX ?=
SLIME ?= slime
MEGATRON ?= megatron
# How many fault schedules, and which: the same seed gives the same ones.
SCHEDULES ?= 1000
SEED ?= 1
# Size of the checkpoint of `make bench`, and how often each way is measured.
GB ?= 4
ROUNDS ?= 3

.PHONY: help install demo test test-slime flag-table lint faults bench serve down clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP)  ## virtual environment with the locked dependencies

$(STAMP): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "trainstack needs Python 3.11 or 3.12; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

demo: install  ## SFT, then RL, on an emulated pod; KEEP=1 leaves the servers running
	@$(BIN)/python -m flows.demo $(if $(KEEP),--keep)

test: install  ## the test suite
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m "not slime"

test-slime: install  ## tests beside checkouts: make test-slime SLIME=path MEGATRON=path (the Megatron-LM slime pins)
	@SLIME=$(abspath $(SLIME)) MEGATRON=$(abspath $(MEGATRON)) $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist loadgroup -m slime

flag-table: install  ## make flags.tsv and models.tsv of plugins/slime again: make flag-table SLIME=path MEGATRON=path
	@SLIME=$(abspath $(SLIME)) MEGATRON=$(abspath $(MEGATRON)) $(BIN)/python -m tests.slime_real.make_flag_table
	@SLIME=$(abspath $(SLIME)) $(BIN)/python -m tests.slime_real.make_model_table

lint: install  ## ruff and strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

faults: install  ## runs under random faults in virtual time: make faults SCHEDULES=1000 SEED=1
	@SCHEDULES=$(SCHEDULES) SEED=$(SEED) $(BIN)/python -m tests.faults

bench: install  ## speed, as ratios measured side by side in one run: make bench GB=4 ROUNDS=3
	@GB=$(GB) ROUNDS=$(ROUNDS) $(BIN)/python -m tests.bench

serve: install  ## local Prefect server, Lium emulator and pipeline worker; `make down` stops them
	@$(BIN)/trainstack serve

down: install  ## stop the local servers
	@$(BIN)/trainstack down

clean:  ## remove the virtual environment and caches; runs and stores stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
