"""LS under a cpu.max of its own: lent quota while there is room, given back, never below what it had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd import governors
from qosd.config import Config, decode
from qosd.model import (
    CgroupId,
    CgroupSample,
    CpuMax,
    CpuMaxBurst,
    CpuStat,
    HostSample,
    Snapshot,
    Tier,
    Workload,
)
from qosd.plan import Desired

NR_CPUS = 8
ORIGINAL = "100000 100000"


class Plant:
    """One LS workload with a limit of one CPU, of which it wants more or less; `other` is the system."""

    def __init__(
        self, text: str = 'enforce = "both"', limit: str = ORIGINAL, burst: str | None = "0"
    ) -> None:
        self.config: Config = decode(f"[cpu.burst]\n{text}")
        self.files = {"cpu.max": limit, "cpu.weight": "100"}
        if burst is not None:
            self.files["cpu.max.burst"] = burst
        self.usec = 0
        self.ls = self.other = 0.0
        self.periods = self.throttled = 0
        self.nr_bursts: int | None = 0
        self.state = governors.State()
        self.prev: Snapshot | None = None
        self.wanted: dict[str, Desired] = {}

    @property
    def limit(self) -> float:
        quota, period = self.files["cpu.max"].split()
        return float("inf") if quota == "max" else int(quota) / int(period)

    def tick(self, want: float, other: float = 0.0, ticks: int = 1, *, apply: bool = True) -> None:
        for _ in range(ticks):
            self.usec += 1_000_000
            self.ls += min(want, self.limit)
            self.other += other
            self.periods += 10
            self.throttled += 10 if want > self.limit else 0
            stat = CpuStat(
                round(self.ls * 1e6), round(self.ls * 1e6), 0, self.periods, self.throttled, 0, self.nr_bursts
            )
            sample = CgroupSample(CgroupId(1), "ls.slice", stat)
            be = CgroupSample(CgroupId(2), "be.slice", CpuStat(0, 0, 0))
            host = HostSample(
                NR_CPUS, tuple(range(NR_CPUS)), busy_usec=round((self.ls + self.other) * 1e6), steal_usec=0
            )
            workloads = (
                Workload("ls", Tier.LS, 0, sample, dict(self.files)),
                Workload("be", Tier.BE, 0, be, {"cpu.max": "max 100000"}),
            )
            now = Snapshot(self.usec, self.usec, self.usec, host, workloads=workloads)
            self.state, self.decision = governors.decide(self.config, self.prev, now, self.state)
            self.prev = now
            self.wanted = {w.setting.file: w for w in self.decision.desired if w.cgroup_id == 1}
            if apply:
                self._apply()

    def _apply(self) -> None:
        for file, wanted in self.wanted.items():
            match wanted.setting:
                case CpuMax(quota_usec=int(quota), period_usec=period):
                    self.files[file] = f"{quota} {period}"
                case CpuMaxBurst(burst_usec=burst):
                    self.files[file] = str(burst)


def test_it_is_off_by_default_and_wants_nothing_of_a_limited_ls() -> None:
    plant = Plant(text="")
    plant.tick(5.0, ticks=10)

    assert plant.wanted.keys() == {"cpu.weight"}


def test_an_ls_workload_without_a_limit_is_left_alone() -> None:
    plant = Plant(limit="max 100000")
    plant.tick(5.0, ticks=10)

    assert plant.wanted.keys() == {"cpu.weight"}


def test_a_throttled_limit_goes_up_step_by_step_to_its_most() -> None:
    plant = Plant()
    plant.tick(5.0, ticks=2)
    assert plant.limit == pytest.approx(1.2)
    plant.tick(5.0, ticks=8)
    assert plant.limit == pytest.approx(3.0)


def test_what_was_lent_is_given_back_once_it_is_not_needed() -> None:
    """koordlet's never is while the host is idle."""
    plant = Plant()
    plant.tick(2.5, ticks=10)
    lent = plant.limit
    assert lent > 2.0
    plant.tick(0.5, ticks=20)
    assert plant.limit == lent, "not at once"
    plant.tick(0.5, ticks=60)
    assert plant.files["cpu.max"] == ORIGINAL


def test_a_busy_host_lends_nothing_and_takes_back_gently() -> None:
    plant = Plant()
    plant.tick(5.0, ticks=6)
    lent = plant.limit
    plant.tick(5.0, other=3.0, ticks=1)
    one_later = plant.limit
    plant.tick(5.0, other=3.0, ticks=40)

    assert lent > one_later > 1.0 + (lent - 1.0) * 0.7
    assert plant.files["cpu.max"] == ORIGINAL
    assert "of the host" in plant.wanted["cpu.max"].reason.text


def test_between_its_two_marks_the_host_holds_what_it_lent() -> None:
    plant = Plant("enforce = 'quota'\nhold_pct = 40\nroom_pct = 60".replace("'", '"'))
    plant.tick(5.0, ticks=3)
    lent = plant.limit
    plant.tick(5.0, other=2.6, ticks=10)

    assert plant.limit == lent
    assert "too busy to lend more" in plant.wanted["cpu.max"].reason.text


def test_a_bucket_keeps_a_workload_from_living_on_what_is_lent() -> None:
    plant = Plant("enforce = 'quota'\nbudget = '1min'".replace("'", '"'))
    plant.tick(5.0, ticks=120)
    assert plant.limit < 1.5
    assert "budget is used up" in plant.wanted["cpu.max"].reason.text
    views = plant.decision.cpu.bursts
    assert views[0].budget_pct == pytest.approx(0.0, abs=5)

    plant.tick(0.1, ticks=60)
    assert plant.decision.cpu.bursts[0].budget_pct > 10
    plant.tick(5.0, ticks=4)
    assert plant.limit > 1.2, "saved while it was quiet"


def test_a_lone_throttled_period_is_no_reason() -> None:
    plant = Plant("enforce = 'quota'\nthrottled_pct = 20".replace("'", '"'))
    plant.tick(0.5, ticks=3)
    plant.throttled += 1
    plant.tick(0.5, ticks=3)

    assert plant.files["cpu.max"] == ORIGINAL


def test_unknown_throttling_is_held_and_never_lowers() -> None:
    plant = Plant()
    plant.tick(5.0, ticks=5)
    lent = plant.limit
    plant.periods = plant.throttled = 0  # counters that went back
    plant.tick(5.0)

    assert plant.limit == lent


def test_a_burst_is_given_within_the_original_quota_and_not_below_its_own() -> None:
    plant = Plant("enforce = 'burst'\nburst_pct = 50".replace("'", '"'))
    plant.tick(0.5)
    assert plant.wanted["cpu.max.burst"].setting == CpuMaxBurst(50_000)
    assert "cpu.max" not in plant.wanted

    own = Plant("enforce = 'both'\nburst_pct = 50".replace("'", '"'), burst="80000")
    own.tick(0.5)
    assert own.wanted["cpu.max.burst"].setting == CpuMaxBurst(80_000)


def test_a_kernel_that_does_not_count_bursts_is_not_said_to_have_had_none() -> None:
    plant = Plant()
    plant.nr_bursts = None
    plant.tick(0.5)
    assert "does not count bursts" in plant.wanted["cpu.max.burst"].reason.text
    plant.nr_bursts = 0
    plant.tick(0.5)
    assert "0 bursts so far" in plant.wanted["cpu.max.burst"].reason.text


def test_a_kernel_without_a_burst_file_is_asked_for_none() -> None:
    plant = Plant(burst=None)
    plant.tick(5.0, ticks=3)

    assert "cpu.max.burst" not in plant.wanted
    assert plant.limit > 1.0


def test_a_limit_that_somebody_changes_is_the_new_original() -> None:
    plant = Plant()
    plant.tick(5.0, ticks=4)
    plant.files["cpu.max"] = "50000 100000"
    plant.tick(0.2)

    assert plant.wanted["cpu.max"].setting == CpuMax(50_000, 100_000)


def test_a_raise_that_was_never_written_does_not_move_the_original() -> None:
    """Observe mode, or a refusal: the file stays as it was."""
    plant = Plant()
    plant.tick(5.0, ticks=20, apply=False)

    setting = plant.wanted["cpu.max"].setting
    assert isinstance(setting, CpuMax)
    assert setting == CpuMax(300_000, 100_000)


def test_an_ls_that_throttles_itself_costs_be_nothing() -> None:
    """A decoy: its own limit holds it back, and nobody else."""
    free, limited = Plant(text="", limit="max 100000"), Plant(text="")
    free.tick(1.0, ticks=10)
    limited.tick(5.0, ticks=10)

    def be(plant: Plant) -> list[str]:
        return [str(w.setting) for w in plant.decision.desired if w.tier is Tier.BE]

    assert be(free) == be(limited)


@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0, 8)), min_size=1, max_size=80))
def test_the_limit_never_falls_below_its_original_nor_rises_above_its_most(
    loads: list[tuple[float, float]],
) -> None:
    plant = Plant()
    for want, other in loads:
        plant.tick(want, other)
        assert 1.0 <= plant.limit <= 3.0
        assert int(plant.files["cpu.max.burst"]) <= 100_000
