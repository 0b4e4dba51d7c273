"""A host on which LS breaches between two ticks, as a test says, and what came of it."""

from __future__ import annotations

from pathlib import Path

from treekit import Box, cgroup_id, rewrite, text_of

from qosd.config import decode
from qosd.model import Breach

BUSY = {"ls": 0.5, "be": 3.0, "system": 0.1}
THROTTLED = (
    "usage_usec {usage}\nuser_usec 0\nsystem_usec 0\nnr_periods 9\nnr_throttled 9\nthrottled_usec {usec}\n"
)


MAX = '[fast]\ncut_idle = true\n[cpu.bandwidth]\nenforce = "max"\n'
NONE = "[fast]\ncut_idle = true\n"


def start(directory: Path, text: str) -> Box:
    box = Box(directory, decode(text))
    box.settle(**BUSY)
    return box


def react(box: Box, after: float = 0.05, be: float = 3.0) -> str:
    box.pass_time(after, ls=0.5, be=be)
    return report(box)


def report(box: Box, window_usec: int = 100_000) -> str:
    victim = cgroup_id(box.root / "ls.slice")
    at = box.sys.monotonic_usec
    return box.engine.react(Breach(victim, "cpu.pressure some", 5e4, 5e4, at, window_usec=window_usec))


def pass_held(box: Box, seconds: float, throttled_usec: int) -> None:
    """Time in which LS's own cpu.max held it, so long in all."""
    box.pass_time(seconds, be=3.0)
    rewrite(box.root / "ls.slice/cpu.stat", THROTTLED.format(usage=500_000_000, usec=throttled_usec))


def cores(box: Box, path: str = "be.slice") -> float | None:
    quota, period = text_of(box.root / path / "cpu.max").split()
    return None if quota == "max" else int(quota) / int(period)


def reactions(box: Box) -> dict[str, dict[str, int]]:
    return box.engine.reflex.reactions
