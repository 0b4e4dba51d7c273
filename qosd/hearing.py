"""Which sensors spoke in this tick, and how long ago the others last did."""

from __future__ import annotations

from qosd.model import Snapshot
from qosd.status import SensorStatus


class Hearing:
    """Each sensor with the time of its last word; one that never spoke has none."""

    def __init__(self) -> None:
        self._heard: dict[str, int] = {}

    def sensors(self, now: Snapshot) -> tuple[SensorStatus, ...]:
        """The sensors, and behind them what could not be read."""
        host = now.host
        readings = {
            "cpu": host.busy_usec,
            "memory": host.mem_available,
            "pressure": host.cpu_pressure,
            "cgroups": now.workloads or None,
        }
        sensors = []
        for name, value in readings.items():
            if value is not None:
                self._heard[name] = now.monotonic_usec
            heard = self._heard.get(name)
            age_ms = (now.monotonic_usec - heard) // 1000 if heard is not None else None
            sensors.append(SensorStatus(name, value is not None, age_ms))
        failures = (
            SensorStatus(name, ok=False, age_ms=None, detail=why) for name, why in now.unknown.items()
        )
        return (*sensors, *failures)
