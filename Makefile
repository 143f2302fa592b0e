# Every target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: help run scores status test test-slow lint layout docs bench format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

run: $(VENV)/.installed  ## set up and run the whole pipeline (dvc repro) on the embedded recordings
	dvc repro
	@echo "scores: make scores, page: artifacts/report/index.html"

scores: $(VENV)/.installed  ## print the scores of the last run
	@python -m dynarep.stages.scores

status: $(VENV)/.installed  ## tell which stages are fresh, and why the others are not
	@python -m dynarep.stages.status || true

test: $(VENV)/.installed-dev  ## set up and run the default tests, the linter and the type checker
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev  ## the tests marked slow
	python -m pytest -m slow

lint: $(VENV)/.installed-dev layout  ## ruff and mypy
	ruff check . && ruff format --check .
	MYPYPATH=build/typing mypy --explicit-package-bases --namespace-packages -p dynarep -p benchmarks

layout:  # the package as the folders that it is imported as, for readers of sources
	mkdir -p build/typing/dynarep
	for package in pipeline stages data configs; do ln -sfn $(CURDIR)/$$package build/typing/dynarep/$$package; done
	for file in pipeline/root/*.py; do ln -sfn $(CURDIR)/$$file build/typing/dynarep/; done
	ln -sfn $(CURDIR)/benchmarks build/typing/benchmarks

docs: $(VENV)/.installed-dev layout  ## build the documentation pages, build/site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build

bench: $(VENV)/.installed-dev  ## measure throughput beside the peers and refresh docs/performance.md (takes long)
	python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	python -m benchmarks.throughput --end-to-end
	python -m benchmarks.tables docs/performance.md

format: $(VENV)/.installed-dev  ## apply ruff's formatting and fixes
	ruff check --fix . && ruff format .

clean:  ## remove the environment and all outputs
	rm -rf $(VENV) artifacts .dynarep build
