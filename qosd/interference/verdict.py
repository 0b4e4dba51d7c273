"""Verdicts: an LS workload suffers, from what, through whom, with the evidence. One for each episode. Pure.

An episode begins after `enter_ticks` readings at the threshold in a row and ends after `leave_ticks` below
the lower one; in between nothing new is said. It is reported whoever the cause is; only BE's is answered.
"""

from __future__ import annotations

import enum

import msgspec

from qosd.interference.blame import Blame, Cause, Culprit, Doings
from qosd.interference.signals import BaselineKey, Kind, Signal
from qosd.model import CgroupId
from qosd.plan import Input
from qosd.schema.interference import Interference


class Verdict(msgspec.Struct, frozen=True):
    id: int
    victim: CgroupId
    path: str
    """Of the victim, as it may be shown."""
    signal: str
    kind: Kind
    value: float
    """As last read."""
    peak: float
    threshold: float
    baseline: float | None
    cold: bool
    cause: Cause
    confidence: float
    text: str
    culprits: tuple[Culprit, ...]
    evidence: tuple[Input, ...]
    began_usec: int
    ended_usec: int | None = None
    sure: bool = True
    """Whether the last reading could tell the cause; else it is the one that was last known."""
    blamed: dict[Cause, int] = {}
    """How many of its bad ticks each cause had; the answer to BE may leave the last ones to somebody else."""

    @property
    def mostly(self) -> Cause:
        """Who had most of the episode, which the last tick alone does not tell; of equals, BE."""
        most = max(self.blamed.values(), default=0)
        return next((each for each in Cause if self.blamed.get(each) == most), self.cause)


class Evidence(enum.StrEnum):
    """What this tick says to one ladder."""

    HOT = "hot"
    HOLD = "hold"
    """Between the thresholds: neither worse nor over."""
    QUIET = "quiet"
    UNKNOWN = "unknown"


class Watch(msgspec.Struct, frozen=True, gc=False):
    """One victim and signal between ticks."""

    hot_ticks: int = 0
    quiet_ticks: int = 0
    verdict: Verdict | None = None
    seen: tuple[Doings, ...] = ()
    """Who was seen to cause the last readings at the threshold; the latest last."""


Watches = dict[BaselineKey, Watch]
"""Treated as a frozen value."""


class Docket(msgspec.Struct, frozen=True, gc=False):
    watches: Watches = {}
    next_id: int = 1

    def seen(self, signal: Signal) -> tuple[Doings, ...]:
        return self.watches.get(BaselineKey(signal.victim, signal.name), Watch()).seen


class Hearing(msgspec.Struct, frozen=True, gc=False):
    """A signal with who is to blame for it, and the victim's path."""

    signal: Signal
    blame: Blame
    path: str
    urgent: bool = False
    """One reading is enough: `memory.trouble` says the same of its own."""


class Heard(msgspec.Struct, frozen=True, gc=False):
    """What a tick's signals come to."""

    docket: Docket
    open: tuple[Verdict, ...]
    began: tuple[Verdict, ...]
    ended: tuple[Verdict, ...]


def hear(config: Interference, hearings: tuple[Hearing, ...], docket: Docket, now_usec: int) -> Heard:
    """The next docket. What is not heard of this tick stays as it is: silence proves nothing."""
    watches = dict(docket.watches)
    next_id = docket.next_id
    began: list[Verdict] = []
    ended: list[Verdict] = []
    for hearing in hearings:
        key = BaselineKey(hearing.signal.victim, hearing.signal.name)
        before = watches.get(key, Watch())
        after = _follow(config, hearing, before, next_id)
        if after.verdict is not None and before.verdict is None:
            next_id += 1
            began.append(after.verdict)
        if after.verdict is not None and after.quiet_ticks >= config.leave_ticks:
            ended.append(msgspec.structs.replace(after.verdict, ended_usec=now_usec))
            after = Watch()
        watches[key] = after
    current = tuple(watch.verdict for watch in watches.values() if watch.verdict is not None)
    return Heard(Docket(watches, next_id), current, tuple(began), tuple(ended))


def forget(docket: Docket, present: frozenset[CgroupId], now_usec: int) -> tuple[Docket, tuple[Verdict, ...]]:
    """The docket without victims that are gone, and their verdicts, ended."""
    gone = {key: watch for key, watch in docket.watches.items() if key.victim not in present}
    left = {key: watch for key, watch in docket.watches.items() if key not in gone}
    ended = tuple(
        msgspec.structs.replace(watch.verdict, ended_usec=now_usec)
        for watch in gone.values()
        if watch.verdict is not None
    )
    return Docket(left, docket.next_id), ended


def _follow(config: Interference, hearing: Hearing, before: Watch, next_id: int) -> Watch:
    signal = hearing.signal
    hot = signal.value >= signal.threshold
    usual = signal.baseline or 0.0
    quiet = signal.value < usual + (signal.threshold - usual) * config.leave_pct / 100
    hot_ticks = before.hot_ticks + 1 if hot else 0
    quiet_ticks = before.quiet_ticks + 1 if quiet else 0
    verdict = None
    if before.verdict is not None:
        proves = hearing.urgent or hot_ticks >= config.enter_ticks
        verdict = _renew(before.verdict, hearing, hot=hot, proves=proves)
    elif hot_ticks >= (1 if hearing.urgent else config.enter_ticks):
        verdict = _verdict(hearing, next_id)
    return Watch(hot_ticks, quiet_ticks, verdict, _seen(config, hearing.blame, before.seen) if hot else ())


def _seen(config: Interference, blame: Blame, before: tuple[Doings, ...]) -> tuple[Doings, ...]:
    """What the next reading is judged by as well: as many in all as make a verdict."""
    kept = config.enter_ticks - 1
    return (*before, blame.seen)[-kept:] if blame.seen and kept else ()


def _verdict(hearing: Hearing, number: int) -> Verdict:
    signal, blame = hearing.signal, hearing.blame
    return Verdict(
        number,
        signal.victim,
        hearing.path,
        signal.name,
        signal.kind,
        signal.value,
        signal.value,
        signal.threshold,
        signal.baseline,
        signal.cold,
        blame.cause,
        blame.confidence,
        blame.text,
        blame.culprits,
        (*signal.evidence, *blame.evidence),
        signal.at_usec,
        blamed={blame.cause: 1},
    )


def _renew(verdict: Verdict, hearing: Hearing, *, hot: bool, proves: bool) -> Verdict:
    """The reading moves on; who is to blame is asked again only while there is something to blame.

    What was somebody else's doing is put down to BE on the same grounds as what is new: `proves`.
    """
    signal, blame = hearing.signal, hearing.blame
    following = msgspec.structs.replace(verdict, value=signal.value, peak=max(verdict.peak, signal.value))
    turns = blame.cause is Cause.BE and verdict.cause is not Cause.BE
    if not hot or (turns and not proves):
        return following
    if blame.cause is Cause.UNKNOWN:
        return msgspec.structs.replace(following, sure=False)
    return msgspec.structs.replace(
        following,
        threshold=signal.threshold,
        baseline=signal.baseline,
        cold=signal.cold,
        cause=blame.cause,
        confidence=blame.confidence,
        text=blame.text,
        culprits=blame.culprits,
        evidence=(*signal.evidence, *blame.evidence),
        sure=True,
        blamed={**verdict.blamed, blame.cause: verdict.blamed.get(blame.cause, 0) + 1},
    )


def evidence(kind: Kind, verdicts: tuple[Verdict, ...], heard: frozenset[BaselineKey]) -> Evidence:
    """What the open verdicts say to the ladder of this kind; `heard` is what was read this tick.

    Only BE's doing counts. A verdict that nothing was heard of is unknown, and outweighs a quiet one.
    """
    mine = [verdict for verdict in verdicts if verdict.kind is kind]
    if any(_is_hot(verdict, heard) for verdict in mine):
        return Evidence.HOT
    if any(BaselineKey(verdict.victim, verdict.signal) not in heard or not verdict.sure for verdict in mine):
        return Evidence.UNKNOWN
    if any(verdict.cause is Cause.BE for verdict in mine):
        return Evidence.HOLD
    return Evidence.QUIET


def _is_hot(verdict: Verdict, heard: frozenset[BaselineKey]) -> bool:
    return (
        verdict.cause is Cause.BE
        and verdict.sure
        and verdict.value >= verdict.threshold
        and BaselineKey(verdict.victim, verdict.signal) in heard
    )
