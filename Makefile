# One command per habit. `make demo` and `make test` do all their own set-up.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-cluster check bench install clean
.DEFAULT_GOAL := install

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: smscale needs Python 3.11 or newer, as make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,dev,bench]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/smscale run pipelines/demo.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -rs -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests

# Real schedulers, hosts, object stores, and kills at random moments: Slurm and root where a test needs them.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -q -rs -m cluster tests

check: $(STAMP)
	$(BIN)/ruff format --check smscale tests benchmarks
	$(BIN)/ruff check smscale tests benchmarks
	$(BIN)/mypy smscale

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs
