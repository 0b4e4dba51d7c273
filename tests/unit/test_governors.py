"""The governors as pure functions: who owns what, and the bounds that hold for every host there could be."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd import governors
from qosd.config import Config, decode
from qosd.cpu import allowance
from qosd.files import interface_file
from qosd.model import (
    CgroupId,
    CgroupSample,
    CpuMax,
    CpusetCpus,
    CpuStat,
    HostSample,
    Snapshot,
    Tier,
    Workload,
)
from qosd.schema.burst import BurstPolicy, CpuBurst
from qosd.schema.cpu import Cpu, CpuBandwidth, Cpuset, CpusetMode, CpuWeights, Enforce, Estimate, IdlePolicy
from qosd.split import Claim, split

NR_CPUS = 8
FILES = {
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpu.weight": "100",
    "cpu.idle": "0",
    "cpuset.cpus": "",
}
CPUS = st.floats(0, NR_CPUS, allow_nan=False)


class Clock:
    """Snapshots of one host, a second apart, from CPUs used in between."""

    def __init__(self, *, be_paths: tuple[str, ...] = ("be.slice",)) -> None:
        self.be_paths = be_paths
        self.usec = 1_000_000
        self.used = {"ls": 0.0, "be": 0.0, "system": 0.0}

    def snapshot(self, ls: float | None = 0.0, be: float = 0.0, system: float = 0.0) -> Snapshot:
        self.usec += 1_000_000
        for name, cores in (("ls", ls or 0.0), ("be", be), ("system", system)):
            self.used[name] += cores * 1e6
        workloads = [self._workload("ls.slice", Tier.LS, 1, None if ls is None else self.used["ls"])]
        for number, path in enumerate(self.be_paths, 2):
            workloads.append(self._workload(path, Tier.BE, number, self.used["be"] / len(self.be_paths)))
        busy = round(sum(self.used.values()))
        host = HostSample(NR_CPUS, tuple(range(NR_CPUS)), busy_usec=busy, steal_usec=0)
        return Snapshot(self.usec // 1_000_000, self.usec, self.usec, host, workloads=tuple(workloads))

    def _workload(self, path: str, tier: Tier, number: int, used: float | None) -> Workload:
        cpu = None if used is None else CpuStat(round(used), round(used), 0)
        sample = CgroupSample(CgroupId(number), path, cpu=cpu)
        return Workload(path.partition(".")[0], tier, number, sample, FILES)


def play(config: Config, snapshots: list[Snapshot]) -> list[governors.Decision]:
    state, prev, decisions = governors.State(), None, []
    for now in snapshots:
        state, decision = governors.decide(config, prev, now, state)
        decisions.append(decision)
        prev = now
    return decisions


def allowances(config: Config, snapshots: list[Snapshot]) -> list[float | None]:
    return [decision.allowance.cores for decision in play(config, snapshots) if decision.allowance]


LOADS = st.lists(st.tuples(st.none() | CPUS, CPUS, CPUS), min_size=2, max_size=12)
POOLED = decode(
    '[[pool]]\nname = "front"\npriority = 0\n[[pool]]\nname = "batch"\ncpu_target_pct = 80\nweight = 7\n'
    '[[workload]]\nname = "ls"\ntier = "ls"\nmatch = ["ls.slice"]\npool = "front"\ncpus = 2\n'
    '[[workload]]\nname = "be"\ntier = "be"\nmatch = ["be.slice"]\npool = "batch"\n'
    '[[workload]]\nname = "other"\ntier = "be"\nmatch = ["other.slice"]\ncpu_max_pct = 30\n'
)
CONFIGS = st.builds(
    lambda enforce, idle, period, mask, burst, base: msgspec.structs.replace(
        base,
        cpu=Cpu(
            weight=CpuWeights(be_idle=idle),
            bandwidth=CpuBandwidth(enforce=enforce, period=period),
            cpuset=Cpuset(mode=mask),
            burst=CpuBurst(enforce=burst),
        ),
    ),
    st.sampled_from(Enforce),
    st.sampled_from(IdlePolicy),
    st.sampled_from([CpuBandwidth().period, 100_000]),
    st.sampled_from([CpusetMode.AUTO, CpusetMode.ALWAYS]),
    st.sampled_from(BurstPolicy),
    st.sampled_from([Config(), POOLED]),
)


@given(CONFIGS, LOADS)
def test_every_setting_has_its_owner_and_only_one(config: Config, loads: list[tuple]) -> None:
    """Nothing is merged, so nothing is merged wrongly; each wish names the governor that owns the file."""
    clock = Clock(be_paths=("be.slice", "other.slice"))
    for decision in play(config, [clock.snapshot(*load) for load in loads]):
        keys = [(wanted.cgroup_id, wanted.setting.file) for wanted in decision.desired]
        assert len(keys) == len(set(keys))
        for wanted in decision.desired:
            owner = governors.OWNERS[wanted.tier, interface_file(wanted.setting.file)]
            assert wanted.reason.rule.split("/")[0] == owner
            assert wanted.reason.text


@given(CONFIGS, LOADS)
def test_ls_is_never_tightened(config: Config, loads: list[tuple]) -> None:
    clock = Clock()
    for decision in play(config, [clock.snapshot(*load) for load in loads]):
        files = {wanted.setting.file for wanted in decision.desired if wanted.tier is Tier.LS}
        # An explicit wish; what becomes of it: test_placement.py. Limits of LS: test_burst.py.
        wished = {"cpuset.cpus"} if any(rule.cpus is not None for rule in config.workload) else set()
        assert {interface_file(file) for file in files} <= wished | {
            "cpu.weight",
            "io.weight",
            "io.bfq.weight",
            "io.latency",
            "memory.low",
        }


@given(CONFIGS, LOADS)
def test_the_same_snapshots_give_the_same_decisions(config: Config, loads: list[tuple]) -> None:
    clock = Clock()
    snapshots = [clock.snapshot(*load) for load in loads]

    assert play(config, snapshots) == play(config, snapshots)


@given(CONFIGS, LOADS)
def test_be_keeps_its_floor_and_never_gets_more_than_there_is(config: Config, loads: list[tuple]) -> None:
    clock = Clock()
    floor = NR_CPUS * config.cpu.bandwidth.floor_pct / 100
    for decision in play(config, [clock.snapshot(*load) for load in loads]):
        cores = decision.allowance.cores if decision.allowance else None
        assert cores is None or floor - 1e-9 <= cores <= NR_CPUS
        for wanted in decision.desired:
            match wanted.setting:
                case CpuMax(quota_usec=int(quota), period_usec=period):
                    assert 1000 <= quota <= NR_CPUS * period
                case CpusetCpus(cpus=cpus):
                    assert cpus
                    assert set(cpus) <= set(range(NR_CPUS))


@given(LOADS, st.sampled_from([5.0, 10.0, 100.0]))
def test_the_allowance_rises_by_its_ramp_at_most(loads: list[tuple], up_pct: float) -> None:
    clock = Clock()
    config = Config(cpu=Cpu(bandwidth=CpuBandwidth(up_pct=up_pct)))
    step = NR_CPUS * up_pct / 100
    cores = allowances(config, [clock.snapshot(*load) for load in loads])
    for before, after in pairwise(cores):
        assert before is None or after is None or after <= before + step + 1e-9


@given(st.floats(0, 7), st.floats(0, 7))
def test_more_ls_use_never_means_more_for_be(low: float, more: float) -> None:
    def after(ls: float) -> float | None:
        clock = Clock()
        return allowances(Config(), [clock.snapshot(ls=ls) for _ in range(3)])[-1]

    lighter, heavier = after(low), after(min(low + more, NR_CPUS))
    assert lighter is not None
    assert heavier is not None
    assert heavier <= lighter + 1e-5, "beyond the microsecond that cpu.stat counts in"


def test_the_allowance_falls_at_once() -> None:
    clock = Clock()
    cores = allowances(Config(), [clock.snapshot(), clock.snapshot(), clock.snapshot(ls=6.0)])

    assert cores[1] == pytest.approx(NR_CPUS * 0.95)
    assert cores[2] == pytest.approx(NR_CPUS * 0.95 - 6.0)


def test_with_a_mean_a_dip_of_ls_is_not_taken_for_room() -> None:
    """Use counts as the larger of the last tick and the mean: one quiet second in five frees a fifth."""
    config = Config(cpu=Cpu(bandwidth=CpuBandwidth(estimate=Estimate.MEAN)))
    clock = Clock()
    cores = allowances(config, [clock.snapshot(ls=5.0) for _ in range(6)] + [clock.snapshot(ls=0.0)])

    assert cores[-1] is not None
    assert cores[-2] is not None
    assert cores[-1] - cores[-2] <= 1.0 + 1e-9


def test_unknown_use_is_held_and_then_released_and_never_tightens() -> None:
    clock = Clock()
    known = [clock.snapshot(ls=2.0) for _ in range(4)]
    unknown = [clock.snapshot(ls=None) for _ in range(CpuBandwidth().release_ticks + 2)]

    cores = allowances(Config(), known + unknown)

    held, released = cores[4:-2], cores[-2:]
    assert set(held) == {cores[3]}
    assert released == [None, None]


def test_nothing_is_limited_while_nothing_is_known() -> None:
    clock = Clock()
    decision = play(Config(), [clock.snapshot(ls=None)])[-1]

    assert {wanted.setting.file for wanted in decision.desired} <= {"cpu.weight", "cpu.idle"}


CLAIMS = st.lists(
    st.tuples(
        st.integers(0, 3), CPUS | st.just(float("inf")), st.floats(0.1, NR_CPUS) | st.just(float("inf"))
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: [Claim(CgroupId(number), *row) for number, row in enumerate(rows)])


@given(st.floats(0.1, NR_CPUS), CLAIMS)
def test_shares_are_within_their_caps_and_within_the_total(total: float, claims: list[Claim]) -> None:
    shares = split(total, claims)

    assert set(shares) == {claim.id for claim in claims}
    assert sum(shares.values()) <= total + 1e-9
    for claim in claims:
        assert 0 < shares[claim.id] <= claim.cap + 1e-9


@given(st.floats(0.1, NR_CPUS), CLAIMS)
def test_nothing_is_left_over_that_somebody_could_use(total: float, claims: list[Claim]) -> None:
    shares = split(total, claims)

    left = total - sum(shares.values())
    assert left <= 1e-9 or all(shares[claim.id] >= claim.cap - 1e-9 for claim in claims)


@given(st.floats(0.1, NR_CPUS), st.integers(2, 5))
def test_equals_get_equal_shares(total: float, count: int) -> None:
    claims = [Claim(CgroupId(number), 1, float("inf"), float("inf")) for number in range(count)]

    assert list(split(total, claims).values()) == pytest.approx([total / count] * count)


@given(st.floats(0.1, NR_CPUS), CLAIMS)
def test_the_order_of_the_claims_is_no_claim(total: float, claims: list[Claim]) -> None:
    assert split(total, claims) == pytest.approx(split(total, claims[::-1]))


def test_the_lower_priority_is_squeezed_first_and_not_starved() -> None:
    first = Claim(CgroupId(1), 0, float("inf"), float("inf"))
    second = Claim(CgroupId(2), 5, float("inf"), float("inf"))

    shares = split(4.0, [second, first])

    assert shares[first.id] > 10 * shares[second.id] > 0


def test_a_mask_shrinks_at_once_and_grows_after_its_dwell() -> None:
    config = Config(cpu=Cpu(bandwidth=CpuBandwidth(enforce=Enforce.CPUSET)))
    clock = Clock()
    busy = [clock.snapshot(ls=5.0) for _ in range(3)]
    quiet = [clock.snapshot(ls=0.0) for _ in range(20)]

    masks = [
        len(wanted.setting.cpus)
        for decision in play(config, busy + quiet)
        for wanted in decision.desired
        if isinstance(wanted.setting, CpusetCpus)
    ]

    assert masks[0] == 3
    assert masks[-1] == NR_CPUS
    changes = [now for now, then in zip(masks[1:], masks, strict=False) if now != then]
    assert len(changes) <= 1 + len(quiet) // 5, "at most one growth each dwell time"


def test_a_reason_says_what_went_in_and_what_bound() -> None:
    clock = Clock()
    decision = play(Config(), [clock.snapshot(ls=8.0), clock.snapshot(ls=8.0)])[-1]

    assert decision.allowance is not None
    reason = decision.allowance.reason
    assert {given_.name for given_ in reason.inputs} >= {"ls", "system", "be", "capacity"}
    assert reason.clamp == "raised to the floor of 0.40"
    assert msgspec.json.encode(reason)
    assert isinstance(decision.allowance, allowance.Allowance)
