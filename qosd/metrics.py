"""Prometheus metrics over the last Status: a thread of its own, which only reads what the loop replaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qosd.engine import Engine
from qosd.status import Status


class Source(Protocol):
    """What the exporter may look at."""

    status: Status | None

    @property
    def engine(self) -> Engine: ...


class StatusCollector(Collector):
    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        status = self._source.status
        if status is None:
            return
        allowance = GaugeMetricFamily(
            "qosd_be_cpu_allowance_cores", "CPUs that BE may use now; absent: no limit."
        )
        be = status.tiers["be"].cpu_allowance_cores
        if be is not None:
            allowance.add_metric([], be)
        yield allowance


def serve(source: Source, listen: str) -> None:
    """Answer scrapes on `HOST:PORT` from a thread of its own. Raises OSError when it cannot listen."""
    host, _, port = listen.rpartition(":")
    registry = CollectorRegistry()
    registry.register(StatusCollector(source))
    start_http_server(int(port), host, registry)
