# Each target makes .venv when it is missing, and installs again when pyproject.toml or constraints.txt have changed.
.DEFAULT_GOAL := help
.PHONY: demo test lint bench fix clean help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

demo: .venv/.installed-demo  ## the whole story on embedded product reviews: rank, sweep, decide, serve, evaluate
	@$(BIN)/pmray demo

test: .venv/.installed-dev  ## all tests
	@$(BIN)/pytest -n logical --maxprocesses=4 tests/unit pmray
	@$(BIN)/pytest -n logical --maxprocesses=2 --dist loadfile tests/distributed tests/faults

lint: .venv/.installed-dev  ## ruff, mypy, and who may import whom
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/.installed-dev  ## measure what the tests do not
	@$(BIN)/python -m tests.bench

fix: .venv/.installed-dev  ## let ruff correct what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find pmray tests jobs -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

.venv/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing pmray[demo] into .venv (minutes, the first time)'
	@$(PIP) -e '.[demo]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing pmray[dev] into .venv (minutes, the first time)'
	@$(PIP) -e '.[dev]'
	@touch $@

$(BIN)/python:
	@python=$$(command -v python3.11 || command -v python3) || python=; \
	if [ -z "$$python" ] || ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "pmray needs Python 3.11 or newer, but found $$("$${python:-false}" --version 2>&1 || echo none)." >&2; \
		exit 1; \
	fi; \
	"$$python" -m venv .venv || { \
		rm -rf .venv; \
		echo "$$python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; \
	}
