# `make quickstart` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test parity lint clean

quickstart: $(VENV)/installed
	$(BIN)/python scripts/train.py --config=experiments/quickstart.py

test: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --ignore=tests/parity

parity: $(VENV)/installed-parity
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal tests/parity

lint: $(VENV)/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --project pyproject.toml

# A stamp per set of extras, so that a second call installs nothing and setup.py is what triggers it.
$(VENV)/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit("ftjax needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,parquet]'
	touch $@

$(VENV)/installed-parity: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --editable '.[test,parquet,parity]'
	touch $@

clean:
	rm -rf $(VENV)
