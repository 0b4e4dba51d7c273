"""Who is to blame for a reading: whom the probe saw, else who was active; BE only for enough of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from suffering import BE, LS, MIB, OTHER_LS, SECOND, Stage

from qosd.config import Config
from qosd.interference import blame
from qosd.interference.activity import Frame
from qosd.interference.blame import Blame, Cause, Doings, Shares
from qosd.interference.signals import Kind, Signal, from_pressure
from qosd.model import CgroupSample, CpuStat, DiskIo
from qosd.schema.interference import Interference

SHARES = Shares(inferred=20, seen=50)
SYSTEM = 77
"""A cgroup that is in no workload."""


def judge(signal: Signal, frame: Frame, earlier: tuple[Doings, ...] = ()) -> Blame:
    return blame.judge(signal, frame, SHARES, earlier)


def frame(**what: float) -> Frame:
    stage = Stage(Config())
    stage.tick()
    return Frame(stage.snapshot(), stage.snapshot(**what))


def waits(value: float = 90.0, **culprits: float) -> Signal:
    ids = {"be": BE, "ls": OTHER_LS, "itself": LS, "system": SYSTEM}
    seen = tuple((ids[who], share) for who, share in culprits.items())
    return Signal(LS, "runq", Kind.CPU, value, 25, 1.0, cold=False, culprits=seen)


def test_culprits_that_a_signal_names_are_believed_before_any_guess() -> None:
    found = judge(waits(ls=0.9, be=0.1), frame(be=3))

    assert found.cause is Cause.LS
    assert found.confidence == pytest.approx(0.9)
    unseen = judge(waits(), frame(be=3))
    assert unseen.cause is Cause.BE
    assert unseen.confidence == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("culprits", "cause"),
    [
        ({"be": 0.6, "system": 0.4}, Cause.BE),
        ({"be": 0.5, "system": 0.5}, Cause.BE),
        ({"be": 0.4, "system": 0.6}, Cause.SYSTEM),
        ({"be": 0.45, "system": 0.15, "ls": 0.3, "itself": 0.1}, Cause.LS),
        ({"be": 0.3, "itself": 0.7}, Cause.SELF),
    ],
    ids=["most", "half", "less", "more than anybody else and not enough", "beside the victim itself"],
)
@pytest.mark.parametrize("value", [26.0, 900.0])
def test_of_what_was_seen_be_must_have_half_however_large_the_breach(
    culprits: dict[str, float], cause: Cause, value: float
) -> None:
    assert judge(waits(value, **culprits), frame(be=3)).cause is cause


@pytest.mark.parametrize(
    ("be", "value", "cause"),
    [
        (1.8, 90.0, Cause.BE),
        (1.2, 90.0, Cause.LS),
        (1.2, 40.0, Cause.BE),
        (0.3, 26.0, Cause.LS),
    ],
    ids=["the largest part", "a part that is not enough", "without it no breach", "less than be_share_pct"],
)
def test_where_nobody_was_seen_be_is_to_blame_for_the_largest_part_or_for_the_one_that_makes_the_breach(
    be: float, value: float, cause: Cause
) -> None:
    assert judge(waits(value), frame(be=be, other_ls=3 - be)).cause is cause


def test_who_was_seen_is_asked_of_all_readings_that_make_a_verdict_and_not_of_the_last_one_alone() -> None:
    """A hog that comes while the system is in the way has not made the two readings before it."""
    hog, of = waits(be=0.7, system=0.3), frame(be=3)
    system = judge(waits(system=1.0), of).seen

    assert judge(hog, of).cause is Cause.BE
    assert judge(hog, of, (system, system)).cause is Cause.SYSTEM
    both = judge(hog, of, (system, judge(hog, of).seen))
    assert (both.cause, round(both.confidence, 2)) == (Cause.SYSTEM, 0.53)
    assert judge(hog, of, (judge(hog, of).seen,) * 2).cause is Cause.BE


def test_pressure_on_a_cpu_is_put_down_to_whom_the_probe_saw_there_and_not_to_who_was_busy_elsewhere() -> (
    None
):
    unseen = frame(be=3, other_ls=1, ls_cpu_wait=0.6)
    pressures = from_pressure(Interference(), unseen.prev, unseen.now, {})
    pressure = next(each for each in pressures if each.victim == LS)

    assert pressure.name == "cpu.pressure"
    assert judge(pressure, unseen).cause is Cause.BE
    seen = unseen._replace(seen={LS: ((OTHER_LS, 0.95), (BE, 0.05))})
    assert judge(pressure, seen).cause is Cause.LS


def test_a_cold_cgroup_that_was_read_in_one_of_two_ticks_proves_no_throttling() -> None:
    stage = Stage(Config())
    stage.tick()
    prev, now = stage.snapshot(), stage.snapshot(be=3, ls=1)
    cold = CgroupSample(now.workloads[0].id, "ls.slice/cold", CpuStat(0, 0, 0, throttled_usec=9 * SECOND))
    later = msgspec.structs.replace(now, descendants=(msgspec.structs.replace(cold, id=99),))
    signal = Signal(LS, "cpu.pressure", Kind.CPU, 60, 25, None, cold=True)

    assert judge(signal, Frame(prev, later)).cause is Cause.BE


def test_a_service_held_over_several_periods_in_one_go_shows_it_in_nr_throttled_alone() -> None:
    stage = Stage(Config())
    stage.tick()
    prev, now = stage.snapshot(), stage.snapshot(be=3, ls=1)
    held = [
        CgroupSample(99, "ls.slice/web", CpuStat(0, 0, 0, nr_throttled=n, throttled_usec=7)) for n in (2, 5)
    ]
    of = Frame(
        msgspec.structs.replace(prev, descendants=(held[0],)),
        msgspec.structs.replace(now, descendants=(held[1],)),
    )
    signal = Signal(LS, "cpu.pressure", Kind.CPU, 60, 25, None, cold=True)

    found = judge(signal, of)

    assert found.cause is Cause.SELF
    assert "nr_throttled rose by 3 periods" in found.text


def test_bytes_that_be_moves_tell_who_does_io_also_while_qosd_limits_it() -> None:
    stage = Stage(Config())
    prev, now = stage.snapshot(), stage.snapshot(ls_io_wait=0.9, be_io_wait=0.9)

    def moving(snapshot: Any, be: int, ls: int) -> Any:
        size = {BE: be, LS: ls}
        return msgspec.structs.replace(
            snapshot,
            workloads=tuple(
                msgspec.structs.replace(
                    each,
                    sample=msgspec.structs.replace(
                        each.sample, io={"8:0": DiskIo(size.get(each.id, 0), 0, 1, 1)}
                    ),
                )
                for each in snapshot.workloads
            ),
        )

    signal = Signal(LS, "io.pressure", Kind.IO, 90, 30, 1.0, cold=False)
    limited = frozenset({Kind.IO})
    busy = Frame(moving(prev, 0, 0), moving(now, 900 * MIB, 100 * MIB), limited)
    calm = Frame(moving(prev, 0, 0), moving(now, 10 * MIB, 900 * MIB), limited)
    assert judge(signal, busy).cause is Cause.BE
    assert judge(signal, calm).cause is Cause.SELF
    assert judge(signal, Frame(prev, now, limited)).cause is Cause.UNKNOWN
