"""When a kill is allowed, how many are left, and the one that is under way. Pure: it only asks for effects.

Every rule here can only refuse. Two conditions that do not depend on each other must both hold: an LS
workload waits for memory through BE, and memory really is short.
"""

from __future__ import annotations

import enum

import msgspec

from qosd.interference.victims import Candidate, Cooling
from qosd.model import CgroupId, Snapshot, printable
from qosd.plan import Input, Reason
from qosd.schema.interference import Kill, MaxAnswer

RULE = "interference.kill"
DAY_USEC = 86_400_000_000
_SHOWN = 10
_SURVIVES_USEC = 10_000_000
_URGENT = 0.5  # of the threshold: then there is no time to ask politely


class Means(enum.StrEnum):
    TERM = "term"
    """SIGTERM to each process."""
    KILL = "kill"
    """One write to cgroup.kill."""


class Effect(msgspec.Struct, frozen=True, gc=False):
    """A one-shot act: done once after the tick's writes, never journalled, never repeated."""

    means: Means
    victim: Candidate
    reason: Reason
    first: bool = True
    """SIGTERM and the SIGKILL that may follow it are one kill of the budget."""


class Spent(msgspec.Struct, frozen=True):
    """One kill on record, by CLOCK_BOOTTIME, which a restart of the daemon does not reset."""

    boottime_usec: int
    path: str


class Left(msgspec.Struct, frozen=True):
    now: int
    """How many could be done one after the other; 0: none until later."""
    window: int
    day: int


class Pending(msgspec.Struct, frozen=True, gc=False):
    """The victim under way."""

    victim: Candidate
    means: Means
    since_usec: int
    populated: bool | None = True
    """As last looked at; None: the cgroup is gone, or another one."""
    refused: str | None = None


class State(msgspec.Struct, frozen=True, gc=False):
    pending: Pending | None = None
    spent: tuple[Spent, ...] = ()
    hot_since: int | None = None
    """Since when BE has kept an LS workload waiting for memory."""
    tried: frozenset[CgroupId] = frozenset()
    """The workloads that were seen frozen since the ladder left idle: wanting it is not having tried it."""


def budget(config: Kill, spent: tuple[Spent, ...], boottime_usec: int) -> Left:
    window = config.per_window - sum(boottime_usec - each.boottime_usec < config.window for each in spent)
    day = config.per_day - sum(boottime_usec - each.boottime_usec < DAY_USEC for each in spent)
    settling = any(boottime_usec - each.boottime_usec < config.settle for each in spent)
    left = max(min(window, day), 0)
    return Left(0 if settling else left, max(window, 0), max(day, 0))


def cooling(config: Kill, spent: tuple[Spent, ...], now: Snapshot) -> tuple[Cooling, ...]:
    ahead = now.boottime_usec - now.monotonic_usec
    return tuple(
        Cooling(each.path, each.boottime_usec - ahead + int(config.cooldown))
        for each in spent
        if now.boottime_usec - each.boottime_usec < config.cooldown
    )


def scarce(config: Kill, now: Snapshot) -> bool | None:
    """Whether MemAvailable says that memory is short, whoever waits for it; None: not known."""
    total, available = now.host.mem_total, now.host.mem_available
    if not total or available is None:
        return None
    return available < total * config.mem_available_pct / 100


def choose(
    config: Kill, answer: MaxAnswer, state: State, now: Snapshot, ranked: tuple[Candidate, ...]
) -> Candidate | None:
    """The victim if every rule for a kill holds now, else None."""
    if not _due(config, answer, state, now) or budget(config, state.spent, now.boottime_usec).now < 1:
        return None
    first = next((each for each in ranked if each.kill_rank == 1), None)
    return first if first is not None and first.root_id in state.tried else None


def exhausted(config: Kill, answer: MaxAnswer, state: State, now: Snapshot) -> bool:
    """Whether the budget of the window or the day is all that stands in the way."""
    left = budget(config, state.spent, now.boottime_usec)
    return _due(config, answer, state, now) and min(left.window, left.day) < 1


def _due(config: Kill, answer: MaxAnswer, state: State, now: Snapshot) -> bool:
    if answer is not MaxAnswer.KILL or state.pending is not None or state.hot_since is None:
        return False
    return now.monotonic_usec - state.hot_since >= config.after and scarce(config, now) is True


def begin(
    config: Kill, state: State, now: Snapshot, victim: Candidate, ranked: tuple[Candidate, ...]
) -> tuple[State, Effect]:
    """SIGTERM first, unless memory is so short that there is no time for it."""
    urgent = config.term_grace == 0 or _is_urgent(config, now)
    means = Means.KILL if urgent else Means.TERM
    pending = Pending(victim, means, now.monotonic_usec)
    reason = _reason(config, state, now, victim, ranked)
    return msgspec.structs.replace(state, pending=pending), Effect(means, victim, reason)


def proceed(config: Kill, state: State, now: Snapshot) -> tuple[State, Effect | None]:
    """One tick of a kill under way; `pending` is None when it is over, well or not."""
    pending = state.pending
    if pending is None:
        return state, None
    over = msgspec.structs.replace(state, pending=None, hot_since=None)
    if not pending.populated or pending.refused is not None:
        return over, None
    waited = now.monotonic_usec - pending.since_usec
    if pending.means is Means.KILL:
        return (over, None) if waited >= _SURVIVES_USEC else (state, None)
    if waited < config.term_grace and not _is_urgent(config, now):
        return state, None
    following = msgspec.structs.replace(pending, means=Means.KILL, since_usec=now.monotonic_usec)
    shown = printable(pending.victim.path)
    text = f"{shown} is still there {waited / 1e6:.0f} s after SIGTERM"
    reason = Reason(RULE, text, (Input("since SIGTERM", round(waited / 1e6, 1), "s"),))
    return msgspec.structs.replace(state, pending=following), Effect(
        Means.KILL, pending.victim, reason, first=False
    )


def _is_urgent(config: Kill, now: Snapshot) -> bool:
    total, available = now.host.mem_total, now.host.mem_available
    if not total or available is None:
        return False
    return available < total * config.mem_available_pct / 100 * _URGENT


def _reason(
    config: Kill, state: State, now: Snapshot, victim: Candidate, ranked: tuple[Candidate, ...]
) -> Reason:
    waited = (now.monotonic_usec - (state.hot_since or now.monotonic_usec)) / 1e6
    available = (now.host.mem_available or 0) >> 20
    names = ", ".join(
        f"{each.shown} ({(each.memory_bytes or 0) >> 20} MiB)"
        for each in ranked[:_SHOWN]
        if each.kill_rank is not None
    )
    left = budget(config, state.spent, now.boottime_usec)
    return Reason(
        RULE,
        f"LS has waited for memory through BE for {waited:.0f} s, {available} MiB are left, and throttling"
        f" and freezing did not help; candidates, the first to go first: {names}",
        (
            Input("LS waited for memory", round(waited, 1), "s"),
            Input("MemAvailable", float(available), "MiB"),
            Input("victim's memory.current", float((victim.memory_bytes or 0) >> 20), "MiB"),
            Input("kills left in the window", float(left.window), ""),
            Input("kills left today", float(left.day), ""),
        ),
        threshold=f"interference.kill.mem_available_pct = {config.mem_available_pct:g} %"
        f" for {int(config.after) / 1e6:g} s",
    )


def victim_root(state: State) -> CgroupId | None:
    """The workload that must run freely now, so that its victim can end."""
    return state.pending.victim.root_id if state.pending is not None else None
