# Every command a person needs. `make demo` and `make test` install what they use, then do their work.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
RUN := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help demo test test-fast lint format deb wheel lab bench-tick bpf bench-ebpf bench-net clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/stamp: pyproject.toml packaging/bootstrap
	packaging/bootstrap venv $(PYTHON) $(VENV)
	@touch $@

test: $(VENV)/stamp ## lint, types, contracts and every test, the VM on both kernels included
	packaging/bootstrap lab
	$(RUN) -m pytest

test-fast: $(VENV)/stamp ## everything but the VM, under a minute
	$(RUN) -m pytest -m "not vm"

lint: $(VENV)/stamp ## ruff, mypy --strict, import contracts
	$(RUN) -m pytest tests/test_linters.py

format: $(VENV)/stamp ## let ruff format and fix what it can
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# clang takes asm/types.h from the multiarch directory; llvm-strip -g drops DWARF and keeps BTF.
BPF_OBJECTS := $(patsubst %.c,%.o,$(wildcard qosd/ebpf/probes/*.bpf.c))

bpf: $(BPF_OBJECTS) ## compile the eBPF probes (needs clang, llvm, libbpf-dev: packaging/bootstrap package)

%.bpf.o: %.bpf.c $(wildcard qosd/ebpf/probes/*.[ch])
	clang -O2 -g -target bpf -mcpu=v3 -Wall -Werror -idirafter /usr/include/$(shell uname -m)-linux-gnu -c $< -o $@
	llvm-strip -g $@

bench-net: $(VENV)/stamp bpf ## BE rate, LS ping under a flood, yield time, netlink requests (root)
	PYTHONPATH=.:tests $(RUN) bench/net.py

clean: ## remove what was built
	rm -rf build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
