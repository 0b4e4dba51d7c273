"""What happens when the kernel, the library or the object is not as wished."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qosd.ebpf import libbpf
from qosd.ebpf.errors import HookMissingError, LibraryMissingError, NotPermittedError, RefusedError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import Object, read_object
from qosd.ebpf.maps import run_time_statistics
from qosd.ebpf.tracing import ALL, Tracing, TracingOptions

BPF_PROG_GET_NEXT_ID = 11
BPF_LINK_GET_NEXT_ID = 31
SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)


def ids(command: int) -> set[int]:
    """Every BPF program (or link) of the host, by the bpf system call itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: set[int] = set()
    attr = (ctypes.c_uint32 * 4)()
    while libc.syscall(SYS_BPF, command, attr, ctypes.sizeof(attr)) == 0:
        found.add(attr[1])
        attr[0] = attr[1]
    return found


def held(pid: int, field: str) -> set[int]:
    """The `prog_id` or `link_id` of what a process has open: others load programs too."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            lines = info.read_text().splitlines()
            # A link's fdinfo has a prog_id as well.
            found |= {int(line.split()[1]) for line in lines if line.startswith(f"{field}:")}
    return found


def wait_until_gone(ours: set[int], command: int) -> None:
    """The kernel frees programs and links after a grace period."""
    deadline = time.monotonic() + 10
    while ids(command) & ours:
        assert time.monotonic() < deadline, f"still there: {ids(command) & ours}"
        time.sleep(0.005)


def test_a_refused_program_costs_its_own_probe_only_and_the_verifier_is_quoted(
    library: Library, compiled: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the check the pointer may be NULL: the verifier says so, and libbpf's own output is caught."""
    elf = compiled({"	if (!here)\n		return 0;\n	began": "	began"})
    tracing = Tracing.open(library, {}, elf=elf)
    try:
        error = tracing.absent["runq"]
        assert isinstance(error, RefusedError)
        assert error.program == "runq_switch"
        assert "invalid mem access 'map_value_or_null'" in str(error)
        assert "invalid mem access" in error.log
        sample = tracing.read()
        assert sample.runq is None
        assert sample.reclaim is not None
        assert sample.blkio is not None
        assert tracing.fd is None
    finally:
        tracing.close()
    assert capfd.readouterr().err == ""


def test_a_probe_without_its_tracepoint_is_absent_and_says_which(library: Library, compiled: Any) -> None:
    elf = compiled({"tp_btf/block_rq_complete": "tp_btf/no_such_tracepoint"})
    tracing = Tracing.open(library, {}, elf=elf)
    try:
        assert isinstance(tracing.absent["blkio"], HookMissingError)
        assert str(tracing.absent["blkio"]) == "blkio: this kernel has no no_such_tracepoint"
        assert set(tracing.run_time()) == {"runq", "reclaim", "tcp"}
    finally:
        tracing.close()


def test_a_dispensable_tracepoint_costs_nothing_but_itself(library: Library, compiled: Any) -> None:
    """A kernel without CONFIG_MEMCG has no mm_vmscan_memcg_reclaim_*."""
    elf = compiled({"tp_btf/mm_vmscan_memcg": "tp_btf/no_such"})
    tracing = Tracing.open(library, {}, elf=elf)
    try:
        assert tracing.absent == {}
        assert set(tracing.run_time()) == set(ALL)
    finally:
        tracing.close()


def test_a_kernel_that_keeps_no_times_of_waits_costs_the_run_queue_probe_alone(
    library: Library, compiled: Any
) -> None:
    """Without CONFIG_SCHED_INFO struct sched_info has no members."""
    elf = compiled({"last_queued": "not_there"})
    tracing = Tracing.open(library, {}, elf=elf)
    try:
        assert set(tracing.absent) == {"runq"}
        assert "sched_info.not_there" in str(tracing.absent["runq"])
        assert set(tracing.run_time()) == {"reclaim", "blkio", "tcp"}
    finally:
        tracing.close()


def test_when_no_probe_is_left_opening_fails_with_the_reason(library: Library, compiled: Any) -> None:
    elf = compiled({"tp_btf/sched_switch": "tp_btf/no_such_tracepoint"})
    with pytest.raises(HookMissingError, match="no no_such_tracepoint"):
        Tracing.open(library, {}, TracingOptions(probes=("runq",)), elf=elf)


def test_garbage_is_refused_with_a_sentence(library: Library) -> None:
    with pytest.raises(RefusedError, match="junk: the kernel refused the object"):
        Object(library, "junk", b"\x7fELF" + bytes(200))


def test_closing_leaves_no_program_and_no_link(library: Library) -> None:
    tracing = Tracing.open(library, {})
    our_programs, our_links = held(os.getpid(), "prog_id"), held(os.getpid(), "link_id")
    assert (len(our_programs), len(our_links)) == (9, 9)
    tracing.close()
    wait_until_gone(our_links, BPF_LINK_GET_NEXT_ID)
    wait_until_gone(our_programs, BPF_PROG_GET_NEXT_ID)


def test_after_sigkill_no_program_and_no_link_remains() -> None:
    """Nothing is pinned, so the kernel takes it all back with the process."""
    code = (
        "import sys, time; from qosd.ebpf.libbpf import Library; from qosd.ebpf.tracing import Tracing\n"
        "tracing = Tracing.open(Library(), {}); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        our_programs, our_links = held(child.pid, "prog_id"), held(child.pid, "link_id")
        assert (len(our_programs), len(our_links)) == (9, 9)
        child.send_signal(signal.SIGKILL)
    wait_until_gone(our_links, BPF_LINK_GET_NEXT_ID)
    wait_until_gone(our_programs, BPF_PROG_GET_NEXT_ID)


def test_without_the_capabilities_one_clear_sentence_says_so() -> None:
    """The bounding set is emptied and a new program run: what a unit without CAP_BPF would see."""
    code = (
        "from qosd.ebpf.libbpf import Library; from qosd.ebpf.tracing import Tracing\n"
        "from qosd.ebpf.errors import NotPermittedError\n"
        "try: Tracing.open(Library(), {})\n"
        "except NotPermittedError as error: print(error)"
    )
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code]
    result = subprocess.run(drop, capture_output=True, text=True, check=True)
    assert "CAP_BPF and CAP_PERFMON are needed" in result.stdout
    assert result.stderr == ""
    assert issubclass(NotPermittedError, Exception)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "SONAME", "libbpf.so.99")
    with pytest.raises(LibraryMissingError, match=r"libbpf\.so\.99 can't be used, install libbpf1"):
        Library()


def test_what_a_probe_costs_is_counted_while_statistics_are_on(library: Library) -> None:
    tracing = Tracing.open(library, {}, TracingOptions(probes=("runq",)))
    try:
        with run_time_statistics(library):
            before = tracing.run_time()["runq"]
            subprocess.run(["true"], check=True)
            after = tracing.run_time()["runq"]
    finally:
        tracing.close()
    assert after.run_cnt > before.run_cnt
    assert after.run_time_ns > before.run_time_ns


def test_a_detached_probe_is_off_its_hooks_and_the_others_go_on(library: Library) -> None:
    tracing = Tracing.open(library, {})
    try:
        before = held(os.getpid(), "link_id")
        tracing.detach("runq", NotPermittedError("runq: too dear"))
        assert len(before) - len(held(os.getpid(), "link_id")) == 2
        assert str(tracing.absent["runq"]) == "runq: too dear"
        assert tracing.read().runq is None
        assert tracing.read().blkio is not None
    finally:
        tracing.close()


def test_the_objects_carry_a_licence_that_the_kernel_takes_and_no_debug_sections() -> None:
    for name in ("tracing", "skbprio"):
        elf = read_object(name)
        assert b"GPL v2\0" in elf
        assert b".debug_info" not in elf
        assert b".BTF.ext" in elf
    assert json.dumps(list(ALL)) == '["runq", "reclaim", "blkio", "tcp"]'
