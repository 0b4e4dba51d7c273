"""`[[signal]]`: what operators measure of their own services. Schema, defaults, ranges. Pure."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from qosd.schema.units import Duration, Section, within

MAX_SIGNALS = 32
"""Of all rules: each is asked for in turn by one thread, or read in the tick."""
FILES_BELOW = "/run/"
"""A file is read in the tick, which nothing may hang: a network filesystem would."""


class Source(enum.StrEnum):
    FEED = "feed"
    FILE = "file"
    PROMETHEUS = "prometheus"


class SignalRule(Section, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    workload: str
    source: Source = Source.FEED
    unit: Annotated[str, Meta(pattern=r"^[A-Za-z0-9/%_-]{1,16}$")] = "ms"
    slo: Annotated[float, Meta(gt=0)] | None = None
    valid: Duration = Duration(10_000_000)
    group_may_feed: bool = False
    file: str | None = None
    url: str | None = None
    query: str | None = None
    every: Duration = Duration(5_000_000)
    timeout: Duration = Duration(2_000_000)


def check(signals: tuple[SignalRule, ...], ls_names: frozenset[str]) -> str | None:
    """The path of the bad key and why, or None."""
    if len(signals) > MAX_SIGNALS:
        return f"signal: at most {MAX_SIGNALS} rules"
    names: set[str] = set()
    for index, rule in enumerate(signals):
        key = f"signal[{index}]"
        if rule.name in names:
            return f"{key}.name: {rule.name!r} is used twice; give each signal its own name"
        names.add(rule.name)
        if rule.workload not in ls_names:
            return f"{key}.workload: no [[workload]] of tier ls has the name {rule.workload!r}"
        why = _check_source(key, rule) or _check_times(key, rule)
        if why is not None:
            return why
    return None


def _check_source(key: str, rule: SignalRule) -> str | None:
    given = {"file": rule.file, "url": rule.url, "query": rule.query}
    needed = {Source.FEED: (), Source.FILE: ("file",), Source.PROMETHEUS: ("url", "query")}[rule.source]
    for name, value in given.items():
        if (value is not None) != (name in needed):
            verb = "needs" if name in needed else "has no use for"
            return f'{key}.{name}: source = "{rule.source}" {verb} it'
    if rule.group_may_feed and rule.source is not Source.FEED:
        return f'{key}.group_may_feed: source = "{rule.source}" has no use for it'
    if rule.file is not None and (not rule.file.startswith(FILES_BELOW) or "/../" in rule.file):
        return f"{key}.file: must be below {FILES_BELOW}, which no other machine can make hang"
    if rule.url is not None and not rule.url.startswith("http://"):
        return f'{key}.url: must be as "http://127.0.0.1:9090"'
    return None


def _check_times(key: str, rule: SignalRule) -> str | None:
    return (
        within(f"{key}.valid", rule.valid, 100_000, 3_600_000_000, "100ms to 1h")
        or within(f"{key}.every", rule.every, 1_000_000, 600_000_000, "1s to 10min")
        or within(f"{key}.timeout", rule.timeout, 100_000, 10_000_000, "100ms to 10s")
    )
