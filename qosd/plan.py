"""From what governors want to what must be written: `Desired`, and the pure `diff` and `order`."""

from __future__ import annotations

import enum

import msgspec

from qosd.cgroupfs import format_setting, parse_setting
from qosd.config import OnForeignWrite, Ownership
from qosd.errors import Malformed
from qosd.files import Key, restore_rank, value_of
from qosd.model import (
    CgroupId,
    CpuMax,
    CpusetCpus,
    Max,
    MemoryHigh,
    MemoryLow,
    MemoryMin,
    Setting,
    Tier,
)


class Input(msgspec.Struct, frozen=True, gc=False):
    """A number that went into a decision, with its unit and how old it was."""

    name: str
    value: float
    unit: str
    age_ms: int = 0


class Reason(msgspec.Struct, frozen=True, gc=False):
    """Why a setting is wanted: the log line, the answer of `qosctl explain` and the audit record."""

    rule: str
    """The governor and its rule, as `cpu.bandwidth/allowance`."""
    text: str
    """One sentence for a person."""
    inputs: tuple[Input, ...] = ()
    threshold: str | None = None
    margin: str | None = None
    clamp: str | None = None
    """The bound that decided, when the formula's own result was not used: `floor`, `ramp`, `deadband`, ..."""


class Desired(msgspec.Struct, frozen=True, gc=False):
    """One wanted value of one interface file of one cgroup."""

    cgroup_id: CgroupId
    path: str
    tier: Tier
    setting: Setting
    reason: Reason
    tighten_only: bool = False
    """Not wanted where a limit that is not ours is tighter already."""


class FileState(msgspec.Struct, frozen=True, gc=False):
    """What qosd remembers of one interface file between ticks."""

    original: str | None = None
    """What stood there before our first write; None while nothing of ours is in force."""
    ours: str | None = None
    fights: tuple[int, ...] = ()
    """When (monotonic microseconds) our value was found undone by somebody who is not systemd reloading."""
    contested_until: int = 0
    yielded_to: str | None = None
    """Somebody else's value that we leave alone as long as it stands."""
    yielded_original: str | None = None
    failures: int = 0
    retry_at: int = 0
    error: str | None = None


Ledger = dict[Key, FileState]
"""Treated as a frozen value: every step returns a new one."""


def originals(ledger: Ledger) -> dict[CgroupId, dict[str, str]]:
    """What stood before us in the files that hold a value of ours."""
    found: dict[CgroupId, dict[str, str]] = {}
    for key, state in ledger.items():
        if state.ours is not None and state.original is not None:
            found.setdefault(CgroupId(key.cgroup_id), {})[key.file] = state.original
    return found


class Write(msgspec.Struct, frozen=True, gc=False):
    key: Key
    path: str
    old: str
    new: str
    reason: Reason
    reassert: bool = False


class Standing(enum.StrEnum):
    """How a wanted setting stands; the `state` of a setting in `qosctl status`."""

    IN_FORCE = "in-force"
    ALREADY = "already"
    WRITING = "writing"
    ABSENT = "absent"
    YIELDED = "yielded"
    CONTESTED = "contested"
    BACKOFF = "backoff"


class Plan(msgspec.Struct, frozen=True, gc=False):
    writes: tuple[Write, ...] = ()
    restores: tuple[Key, ...] = ()
    """Journalled files that nobody wants any more and that still hold our value."""
    forgets: tuple[Key, ...] = ()
    """Journalled files that hold their original again, or somebody else's value."""
    states: dict[Key, Standing] = {}


class Now(msgspec.Struct, frozen=True, gc=False):
    """What `diff` compares with: the files as read this tick (absent: not in the dict), and the clock."""

    monotonic_usec: int
    files: dict[Key, str]
    systemd_reloaded: bool = False


def diff(now: Now, desired: tuple[Desired, ...], ledger: Ledger, ownership: Ownership) -> tuple[Ledger, Plan]:
    """What to write, restore and forget so that the host holds `desired` and nothing else of ours."""
    following = dict(ledger)
    writes: list[Write] = []
    forgets: list[Key] = []
    states: dict[Key, Standing] = {}
    for wanted in desired:
        key = Key(wanted.cgroup_id, wanted.setting.file)
        current = value_of(now.files, key)
        if current is None or not _is_readable(key.file, current):
            states[key] = Standing.ABSENT
            continue
        before = ledger.get(key, FileState())
        if wanted.tighten_only and _is_moot(wanted, before, current):
            continue
        after, standing = _judge(before, current, format_setting(wanted.setting), now, ownership)
        following[key] = after
        states[key] = standing
        if standing is Standing.WRITING:
            undone = before.ours is not None and current != before.ours
            writes.append(
                Write(key, wanted.path, current, format_setting(wanted.setting), wanted.reason, undone)
            )
        if before.ours is not None and after.ours is None:
            forgets.append(key)
    unwanted = {key: state for key, state in ledger.items() if key not in states}
    restores = _release(unwanted, now, following, forgets)
    plan = Plan(order(writes), tuple(sorted(restores, key=restore_rank)), tuple(forgets), states)
    return following, plan


def _is_moot(wanted: Desired, before: FileState, current: str) -> bool:
    """Whether what stands without us is a limit at least as tight."""
    theirs = current if before.ours is None or before.original is None else before.original
    match parse_setting(wanted.setting.file, theirs), wanted.setting:
        case CpuMax() as old, CpuMax() as new:
            return _share(new) >= _share(old)
        case _:
            return False


def _is_readable(file: str, text: str) -> bool:
    """Whether `order` can compare with it; what cannot be understood must not be overwritten either."""
    try:
        parse_setting(file, text)
    except Malformed:
        return False
    return True


def _judge(  # noqa: PLR0911 - one return per row of the table that this is
    before: FileState, current: str, wanted: str, now: Now, ownership: Ownership
) -> tuple[FileState, Standing]:
    """One wanted value against one file: the file's next state, and what to do."""
    if current == wanted:
        settled = msgspec.structs.replace(before, failures=0, retry_at=0, yielded_to=None, error=None)
        return settled, Standing.ALREADY if before.ours is None else Standing.IN_FORCE
    if before.ours is None:
        return _judge_untouched(before, current, now)
    if now.monotonic_usec < before.contested_until:
        return before, Standing.CONTESTED
    if now.monotonic_usec < before.retry_at:
        return before, Standing.BACKOFF
    if current == before.ours:
        return before, Standing.WRITING
    if current == before.original and now.systemd_reloaded:
        return before, Standing.WRITING
    if current == before.original or ownership.on_foreign_write is OnForeignWrite.REASSERT:
        return _fight(before, now, ownership)
    return FileState(yielded_to=current, yielded_original=before.original), Standing.YIELDED


def _judge_untouched(before: FileState, current: str, now: Now) -> tuple[FileState, Standing]:
    if before.yielded_to is not None and current != before.yielded_original:
        # Whatever they set it to next is theirs as well, until it is back at what we first found.
        return msgspec.structs.replace(before, yielded_to=current), Standing.YIELDED
    if now.monotonic_usec < before.contested_until:
        return before, Standing.CONTESTED
    if now.monotonic_usec < before.retry_at:
        return before, Standing.BACKOFF
    return msgspec.structs.replace(before, yielded_to=None, yielded_original=None), Standing.WRITING


def _fight(before: FileState, now: Now, ownership: Ownership) -> tuple[FileState, Standing]:
    """Our value was undone: write it again, unless this is becoming a war."""
    since = now.monotonic_usec - ownership.contested_window
    fights = (*(at for at in before.fights if at > since), now.monotonic_usec)
    if len(fights) < ownership.contested_after:
        return msgspec.structs.replace(before, fights=fights), Standing.WRITING
    until = now.monotonic_usec + ownership.contested_hold
    return msgspec.structs.replace(before, fights=(), contested_until=until), Standing.CONTESTED


def _release(unwanted: Ledger, now: Now, following: Ledger, forgets: list[Key]) -> list[Key]:
    """The files nobody wants any more: those to restore, and what is left to remember of the others."""
    restores: list[Key] = []
    for key, state in unwanted.items():
        current = value_of(now.files, key)
        if state.ours is not None and now.monotonic_usec < state.retry_at:
            continue
        if state.ours is not None and current in (None, state.ours, state.original):
            # A cgroup that no rule matches any more is not read; the restore itself looks what it holds.
            # At its original, a restore may still be half done: cpu.idle is left, its weight not given back.
            restores.append(key)
            continue
        if state.ours is not None:
            forgets.append(key)
        remembered = _memory(state, current, now)
        if remembered is None:
            del following[key]
        else:
            following[key] = remembered
    return restores


def _memory(state: FileState, current: str | None, now: Now) -> FileState | None:
    """What must outlive our wish: a choice of theirs that still stands, and a truce that still holds.

    Else a governor that pauses for one tick would take their value for an original of its own to replace.
    """
    theirs = state.yielded_to is not None and current is not None and current != state.yielded_original
    if not theirs and now.monotonic_usec >= state.contested_until:
        return None
    return FileState(
        contested_until=state.contested_until,
        yielded_to=current if theirs else None,
        yielded_original=state.yielded_original if theirs else None,
    )


def narrow(
    now: Now, desired: tuple[Desired, ...], ledger: Ledger, ownership: Ownership
) -> tuple[Ledger, Plan]:
    """As `diff` between two ticks: nothing but writes that take away, and none over another's value.

    What is loosened, restored or fought over can wait for the next tick.
    """
    tighter = tuple(each for each in desired if _tightens(each, now.files, ledger))
    keys = [Key(each.cgroup_id, each.setting.file) for each in tighter]
    following, plan = diff(now, tighter, {key: ledger[key] for key in keys if key in ledger}, ownership)
    return ledger | following, plan


def _tightens(wanted: Desired, files: dict[Key, str], ledger: Ledger) -> bool:
    key = Key(wanted.cgroup_id, wanted.setting.file)
    current = files.get(key)
    ours = ledger.get(key, FileState()).ours
    if current is None or (ours is not None and current != ours) or not _is_readable(key.file, current):
        return False
    match parse_setting(key.file, current), wanted.setting:
        case CpuMax() as old, CpuMax() as new:
            return _share(new) < _share(old)
        case old, new:
            return old != new


def order(writes: list[Write]) -> tuple[Write, ...]:
    """The order in which the kernel takes the writes, and in which no moment is tighter than both ends.

    cpu.max below cpu.max.burst is EINVAL, so a burst is lowered before and raised after its limit.
    Limits are widened from the top down, then narrowed from the bottom up. A thaw comes first, a freeze last.
    """
    return tuple(sorted(writes, key=_write_rank))


def _write_rank(write: Write) -> tuple[int, int, str]:
    depth = write.path.count("/")
    if write.key.file == "cgroup.freeze":
        return (-1 if write.new == "0" else 5, depth, write.path)
    if write.key.file == "cpu.max.burst":
        return (0 if int(write.new) <= int(write.old) else 4, depth, write.path)
    if _narrows(write):
        return (3, -depth, write.path)
    return (1 if write.key.file == "cpu.idle" else 2, depth, write.path)


def _narrows(write: Write) -> bool:
    old, new = parse_setting(write.key.file, write.old), parse_setting(write.key.file, write.new)
    match old, new:
        case CpuMax(), CpuMax():
            return _share(new) < _share(old)
        case CpusetCpus(), CpusetCpus():
            return not old.cpus or (bool(new.cpus) and len(new.cpus) < len(old.cpus))
        case ((MemoryHigh() | MemoryLow() | MemoryMin()), (MemoryHigh() | MemoryLow() | MemoryMin())):
            return amount(new.bytes) < amount(old.bytes)
        case _:
            return False


def amount(size: float | Max) -> float:
    """A size to compare with: "max" is more than any number."""
    return float("inf") if isinstance(size, Max) else size


def _share(limit: CpuMax) -> float:
    return float("inf") if isinstance(limit.quota_usec, Max) else limit.quota_usec / limit.period_usec
