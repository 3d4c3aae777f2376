PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin
# LATEST=1: not the tested versions but the newest
VERSIONS := $(if $(LATEST),--upgrade --upgrade-strategy eager,-c constraints.txt)

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: setup constraints test lint demo clean newest

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt $(if $(LATEST),newest)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(VERSIONS) -e '.[dev]'
	touch $@

# no file: with LATEST=1 an environment that is there is brought up to date
newest:

# the newest versions, from an environment of their own, become the tested ones
constraints:
	rm -rf build/newest
	$(MAKE) setup VENV=build/newest LATEST=1
	grep '^#' constraints.txt > build/constraints.txt
	build/newest/bin/python -m pip freeze --exclude-editable --disable-pip-version-check | sed 's/+[^ ]*//' \
	  | grep -v -E '^(cuda-|nvidia-|triton)' >> build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/newest

# one thread for each of two workers; a demo or a training takes all cores
test: export OMP_NUM_THREADS ?= 1
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

demo: setup
	$(BIN)/ddpo train --config configs/demo.yaml --overwrite
	$(BIN)/ddpo evaluate runs/demo

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
