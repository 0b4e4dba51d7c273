"""The prediction: BE leaves room for the peak that LS is known to have, once it is known."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd import governors
from qosd.config import Config, decode
from qosd.cpu import predict
from qosd.cpu.predict import Learned
from qosd.model import CgroupId, CgroupSample, CpuStat, HostSample, Snapshot, Tier, Workload
from qosd.schema.cpu import Enforce
from qosd.schema.prediction import Prediction
from qosd.simulate import Scenario, Step, run

SECOND = 1_000_000
NR_CPUS = 8
PREDICTED = decode('[cpu.bandwidth]\nestimate = "predicted"\n[prediction]\ncold = "30s"')


class Host:
    def __init__(self) -> None:
        self.usec = 5 * SECOND
        self.used: dict[str, int] = {}

    def snapshot(self, be: float = 0.0, **ls: float) -> Snapshot:
        """A second later; the LS services `ls` used that many CPUs."""
        self.usec += SECOND
        for name, cores in {"be": be, **ls}.items():
            self.used[name] = self.used.get(name, 0) + round(cores * SECOND)
        workloads = tuple(
            Workload(
                name,
                Tier.BE if name == "be" else Tier.LS,
                0,
                CgroupSample(CgroupId(number), f"{name}.slice", CpuStat(used, used, 0)),
                {"cpu.max": "max 100000"},
            )
            for number, (name, used) in enumerate(self.used.items(), 1)
        )
        host = HostSample(NR_CPUS, tuple(range(NR_CPUS)), sum(self.used.values()), 0)
        return Snapshot(1, self.usec, self.usec, host, workloads=workloads)


def play(config: Config, loads: list[dict[str, float]]) -> list[governors.Decision]:
    host, state, prev, decisions = Host(), governors.State(), None, []
    for load in loads:
        now = host.snapshot(**load)
        state, decision = governors.decide(config, prev, now, state)
        prev = now
        decisions.append(decision)
    return decisions


def allowed(decision: governors.Decision) -> float:
    assert decision.allowance is not None
    assert decision.allowance.cores is not None
    return decision.allowance.cores


SPIKES = [{"web": 4.0 if second % 10 == 9 else 1.0} for second in range(101)]
"""One second in ten LS wants four times as much."""


def test_be_leaves_room_for_a_peak_that_is_known_to_come() -> None:
    last, predicted = (play(config, SPIKES)[-1] for config in (Config(), PREDICTED))

    assert allowed(last) == pytest.approx(NR_CPUS * 0.95 - 1.0, abs=0.1)
    assert allowed(predicted) == pytest.approx(NR_CPUS * 0.95 - 4.0 * 1.1, abs=0.3)
    assert predicted.allowance is not None
    assert "expected of LS and system (p95 + 10 %)" in predicted.allowance.reason.text


def test_a_cold_start_goes_by_the_last_tick_and_says_so() -> None:
    early = play(PREDICTED, SPIKES[:5])[-1]

    assert allowed(early) == pytest.approx(NR_CPUS * 0.95 - 1.0, abs=0.1)
    assert early.allowance is not None
    assert "cold" in early.allowance.reason.text
    assert "of 30 s learned" in early.allowance.reason.text


def test_use_beyond_the_prediction_counts_as_it_is() -> None:
    calm = [{"web": 1.0}] * 60

    decision = play(PREDICTED, [*calm, {"web": 6.0}])[-1]

    assert allowed(decision) == pytest.approx(NR_CPUS * 0.95 - 6.0, abs=0.1)
    assert decision.allowance is not None
    assert "not less than what is expected" in decision.allowance.reason.text


@given(st.lists(st.floats(0, NR_CPUS), min_size=3, max_size=50))
def test_be_never_gets_more_than_by_the_last_tick_alone(loads: list[float]) -> None:
    ticks = [{"web": load} for load in loads]
    free = decode("[cpu.bandwidth]\ndeadband_up_pct = 0\ndeadband_down_pct = 0")
    bandwidth = msgspec.structs.replace(free.cpu.bandwidth, estimate=PREDICTED.cpu.bandwidth.estimate)
    guarded = msgspec.structs.replace(
        free,
        cpu=msgspec.structs.replace(free.cpu, bandwidth=bandwidth),
        prediction=msgspec.structs.replace(free.prediction, cold=type(free.prediction.cold)(0)),
    )

    for last, predicted in zip(play(free, ticks)[1:], play(guarded, ticks)[1:], strict=True):
        assert allowed(predicted) <= allowed(last) + 1e-6


def test_a_peak_of_long_ago_is_forgotten() -> None:
    config = msgspec.structs.replace(
        PREDICTED,
        prediction=decode('[prediction]\nhalf_life = "30s"\ncold = "10s"').prediction,
    )
    loads = [{"web": 5.0}] * 60 + [{"web": 1.0}] * 300

    assert allowed(play(config, loads)[-1]) == pytest.approx(NR_CPUS * 0.95 - 1.1, abs=0.15)


def learn(samples: list[dict[str, float]], old: Learned | None = None, at: int = 0) -> Learned:
    learned = old or {}
    for second, uses in enumerate(samples, 1):
        learned = predict.learn(Prediction(), uses, 1.0, at + second * SECOND, learned)
    return learned


def test_peaks_of_several_workloads_add_up() -> None:
    learned = learn([{"a": 1.0, "b": 2.0, predict.SYSTEM: 0.5}] * 200)

    expected = predict.expect(Prediction(), {"a": 0.1, "b": 0.1, predict.SYSTEM: 0.1}, 200 * SECOND, learned)

    assert expected.cold == ()
    assert expected.cores == pytest.approx(3.5 * 1.1, rel=0.06)


def test_a_workload_that_comes_back_is_not_cold_and_any_number_of_others_is_bounded() -> None:
    learned = learn([{"a": 1.0}] * 200)
    learned = learn([{f"job-{number}": 1.0} for number in range(3000)], learned, at=200 * SECOND)

    assert "a" in learned
    assert len(learned) <= 1001


def test_what_is_saved_comes_back_on_another_clock_less_what_the_time_has_worn_off() -> None:
    learned = learn([{"a": 2.0}] * 600)
    saved = msgspec.json.decode(msgspec.json.encode(predict.as_of(learned, 600 * SECOND)), type=Learned)

    back = predict.moved(saved, 17, 600 * SECOND)

    assert back["a"].total(17) == pytest.approx(learned["a"].total(600 * SECOND) / 2)
    assert back["a"].quantile(0.95) == learned["a"].quantile(0.95)


def test_a_half_life_that_was_changed_holds_for_what_is_known_already() -> None:
    learned = learn([{"a": 2.0}] * 100)
    shorter = decode('[prediction]\nhalf_life = "20s"\ncold = "10s"').prediction

    changed = predict.learn(shorter, {"a": 2.0}, 1.0, 101 * SECOND, learned)

    assert changed["a"].half_life_usec == 20 * SECOND
    assert changed["a"].total(121 * SECOND) < changed["a"].total(101 * SECOND) * 0.6


def limited(config: Config) -> Config:
    bandwidth = msgspec.structs.replace(config.cpu.bandwidth, enforce=Enforce.MAX)
    return msgspec.structs.replace(config, cpu=msgspec.structs.replace(config.cpu, bandwidth=bandwidth))


def test_on_a_bursty_plant_prediction_spares_ls_work_of_be_that_yields_too_late() -> None:
    """Bursts apart by more than a tick: by the last tick alone, each of them meets a BE that has it all."""
    scenario = Scenario(600, (Step(7.3, 10), Step(2.4, 70)), step_ms=20)

    by_last, by_prediction = (run(scenario, limited(config)) for config in (Config(), PREDICTED))

    assert by_prediction.limit_writes_per_minute < by_last.limit_writes_per_minute / 2
    assert by_prediction.be_pct < by_last.be_pct
