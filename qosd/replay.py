"""Recorded snapshots through the governors again: what would have been written, and why. Pure.

A trace is one JSON snapshot a line. Replay assumes that every write succeeds and changes nothing else: it
knows what qosd would have decided on what was seen then, not how the workloads would have answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from qosd import governors
from qosd.cgroupfs import parse_setting
from qosd.config import Config
from qosd.cpu.allowance import workload_cores
from qosd.errors import QosdError
from qosd.files import Key
from qosd.model import CpuMax, Snapshot, Tier, printable
from qosd.plan import FileState, Ledger, Now, Plan, diff


class Step(msgspec.Struct, frozen=True):
    """What one recorded tick leads to."""

    tick: int
    monotonic_usec: int
    allowance_cores: float | None
    writes: tuple[Change, ...]
    held_back: dict[str, float] = {}
    """CPU seconds that a BE workload used since the last tick above the limit that would have stood."""


class Change(msgspec.Struct, frozen=True):
    path: str
    file: str
    old: str
    new: str
    why: str


def plain(snapshot: Snapshot) -> Snapshot:
    """The snapshot as a trace has it: names escaped, they may hold bytes that are no text; no descendants."""
    workloads = tuple(
        msgspec.structs.replace(
            workload,
            sample=msgspec.structs.replace(workload.sample, path=printable(workload.sample.path)),
        )
        for workload in snapshot.workloads
    )
    unknown = {printable(name): why for name, why in snapshot.unknown.items()}
    return msgspec.structs.replace(snapshot, workloads=workloads, unknown=unknown, descendants=())


def load(lines: Iterable[bytes]) -> Iterator[Snapshot]:
    """The snapshots of a trace; raises QosdError naming the line that is none."""
    decoder = msgspec.json.Decoder(Snapshot)  # here, as the daemon's start need not wait for it
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise QosdError(f"line {number} is not a snapshot: {error}") from None


def replay(config: Config, snapshots: Iterable[Snapshot]) -> Iterator[Step]:
    """What this configuration would have done, tick by tick."""
    state = governors.State()
    ledger: Ledger = {}
    prev: Snapshot | None = None
    written: dict[Key, str] = {}
    for now in snapshots:
        held = held_back(prev, now, written)
        state, decision = governors.decide(config, prev, now, state)
        files = {Key(w.id, file): text for w in now.workloads for file, text in w.files.items()} | written
        ledger, plan = diff(Now(now.monotonic_usec, files), decision.desired, ledger, config.ownership)
        ledger = as_if_written(ledger, plan, written)
        cores = decision.allowance.cores if decision.allowance is not None else None
        yield Step(now.tick, now.monotonic_usec, cores, _changes(plan), held)
        prev = now


def held_back(prev: Snapshot | None, now: Snapshot, written: dict[Key, str]) -> dict[str, float]:
    """What BE used between two snapshots above the limits written before."""
    found: dict[str, float] = {}
    if prev is None or now.monotonic_usec <= prev.monotonic_usec:
        return found
    elapsed = now.monotonic_usec - prev.monotonic_usec
    for workload in now.tier(Tier.BE):
        used = workload_cores(prev.workload(workload.id), workload, elapsed, now.host.nr_cpus)
        limit = _limit(written.get(Key(workload.id, CpuMax.file)))
        if used is not None and limit is not None and used > limit:
            found[printable(workload.path)] = (used - limit) * elapsed / 1e6
    return found


def _limit(text: str | None) -> float | None:
    """A cpu.max as CPUs; None is no limit."""
    match None if text is None else parse_setting(CpuMax.file, text):
        case CpuMax(quota_usec=int(quota), period_usec=period):
            return quota / period
        case _:
            return None


def as_if_written(ledger: Ledger, plan: Plan, written: dict[Key, str]) -> Ledger:
    """The ledger after a plan of which every write succeeded; `written` follows what the files then hold."""
    following = dict(ledger)
    for write in plan.writes:
        held = following.get(write.key, FileState())
        original = write.old if held.original is None else held.original
        following[write.key] = msgspec.structs.replace(held, original=original, ours=write.new)
        written[write.key] = write.new
    for key in plan.restores:
        following.pop(key, None)
        written.pop(key, None)
    return following


def _changes(plan: Plan) -> tuple[Change, ...]:
    return tuple(
        Change(printable(write.path), write.key.file, write.old, write.new, write.reason.text)
        for write in plan.writes
    )
