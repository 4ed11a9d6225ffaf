# `make demo` and `make test` work on a bare machine with Python 3.11 to 3.13: each makes its own .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint clean

demo: .venv/ready
	tfrec demo --out demo

test: lint
	pytest

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy

# with uv where it is installed: the same packages, sooner
.venv/ready: pyproject.toml
	if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(PYTHON) .venv && uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
		$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	touch $@

clean:
	rm -rf .venv demo
