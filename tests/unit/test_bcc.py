"""The second loader's program must keep the maps that the first one's decoders read."""

from __future__ import annotations

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
