# Every target makes .venv and installs on first use. Needed beforehand: python3 >= 3.11 and make.
# Another Python: make test PYTHON=python3.12. Another place for the environment: VENV=path.
# Further arguments: make demo ARGS="--out elsewhere", make test ARGS="-k tap".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs clean

help:
	@echo "make demo    train a teacher, distil it three ways, compare (minutes)"
	@echo "make test    run the tests"
	@echo "make lint    ruff and mypy"
	@echo "make docs    write the pages of docs/methods anew"
	@echo "make clean   remove .venv, caches and build outputs; runs and demo results stay"

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/limbeck demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: $(INSTALLED)
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache src/limbeck.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Python 2 must be able to read this too, to say that it is too old.
define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit(
        "Limbeck needs Python 3.11 or newer; %s is %d.%d. Install a newer one, or name one that "
        "is there: make PYTHON=python3.12" % ((sys.executable,) + tuple(sys.version_info[:2]))
    )
try:
    import ensurepip
    import venv
except ImportError:
    sys.exit(
        "Limbeck installs into a virtual environment; %s has no module venv or ensurepip. Install "
        "it (Debian and Ubuntu: apt install python3-venv), or name another Python: "
        "make PYTHON=python3.12" % sys.executable
    )
endef
export CHECK_PYTHON

# The stamp is made last: an installation that failed halfway is taken up again by the next call.
$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "no '$(PYTHON)' here; install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@rm -f $@
	@echo "installing into $(VENV) (once; some minutes and a few gigabytes, most of it torch)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "could not make $(VENV); remove it and try again" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[vision,dev]" || { \
	  echo "the installation failed (pip's reason is above); the next 'make' takes it up again" >&2; \
	  exit 1; }
	@touch $@
