# Targets: env demo test check format bench-env. Every target makes the environment first, again only when the lock changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements.lock
BENCH := .venv-bench
# SMALL=1: the whole code path on a tenth of the data.
DEMO_OVERRIDES := $(if $(SMALL),exp=quickstart_small,exp=quickstart)

# Without bytecode every interpreter compiles torch and Lightning anew: 13 s to start in place of 6.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env demo test check format lock bench-env

env: $(STAMP)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Expected Python 3.11 or newer, got %s" % sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --allow-empty-requirements requirements.lock
	@cp requirements.lock $(STAMP)

demo: env
	$(BIN)/python -m src.run $(DEMO_OVERRIDES) task=pipeline

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: env
	$(BIN)/ruff check src tests experiments
	$(BIN)/ruff format --check src tests experiments
	$(BIN)/pyright
	$(BIN)/lint-imports

format: env
	$(BIN)/ruff check --fix src tests experiments
	$(BIN)/ruff format src tests experiments

# The lock files name versions and digests; this is the one command that changes them.
lock: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --extra wsi --extra dicom --extra hf --extra slurm --extra search --extra report --extra tables --extra dev --python-version 3.11 --no-emit-index-url --generate-hashes --no-header --quiet -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra bench --python-version 3.11 --no-emit-index-url --generate-hashes --no-header --quiet -o requirements-bench.lock

# The peers that the benchmarks compare with, in an environment of their own.
bench-env: $(BENCH)/.requirements-bench.lock

$(BENCH)/.requirements-bench.lock: requirements-bench.lock
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(BENCH) $(BENCH)/bin/uv pip sync --quiet requirements-bench.lock
	@cp requirements-bench.lock $@
