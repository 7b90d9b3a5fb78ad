# make help: what there is. Everything runs in .venv, which the first target makes.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DATASET SOURCE OUT MODEL OBJECTIVE RANKS  # the shell reads them from its environment: any character may be in a path

.DEFAULT_GOAL := help
.PHONY: help setup demo shards train eval test test-fast check bench

help:  ## this list
	@echo "make demo                             shards, three training runs, a table and a page, from nothing (no data needed)"
	@echo "make shards DATASET=NAME [SOURCE=DIR] build shards and graph into data/NAME (OUT=DIR elsewhere)"
	@echo "make train [DATASET=NAME] [MODEL=NAME] train on them; without DATASET on the shards built last"
	@echo "           [RANKS=8]                   on eight GPUs of this machine; RANKS=0 on all of them"
	@echo "make eval [ARGS='...']                xclr-eval suite"
	@echo "make test | test-fast | check         all tests | those under ten seconds | ruff and mypy"
	@echo "make bench                            every script in benchmarks/"
	@echo "make setup                            only the environment, .venv"
	@echo "more options: xclr-shards --help, xclr-train --help, xclr-eval --help (in $(BIN)/), or ARGS='...' after any target"

setup: .venv/.ready  ## the environment

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (PyTorch with CUDA: some 6 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup  ## the whole road on the embedded data set
	@$(BIN)/xclr-shards build demo
	@$(BIN)/xclr-shards build demo-test
	@for objective in simclr supcon xclr; do \
	  $(BIN)/xclr-train --recipe demo --objective $$objective --out runs/demo/$$objective --resume || exit $$?; \
	done
	@$(BIN)/xclr-eval suite --config demo --out runs/demo

shards: setup  ## DATASET=NAME [SOURCE=DIR] [OUT=DIR]
	@test -n "$$DATASET" || { echo "error: say which data set, e.g. make shards DATASET=demo"; exit 2; }
	@$(BIN)/xclr-shards build "$$DATASET" $(if $(SOURCE),--source "$$SOURCE") $(if $(OUT),--out "$$OUT") $(ARGS)

train: setup  ## [DATASET=NAME] [MODEL=NAME] [OBJECTIVE=xclr|simclr|supcon|clip] [RANKS=8]
	@$(BIN)/xclr-train $(if $(DATASET)$(OUT),--shards "$${OUT:-data/$$(basename "$$DATASET" .toml)}") $(if $(MODEL),--model "$$MODEL") \
	  $(if $(OBJECTIVE),--objective "$$OBJECTIVE") $(if $(RANKS),--ranks "$$RANKS") --resume $(ARGS)

eval: setup  ## [ARGS='...']
	@$(BIN)/xclr-eval suite $(ARGS)

test: setup
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-fast: setup
	@$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow' $(ARGS)

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.bench
	@for script in $(filter-out __init__ common,$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
	  echo "== python -m benchmarks.$$script"; $(BIN)/python -m benchmarks.$$script || exit $$?; \
	done

.venv/.bench: .venv/.ready
	@$(BIN)/python -m pip install -e '.[bench]' -c constraints.txt
	@# It asks for faiss-cpu, whose files would lie over faiss-gpu's.
	@$(BIN)/python -m pip install --no-deps autofaiss embedding_reader fire -c constraints.txt
	@touch $@
