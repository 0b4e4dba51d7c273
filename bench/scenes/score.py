"""Events, measured harm and verdicts to precision, recall and a table of confusion. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from bench.scenes.events import Event
from bench.scenes.labels import Harm, Label, Request, label
from qosd.interference.blame import Cause
from qosd.interference.verdict import Verdict
from qosd.model import Tier

VICTIM = "web.slice"
ALLOWED = "batch.slice"
CAUSES = ("be", "self", "ls", "system", "none")
_KILLS = ("SIGTERM", "cgroup.kill")
_DONE = ("signalled", "killed")


class Done(msgspec.Struct, frozen=True):
    """An event as it was run."""

    event: Event
    begin_ns: int
    end_ns: int
    begin: float
    """Wall clock; the two others are CLOCK_MONOTONIC."""


class Said(msgspec.Struct, frozen=True):
    """A verdict, as far as it is scored."""

    signal: str
    path: str
    causes: tuple[str, ...]
    """Of its bad ticks, most of them first; one of BE's is one too many where BE did nothing."""
    began_usec: int
    culprit: str
    text: str


class Scored(msgspec.Struct, frozen=True):
    done: Done
    label: Label
    said: tuple[Said, ...]

    @property
    def expected(self) -> str:
        return self.done.event.cause if self.label.harm is Harm.YES else "none"

    @property
    def found(self) -> str:
        """BE, if any verdict says so; else what the service's own say, since it is its harm that is known:
        that another workload has more to do than there are CPUs may be true as well.
        """
        said = sorted(self.said, key=lambda each: each.path != VICTIM)
        causes = [cause for each in said for cause in each.causes]
        return "be" if "be" in causes else next(iter(causes), "none")

    @property
    def is_hit(self) -> bool:
        """The service's verdict names BE, and comes from a signal that can show this event."""
        event = self.done.event
        return any(
            "be" in each.causes and each.path == VICTIM and each.signal in event.signals for each in self.said
        )

    @property
    def names_the_culprit(self) -> bool:
        loads = self.done.event.loads
        return bool(loads) and any(each.culprit == f"{loads[0][0]}.slice" for each in self.said)

    @property
    def delay(self) -> float | None:
        """Seconds from the event's begin to the verdict's."""
        began = [each.began_usec for each in self.said if "be" in each.causes]
        return min(began) / 1e6 - self.done.begin_ns / 1e9 if began else None


class Rates(msgspec.Struct, frozen=True):
    hits: int
    false: int
    missed: int

    @property
    def precision(self) -> float | None:
        return self.hits / (self.hits + self.false) if self.hits + self.false else None

    @property
    def recall(self) -> float | None:
        return self.hits / (self.hits + self.missed) if self.hits + self.missed else None


def of_verdict(verdict: Verdict) -> Said:
    culprit = next((each.path for each in verdict.culprits if each.tier is Tier.BE), "")
    text = f"{verdict.signal} {verdict.peak:.0f} of {verdict.threshold:.0f}: {verdict.text}"
    causes = most_first(Counter(dict(verdict.blamed)))
    return Said(verdict.signal, verdict.path, causes, verdict.began_usec, culprit, text)


def most_first(causes: Counter[Cause]) -> tuple[str, ...]:
    return tuple(cause.value for cause, _ in causes.most_common())


def belonging(done: list[Done], verdicts: list[Said]) -> list[tuple[Said, ...]]:
    """A verdict belongs to the last event that had begun when it did: one in a gap is held against it."""
    begins = [each.begin_ns // 1000 for each in done]
    spans = zip(begins, [*begins[1:], 1 << 63], strict=True)
    return [tuple(one for one in verdicts if begin <= one.began_usec < end) for begin, end in spans]


def score(done: list[Done], requests: list[Request], verdicts: list[Said]) -> list[Scored]:
    return [
        Scored(each, label(requests, each.begin_ns, each.end_ns), said)
        for each, said in zip(done, belonging(done, verdicts), strict=True)
    ]


def rates(scored: Iterable[Scored]) -> Rates:
    """Of verdicts against BE, which alone are answered. Events on the edge are left out."""
    count: Counter[str] = Counter()
    for each in scored:
        if each.label.harm is Harm.EDGE:
            continue
        if each.expected == "be":
            count["hits" if each.is_hit else "missed"] += 1
        elif each.found == "be":
            count["false"] += 1
    return Rates(count["hits"], count["false"], count["missed"])


def confusion(scored: Iterable[Scored]) -> dict[tuple[str, str], int]:
    """By (expected, found)."""
    return Counter((each.expected, each.found) for each in scored if each.label.harm is not Harm.EDGE)


def kills(scored: list[Scored], decisions: Iterable[dict[str, Any]]) -> tuple[int, list[str]]:
    """How many there were, and those that were wrong: of a job that may not be killed, or not the one that
    took the memory that the service was harmed for.
    """
    done = [each for each in decisions if each["file"] in _KILLS and each["result"] in _DONE]
    wrong = []
    for kill in done:
        before = [each for each in scored if each.done.begin <= kill["time"]]
        event = before[-1] if before else None
        if event is None or not kill["path"].startswith(ALLOWED) or not _calls_for_a_kill(event):
            wrong.append(
                f"{kill['path']} {kill['file']} during {event.done.event.id if event else 'the start'}"
            )
    return len(done), wrong


def _calls_for_a_kill(scored: Scored) -> bool:
    event = scored.done.event
    took = any(by == "batch" and load.startswith("grow") for by, load in event.loads)
    return took and scored.label.harm is not Harm.NO
