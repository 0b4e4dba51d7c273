"""The second loader's program must keep the maps that the first one's decoders read."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qosd.ebpf import bcc
from qosd.ebpf.errors import BccMissingError, NotByBccError
from qosd.ebpf.tracing import TracingOptions

PROBES = Path(__file__).resolve().parents[2] / "qosd/ebpf/probes"
SHARED = {
    "root": "roots.h",
    **dict.fromkeys(("task", "workload", "waits", "pair", "blame", "occupant", "cpu", "event"), "runq.c"),
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
    with pytest.raises(BccMissingError, match="not Debian's python3-bpfcc"):
        bcc._import_bcc()
    assert sys.path == path


def test_without_the_run_queue_probe_there_is_nothing_for_bcc_to_load() -> None:
    with pytest.raises(NotByBccError, match="blkio: bcc loads the runq probe only"):
        bcc.open_tracing(SimpleNamespace(), TracingOptions(probes=("blkio",)))  # type: ignore[arg-type]


def test_headers_that_a_sandbox_hides_are_found_where_debian_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated half by flags, the common half by what bcc takes for the kernel's source."""
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    release = os.uname().release
    build = tmp_path / f"usr/src/linux-headers-{release}"
    build.mkdir(parents=True)
    assert bcc.headers(f"{tmp_path}/") == []
    (build / "Makefile").write_text("include /usr/src/linux-headers-6.1.0-1-common/Makefile\n")
    flags = bcc.headers(f"{tmp_path}/")
    assert f"-I{build}/include" in flags
    assert os.environ["BCC_KERNEL_SOURCE"] == "/usr/src/linux-headers-6.1.0-1-common"
    (tmp_path / f"lib/modules/{release}/build").mkdir(parents=True)
    assert bcc.headers(f"{tmp_path}/") == []
