"""The tables of a run. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

from bench.scenes.labels import Harm
from bench.scenes.score import CAUSES, Rates, Scored, confusion, rates


def lines(scored: list[Scored]) -> Iterator[str]:
    yield from _by_kind(scored)
    yield ""
    yield from _confusion(scored)
    yield ""
    yield from _misses(scored)


def _by_kind(scored: list[Scored]) -> Iterator[str]:
    yield "| kind | events | harmed | on the edge | verdicts against BE: right | false | missed |"
    yield "|---|---|---|---|---|---|---|"
    for kind in dict.fromkeys(each.done.event.kind for each in scored):
        yield _row(kind, [each for each in scored if each.done.event.kind == kind])
    yield _row("all", scored)
    total = rates(scored)
    delays = [each.delay for each in scored if each.is_hit and each.delay is not None]
    named = [each for each in scored if each.expected == "be" and each.is_hit]
    yield ""
    yield (
        f"precision {_share(total.precision)}, recall {_share(total.recall)};"
        f" the culprit named first {sum(each.names_the_culprit for each in named)} of {len(named)};"
        f" median time to a verdict {statistics.median(delays) if delays else 0:.1f} s"
    )


def _row(name: str, scored: list[Scored]) -> str:
    harm = Counter(each.label.harm for each in scored)
    of: Rates = rates(scored)
    counts = (len(scored), harm[Harm.YES], harm[Harm.EDGE], of.hits, of.false, of.missed)
    return f"| {name} | " + " | ".join(map(str, counts)) + " |"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _confusion(scored: list[Scored]) -> Iterator[str]:
    table = confusion(scored)
    yield "| to be said | " + " | ".join(f"said: {cause}" for cause in CAUSES) + " |"
    yield "|---|" + "---|" * len(CAUSES)
    for expected in CAUSES:
        yield f"| {expected} | " + " | ".join(str(table[expected, found]) for found in CAUSES) + " |"


def _misses(scored: list[Scored]) -> Iterator[str]:
    for each in scored:
        if each.label.harm is Harm.EDGE or each.expected == each.found:
            continue
        label = each.label
        yield (
            f"{each.done.event.id}: {label.harm} ({label.worst}, {label.slots} slots, p99 x{label.ratio}),"
            f" to be said {each.expected}, said {each.found}"
        )
        for one in each.said:
            yield f"    {one.path} {'+'.join(one.causes)}: {one.text}"
