"""The second loader's program must keep the maps that the first one's decoders read."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qosd.ebpf import bcc, compiler
from qosd.ebpf.errors import BccMissingError, NotByBccError, RefusedError
from qosd.ebpf.tracing import TracingOptions

PROBES = Path(__file__).resolve().parents[2] / "qosd/ebpf/probes"
SHARED = {
    "root": "roots.h",
    **dict.fromkeys(("workload", "waits", "pair", "blame", "occupant", "cpu", "event"), "runq.c"),
    "runq_settings": "runq.c",
}
CONSTANTS = ("HISTORY", "TASKS", "HISTOGRAM_SLOTS", "WATCHED", "NOBODY")


def members(source: str, name: str) -> list[str]:
    """A structure's members, without comments and the prefixes that differ."""
    found = re.search(rf"^struct {name} \{{(.*?)^\}}", source, re.MULTILINE | re.DOTALL)
    assert found, name
    text = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    text = text.replace("struct qosd_", "struct ").replace("__u", "u")
    return [" ".join(member.split()) for member in text.split(";") if member.strip()]


@pytest.mark.parametrize("name", SHARED)
def test_both_programs_keep_the_same_structures(name: str) -> None:
    ours = (PROBES / SHARED[name]).read_text()
    theirs = (PROBES / "runq.bcc.c").read_text()
    assert members(theirs, f"qosd_{name.removeprefix('runq_')}") == members(ours, name)


@pytest.mark.parametrize("name", CONSTANTS)
def test_both_programs_have_the_same_constants(name: str) -> None:
    defined = [
        found[1]
        for file in ("kernel.h", "roots.h", "runq.c", "runq.bcc.c")
        if (found := re.search(rf"^#define {name} (\S+)", (PROBES / file).read_text(), re.MULTILINE))
    ]
    assert len(defined) == 2
    assert len(set(defined)) == 1


def test_the_bcc_of_pypi_is_not_taken_for_debians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", SimpleNamespace())
    path = list(sys.path)
    with pytest.raises(compiler.NoBccError, match="not Debian's python3-bpfcc"):
        compiler.import_bcc()
    assert sys.path == path


def test_without_the_run_queue_probe_there_is_nothing_for_bcc_to_load() -> None:
    with pytest.raises(NotByBccError, match="blkio: bcc loads the runq probe only"):
        bcc.open_tracing(SimpleNamespace(), TracingOptions(probes=("blkio",)))  # type: ignore[arg-type]


class Refusing(SimpleNamespace):
    """A library that nothing is asked of but the number of CPUs."""

    def __init__(self) -> None:
        super().__init__(call=SimpleNamespace(libbpf_num_possible_cpus=lambda: 2))


def compiling_with(monkeypatch: pytest.MonkeyPatch, path: Path, code: str) -> bcc.Compiling:
    """A compiler of the test's own in the real one's place; `channel` is where its answer goes."""
    script = path / "compiler.py"
    script.write_text(
        f"import os, socket, sys, time\nchannel = socket.socket(fileno=int(sys.argv[1]))\n{code}\n"
    )
    monkeypatch.setattr(compiler, "__file__", str(script))
    return bcc.Compiling(Refusing(), TracingOptions(probes=("runq",)))  # type: ignore[arg-type]


def test_while_bcc_compiles_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiling = compiling_with(monkeypatch, tmp_path, "time.sleep(600)")
    assert compiling.result() is None
    compiling.close()


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ('channel.send(b\'{"kind": "missing", "why": "install it"}\')', BccMissingError, "install it"),
        ('channel.send(b\'{"kind": "refused", "why": "no headers"}\')', RefusedError, "no headers"),
        ("channel.close(); sys.exit(3)", RefusedError, "ended with status 3"),
        ("os.kill(os.getpid(), 9)", RefusedError, "ended with status -9"),
    ],
)
def test_what_became_of_the_compiler_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, error: type[Exception], words: str
) -> None:
    compiling = compiling_with(monkeypatch, tmp_path, code)
    with pytest.raises(error, match=words):
        compiling.result(60)
    compiling.close()


def test_a_host_without_bcc_is_told_which_package_to_install() -> None:
    """The real process, on a machine that has none; where it is installed it may succeed."""
    if Path(compiler.DIST_PACKAGES, "bcc").exists():
        pytest.skip("python3-bpfcc is installed here")
    compiling = bcc.Compiling(Refusing(), TracingOptions(probes=("runq",)))  # type: ignore[arg-type]
    with pytest.raises(BccMissingError, match="install python3-bpfcc"):
        compiling.result(60)
    compiling.close()


def test_headers_that_a_sandbox_hides_are_found_where_debian_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated half by flags, the common half by what bcc takes for the kernel's source."""
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    release = os.uname().release
    build = tmp_path / f"usr/src/linux-headers-{release}"
    build.mkdir(parents=True)
    assert compiler.headers(f"{tmp_path}/") == []
    (build / "Makefile").write_text("include /usr/src/linux-headers-6.1.0-1-common/Makefile\n")
    flags = compiler.headers(f"{tmp_path}/")
    assert f"-I{build}/include" in flags
    assert os.environ["BCC_KERNEL_SOURCE"] == "/usr/src/linux-headers-6.1.0-1-common"
    (tmp_path / f"lib/modules/{release}/build").mkdir(parents=True)
    assert compiler.headers(f"{tmp_path}/") == []
