"""The modes by name, with options as `name:key=value,key=value`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.sched import laws
from bench.sched.control import Daemon, LawLoop, configured
from bench.sched.groups import Groups
from bench.sched.installed import Installed

Controller = LawLoop | Daemon | Installed
_PERIOD_USEC = 10_000
STANDARD = (
    "frozen",
    "uncontrolled",
    "weight-100",
    "idle",
    "idle-quota:pct=30",
    "idle-quota:pct=50",
    "idle-quota:pct=70",
    "cpuset-half",
    "quota-only:pct=50",
    "koordlet",
    "sideloader",
    "qosd",
)


class Mode(NamedTuple):
    label: str
    frozen: bool
    apply: Callable[[Groups], Controller | None]
    """Make the settings, and the controller where the mode has one."""


def parse(label: str, nr_cpus: int, *, installed: bool = False) -> Mode:
    """With `installed`, qosd is the daemon that is installed here."""
    name, _, rest = label.partition(":")
    options = dict(part.split("=", 1) for part in rest.split(",")) if rest else {}
    if name not in _MODES:
        raise SystemExit(f"unknown mode {name!r}; known: {', '.join(_MODES)}")
    make = _installed if installed and name == "qosd" else _MODES[name]
    return Mode(label, name == "frozen", lambda groups: make(groups, nr_cpus, dict(options)))


Options = dict[str, str]


def _frozen(_groups: Groups, _nr_cpus: int, _options: Options) -> None:
    return None


def _weight(groups: Groups, _nr_cpus: int, _options: Options) -> None:
    groups.ls.set_weight(10_000)


def _idle(groups: Groups, _nr_cpus: int, _options: Options) -> None:
    groups.ls.set_weight(1000)
    groups.be.set_idle(idle=True)


def _idle_quota(groups: Groups, nr_cpus: int, options: Options) -> None:
    _idle(groups, nr_cpus, options)
    _quota(groups, nr_cpus, options)


def _quota(groups: Groups, nr_cpus: int, options: Options) -> None:
    period = round(float(options.get("period", "10")) * 1000)
    groups.be.set_max(round(nr_cpus * period * float(options["pct"]) / 100), period)


def _cpuset_half(groups: Groups, nr_cpus: int, options: Options) -> None:
    if options.get("idle", "1") == "1":
        _idle(groups, nr_cpus, options)
    groups.be.set_cpus(f"{nr_cpus // 2}-{nr_cpus - 1}")


def _koordlet(groups: Groups, _nr_cpus: int, _options: Options) -> Controller:
    """Its BE pods have the least weight (cpu.shares 2) and a quota over the default period."""
    groups.be.set_weight(1)
    return LawLoop(groups, laws.koordlet, 1.0, 100_000)


def _sideloader(groups: Groups, _nr_cpus: int, _options: Options) -> Controller:
    groups.be.set_weight(1)
    return LawLoop(groups, laws.sideloader, 1.0, _PERIOD_USEC)


def _track(groups: Groups, nr_cpus: int, options: Options) -> Controller:
    _idle(groups, nr_cpus, options)
    interval = float(options.pop("interval", "1000")) / 1000
    period = round(float(options.pop("period", "10")) * 1000)
    use = options.pop("use", "mean")
    law = laws.Track(use=use, **{key: float(value) for key, value in options.items()})
    return LawLoop(groups, law, interval, period)


def _qosd(groups: Groups, _nr_cpus: int, options: Options) -> Controller:
    return Daemon(groups, configured(options))


def _installed(groups: Groups, _nr_cpus: int, options: Options) -> Controller:
    return Installed(groups, options)


_MODES: dict[str, Callable[[Groups, int, Options], Controller | None]] = {
    "frozen": _frozen,
    "uncontrolled": _frozen,
    "weight-100": _weight,
    "idle": _idle,
    "idle-quota": _idle_quota,
    "quota-only": _quota,
    "cpuset-half": _cpuset_half,
    "koordlet": _koordlet,
    "sideloader": _sideloader,
    "track": _track,
    "qosd": _qosd,
}
