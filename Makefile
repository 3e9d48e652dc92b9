# The one entry. `make demo`, `make test` and `make bench` work from a bare checkout, as root, on Debian 12
# and 13 and Ubuntu 24.04: each installs what it needs (system packages, .venv, BPF objects), once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

# `make bpf PACKAGES=true` only compiles.
PACKAGES ?= .ci/packages

CLANG ?= clang
# asm/types.h, which linux/types.h includes, is in the directory of the machine's own architecture.
BPF_CFLAGS := -O2 -g -Wall -Werror -target bpf -mcpu=v3 -I/usr/include/$(shell uname -m)-linux-gnu
OBJECTS := $(patsubst bpf/%.c,penstock/redirect/objects/%.o,$(wildcard bpf/*.c))
TEST_OBJECTS := $(patsubst bpf/tests/%.c,build/bpf/%.o,$(wildcard bpf/tests/*.c))

# Node scenarios that run side by side.
NODE_WORKERS ?= 3

# The node scenario that `quick` runs.
QUICK_NODE ?= tests/node/test_spine_redirect.py

.PHONY: help
help: ## Show this
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

# --- what everything stands on -------------------------------------------------------------------

.PHONY: setup packages
setup: packages $(VENV)/.installed bpf ## Install system packages, .venv and the BPF objects, as far as missing
	@# Where Python may write no byte code of its own, each of the many processes of a test would compile everything anew.
	@$(BIN)/python -m compileall -q penstock

packages:
	@$(PACKAGES)

$(VENV)/.installed: pyproject.toml constraints.txt | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Penstock needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --retries 5 -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: bpf
bpf: $(OBJECTS) ## Compile the BPF objects

penstock/redirect/objects/%.o: bpf/%.c $(wildcard bpf/*.h) Makefile | packages
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@

build/bpf/%.o: bpf/tests/%.c $(wildcard bpf/*.h bpf/*.c bpf/tests/*.h) Makefile | packages
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -Ibpf -c $< -o $@

# --- tests, from the quickest to the slowest ------------------------------------------------------

.PHONY: lint unit bpf-test node-test test-compose quick test
lint: setup ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit: setup ## Tests that need neither root nor Envoy
	$(PYTEST) -q -n 2 tests/unit

bpf-test: setup $(TEST_OBJECTS) ## The BPF programs under BPF_PROG_TEST_RUN (root)
	$(PYTEST) -q tests/bpf

# A scenario mostly waits (for Envoy, for a lease, for a drain), so more of them than cores run side by side, each in
# namespaces of its own. Those that measure run alone, afterwards; so do up to three that failed in company. What
# passes then is named FLAKY, and is a fault to be found: of a test that leaves something, or a race of Penstock's.
node-test: setup ## Namespaces, the kernel and Envoy (root)
	.ci/again 3 $(PYTEST) -q -n $(NODE_WORKERS) --dist loadfile -m "not alone" tests/node
	$(PYTEST) -q -m alone tests/node

test-compose: compose-images ## Containers of a Docker Engine of its own (root)
	$(PYTEST) -q tests/compose

.PHONY: compose-images
compose-images: setup
	@.ci/docker
	@.ci/wheels
	@test -s build/compose/base.tar || { mkdir -p build/compose && .ci/base-image build/compose/base.tar \
		python3 python3-venv libbpf1 iproute2 util-linux procps; }

quick: lint unit bpf-test ## lint, unit, BPF and one node scenario, in under three minutes
	$(PYTEST) -q $(QUICK_NODE)

test: lint unit bpf-test node-test test-compose ## All of it

.PHONY: fuzz
FUZZ_MINUTES ?= 60
fuzz: setup ## Generated manifests and xDS dialogues by turns, for an hour (FUZZ_MINUTES)
	$(BIN)/python .ci/fuzz $(FUZZ_MINUTES)

# --- what there is to see -------------------------------------------------------------------------

.PHONY: demo bench clean
demo: setup ## Two nodes, one after the other what Penstock does
	$(BIN)/penstock demo

bench: compose-images ## Measure; raw figures go to bench-results/
	@# The server, the loads of `bench l4` and of HTTP/2, the sidecars' redirection. Debian starts an installed nginx: only ours is to run.
	@command -v iperf3 >/dev/null && command -v iptables-restore >/dev/null && command -v h2load >/dev/null && test -x /usr/sbin/nginx || { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends nginx-light iperf3 iptables nghttp2-client >/dev/null && { systemctl disable -q --now nginx || true; }; }
	$(BIN)/penstock bench all

clean: ## Remove what was built, but not .venv
	rm -rf build dist penstock/redirect/objects/*.o .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
