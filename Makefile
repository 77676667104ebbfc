# make train ARGS="experiment=... key=value"   make test ARGS="-k shapes"
# Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV := .venv
ENVIRONMENT := $(VENV)/.installed
ARGS ?=

.PHONY: help train evaluate predict test lint format environment

help:
	@echo 'make train     make .venv, install, train (synthetic shapes unless ARGS says otherwise)'
	@echo 'make evaluate  ARGS="checkpoint=FILE"'
	@echo 'make predict   ARGS="checkpoint=FILE input=FILE|FOLDER|GLOB output=FOLDER"'
	@echo 'make test      run the tests'
	@echo 'make lint      check style;  make format  mends what can be mended'

train evaluate predict: $(ENVIRONMENT)
	$(VENV)/bin/python tools/$@.py $(ARGS)

test: $(ENVIRONMENT)
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile $(ARGS)

lint: $(ENVIRONMENT)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(ENVIRONMENT)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

environment: $(ENVIRONMENT)

# Made again whenever the dependencies may have changed; a failed install leaves no stamp.
$(ENVIRONMENT): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed as '$(PYTHON)', found: $$($(PYTHON) --version 2>&1)"; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[test]'
	@touch $@
