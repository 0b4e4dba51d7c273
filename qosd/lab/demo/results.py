"""What the target left in its directory, as values: the rounds, the load, the facts."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from qosd.lab.demo.figures import Request, Spread, percentile, rate, share_over, spread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qosd.lab.scenario.planned import Mode, Plan, Timing

HEADER = struct.Struct("<8s4Q")
RECORD = struct.Struct("<II")


class Decision(NamedTuple):
    """A write of qosd's, with its reason."""

    at: float
    path: str
    file: str
    value: str
    reason: str


class Round(NamedTuple):
    """One mode, once. Times are seconds from the beginning of what is counted."""

    mode: Mode
    number: int
    requests: list[Request]
    unanswered: int
    be_points: list[tuple[float, float]]
    """CPU-seconds that BE has used."""
    ls_points: list[tuple[float, float]]
    allowance: list[tuple[float, float]]
    """CPUs that BE may use, as its slice's files say."""
    decisions: list[Decision]
    events: list[tuple[float, str]]
    steal: float
    """The share of the target's CPU time that its own host withheld."""
    others: float | None
    """The share of the machine's CPU time that was neither idle nor the demo's; None where nobody looked."""
    ops_per_cpu_second: float | None
    measured: float
    answers: dict[str, Any] | None

    @property
    def latencies(self) -> list[float]:
        return sorted(request.latency_ms for request in self.requests)

    @property
    def be_cpus(self) -> float:
        return rate(self.be_points, 0, self.measured)

    @property
    def ls_cpus(self) -> float:
        return rate(self.ls_points, 0, self.measured)


class Result(NamedTuple):
    rounds: list[Round]
    facts: dict[str, Any]
    load: dict[str, float]
    timing: Timing
    slo_ms: float

    def of(self, mode: Mode) -> list[Round]:
        return [one for one in self.rounds if one.mode == mode]

    @property
    def modes(self) -> list[Mode]:
        return list(dict.fromkeys(one.mode for one in sorted(self.rounds, key=_first_round_order)))


def _first_round_order(one: Round) -> int:
    return ("frozen", "uncontrolled", "floor", "qosd").index(one.mode)


class Latencies(NamedTuple):
    """A file of the load generator."""

    started: float
    """CLOCK_MONOTONIC, seconds."""
    unanswered: int
    requests: list[Request]


def read_latencies(data: bytes) -> Latencies:
    """Decode one; raises ValueError where it is not one, or not whole."""
    if len(data) < HEADER.size:
        raise ValueError("shorter than its header")
    magic, started_nsec, _, count, unanswered = HEADER.unpack_from(data)
    if magic != b"openloop" or len(data) != HEADER.size + count * RECORD.size:
        raise ValueError("not a whole file of openloop")
    requests = [
        Request(start / 1e6, latency / 1e3) for start, latency in RECORD.iter_unpack(data[HEADER.size :])
    ]
    return Latencies(started_nsec / 1e9, unanswered, requests)


def allowed_cpus(files: dict[str, str | None], cpus: int) -> float:
    """The CPUs that cpu.max and cpuset.cpus leave to a cgroup: the smaller one; a frozen cgroup has none."""
    if files.get("cgroup.freeze") == "1":
        return 0.0
    allowed = float(cpus)
    quota, _, period = (files.get("cpu.max") or "max").partition(" ")
    if quota != "max":
        allowed = min(allowed, int(quota) / int(period))
    mask = files.get("cpuset.cpus")
    return min(allowed, len(cpu_list(mask))) if mask else allowed


def cpu_list(text: str) -> set[int]:
    """`0-2,5` as the kernel writes lists of CPUs."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def read_round(raw: dict[str, Any], data: bytes, timing: Timing, cpus: int) -> Round:
    """One round's raw figures with their times moved so that 0 is where counting begins."""
    latencies = read_latencies(data)
    zero = latencies.started + timing.settle
    samples: list[dict[str, Any]] = raw["samples"]
    counted = [
        Request(request.at - timing.settle, request.latency_ms)
        for request in latencies.requests
        if timing.settle <= request.at < timing.end
    ]
    be_points = [(sample["at"] - zero, sample["be_usec"] / 1e6) for sample in samples]
    return Round(
        mode=raw["mode"],
        number=raw["round"],
        requests=counted,
        unanswered=latencies.unanswered,
        be_points=be_points,
        ls_points=[(sample["at"] - zero, sample["ls_usec"] / 1e6) for sample in samples],
        allowance=[(sample["at"] - zero, allowed_cpus(sample["be"], cpus)) for sample in samples],
        decisions=decisions(raw["decisions"], zero + raw["realtime"]),
        events=[(event["at"] - zero, event["what"]) for event in raw["events"]],
        steal=_steal(samples),
        others=raw.get("others"),
        ops_per_cpu_second=_per_second(raw["bogo_ops"], be_points),
        measured=timing.measured,
        answers=raw["answers"],
    )


def _per_second(ops: int | None, be_points: list[tuple[float, float]]) -> float | None:
    used = be_points[-1][1] if be_points else 0.0
    return ops / used if ops and used > 0 else None


def _steal(samples: list[dict[str, Any]]) -> float:
    if len(samples) < 2:  # noqa: PLR2004 - a share needs two looks
        return 0.0
    grown = [late - early for early, late in zip(samples[0]["host"], samples[-1]["host"], strict=True)]
    total: int = sum(grown)
    return float(grown[7] / total) if total else 0.0


def decisions(records: list[dict[str, Any]], zero: float) -> list[Decision]:
    """What qosd wrote, from its own records; `zero` in the wall clock's seconds."""
    return [
        Decision(
            record["time"] - zero, record["path"], record["file"], record["new"], record["reason"]["text"]
        )
        for record in records
        if record["error"] is None
    ]


def read(directory: Path, plan: Plan, slo_ms: float) -> Result:
    """Everything a target left."""
    facts = msgspec.json.decode((directory / "facts.json").read_bytes(), type=dict[str, Any])
    cpus: int = facts["cpus"]
    others = msgspec.json.decode((directory / "neighbours.json").read_bytes(), type=dict[str, float])
    rounds = []
    for number, modes in enumerate(plan.rounds, start=1):
        for mode in modes:
            raw = msgspec.json.decode((directory / f"{number}-{mode}.json").read_bytes(), type=dict[str, Any])
            raw["others"] = others.get(f"{number}-{mode}")
            data = (directory / raw["latency"]).read_bytes()
            rounds.append(read_round(raw, data, plan.timing, cpus))
    load = msgspec.json.decode((directory / "load.json").read_bytes(), type=dict[str, float])
    return Result(rounds, facts, load, plan.timing, slo_ms)


class Figure(NamedTuple):
    """A column of the table."""

    key: str
    title: str
    unit: str
    of: Callable[[Round, float], float]
    """From a round and the SLO in ms."""
    better: str
    """`low`, `high`"""


FIGURES = (
    Figure("p50_ms", "LS p50", "ms", lambda one, _: percentile(one.latencies, 50), "low"),
    Figure("p99_ms", "LS p99", "ms", lambda one, _: percentile(one.latencies, 99), "low"),
    Figure("p999_ms", "LS p99.9", "ms", lambda one, _: percentile(one.latencies, 99.9), "low"),
    Figure("over_slo_pct", "over SLO", "%", lambda one, slo: 100 * share_over(one.latencies, slo), "low"),
    Figure("be_cpus", "BE work", "CPUs", lambda one, _: one.be_cpus, "high"),
)


def summary(result: Result) -> dict[Mode, dict[str, Spread]]:
    """Per mode and figure, the median over rounds with the lowest and the highest."""
    return {
        mode: {
            figure.key: spread(figure.of(one, result.slo_ms) for one in result.of(mode)) for figure in FIGURES
        }
        for mode in result.modes
    }


def as_json(result: Result) -> dict[str, Any]:
    """The figures for a program: per mode the spread over rounds, and every round's own."""
    return {
        "facts": result.facts,
        "load": result.load,
        "slo_ms": result.slo_ms,
        "modes": {
            mode: {key: one._asdict() for key, one in figures.items()}
            for mode, figures in summary(result).items()
        },
        "rounds": [
            {
                "round": one.number,
                "mode": one.mode,
                "requests": len(one.requests),
                "unanswered": one.unanswered,
                "ls_cpus": one.ls_cpus,
                "steal": one.steal,
                "others": one.others,
                "stress_ng_ops_per_cpu_second": one.ops_per_cpu_second,
                **{figure.key: figure.of(one, result.slo_ms) for figure in FIGURES},
            }
            for one in result.rounds
        ],
    }
