"""What is done between two ticks: who reports a breach, what was seen of it, and what came of it.

The writes are the engine's (`Engine.react`); this is the memory around them.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config, Mode
from qosd.look import Look
from qosd.model import Breach, Snapshot, Tier, printable
from qosd.schema.interference import MaxAnswer
from qosd.trigger import Triggers
from qosd.witness import Witness

_EVENTS = 64  # a tick: after a dwell's worth nothing changes any more


class ReflexStatus(msgspec.Struct, frozen=True):
    """How breaches are found, and what was done about them."""

    detection: str
    """`trigger` or `poll`: whether anything wakes qosd between two ticks."""
    armed: dict[str, str]
    """LS workloads with a PSI trigger, by path: the threshold and window the kernel took."""
    why_not: dict[str, str]
    """LS workloads without one, or the reason for all of them under ``""``."""
    squeeze: float
    """The part of its allowance that BE has now."""
    reactions: dict[str, dict[str, int]]
    """By source and outcome, since the start."""


class Reflex:
    def __init__(self, look: Look) -> None:
        sys, root_fd = look.sys, look.root_fd
        self.triggers = Triggers(sys, root_fd)
        self.memory = Triggers(sys, root_fd, "memory.pressure")
        """They wake the loop for a tick of its own; what to do about memory takes a whole decision."""
        self._witness = Witness(look)
        self._events: list[Breach] = []
        self._off: str | None = "no tick yet"
        self.reactions: dict[str, dict[str, int]] = {}

    @property
    def events(self) -> tuple[Breach, ...]:
        return tuple(self._events)

    def enter(self, now: Snapshot) -> Snapshot:
        """The snapshot with what was reported since the last one, which is then forgotten here."""
        events, self._events = self.events, []
        return msgspec.structs.replace(now, events=events) if events else now

    def note(self, config: Config, mode: str, now: Snapshot) -> None:
        """A tick is over: remember what it saw, and have the triggers where they belong."""
        self._witness.note(now)
        self._off = _why_off(config, mode)
        if self._off is None and config.interference.answer is not MaxAnswer.REPORT:
            self.memory.follow(
                msgspec.structs.replace(config.fast, threshold_pct=config.memory.trouble.wake_pct), now
            )
        else:
            self.memory.disarm()
        if self._off is None:
            self.triggers.follow(config.fast, now)
        else:
            self.triggers.disarm()

    def forget(self) -> None:
        self._witness.forget()

    def hear(self, event: Breach, *, cut_idle: bool) -> bool:
        """Take an event in, with its evidence. False when there were too many since the last tick."""
        if len(self._events) >= _EVENTS:
            return False
        self._events.append(self._witness.testify(event, cut_idle=cut_idle))
        return True

    def count(self, source: str, outcome: str) -> None:
        outcomes = self.reactions.setdefault(source, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def status(self, now: Snapshot, squeeze: float) -> ReflexStatus:
        armed = {
            printable(each.path): f"{each.threshold_usec / 1000:g} ms in {each.window_usec / 1000:g} ms"
            for each in self.triggers.armed
        }
        why_not = {printable(path): why for path, why in self.triggers.why_not.items()}
        off = self._off or (None if now.tier(Tier.LS) else "no cgroup of LS is there")
        if off is not None:
            why_not = {"": off}
        reactions = {source: dict(outcomes) for source, outcomes in self.reactions.items()}
        return ReflexStatus("trigger" if armed else "poll", armed, why_not, squeeze, reactions)


def _why_off(config: Config, mode: str) -> str | None:
    """Why no trigger is to be set at all: one is a write, and starts a thread of the kernel."""
    if mode != Mode.ENFORCE.value:
        return f"mode is {mode}: nothing is written, triggers included"
    if config.fast.max_triggers == 0:
        return "fast.max_triggers = 0"
    return None
