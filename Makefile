# make run                                           tune the default task with Hyperband
# make run ARGS="method=random task=breast_cancer"   the same with other settings
# make test                                          lint, types, tests
# make test-slow                                     tests that make test leaves out: more of the same
# Each sets up .venv first, once.

PYTHON ?= python3
VENV := .venv
ARGS ?= method=hyperband
READY := $(VENV)/.ready

.PHONY: run test test-slow setup clean

run: $(READY)
	$(VENV)/bin/python -m hpo_ray $(ARGS)

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -m "not ray and not slow" --numprocesses 2
	$(VENV)/bin/python -m pytest -m "ray and not slow" --numprocesses 2

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("hpo_ray needs Python 3.10 or newer; this is %d.%d. Say which: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): one to three minutes, this first time only."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV)
