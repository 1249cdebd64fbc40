# The dozen verbs of this project; the same locally and in CI.
PYTHON ?= python3
VENV := .venv
# Where an installed toolchain lands when the shell has not been told yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Bytecode is kept even where the environment says not to: else each of the hundreds of processes that tests start compiles all it imports.
export PYTHONDONTWRITEBYTECODE :=
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv
NATIVE := src/modelmesh/_native.abi3.so
RUST_SOURCES := $(shell find rust -name '*.rs' -not -path '*/target/*' -not -path '*/fuzz/*') $(wildcard rust/*/Cargo.toml) rust/Cargo.toml rust/Cargo.lock

.DEFAULT_GOAL := help
.PHONY: help build serve test test-python test-rust stories lint types fuzz bench soak reliability announced wire clean

help:  ## Show these verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

build: $(VENV)/.built  ## Build everything into .venv

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

$(VENV)/.rust:  | $(BIN)/uv
	@command -v cargo >/dev/null || bash scripts/install-rust
	@touch $@

$(VENV)/.built: pyproject.toml $(RUST_SOURCES) | $(BIN)/uv $(VENV)/.rust
	$(UV) pip install -q -e '.[all]' --group examples
	@touch $@

$(VENV)/.etcd: | $(BIN)/uv
	@bash scripts/install-etcd $(BIN)
	@touch $@

$(VENV)/.dev: $(VENV)/.built
	$(UV) pip install -q --group dev
	@touch $@

serve: build  ## Train the example models when absent, and serve them
	$(BIN)/python -m examples.train examples/models
	$(BIN)/modelmesh serve examples/models

test: test-rust test-python  ## Install what the tests need and run them all

test-rust: | $(VENV)/.rust
	cd rust && cargo test --workspace --exclude bindings -q

test-python: $(VENV)/.dev $(VENV)/.etcd
	$(BIN)/python -m pytest

STORIES ?= 2500
stories: $(VENV)/.dev  ## Thousands of stories of several instances in virtual time, on all cores (STORIES=...)
	MODELMESH_MANY_SEEDS=$(STORIES) $(BIN)/python -m pytest -q -n auto tests/simulation/test_many_instances.py

lint: $(VENV)/.dev  ## Formatting, lint and the import contract, both languages
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports
	cd rust && cargo fmt --all --check && cargo clippy --workspace --all-targets -q -- -D warnings

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy

wire: $(VENV)/.dev  ## Generate code from the .proto files; the result is checked in
	$(BIN)/python -m modelmesh.wire.generate

bench: $(VENV)/.dev $(VENV)/.etcd  ## Measure beside references: make bench ARGS="--only relay --quick"
	$(BIN)/python -m bench $(ARGS)

soak: $(VENV)/.dev  ## Thousands of models in a fraction of their memory, every answer checked
	$(BIN)/python -m bench.soak $(ARGS)

reliability: $(VENV)/.dev $(VENV)/.etcd  ## Real instances on machines of their own, real faults: what clients see (ARGS=...)
	$(BIN)/python -m bench.reliability $(ARGS)

announced: $(VENV)/.dev $(VENV)/.etcd  ## The figures that ModelMesh was announced with, measured here (ARGS=...)
	$(BIN)/python -m bench.announced $(ARGS)

FUZZ_SECONDS ?= 10
FUZZ_TARGETS := $(basename $(notdir $(wildcard rust/fuzz/fuzz_targets/*.rs)))

fuzz: | $(VENV)/.rust  ## Feed broken input to every parser, FUZZ_SECONDS each; guided by coverage where cargo-fuzz is installed
	@cd rust/fuzz && if cargo +nightly fuzz --version >/dev/null 2>&1; then \
	  cargo run -q --release -- corpus corpus && for target in $(FUZZ_TARGETS); do \
	    cargo +nightly fuzz run $$target --fuzz-dir . --features libfuzzer -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	  done; \
	else \
	  cargo run -q --release -- $(FUZZ_SECONDS); \
	fi

clean:
	rm -rf $(VENV) rust/target $(NATIVE)
