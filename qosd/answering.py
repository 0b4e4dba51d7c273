"""Interference in the engine's terms: effects, memory and views around the pure decision of a tick."""

from __future__ import annotations

from collections import deque

import msgspec

from qosd.config import Config
from qosd.interference import kills, victims
from qosd.interference.governor import Outcome, State
from qosd.interference.kills import Effect, Means, Spent
from qosd.interference.ladder import Ladder, Rung
from qosd.interference.signals import Kind
from qosd.interference.verdict import Verdict
from qosd.interference.view import InterferenceView, RungView, VerdictRecord, VictimsView, VictimView
from qosd.kill import Done, Killer
from qosd.model import CgroupId, Snapshot, Tier, printable
from qosd.plan import Reason
from qosd.status import DecisionRecord
from qosd.sys import Sys

_VERDICTS = 256
_FREEZES_WITHIN_USEC = 2_000_000
_ABOUT_TO_KILL = (Rung.FREEZE, Rung.TERM, Rung.KILL)


class Totals:
    """Running totals for the metrics; only the loop writes them."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[str, str], int] = {}
        self.rung_usec: dict[tuple[str, str], int] = {}
        self.kills: dict[str, int] = {}


class Answering:
    def __init__(self, sys: Sys, root_fd: int, directory: str, protected: tuple[str, ...]) -> None:
        self._sys = sys
        self._killer = Killer(sys, root_fd, directory, protected)
        self._verdicts: deque[VerdictRecord] = deque(maxlen=_VERDICTS)
        self._freezing: dict[CgroupId, int] = {}
        self._ticked: int | None = None
        self._alarm: str | None = None
        self.totals = Totals()

    def before(self, state: State, now: Snapshot) -> State:
        """The state with what only looking can tell: the budget on file, and if the victim still lives."""
        kill = msgspec.structs.replace(state.kill, spent=self._killer.spent.records)
        if kill.pending is not None:
            populated = self._killer.populated(kill.pending.victim)
            kill = msgspec.structs.replace(
                kill, pending=msgspec.structs.replace(kill.pending, populated=populated)
            )
        memory = state.ladders.get(Kind.MEMORY, Ladder())
        if memory.rung in _ABOUT_TO_KILL:
            self._killer.remember(_ls(now))
        return msgspec.structs.replace(state, kill=kill)

    def after(
        self, found: Outcome, now: Snapshot, state: State, *, enforce: bool
    ) -> tuple[State, tuple[DecisionRecord, ...]]:
        """Do the effects; what happened, for the log and `qosctl decisions` (not numbered yet)."""
        self._count(found, now)
        self._keep(found)
        self._watch_freezes(now)
        records = [*self._told(found, now)]
        for effect in found.effects if enforce else ():
            done = self._do(effect, now)
            records.append(self._effect_record(done, now))
            state = _with_result(state, done)
        self._look_for_alarm(found, state)
        return state, tuple(records)

    def _do(self, effect: Effect, now: Snapshot) -> Done:
        spend = Spent(now.boottime_usec, effect.victim.shown) if effect.first else None
        done = self._killer.act(effect, spend)
        self.totals.kills[done.result] = self.totals.kills.get(done.result, 0) + 1
        return done

    def _count(self, found: Outcome, now: Snapshot) -> None:
        for verdict in found.began:
            pair = (verdict.signal, verdict.cause.value)
            self.totals.verdicts[pair] = self.totals.verdicts.get(pair, 0) + 1
        elapsed = now.monotonic_usec - (self._ticked or now.monotonic_usec)
        self._ticked = now.monotonic_usec
        for kind, ladder in found.ladders.items():
            place = (kind.value, ladder.rung.value)
            self.totals.rung_usec[place] = self.totals.rung_usec.get(place, 0) + elapsed

    def _keep(self, found: Outcome) -> None:
        """Each verdict once, with its latest reading."""
        at = self._sys.time()
        latest = {verdict.id: verdict for verdict in (*found.verdicts, *found.ended)}
        known = {record.verdict.id for record in self._verdicts}
        for index, record in enumerate(self._verdicts):
            verdict = latest.get(record.verdict.id)
            if verdict is not None and record.ended is None:
                ended = at if verdict.ended_usec is not None else None
                self._verdicts[index] = VerdictRecord(verdict, record.began, ended)
        self._verdicts.extend(VerdictRecord(new, at) for new in found.began if new.id not in known)

    def _watch_freezes(self, now: Snapshot) -> None:
        """Since when each cgroup is on its way to be frozen; a task that waits in the kernel holds it up."""
        going = {
            workload.id
            for workload in now.workloads
            if workload.setting("cgroup.freeze") == "1" and workload.events.get("frozen") == 0
        }
        self._freezing = {each: self._freezing.get(each, now.monotonic_usec) for each in going}

    def _told(self, found: Outcome, now: Snapshot) -> list[DecisionRecord]:
        at = self._sys.time()
        told = [
            DecisionRecord(
                0, at, now.tick, verdict.path, "verdict", "", verdict.cause.value, "verdict", _reason(verdict)
            )
            for verdict in found.began
        ]
        told += [
            DecisionRecord(
                0,
                at,
                now.tick,
                move.path or "-",
                f"rung.{move.kind}",
                move.old.value,
                move.new.value,
                "moved",
                move.reason,
            )
            for move in found.moves
        ]
        return told

    def _effect_record(self, done: Done, now: Snapshot) -> DecisionRecord:
        is_kill = done.effect.means is Means.KILL
        return DecisionRecord(
            0,
            self._sys.time(),
            now.tick,
            done.effect.victim.shown,
            "cgroup.kill" if is_kill else "SIGTERM",
            "",
            "1" if is_kill else done.detail or "-",
            done.result,
            done.effect.reason,
            done.detail if done.result in ("refused", "failed") else None,
        )

    def _look_for_alarm(self, found: Outcome, state: State) -> None:
        pending = state.kill.pending
        if self._killer.spent.error is not None:
            self._alarm = f"nothing is killed: {self._killer.spent.error}"
        elif pending is not None and pending.refused is not None:
            self._alarm = f"{pending.victim.shown} is not killed: {pending.refused}"
        elif found.exhausted:
            self._alarm = "the kill budget is used up: BE is only throttled and frozen"
        else:
            self._alarm = None

    def view(self, config: Config, now: Snapshot, state: State) -> InterferenceView:
        pending = state.kill.pending
        section = config.interference
        return InterferenceView(
            section.answer.value,
            tuple(_rung(kind, ladder, now) for kind, ladder in state.ladders.items()),
            tuple(record for record in self._verdicts if record.ended is None),
            _paths(now, "1"),
            tuple(
                printable(workload.path)
                for workload in now.workloads
                if now.monotonic_usec - self._freezing.get(workload.id, now.monotonic_usec)
                >= _FREEZES_WITHIN_USEC
            ),
            pending.victim.shown if pending is not None else None,
            kills.budget(section.kill, state.kill.spent, now.boottime_usec),
            self._alarm,
        )

    def verdicts(self) -> tuple[VerdictRecord, ...]:
        """Those remembered, the oldest first."""
        return tuple(self._verdicts)

    def victims(self, config: Config, now: Snapshot, state: State) -> VictimsView:
        section = config.interference
        ranked = victims.rank(config, now, kills.cooling(section.kill, state.kill.spent, now))
        return VictimsView(
            section.answer.value,
            kills.budget(section.kill, state.kill.spent, now.boottime_usec),
            tuple(
                VictimView(
                    each.shown,
                    each.workload,
                    each.tier.value,
                    each.priority,
                    each.memory_bytes,
                    each.freeze_rank,
                    each.kill_rank,
                    each.why,
                )
                for each in ranked
            ),
        )


def _with_result(state: State, done: Done) -> State:
    """What could not be done is not waited for."""
    pending = state.kill.pending
    if pending is None or done.result in ("signalled", "killed"):
        return state
    failed = msgspec.structs.replace(pending, refused=done.detail or done.result)
    return msgspec.structs.replace(state, kill=msgspec.structs.replace(state.kill, pending=failed))


def _reason(verdict: Verdict) -> Reason:
    return Reason(
        "interference.verdict",
        f"{verdict.path} suffers: {verdict.signal} {verdict.value:.1f} against {verdict.threshold:.1f},"
        f" because of {verdict.cause} (verdict {verdict.id}); {verdict.text}",
        verdict.evidence,
        threshold=f"{verdict.threshold:.1f}",
    )


def _rung(kind: Kind, ladder: Ladder, now: Snapshot) -> RungView:
    return RungView(
        kind.value,
        ladder.rung.value,
        (now.monotonic_usec - ladder.since_usec) / 1e6 if ladder.since_usec else 0.0,
        round(ladder.squeeze, 3),
        now.monotonic_usec < ladder.held_until,
    )


def _paths(now: Snapshot, freeze: str) -> tuple[str, ...]:
    return tuple(
        printable(workload.path)
        for workload in now.tier(Tier.BE)
        if workload.setting("cgroup.freeze") == freeze
    )


def _ls(now: Snapshot) -> tuple[tuple[str, CgroupId], ...]:
    return tuple((workload.path, workload.id) for workload in now.tier(Tier.LS))
