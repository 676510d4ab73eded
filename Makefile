# Two commands are the promise to a newcomer: `make demo` and `make test`. Each does its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN  := $(VENV)/bin
# every command of the environment comes first, and nothing that a shell exports leaks into it
export PATH := $(abspath $(BIN)):$(PATH)
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help demo test docs clean

help: ## show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1	/' | expand -t 8

$(VENV)/.installed: settings.ini setup.py constraints.txt
	@PATH="$${PATH#$(abspath $(BIN)):}"; \
	  python=$$(for p in python3 python3.13 python3.12 python3.11 python; do \
	    if command -v $$p >/dev/null && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then command -v $$p; break; fi; done); \
	  if [ -z "$$python" ]; then echo 'Python 3.11 or newer with venv is needed: install it (Debian: apt install python3 python3-venv) and run make again' >&2; exit 1; fi; \
	  echo "setting up $(VENV) with $$python: some GB, once (torch on Linux brings the libraries of NVIDIA)"; \
	  $$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# AWS's Lambda emulator is one file of a wheel whose pins fight with everybody's: it lies in a folder of its own
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/rie aws-sam-cli==1.170.0
	@touch $@

demo: $(VENV)/.installed ## draw bins, train a counter on them, judge it, package it, count a photo
	@bin_synth --n 4000 --out demo/data --seed 1 --size 160
	@bin_run --data demo/data --out demo/run --preset best --arch resnet18 --weights none --size 96 --epochs 14 --balance undersample
	@echo; echo 'One photo, asked of the package:'
	@bin_count --package demo/run/model.tar.gz demo/data/bin-images/00007.jpg
	@echo; echo 'Open demo/run/report.html in a browser to read how good this counter is.'

# one thread a process: two of two threads would wait for each other on two cores; a third notebook works where others wait
test: export OMP_NUM_THREADS = 1
test: export BIN_COUNTER_PROGRESS = 0
test: $(VENV)/.installed ## notebooks in sync, every notebook's cells, and the tests
	@bash tools/check_sync.sh
	@echo 'running every notebook' && python tools/test_notebooks.py --n_workers 3
	@python -m pytest -q -ra -n 2 tests

docs: $(VENV)/.installed ## build the documentation site in _docs/
	@python tools/render_docs.py

clean: ## remove everything that the other targets made
	rm -rf $(VENV) demo _docs _proc build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
