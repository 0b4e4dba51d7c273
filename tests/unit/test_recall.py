"""What pressure is normal, from one run of the daemon to the next."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from suffering import BE, LS, Stage

from qosd.config import Config, decode
from qosd.interference import governor
from qosd.interference.recall import adopt, aged, by_path
from qosd.interference.signals import Baseline, BaselineKey
from qosd.model import Snapshot

KNOWN = Baseline(30.0, 400)
CONFIG = decode('[interference]\nanswer = "report"\nbaseline_ticks = 60')
HOUR = 3_600_000_000


def test_a_workload_without_a_baseline_takes_that_of_its_path() -> None:
    now = Stage(CONFIG).snapshot()
    remembered = {"cpu.pressure ls.slice": KNOWN, "cpu.pressure gone.slice": KNOWN}
    assert adopt({}, remembered, now) == {BaselineKey(LS, "cpu.pressure"): KNOWN}
    newer = {BaselineKey(LS, "cpu.pressure"): Baseline(1.0, 3)}
    assert adopt(newer, remembered, now) == newer


def test_what_is_kept_is_what_is_learned_now_and_what_is_gone() -> None:
    now = Stage(CONFIG).snapshot()
    learned = {
        BaselineKey(LS, "io.pressure"): Baseline(2.0, 9),
        BaselineKey(LS, "runq"): KNOWN,
        BaselineKey(BE, "cpu.pressure"): KNOWN,
    }
    remembered = {"io.pressure ls.slice": KNOWN, "cpu.pressure gone.slice": KNOWN}
    kept = by_path(learned, remembered, now)
    assert kept == {"io.pressure ls.slice": Baseline(2.0, 9), "cpu.pressure gone.slice": KNOWN}
    many = {f"cpu.pressure {number}": Baseline(1.0, number) for number in range(2000)}
    assert min(known.ticks for known in by_path({}, many, now).values()) == 2000 - 512
    assert by_path(learned, remembered, None) == remembered


@given(st.integers(-HOUR, 10**6 * HOUR), st.integers(0, 10**6))
def test_it_counts_for_less_the_older_it_is_and_never_for_more(away: int, ticks: int) -> None:
    later = aged({"cpu.pressure a": Baseline(1.0, ticks)}, away, 24 * HOUR)
    assert all(0 < known.ticks <= ticks for known in later.values())
    if away > 24 * 64 * HOUR:
        assert later == {}


def test_with_a_remembered_baseline_the_first_ticks_are_not_cold() -> None:
    stage = Stage(CONFIG)
    prev, now = stage.snapshot(ls=1), stage.snapshot(ls=1, ls_cpu_wait=0.6, be=3)
    fresh = governor.State()
    told = governor.State(remembered={"cpu.pressure ls.slice": KNOWN})
    _, cold = _readings(CONFIG, prev, now, fresh)
    following, warm = _readings(CONFIG, prev, now, told)
    assert cold == 25.0
    assert warm == 55.0
    assert following.baselines[BaselineKey(LS, "cpu.pressure")] == KNOWN


def _readings(
    config: Config, prev: Snapshot, now: Snapshot, state: governor.State
) -> tuple[governor.State, float]:
    """The state after one such tick, and the threshold of the verdict."""
    eager = msgspec.structs.replace(
        config, interference=msgspec.structs.replace(config.interference, enter_ticks=1)
    )
    following, outcome = governor.decide(eager, prev, now, state)
    (verdict,) = [each for each in outcome.verdicts if each.signal == "cpu.pressure"]
    return following, verdict.threshold
