# Every command a person needs. `make demo` and `make test` install what they use, then do their work.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
RUN := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE := 1

# Tests that share a guest, or need a CPU to themselves, stay on one worker: two guests at a time.
PARALLEL := -n 2 --dist loadgroup

.PHONY: help demo test fast-stage images test-fast lint format bpf build-packages deb wheel pins lab bench-tick bench-cpu bench-ebpf bench-net bench-memory bench-fast bench-oom bench-scenes clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/stamp: pyproject.toml packaging/bootstrap
	packaging/bootstrap venv $(PYTHON) $(VENV)
	@touch $@

demo: $(VENV)/stamp ## qosd on real programs in a VM, ends with a table and demo/report.html (HOST=1: on this host)
	$(RUN) -m qosd.lab.demo $(if $(HOST),--host) $(DEMO_OPTIONS)

# The images come over the network while the package is built and what needs no quiet machine is tested.
test: $(VENV)/stamp ## lint, types, contracts and every test, the VM on both kernels included
	packaging/bootstrap test package
	$(MAKE) --no-print-directory -j 2 images fast-stage
	$(RUN) -m pytest -m native $(PARALLEL)
	$(RUN) -m pytest -m vm -p no:randomly $(PARALLEL)

fast-stage: deb
	$(RUN) -m pytest -m "not native and not vm" $(PARALLEL)

images: $(VENV)/stamp
	$(RUN) -m qosd.lab build
	$(RUN) -m qosd.lab build --variant bcc

test-fast: $(VENV)/stamp ## everything but the VM and what needs root, under a minute
	$(RUN) -m pytest -m "not vm and not native" $(PARALLEL)

lint: $(VENV)/stamp ## ruff, mypy --strict, import contracts
	$(RUN) -m pytest tests/test_linters.py

format: $(VENV)/stamp ## let ruff format and fix what it can
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

PROBES := $(patsubst %.bpf.c,%.bpf.o,$(wildcard qosd/ebpf/probes/*.bpf.c))

build-packages:
	packaging/bootstrap package

%.bpf.o: %.bpf.c $(wildcard qosd/ebpf/probes/*.[ch]) packaging/bpf | build-packages
	packaging/bpf $< $@

bpf: $(PROBES) ## compile the BPF programs

wheel: $(VENV)/stamp build-packages bpf ## dist/qosd-VERSION.whl
	rm -rf build dist/qosd-*.whl
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(RUN) -m build --wheel --outdir dist . >build.log 2>&1 || { cat build.log; exit 1; }
	rm -rf build build.log

deb: wheel ## dist/qosd_VERSION_ARCH.deb
	rm -f dist/qosd_*.deb
	$(RUN) packaging/deb.py dist/qosd-*.whl

bench-cpu: $(VENV)/stamp deb ## LS latency and BE work: static modes, peers' laws, qosd (root; on a quiet machine); then in the VM
	packaging/bootstrap lab
	$(if $(filter --vm,$(ARGS)),,$(RUN) -m bench.sched --loads 10,30,60,80 --json bench-cpu.json --markdown bench-cpu.md $(ARGS))
	$(RUN) -m bench.sched --vm $(ARGS)

pins: $(VENV)/stamp ## take newer libraries into the .deb
	$(RUN) packaging/pin.py

lab: $(VENV)/stamp ## build the VM image if need be and open a shell in it (LAB="run -- uname -a" for one command)
	packaging/bootstrap lab
	$(RUN) -m qosd.lab $(or $(LAB),shell)

bench-ebpf: $(VENV)/stamp bpf ## cost and reaction time of the probes, natively
	$(RUN) -m bench.ebpf
	$(RUN) -m bench.waits

bench-net: $(VENV)/stamp bpf deb ## BE rate, LS ping under a flood, yield time, netlink requests (root); natively, then in the VM
	packaging/bootstrap lab
	PYTHONPATH=.:tests $(RUN) -m bench.net $(ARGS)

bench-memory: $(VENV)/stamp deb ## LS page cache under a streaming BE, and background reclaim, in the VM
	$(RUN) -m bench.memory $(ARGS)

bench-oom: $(VENV)/stamp deb ## who ends a hog of memory, and what LS feels of it: the kernel, qosd, four other daemons (VM)
	packaging/bootstrap lab
	$(RUN) -m bench.oom $(ARGS)

bench-fast: $(VENV)/stamp deb ## burst of LS to BE's limit: by a PSI trigger, and by the tick alone (in the lab's guest)
	packaging/bootstrap lab
	$(RUN) -m bench.fast $(ARGS)

bench-scenes: $(VENV)/stamp deb ## labelled interference: precision and recall of verdicts, wrong kills (in the lab's guest)
	packaging/bootstrap lab
	packaging/bootstrap demo
	$(RUN) -m bench.scenes $(ARGS)

clean: ## remove what was built
	rm -rf build dist demo bench-scenes .mypy_cache .ruff_cache .pytest_cache .hypothesis

bench-tick: $(VENV)/stamp ## what looking costs, beside a naive walk of the same files
	$(RUN) -m bench.tick
