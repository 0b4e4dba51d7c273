"""The plan of a demo: written by the outer half, read by the half inside the target."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, Literal, Self

Mode = Literal["frozen", "uncontrolled", "floor", "qosd"]

MODES: tuple[Mode, ...] = ("frozen", "uncontrolled", "floor", "qosd")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds from the first request. Only intended starts in [settle, settle + measured) are counted."""

    settle: float = 2.0
    measured: float = 10.0
    burst: tuple[float, float] = (5.5, 8.0)
    """When LS asks for `burst_share` instead of `share`."""
    second_batch: tuple[float, float] = (3.5, 10.0)
    """When a second BE job comes, and when it goes."""

    @property
    def end(self) -> float:
        return self.settle + self.measured


@dataclasses.dataclass(frozen=True)
class Daemon:
    """How the target starts and stops qosd, and asks it."""

    start: tuple[str, ...]
    stop: tuple[str, ...]
    qosctl: tuple[str, ...]
    socket: str
    """Its control socket."""


@dataclasses.dataclass(frozen=True)
class Plan:
    rounds: tuple[tuple[Mode, ...], ...]
    """The order of the modes in each counted round."""
    daemon: Daemon | None
    warm_up: Mode | None = "uncontrolled"
    timing: Timing = Timing()
    ls_slice: str = "ls.slice"
    be_slice: str = "be.slice"
    slices: dict[str, str] = dataclasses.field(default_factory=dict)
    """Unit files to bring and take away again, for a target without qosd's own slices."""
    share: float = 0.25
    """Of the host's CPUs, what LS asks for."""
    burst_share: float = 0.40
    request_ms: float = 1.0
    """CPU time of one request in redis."""
    seed: int = 1

    @classmethod
    def read(cls, path: str) -> Self:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
        timing: dict[str, Any] = raw.pop("timing")
        for key in ("burst", "second_batch"):  # JSON knows lists only
            timing[key] = tuple(timing[key])
        daemon: dict[str, Any] = raw.pop("daemon") or {}
        for key in daemon.keys() & {"start", "stop", "qosctl"}:
            daemon[key] = tuple(daemon[key])
        rounds = tuple(tuple(modes) for modes in raw.pop("rounds"))
        return cls(
            **raw,
            timing=Timing(**timing),
            daemon=Daemon(**daemon) if daemon else None,
            rounds=rounds,
        )

    def write(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def alternating(modes: tuple[Mode, ...], rounds: int) -> tuple[tuple[Mode, ...], ...]:
    """ABBA: every other round runs backwards, so that a drift of the machine falls on all modes alike."""
    return tuple(modes if number % 2 == 0 else modes[::-1] for number in range(rounds))
