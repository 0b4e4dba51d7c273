"""What is normal for LS is learned while BE is quiet, and a breach is far above it."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd.ebpf.histogram import EMPTY, SLOTS, Histogram
from qosd.interference import baseline
from qosd.interference.baseline import Reading, State
from qosd.model import (
    CgroupId,
    CgroupSample,
    CpuStat,
    HostSample,
    Preemptor,
    Probed,
    Snapshot,
    Tier,
    Workload,
)
from qosd.schema.ebpf import Baseline

LS, BE = CgroupId(1), CgroupId(2)
CONFIG = Baseline(min_learned=100, min_evidence=10)
SECOND = 1_000_000


def histogram(**slots: int) -> Histogram:
    values = [0] * SLOTS
    for name, count in slots.items():
        values[int(name.removeprefix("s"))] = count
    return Histogram(slots=tuple(values), total_ns=1000 * sum(values))


def workload(cgroup: CgroupId, tier: Tier, used_usec: int) -> Workload:
    sample = CgroupSample(cgroup, f"{tier.value}.slice", CpuStat(used_usec, used_usec, 0))
    return Workload(tier.value, tier, 0, sample, {})


def snapshot(second: int, be_usec: int, runq: Histogram | None, **ls: Histogram) -> Snapshot:
    return Snapshot(
        second,
        second * SECOND,
        second * SECOND,
        HostSample(nr_cpus=2),
        workloads=(workload(LS, Tier.LS, 0), workload(BE, Tier.BE, be_usec)),
        probed=(Probed(LS, runq=runq, **ls), Probed(BE, blkio=EMPTY)),
    )


def learn(
    ticks: int, runq: Histogram, *, be_share: float = 0.0
) -> tuple[State, tuple[Reading, ...], Snapshot]:
    state, readings, now = State(), (), snapshot(0, 0, runq)
    for second in range(1, ticks + 1):
        prev, now = now, snapshot(second, round(second * be_share * 2 * SECOND), runq)
        state, readings = baseline.decide(CONFIG, prev, now, state)
    return state, readings, now


def runq_of(readings: tuple[Reading, ...]) -> Reading:
    return next(each for each in readings if each.signal == "runq")


def test_before_anything_is_learned_the_thresholds_are_the_configured_ones_and_marked_cold() -> None:
    _, readings, _ = learn(1, histogram(s2=5))
    reading = runq_of(readings)
    assert reading.cold
    assert reading.threshold == CONFIG.runq_cold


def test_enough_quiet_ticks_make_a_baseline_and_the_threshold_is_a_multiple_of_it() -> None:
    """2 to 4 ms is slot 12: three times its middle is above the floor."""
    _, readings, _ = learn(5, histogram(s12=50))
    reading = runq_of(readings)
    assert not reading.cold
    assert reading.baseline is not None
    assert 2_000 < reading.baseline < 4_500
    assert reading.threshold == CONFIG.factor * reading.baseline


def test_a_baseline_of_microseconds_is_not_taken_for_a_limit_of_microseconds() -> None:
    _, readings, _ = learn(5, histogram(s2=1000))
    assert runq_of(readings).threshold == CONFIG.runq_floor


def test_nothing_is_learned_while_be_is_busy() -> None:
    state, readings, _ = learn(20, histogram(s14=500), be_share=0.5)
    assert state == State()
    assert runq_of(readings).cold


def test_a_be_held_at_its_floor_is_quiet() -> None:
    state, _, _ = learn(5, histogram(s2=100), be_share=0.05)
    assert set(state.learned) == {"runq ls.slice"}


def test_be_that_uses_the_disk_teaches_no_baseline_of_the_disk() -> None:
    """Little CPU is no proof of little IO."""
    prev = snapshot(1, 0, histogram(s2=10))
    quiet = msgspec.structs.replace(
        snapshot(2, 0, histogram(s2=10)),
        probed=(Probed(LS, runq=histogram(s2=10), blkio=histogram(s5=10)), Probed(BE, blkio=histogram(s5=1))),
    )
    state, _ = baseline.decide(CONFIG, prev, quiet, State())
    assert set(state.learned) == {"runq ls.slice"}


def test_use_that_is_not_known_teaches_nothing() -> None:
    now = snapshot(2, 0, histogram(s2=1000))
    assert not baseline.is_quiet(CONFIG, None, now, "runq")
    unknown = msgspec.structs.replace(now, workloads=(now.workloads[0], workload(BE, Tier.BE, -1)))
    assert not baseline.is_quiet(CONFIG, snapshot(1, 5, EMPTY), unknown, "runq")


def test_a_breach_needs_evidence_and_not_one_long_wait() -> None:
    state, _, prev = learn(5, histogram(s2=1000))
    few = snapshot(6, 0, histogram(s15=CONFIG.min_evidence - 1))
    many = snapshot(6, 0, histogram(s15=CONFIG.min_evidence))
    assert not runq_of(baseline.decide(CONFIG, prev, few, state)[1]).breach
    assert runq_of(baseline.decide(CONFIG, prev, many, state)[1]).breach


def test_an_episode_does_not_become_usual_and_a_habit_does() -> None:
    """One in six of the ticks is a hundred times as long: no more than a tenth of what counts."""
    state, _, now = learn(20, histogram(s6=100))
    usual = runq_of(baseline.decide(CONFIG, None, now, state)[1]).threshold
    for second in range(21, 25):
        prev, now = now, snapshot(second, 0, histogram(s13=100))
        state, _ = baseline.decide(CONFIG, prev, now, state)
    assert runq_of(baseline.decide(CONFIG, None, now, state)[1]).threshold == usual

    for second in range(25, 60):
        prev, now = now, snapshot(second, 0, histogram(s13=100))
        state, readings = baseline.decide(CONFIG, prev, now, state)
    assert not runq_of(readings).breach


def test_waits_for_a_quota_of_its_own_never_become_usual() -> None:
    config = msgspec.structs.replace(CONFIG, breach_weight=1.0)
    _, _, now = learn(1, histogram(s6=100))
    for held, learned in ((0, True), (7, False)):
        state, _, prev = learn(20, histogram(s6=100))
        sample = msgspec.structs.replace(now.workloads[0].sample, cpu=CpuStat(0, 0, 0, nr_throttled=held))
        slow = snapshot(21, 0, histogram(s13=100))
        ls = msgspec.structs.replace(slow.workloads[0], sample=sample)
        slow = msgspec.structs.replace(slow, workloads=(ls, slow.workloads[1]))
        assert (baseline.decide(config, prev, slow, state)[0].learned != state.learned) is learned


def test_a_baseline_moves_steadily_though_the_probe_counts_by_powers_of_two() -> None:
    """Thresholds of one half more or less, not of the double or the half."""
    found = [
        runq_of(learn(5, histogram(s12=880 + few, s13=120 - few))[1]).threshold for few in range(0, 120, 20)
    ]
    assert found == sorted(found, reverse=True)
    assert all(before / after < 1.5 for before, after in pairwise(found))


def seen(second: int, be_usec: int, runq: Histogram, **ns: int) -> Snapshot:
    preemptors = tuple(
        Preemptor(CgroupId(90), None, part, 1) if who == "system" else Preemptor(BE, BE, part, 1)
        for who, part in ns.items()
    )
    now = snapshot(second, be_usec, runq)
    return msgspec.structs.replace(now, probed=(Probed(LS, runq=runq, preemptors=preemptors),))


def test_a_reading_names_whom_the_probe_saw_on_top_of_the_usual_once_that_is_known() -> None:
    state, now = State(), seen(0, 0, histogram(s6=100), system=40_000_000)
    shares = []
    for second in range(1, 8):
        prev, now = now, seen(second, 0, histogram(s6=30), system=40_000_000)
        state, _ = baseline.decide(CONFIG, prev, now, state)
        bad = seen(second + 1, 2 * SECOND, histogram(s13=100), system=60_000_000, be=60_000_000)
        shares.append(dict(runq_of(baseline.decide(CONFIG, now, bad, state)[1]).culprits)[BE])
    assert shares[:3] == [0.5, 0.5, 0.5], "cold"
    assert shares[-1] == pytest.approx(0.75)
    assert baseline.as_of(baseline.moved(state, 0, 0), 0).usual == state.usual


def test_who_is_in_the_way_while_be_is_busy_or_ls_suffers_is_not_usual() -> None:
    state, _, prev = learn(20, histogram(s6=100))
    busy = seen(21, 2 * SECOND, histogram(s6=100), system=900_000_000)
    bad = seen(21, 0, histogram(s13=100), system=900_000_000)
    for now in (busy, bad):
        assert baseline.decide(CONFIG, prev, now, state)[0].usual == state.usual


def test_without_waits_there_is_no_value_and_no_breach() -> None:
    _, readings, _ = learn(1, EMPTY)
    assert runq_of(readings).value is None
    assert not runq_of(readings).breach


def test_a_probe_that_does_not_run_gives_no_reading() -> None:
    _, readings = baseline.decide(CONFIG, None, snapshot(1, 0, None), State())
    assert readings == ()


def test_the_kernel_is_told_from_which_wait_on_to_send_word() -> None:
    _, readings, _ = learn(1, EMPTY)
    assert baseline.runq_thresholds(readings) == {LS: 5_000_000}


def test_a_single_wait_sends_word_only_where_it_is_rare_though_a_tick_of_such_waits_is_a_breach() -> None:
    _, readings, _ = learn(5, histogram(s2=95, s14=5))
    reading = runq_of(readings)

    assert reading.threshold == CONFIG.runq_floor
    assert baseline.runq_thresholds(readings)[LS] > 20_000_000


def test_what_was_learned_comes_through_json_and_another_boots_clock() -> None:
    state, _, _ = learn(5, histogram(s12=50))
    read = msgspec.json.decode(msgspec.json.encode(state), type=State)
    assert read == state
    moved = baseline.moved(read, 7 * SECOND, 3600 * SECOND)
    _, readings = baseline.decide(CONFIG, None, snapshot(7, 0, histogram(s2=1)), moved)
    assert runq_of(readings).baseline == runq_of(learn(5, histogram(s12=50))[1]).baseline


@given(st.lists(st.integers(0, 1000), min_size=SLOTS, max_size=SLOTS), st.floats(0, 1))
def test_a_breach_is_always_above_the_floor_and_the_threshold(slots: list[int], be_share: float) -> None:
    state, _, prev = learn(3, histogram(s5=100))
    now = snapshot(4, round(2 * be_share * SECOND), Histogram(slots=tuple(slots), total_ns=0))
    reading = runq_of(baseline.decide(CONFIG, prev, now, state)[1])
    assert reading.threshold >= CONFIG.runq_floor
    if reading.breach:
        assert reading.value is not None
        assert reading.value > reading.threshold
