# `make demo` and `make test` work on a bare machine with Python 3.11 to 3.13: each makes its own .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-fast lint bench-training bench-scale bench-quality bench-index clean

demo: .venv/ready
	tfrec demo --out demo

test: lint
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: .venv/ready
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy

.venv/ready: pyproject.toml serving/docker/install.sh
	sh serving/docker/install.sh .venv $(PYTHON) -e '.[dev]'
	touch $@

# peers live in environments of their own; DATA is a prepared folder
DATA ?= build/movielens-1m
bench-training: .venv/ready .venv-peers/rectools/ready .venv-peers/keras-rs/ready $(DATA)
	python benchmarks/training/compare.py $(DATA) \
		--rectools .venv-peers/rectools/bin/python --keras-rs .venv-peers/keras-rs/bin/python

bench-scale: .venv/ready
	python benchmarks/scale.py build

bench-quality: .venv/ready
	python benchmarks/quality.py build/quality

bench-index: .venv/ready .venv-peers/index/ready
	python benchmarks/index/compare.py build/index --peers .venv-peers/index/bin/python

build/movielens-1m: | .venv/ready
	tfrec prepare movielens-1m --out $@

.venv-peers/%/ready: benchmarks/requirements-%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf .venv .venv-peers build demo
