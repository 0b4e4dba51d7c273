"""What operators measure of their services, for the Snapshot: fed by qosctl, from a file, from Prometheus.

Old is unknown: a value older than `valid` is None, as is one that a source could not give.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from qosd.errors import QosdError
from qosd.model import Feed
from qosd.schema.signal import SignalRule, Source
from qosd.sys import READ, Sys

if TYPE_CHECKING:
    from qosd.prometheus import Poller

_TEXT_MAX = 256
_AHEAD_SEC = 2.0  # a clock may be set back a little; a file from the future says nothing
_TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6}


class Reading(NamedTuple):
    value: float
    at_usec: int
    stamp: int
    """Another one for each new reading, though it may be of the same value."""


def _new_poller() -> Poller:
    from qosd.prometheus import Poller  # noqa: PLC0415 - http and ssl, only for those who ask

    return Poller()


class Feeds:
    """The last word of each signal. Only a rule of `source = "prometheus"` starts a thread."""

    def __init__(
        self, sys: Sys, rules: tuple[SignalRule, ...], new_poller: Callable[[], Poller] | None = None
    ) -> None:
        self._sys = sys
        self._rules: dict[str, SignalRule] = {}
        self._readings: dict[str, Reading] = {}
        self._errors: dict[str, str] = {}
        self._next_usec: dict[str, int] = {}
        self._told: dict[str, int] = {}
        """Stamps of the readings that were in a sample already."""
        self._new_poller = new_poller or _new_poller
        self._poller: Poller | None = None
        self.reconfigure(rules)

    def reconfigure(self, rules: tuple[SignalRule, ...]) -> None:
        """A rule that changed begins anew: its old value may have been another thing."""
        following = {rule.name: rule for rule in rules}
        for name in [name for name, rule in self._rules.items() if following.get(name) != rule]:
            for memory in (self._readings, self._errors, self._next_usec, self._told):
                memory.pop(name, None)
        self._rules = following
        # A new one for new rules, so that no answer to an old question is taken for one to a new.
        self.close()
        if any(rule.source is Source.PROMETHEUS for rule in rules):
            self._poller = self._new_poller()

    def close(self) -> None:
        if self._poller is not None:
            self._poller.close()
            self._poller = None

    def sample(self, now_usec: int) -> tuple[Feed, ...]:
        """One for each rule, in the order of the configuration."""
        self._take_answers()
        for rule in self._rules.values():
            if rule.source is Source.FILE:
                self._read(rule, now_usec)
            elif rule.source is Source.PROMETHEUS:
                self._ask(rule, now_usec)
        return tuple(self._feed(rule, now_usec) for rule in self._rules.values())

    def answer(self, request: dict[str, Any], uid: int) -> dict[str, Any]:
        """What the control socket says to `qosctl feed`."""
        rule = self._rules.get(str(request.get("name")))
        if rule is None or rule.source is not Source.FEED:
            known = [each.name for each in self._rules.values() if each.source is Source.FEED]
            names = ", ".join(known) or "none is configured"
            return {"error": f'no [[signal]] of source = "feed" has this name; there are: {names}'}
        if uid != 0 and not rule.group_may_feed:
            text = f"only root may feed {rule.name}, unless its group_may_feed is true"
            return {"error": text, "kind": "not-permitted"}
        try:
            value = in_unit(request.get("value"), request.get("unit"), rule.unit)
        except QosdError as error:
            return {"error": str(error)}
        now_usec = self._sys.monotonic_ns() // 1000
        self._readings[rule.name] = Reading(value, now_usec, now_usec)
        return {"ok": {"name": rule.name, "value": value, "unit": rule.unit, "slo": rule.slo}}

    def _feed(self, rule: SignalRule, now_usec: int) -> Feed:
        reading = self._readings.get(rule.name)
        error = self._errors.get(rule.name)
        if reading is None:
            return Feed(rule.name, rule.workload, rule.unit, slo=rule.slo, error=error)
        age = max(now_usec - reading.at_usec, 0)
        value = reading.value if age <= rule.valid else None
        news = self._told.get(rule.name) != reading.stamp
        self._told[rule.name] = reading.stamp
        return Feed(rule.name, rule.workload, rule.unit, value, age, rule.slo, error, news)

    def _take_answers(self) -> None:
        for answer in self._poller.answers() if self._poller is not None else ():
            if answer.value is not None:
                self._readings[answer.name] = Reading(answer.value, answer.at_usec, answer.at_usec)
                self._errors.pop(answer.name, None)
            else:
                self._errors[answer.name] = answer.error or "no answer"

    def _ask(self, rule: SignalRule, now_usec: int) -> None:
        if self._poller is None or now_usec < self._next_usec.get(rule.name, 0):
            return
        if self._poller.ask(rule.name, rule.url or "", rule.query or "", int(rule.timeout)):
            self._next_usec[rule.name] = now_usec + rule.every

    def _read(self, rule: SignalRule, now_usec: int) -> None:
        try:
            value, age_sec, stamp = self._read_file(rule.file or "")
        except (OSError, QosdError) as error:
            self._errors[rule.name] = str(error)
            return
        self._errors.pop(rule.name, None)
        self._readings[rule.name] = Reading(value, now_usec - round(age_sec * 1e6), stamp)

    def _read_file(self, path: str) -> tuple[float, float, int]:
        """The number at the beginning of a small file, how long ago it was written, and its stamp."""
        fd = self._sys.open(path, READ)
        try:
            raw = self._sys.pread(fd, _TEXT_MAX, 0)
            info = self._sys.fstat(fd)
        finally:
            self._sys.close(fd)
        age_sec = self._sys.time() - info.st_mtime
        if age_sec < -_AHEAD_SEC:
            raise QosdError(f"{path} was written {-age_sec:.0f} s in the future")
        fields = raw.decode("latin-1").split()
        return number(fields[0] if fields else ""), max(age_sec, 0.0), info.st_mtime_ns


def number(given: object) -> float:
    """Not negative, and a number: float() alone takes nan, inf and 1_0."""
    text = str(given).strip()
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise QosdError(f"{text[:40]!r} is no number of 0 or more")
    return value


def in_unit(value: object, unit: object, wanted: str) -> float:
    """A value in the signal's own unit; without a unit it is in that one already."""
    amount = number(value)
    if unit is None or unit == wanted:
        return amount
    if unit in _TIMES and wanted in _TIMES:
        return amount * _TIMES[str(unit)] / _TIMES[wanted]
    raise QosdError(f"{str(unit)[:20]!r} does not go with the signal's unit, {wanted!r}")
