# Two commands for newcomers: `make demo` sees it work, `make test` proves it. Neither needs root.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := dcmtk orthanc dicom3tools libpixelmed-java default-jre-headless postgresql
DCMJS := dcmjs-dimse@0.3.3

.DEFAULT_GOAL := help
.PHONY: help demo test format bench peers clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Hemonode needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed ## send three phantom studies (and DICOM=/path) through a node and show what happened
	$(BIN)/hemonode demo $(if $(DICOM),--dicom '$(DICOM)')

test: $(VENV)/.installed ## the whole gate: format, lint, strict types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: $(VENV)/.installed ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed ## last slice → flag, kill -9 under load, receivers side by side
	$(BIN)/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.kill
	$(BIN)/python -m benchmarks.receive

peers: ## install the programs the tests talk to (Debian, Ubuntu; asks for root)
	@command -v apt-get >/dev/null || { echo 'make peers knows apt-get only; install by hand: $(PEERS) $(DCMJS)'; exit 1; }
	@if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	  npm=$$(command -v npm >/dev/null || echo nodejs npm); \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive \
	  apt-get install --yes --no-install-recommends -qq $(PEERS) $$npm >/dev/null
	@npm install --prefix .peers --silent --no-audit --no-fund --ignore-scripts $(DCMJS)
	@echo 'peers installed: $(PEERS) $(DCMJS)'

clean: ## remove the virtual environment and what the demo left
	rm -rf $(VENV) .peers demo
