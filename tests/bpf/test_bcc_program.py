"""bcc's program without bcc: maps declared as libbpf wants them, compiled for bcc's processor, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bpf.conftest import PROBES
from bpf.test_runq import run_victim_and_hog, sample_of

from qosd.ebpf.bcc import HOOKS, NAMES, PROGRAMS, definitions
from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import Object
from qosd.ebpf.maps import Map
from qosd.ebpf.runq import Root, RunqOptions
from qosd.ebpf.tracing import Tracing, TracingOptions, possible_cpus

MS = 1_000_000
PRELUDE = """
#include "kernel.h"
typedef __u64 u64; typedef __u32 u32; typedef __u16 u16;
#define NULL ((void *)0)
#define lock_xadd(where, value) __sync_fetch_and_add(where, value)
#define MAP(kind, bits, key_, value_, name, entries) \\
    struct { __uint(type, kind); __uint(map_flags, bits); __uint(max_entries, entries); \\
             __type(key, key_); __type(value, value_); } name SEC(".maps")
#define BPF_HASH(name, key, value, n) MAP(BPF_MAP_TYPE_HASH, 0, key, value, name, n)
#define BPF_ARRAY(name, value, n) MAP(BPF_MAP_TYPE_ARRAY, 0, u32, value, name, n)
#define BPF_F_TABLE(kind, key, value, name, n, bits) MAP(BPF_MAP_TYPE_ARRAY, bits, key, value, name, n)
#define BPF_TABLE(kind, key, value, name, n) MAP(BPF_MAP_TYPE_LRU_HASH, 0, key, value, name, n)
#define BPF_RINGBUF_OUTPUT(name, pages) \\
    struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, pages * 4096); } name SEC(".maps")
"""


class AsBcc(Object):
    """An object whose maps have bcc's names."""

    def map(self, name: str) -> Map:
        return super().map(NAMES.get(name, name))


def translated() -> str:
    """The source, with bcc's way of naming maps written as calls of helpers."""
    text = (PROBES / "runq.bcc.c").read_text()
    text = re.sub(r"#include <linux/.*>\n", "", text)
    text = re.sub(r"(\w+)\.lookup\(", r"bpf_map_lookup_elem(&\1, ", text)
    text = re.sub(r"(\w+)\.insert\((.*?)\);", r"bpf_map_update_elem(&\1, \2, BPF_NOEXIST);", text)
    text = re.sub(r"(\w+)\.ringbuf_output\(", r"bpf_ringbuf_output(&\1, ", text)
    for program, hook in HOOKS.items():
        text = text.replace(f"int {program}(", f'SEC("raw_tp/{hook}")\nint {program}(')
    return PRELUDE + text


@pytest.fixture
def elf(library: Library, tmp_path: Path) -> bytes:
    if not shutil.which("clang"):
        pytest.skip("clang is not installed: the program can't be compiled")
    (tmp_path / "as_bcc.c").write_text(translated())
    structures = (PROBES / "kernel.h").read_text()
    (tmp_path / "kernel.h").write_text(
        structures.replace("int pid;", "int pid, on_cpu; unsigned int __state;")
    )
    flags = definitions(RunqOptions(max_workloads=16, event_gap_ns=0), possible_cpus(library))
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v1", "-idirafter", include, *flags, "-c"]
    subprocess.run([*command, str(tmp_path / "as_bcc.c"), "-o", str(tmp_path / "as_bcc.o")], check=True)
    return (tmp_path / "as_bcc.o").read_bytes()


@pytest.fixture
def as_bcc(library: Library, elf: bytes) -> Iterator[Tracing]:
    loaded = AsBcc(library, "as_bcc", elf)
    loaded.load()
    options = TracingOptions(probes=("runq",), runq=RunqOptions(max_workloads=16))
    tracing = Tracing(loaded, options, {}, possible_cpus(library))
    tracing.attach("runq", PROGRAMS)
    yield tracing
    tracing.close()


def test_both_programs_see_the_same_load_alike(library: Library, as_bcc: Tracing, cgroup: Any) -> None:
    """At the same time, one by the clock, one by the kernel's own times: waits within 2 %, long ones within a
    bucket, one hog blamed.

    By the clock a wait on an idle CPU has the time in it until the interrupt that wakes it.
    The kernel's own begins when the task is put on that CPU's queue, after it (ttwu_queue_wakelist()).
    bcc's remembers fewer occupants: on a busy CPU what is missing from the hog's share is unknown there.
    """
    victim, hog = cgroup("victim"), cgroup("hog")
    roots = {victim.id: Root(watched=True, threshold_ns=1 * MS), hog.id: Root(watched=True)}
    ours = Tracing.open(library, roots, TracingOptions(probes=("runq",)))
    as_bcc.set_roots(roots)
    try:
        run_victim_and_hog(victim, hog)
        samples = [sample_of(tracing) for tracing in (ours, as_bcc)]
        events = list(as_bcc.events())
    finally:
        ours.close()
    one, two = (sample.workloads[victim.id].waits for sample in samples)
    assert two.count == pytest.approx(one.count, rel=0.02)
    expected, found = one.quantile_ns(0.99), two.quantile_ns(0.99)
    assert expected is not None
    assert found is not None
    assert 0.5 <= found / expected <= 2
    assert two.total_ns == pytest.approx(one.total_ns, rel=0.02)
    exact, short = (sum(b.ns for b in sample.blames if b.culprit == hog.id) for sample in samples)
    assert short > 0.1 * exact > 0
    assert short + samples[1].workloads[victim.id].unknown_ns > 0.9 * exact
    assert short < 1.1 * exact
    assert {(b.victim, b.culprit_root) for b in samples[1].blames if b.culprit == hog.id} == {
        (victim.id, hog.id)
    }
    assert hog.id in {event.culprit for event in events}
    assert all(event.wait_ns >= 1 * MS for event in events)
    assert samples[1].cost_ns > 0
