"""How BE's limit followed LS through a segment: how often written, how far off, how soon BE was back.

The same definitions as in simulation (qosd/response.py), at the end of each look.
"""

from __future__ import annotations

import statistics

from bench.sched.control import configured
from bench.sched.segment import Experiment, Segment
from qosd.response import Edge, response


def edges(schedule: str, seconds: float) -> list[Edge]:
    """Every change of the load that is over before the end."""
    steps = [(float(ms) / 1000, float(pct)) for ms, pct in (step.split(":") for step in schedule.split(","))]
    if len(steps) == 1:
        return []
    found: list[Edge] = []
    at, number = steps[0][0], 1
    while at + steps[number % len(steps)][0] <= seconds:
        (_, before), (lasts, pct) = steps[(number - 1) % len(steps)], steps[number % len(steps)]
        found.append(Edge(at, at + lasts, pct > before))
        at, number = at + lasts, number + 1
    return found


def text(segment: Segment, experiment: Experiment) -> str:
    load, outcome = experiment.load, segment.outcome
    seconds = load.duration_ms / 1000
    found = response(segment.points, edges(load.shape, seconds), load.nr_cpus)
    seen = sum(point.wrote for point in segment.points)
    rate = outcome.writes / seconds * 60
    parts = (
        f"{outcome.writes} writes of a limit (changes seen: {seen}), {rate:.1f} a minute",
        f"BE kept {kept_pct(segment, load.nr_cpus):.0f} % of what X leaves",
        f"overshoot {_known(found.overshoot_pct, 1)} % of the CPUs",
        f"BE was down {_known(found.yield_sec, 2)} s after LS rose",
        f"and back at 90 % {_known(found.recover_sec, 2)} s after it fell",
    )
    return f"{outcome.mode}, {load.shape}, {seconds:g} s: {'; '.join(parts)}"


def kept_pct(segment: Segment, nr_cpus: int) -> float:
    """BE's CPU time, as a share of what LS and the system leave below the target."""
    target = configured(options(segment.outcome.mode)).host.cpu_target_pct / 100 * nr_cpus
    system = segment.outcome.system_pct / 100 * nr_cpus
    left = statistics.fmean(max(target - system - point.ls, 0.0) for point in segment.points)
    return 100 * statistics.fmean(point.be for point in segment.points) / max(left, 0.01)


def options(label: str) -> dict[str, str]:
    rest = label.partition(":")[2]
    return dict(part.split("=", 1) for part in rest.split(",")) if rest else {}


def _known(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
