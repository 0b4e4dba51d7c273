"""The ladder of answers: one for each kind of signal, one rung a tick up, slower down. Pure.

The state is one frozen value and `step` its only transition; tests/unit/test_ladder.py is its table.
"""

from __future__ import annotations

import enum

import msgspec

from qosd.interference.signals import Kind
from qosd.interference.verdict import Evidence
from qosd.schema.interference import Interference, MaxAnswer


class Rung(enum.StrEnum):
    """What is done about it, the gentlest first."""

    IDLE = "idle"
    SQUEEZE = "squeeze"
    CPUSET = "cpuset"
    RECLAIM = "reclaim"
    IO = "io"
    FREEZE = "freeze"
    TERM = "term"
    KILL = "kill"


LADDERS: dict[Kind, tuple[Rung, ...]] = {
    Kind.CPU: (Rung.IDLE, Rung.SQUEEZE, Rung.CPUSET, Rung.FREEZE),
    Kind.LATENCY: (Rung.IDLE, Rung.SQUEEZE, Rung.CPUSET, Rung.FREEZE),
    Kind.MEMORY: (Rung.IDLE, Rung.RECLAIM, Rung.FREEZE, Rung.TERM, Rung.KILL),
    Kind.IO: (Rung.IDLE, Rung.IO, Rung.FREEZE),
}
"""Who waits for memory or IO gets nothing from BE's CPUs. Who waits for a CPU gets all there is from a
freeze, so only memory, which a frozen group keeps, is ever a reason to kill."""

_REACH = {
    MaxAnswer.REPORT: frozenset({Rung.IDLE}),
    MaxAnswer.THROTTLE: frozenset({Rung.IDLE, Rung.SQUEEZE, Rung.CPUSET, Rung.RECLAIM, Rung.IO}),
    MaxAnswer.FREEZE: frozenset(Rung) - {Rung.TERM, Rung.KILL},
    MaxAnswer.KILL: frozenset(Rung),
}
_LETHAL = (Rung.TERM, Rung.KILL)
_SEVERE = (Rung.FREEZE, *_LETHAL)


class Ladder(msgspec.Struct, frozen=True, gc=False):
    """One ladder between ticks."""

    rung: Rung = Rung.IDLE
    since_usec: int = 0
    """When this rung was entered."""
    quiet_since: int | None = None
    unknown_ticks: int = 0
    squeeze: float = 1.0
    """What is left to BE of its allowance, as a factor."""
    reach: int = 0
    """While frozen: how many levels of priority are, from the least important up."""
    rest_until: int = 0
    """Until then nothing is frozen or killed: a lease ran out, or what was done must show."""
    turns: tuple[int, ...] = ()
    """When it went up again after it had gone down."""
    falling: bool = False
    held_until: int = 0
    """Until then it does not move: it flapped."""


class May(msgspec.Struct, frozen=True, gc=False):
    """What the outside allows this tick."""

    cpuset: bool = False
    """There are CPUs that BE can be kept off for the victim."""
    severe: bool = True
    """Freezing and killing; not on a signal without a baseline."""
    kill: bool = False
    """All the rules for a kill hold: see `kills.choose`."""
    urgent: bool = False
    """Memory is nearly gone and LS stands still for it: no rung is stood on for its dwell."""


def open_rungs(kind: Kind, answer: MaxAnswer, may: May) -> tuple[Rung, ...]:
    """The rungs of a ladder that can be stood on now."""
    reach = _REACH[answer]
    return tuple(
        rung
        for rung in LADDERS[kind]
        if rung in reach
        and (rung is not Rung.CPUSET or may.cpuset)
        and (rung not in _SEVERE or may.severe)
        and (rung not in _LETHAL or may.kill)
    )


def step(
    config: Interference, kind: Kind, evidence: Evidence, may: May, now_usec: int, before: Ladder
) -> Ladder:
    """The ladder a tick later. TERM and KILL are entered here and left by `after_kill`."""
    if before.rung in _LETHAL:
        return before
    ladder = _note(before, evidence, now_usec)
    if ladder.unknown_ticks > config.release_ticks:
        return Ladder(rest_until=ladder.rest_until)
    rungs = open_rungs(kind, config.answer, may)
    if may.urgent and evidence is Evidence.HOT and (hurried := _hurry(rungs, now_usec, ladder)) is not None:
        return hurried
    return _squeeze(config, evidence, _move(config, rungs, evidence, now_usec, ladder))


def _hurry(rungs: tuple[Rung, ...], now_usec: int, ladder: Ladder) -> Ladder | None:
    """The next rung without the dwell, and from a freeze to a kill whose rules all hold; None: as usual.

    A lease, a rest after one and a hold for flapping stay what they are.
    """
    following = _over(rungs, ladder.rung)
    if following is None or now_usec < max(ladder.held_until, ladder.rest_until):
        return None
    return _to(ladder, following, now_usec)


def _move(
    config: Interference, rungs: tuple[Rung, ...], evidence: Evidence, now_usec: int, ladder: Ladder
) -> Ladder:
    if ladder.rung not in _REACH[config.answer]:
        return _to(ladder, _under(rungs, ladder.rung), now_usec)  # the configuration now forbids it
    if ladder.rung is Rung.FREEZE and now_usec - ladder.since_usec >= config.freeze_lease:
        return _lease_over(config, rungs, evidence, now_usec, ladder)
    if now_usec < ladder.held_until:
        return ladder
    if evidence is Evidence.HOT:
        return _up(config, rungs, now_usec, ladder)
    if evidence is Evidence.QUIET:
        return _down(config, rungs, now_usec, ladder)
    return ladder


def after_kill(config: Interference, now_usec: int, before: Ladder) -> Ladder:
    """Back to throttling until what was done can have shown."""
    return _to(
        msgspec.structs.replace(before, rest_until=now_usec + int(config.kill.settle)), Rung.RECLAIM, now_usec
    )


def _note(before: Ladder, evidence: Evidence, now_usec: int) -> Ladder:
    quiet_since = before.quiet_since
    if evidence is Evidence.QUIET:
        quiet_since = now_usec if quiet_since is None else quiet_since
    elif evidence is not Evidence.UNKNOWN:
        quiet_since = None
    unknown = before.unknown_ticks + 1 if evidence is Evidence.UNKNOWN else 0
    return msgspec.structs.replace(before, quiet_since=quiet_since, unknown_ticks=unknown)


def _squeeze(config: Interference, evidence: Evidence, ladder: Ladder) -> Ladder:
    """Down by a factor while it is bad, back by a step while it is quiet; only the CPU ladders have it."""
    if ladder.rung not in (Rung.SQUEEZE, Rung.CPUSET):
        return ladder
    squeeze = ladder.squeeze
    if evidence is Evidence.HOT:
        squeeze = max(squeeze * (1 - config.squeeze_down_pct / 100), config.squeeze_floor_pct / 100)
    elif evidence is Evidence.QUIET:
        squeeze = min(squeeze + config.squeeze_up_pct / 100, 1.0)
    return msgspec.structs.replace(ladder, squeeze=squeeze)


def _up(config: Interference, rungs: tuple[Rung, ...], now_usec: int, ladder: Ladder) -> Ladder:
    if ladder.rung is not Rung.IDLE and now_usec - ladder.since_usec < config.dwell_up:
        return ladder
    if ladder.rung is Rung.FREEZE:
        # A kill waits for the lease to run out: then freezing has been tried.
        further = (now_usec - ladder.since_usec) // max(int(config.dwell_up), 1)
        return msgspec.structs.replace(ladder, reach=max(ladder.reach, 1 + further))
    following = _over(rungs, ladder.rung)
    if following is None or (following in _SEVERE and now_usec < ladder.rest_until):
        return ladder
    if not ladder.falling:
        return _to(ladder, following, now_usec)
    turns = (*(at for at in ladder.turns if now_usec - at < config.flap_window), now_usec)
    if len(turns) <= config.flap_max:
        return msgspec.structs.replace(_to(ladder, following, now_usec), turns=turns)
    held = ladder if following in _SEVERE else _to(ladder, following, now_usec)
    return msgspec.structs.replace(held, turns=(), falling=False, held_until=now_usec + int(config.flap_hold))


def _down(config: Interference, rungs: tuple[Rung, ...], now_usec: int, ladder: Ladder) -> Ladder:
    quiet_since = now_usec if ladder.quiet_since is None else ladder.quiet_since
    if ladder.rung is Rung.IDLE or now_usec - max(quiet_since, ladder.since_usec) < config.dwell_down:
        return ladder
    return msgspec.structs.replace(_to(ladder, _under(rungs, ladder.rung), now_usec), falling=True)


def _lease_over(
    config: Interference, rungs: tuple[Rung, ...], evidence: Evidence, now_usec: int, ladder: Ladder
) -> Ladder:
    """Nothing stays frozen for longer, whatever the signals say; a kill may follow if all its rules hold."""
    if evidence is Evidence.HOT and Rung.TERM in rungs and now_usec >= ladder.held_until:
        return _to(ladder, Rung.TERM, now_usec)
    rested = msgspec.structs.replace(ladder, rest_until=now_usec + int(config.freeze_rest))
    return _to(rested, _under(rungs, Rung.FREEZE), now_usec)


def _to(ladder: Ladder, rung: Rung, now_usec: int) -> Ladder:
    return msgspec.structs.replace(
        ladder,
        rung=rung,
        since_usec=now_usec,
        squeeze=1.0 if rung is Rung.IDLE else ladder.squeeze,
        reach=1 if rung is Rung.FREEZE else 0,
        falling=False,
    )


_ORDER = tuple(Rung)


def _over(rungs: tuple[Rung, ...], rung: Rung) -> Rung | None:
    """The next rung that can be stood on; one that cannot now is stepped over."""
    return next((each for each in rungs if _ORDER.index(each) > _ORDER.index(rung)), None)


def _under(rungs: tuple[Rung, ...], rung: Rung) -> Rung:
    return next(each for each in reversed(rungs) if _ORDER.index(each) < _ORDER.index(rung))
