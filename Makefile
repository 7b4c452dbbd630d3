# The same commands for people and for CI.
PY ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Hundreds of short Python processes start in the tests; compiling the package anew in each of them would cost minutes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup check test fuzz test-slow test-swarm demo bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PY) >/dev/null 2>&1 && py=$(PY) || py=python3; \
	  test -x $(BIN)/python || $$py -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest -n 2

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Real nodes in network namespaces under churn, for a quarter of an hour; needs root and a machine that does nothing else.
test-swarm: setup
	$(BIN)/python -m pytest -m slow tests/swarm

# A million inputs for every parser together that reads bytes of others: ten minutes of one core.
fuzz: setup
	$(BIN)/python -m tests.fuzz

demo: setup
	$(BIN)/fishernet demo

bench: setup
	@status=0; for script in benchmarks/bench_*.py; do $(BIN)/python $$script || status=1; done; exit $$status

lock:
	rm -rf .lock-venv && python3 -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0 '.[node,audit,plot,dev]' 'setuptools>=77'
	@echo '# Every package of a whole development install, pinned. `make lock` writes it anew from the ranges in pyproject.toml.' > requirements.lock
	.lock-venv/bin/python -m pip freeze --all --exclude pip --exclude fishernet | sed 's/+cpu$$//' >> requirements.lock
	rm -rf .lock-venv

clean:
	rm -rf $(VENV) build *.egg-info
