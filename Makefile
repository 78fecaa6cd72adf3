# `make test` needs only Python 3.10+, git and a package index. Name another Python with
# `make PYTHON=python3.12 test`, other tests with `make test PYTEST_ARGS="tests/unit -k weights"`.

VENV := .venv
# Written last, so an interrupted installation is taken up again.
INSTALLED := $(VENV)/installed
BIN := $(VENV)/bin
PYTEST_ARGS ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help install lint test docs demo clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with the pinned versions of constraints.txt

$(INSTALLED): setup.py constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    python=$$(.ci/find_python) && echo "Making $(VENV) with $$python" && \
	    "$$python" -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test,docs]'
	@touch $@

lint: $(INSTALLED)  ## run ruff, and vulture for what nothing uses
	$(BIN)/python -m ruff check .
	$(BIN)/python -m vulture

test: $(INSTALLED)  ## run ruff, then pytest; both always, so that pytest's summary comes last
	@status=0; \
	$(BIN)/python -m ruff check . || status=1; \
	$(BIN)/python -m pytest $(PYTEST_ARGS) || status=1; \
	exit $$status

docs: $(INSTALLED)  ## build the documentation, into the folder site
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

demo: $(INSTALLED)  ## segment nilearn's MNI152 template, into the folder demo
	$(BIN)/python -m medsegmamba_bids.cli.demo demo

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist site *.egg-info
