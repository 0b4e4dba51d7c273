"""The probes in whole ticks: what they count is in the snapshot and the status, and what is learned stays."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from probekit import FakeTracing
from treekit import Box

from qosd.config import Config, decode
from qosd.ebpf.errors import BpfCallError
from qosd.ebpf.session import Session
from qosd.learned import BASELINES, PRESSURES, Learned
from qosd.probes import Probes

LEARNING = decode("[ebpf.baseline]\nmin_learned = 100")
QUIET = {"ls": 1.0, "be": 0.1, "system": 0.2}


def probed(path: Path, config: Config = LEARNING) -> tuple[Box, FakeTracing]:
    path.mkdir(exist_ok=True)
    box = Box(path, config)
    tracing = FakeTracing((box.root / "ls.slice").stat().st_ino)
    box.engine.probes = Probes(config, lambda ebpf: Session(tracing, "libbpf", ebpf))  # type: ignore[arg-type]
    box.engine.probes.open()
    return box, tracing


def test_what_is_counted_is_in_the_status_and_the_threshold_follows_what_is_learned(tmp_path: Path) -> None:
    """Waits of 2 to 4 ms are normal here, so word is sent only of longer ones than the floor."""
    box, tracing = probed(tmp_path)
    tracing.slot = 12
    for _ in range(6):
        tracing.waits += 50
        status = box.tick(**QUIET)
    assert status.ebpf is not None
    (runq,) = [each for each in status.ebpf.latencies if (each.tier, each.signal) == ("ls", "runq")]
    assert (runq.count, runq.cold, runq.breach) == (50, False, False)
    assert runq.baseline_usec is not None
    assert runq.threshold_usec == 3 * runq.baseline_usec
    assert tracing.roots[tracing.ls].threshold_ns == round(runq.threshold_usec * 1000)
    snapshot = box.engine.snapshot
    assert snapshot is not None
    assert {each.id for each in snapshot.probed} == {workload.id for workload in snapshot.workloads}
    box.close()


def test_probes_that_fail_in_a_tick_cost_the_probes_and_not_the_tick(tmp_path: Path) -> None:
    box, tracing = probed(tmp_path)
    box.settle(**QUIET)
    tracing.error = BpfCallError("runq_blames: lookup_batch", 12, "Cannot allocate memory")
    status = box.tick(**QUIET)
    assert status.mode == "enforce"
    assert status.ebpf is not None
    assert {probe.state for probe in status.ebpf.probes} == {"absent", "off"}
    assert tracing.closed
    box.close()


def test_closing_the_engine_takes_the_probes_off(tmp_path: Path) -> None:
    box, tracing = probed(tmp_path)
    box.tick(**QUIET)
    box.engine.close()
    assert tracing.closed


def learned(path: Path, state: Path) -> Box:
    box, tracing = probed(path)
    for _ in range(6):
        tracing.waits += 50
        box.tick(**QUIET)
    Learned(box.sys, str(state), box.engine, BASELINES).save()
    return box


def test_a_restart_goes_on_with_what_was_normal(tmp_path: Path) -> None:
    first = learned(tmp_path / "first", tmp_path)
    second, tracing = probed(tmp_path / "second")
    second.sys.wall_seconds = first.sys.wall_seconds + 60
    Learned(second.sys, str(tmp_path), second.engine, BASELINES).recall()
    tracing.waits = 1
    status = second.tick(**QUIET)
    assert status.ebpf is not None
    (runq,) = [each for each in status.ebpf.latencies if (each.tier, each.signal) == ("ls", "runq")]
    assert not runq.cold
    first.close()
    second.close()


def test_a_damaged_file_is_a_cold_start_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    box = learned(tmp_path / "first", tmp_path)
    (tmp_path / BASELINES.file).write_bytes(b'{"version":1,')
    before = box.engine.baselines
    Learned(box.sys, str(tmp_path), box.engine, BASELINES).recall()
    assert box.engine.baselines == before
    assert [record.levelname for record in caplog.records if record.message.startswith("baselines")] == [
        "INFO"
    ]
    assert "damaged" in caplog.text
    box.close()


def test_a_restart_goes_on_with_what_pressure_was_normal(tmp_path: Path) -> None:
    """By path: the second host's cgroups are others."""
    calm = {"ls": 1.0, "be": 0.0, "system": 0.2}
    first, _ = probed(tmp_path / "first")
    for _ in range(8):
        first.tick(**calm)
    Learned(first.sys, str(tmp_path), first.engine, PRESSURES).save()
    second, _ = probed(tmp_path / "second")
    second.sys.wall_seconds = first.sys.wall_seconds + 60
    Learned(second.sys, str(tmp_path), second.engine, PRESSURES).recall()
    for box in (first, second):
        box.tick(ls=1.0, be=3.0)
        box.tick(ls=1.0, be=3.0)
    ticks = [
        {key.name: known.ticks for key, known in box.engine.interference_state.baselines.items()}
        for box in (first, second)
    ]
    for name in ("cpu.pressure", "memory.pressure", "io.pressure"):
        assert ticks[0][name] >= 5
        assert ticks[1][name] == ticks[0][name] - 1, "a minute has worn off"
    first.close()
    second.close()


def test_a_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = learned(tmp_path / "first", tmp_path)
    baselines = Learned(box.sys, str(tmp_path / "nowhere"), box.engine, BASELINES)
    baselines.save()
    baselines.save()
    assert [record.message.split(":")[0] for record in caplog.records] == ["baselines"]
    box.close()


def test_it_is_saved_when_it_is_due_and_not_before(tmp_path: Path) -> None:
    box, tracing = probed(tmp_path / "box", decode('[ebpf.baseline]\ncheckpoint = "30s"'))
    baselines = Learned(box.sys, str(tmp_path), box.engine, BASELINES)
    saved = []
    for _ in range(40):
        tracing.waits += 50
        box.tick(**QUIET)
        baselines.save_if_due()
        saved.append((tmp_path / BASELINES.file).exists())
    assert saved.index(True) in range(28, 32)
    box.close()
