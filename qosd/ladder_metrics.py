"""The metric families of interference: verdicts, rungs, kills."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.answering import Totals
from qosd.exposition import CounterMetricFamily, GaugeMetricFamily, Metric
from qosd.interference.view import InterferenceView

_USEC = 1e6


def totals(counted: Totals) -> Iterator[Metric]:
    """The loop may be adding to them: copy, then walk."""
    verdicts = CounterMetricFamily(
        "qosd_verdicts", "Verdicts begun, by signal and cause.", labels=["signal", "cause"]
    )
    for (signal, cause), count in dict(counted.verdicts).items():
        verdicts.add_metric([signal, cause], count)
    yield verdicts
    seconds = CounterMetricFamily(
        "qosd_rung_seconds", "Time at each rung of the answer to interference.", labels=["kind", "rung"]
    )
    for (kind, rung), usec in dict(counted.rung_usec).items():
        seconds.add_metric([kind, rung], usec / _USEC)
    yield seconds
    kills = CounterMetricFamily("qosd_kills", "SIGTERM and cgroup.kill, by result.", labels=["result"])
    for result, count in dict(counted.kills).items():
        kills.add_metric([result], count)
    yield kills


def current(view: InterferenceView) -> Iterator[Metric]:
    open_verdicts = GaugeMetricFamily("qosd_open_verdicts", "LS workloads that suffer now.", labels=["cause"])
    causes = [record.verdict.cause.value for record in view.verdicts]
    for cause in sorted(set(causes)):
        open_verdicts.add_metric([cause], causes.count(cause))
    yield open_verdicts
    left = GaugeMetricFamily("qosd_kills_left", "Kills that the budget allows.", labels=["per"])
    if view.kills_left is not None:
        left.add_metric(["window"], view.kills_left.window)
        left.add_metric(["day"], view.kills_left.day)
    yield left
    alarm = GaugeMetricFamily("qosd_kill_alarm", "1 while something should be killed and is not.")
    alarm.add_metric([], float(view.alarm is not None))
    yield alarm
    frozen = GaugeMetricFamily("qosd_frozen_cgroups", "BE cgroups that are frozen, by qosd or others.")
    frozen.add_metric([], len(view.frozen))
    yield frozen
