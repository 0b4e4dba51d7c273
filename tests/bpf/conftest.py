"""A real kernel with BTF and cgroup2, and cgroups of our own on it that are removed afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import VMLINUX_BTF
from qosd.model import CgroupId

PROBES = Path(__file__).parents[2] / "qosd/ebpf/probes"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_not()
    for item in items:
        if "tests/bpf" in item.path.as_posix():
            item.add_marker(pytest.mark.native)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "loading BPF programs needs root"
    if not os.path.exists(VMLINUX_BTF):
        return f"no {VMLINUX_BTF}: the kernel has no BTF"
    if cgroup2() is None:
        return "no cgroup2 mount that can be written"
    if not (PROBES / "tracing.bpf.o").exists():
        return "the probes are not compiled: make bpf"
    return None


def cgroup2() -> Path | None:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        found = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    return next((Path(path) for path in found if os.access(path, os.W_OK)), None)


class Cgroup:
    """A cgroup2 directory of the test's own."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.id = CgroupId(path.stat().st_ino)

    def run(self, code: str, *, cpu: int | None = None) -> subprocess.Popen[bytes]:
        """A Python child that is in the cgroup, and on the CPU, before its first line."""
        # Nice -20, so that what else the host runs hardly counts.
        pin = f"os.sched_setaffinity(0, {{{cpu}}}); os.nice(-20);" if cpu is not None else ""
        enter = f"import os; open({str(self.path / 'cgroup.procs')!r}, 'w').write('0');{pin}\n"
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", enter + code])


@pytest.fixture(scope="session")
def library() -> Library:
    return Library()


@pytest.fixture
def cgroup(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Cgroup]]:
    """`cgroup("ls")`, `cgroup("ls/child")`: made on demand under one root, killed and removed at the end."""
    mount = cgroup2()
    assert mount is not None
    root = Cgroup(mount / f"qosd-test-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**6}")
    made: list[Cgroup] = [root]

    def make(name: str) -> Cgroup:
        made.append(Cgroup(root.path / name))
        return made[-1]

    yield make
    with contextlib.suppress(OSError):
        (root.path / "cgroup.kill").write_text("1")
    for each in reversed(made):
        _remove(each.path)


def _remove(path: Path) -> None:
    """A killed task leaves its cgroup only once it is reaped: wait for `populated 0`."""
    events = path / "cgroup.events"
    for _ in range(10_000):
        if "populated 0" in events.read_text():
            break
        os.sched_yield()
    path.rmdir()


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[dict[str, str]], bytes]:
    """`compiled({"old": "new"})`: the tracing object from sources in which the text was replaced."""
    if not shutil.which("clang"):
        pytest.skip("clang is not installed: the altered probe can't be compiled")

    def compile_with(changes: dict[str, str]) -> bytes:
        for source in (*PROBES.glob("*.c"), *PROBES.glob("*.h")):
            text = source.read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            (tmp_path / source.name).write_text(text)
        target = tmp_path / "altered.bpf.o"
        include = f"/usr/include/{os.uname().machine}-linux-gnu"
        command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-idirafter", include, "-c"]
        subprocess.run([*command, str(tmp_path / "tracing.bpf.c"), "-o", str(target)], check=True)
        return target.read_bytes()

    return compile_with
