"""`qosctl verdicts` and `qosctl explain --verdict`: who suffered from what, and through whom."""

from __future__ import annotations

import time

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qosd.ctl import client, screen
from qosd.ctl.exits import Failure
from qosd.ctl.options import print_json
from qosd.interference.verdict import Verdict
from qosd.interference.view import InterferenceView, VerdictRecord

_WHO = {
    "be": "BE",
    "self": "itself",
    "ls": "other LS",
    "system": "the system",
    "unknown": "not known",
}
_RUNGS = {
    "squeeze": "BE has less CPU",
    "cpuset": "BE is kept off the victim's CPUs",
    "reclaim": "BE gives memory back",
    "io": "BE has less IO",
    "freeze": "BE is frozen",
    "term": "a BE job was asked to end",
    "kill": "a BE job is being killed",
}


def fetch(socket: str) -> tuple[VerdictRecord, ...]:
    """What the daemon remembers, oldest first."""
    return client.ask_for(socket, "verdicts", tuple[VerdictRecord, ...])


def table(records: tuple[VerdictRecord, ...], now: float) -> Table:
    columns = ("ID", "AGO", "LASTED", "VICTIM", "SIGNAL", "PEAK", "LIMIT", "BECAUSE OF", "WHY")
    built = screen.table(*columns, right=("ID", "AGO", "LASTED", "PEAK", "LIMIT"))
    for record in records:
        verdict = record.verdict
        style = "yellow" if record.ended is None else ""
        built.add_row(
            str(verdict.id),
            screen.duration(max(now - record.began, 0.0)),
            "still" if record.ended is None else screen.duration(record.ended - record.began),
            verdict.path,
            verdict.signal,
            f"{verdict.peak:.0f}",
            f"{verdict.threshold:.0f}",
            Text(_WHO[verdict.mostly], style),
            verdict.text,
        )
    return built


def show(socket: str, since_usec: int | None, *, json: bool) -> None:
    now = time.time()
    since = 0.0 if since_usec is None else now - since_usec / 1e6
    chosen = tuple(record for record in fetch(socket) if (record.ended or now) >= since)
    if json:
        print_json(msgspec.json.encode(chosen))
    elif chosen:
        screen.console().print(table(chosen, now))
    else:
        screen.console().print("No verdicts: no latency-sensitive workload suffered in that time.")


def explain(socket: str, number: int, *, json: bool) -> None:
    """Raises `Failure` when the daemon does not remember it."""
    record = next((each for each in fetch(socket) if each.verdict.id == number), None)
    if record is None:
        raise Failure(f"verdict {number}: not remembered; qosctl verdicts lists those that are")
    if json:
        print_json(msgspec.json.encode(record))
    else:
        screen.console().print(render(record, time.time()))


def render(record: VerdictRecord, now: float) -> Group:
    verdict = record.verdict
    parts: list[RenderableType] = [_headline(record, now), Text()]
    grid = screen.facts()
    baseline = "not known yet" if verdict.baseline is None else f"{verdict.baseline:.1f} while BE is quiet"
    grid.add_row("Signal", f"{verdict.signal}: peak {verdict.peak:.1f}, last {verdict.value:.1f}")
    grid.add_row("Threshold", f"{verdict.threshold:.1f}; baseline {baseline}")
    grid.add_row("Cause", f"{_WHO[verdict.cause]}, confidence {verdict.confidence:.2f}: {verdict.text}")
    if len(verdict.blamed) > 1:
        ticks = ", ".join(f"{_WHO[cause]} in {count}" for cause, count in verdict.blamed.items())
        grid.add_row("Bad ticks", ticks)
    for given in verdict.evidence:
        grid.add_row("Evidence", f"{given.name} {given.value:g} {given.unit}")
    parts.append(grid)
    if verdict.culprits:
        parts += [Text(), _culprits(verdict)]
    return Group(*parts)


def _headline(record: VerdictRecord, now: float) -> Text:
    verdict = record.verdict
    ago = screen.duration(max(now - record.began, 0.0))
    lasted = (
        "and still does" if record.ended is None else f"for {screen.duration(record.ended - record.began)}"
    )
    began = f" began to wait for {verdict.kind} {ago} ago, {lasted}"
    return Text.assemble((verdict.path, "bold"), began)


def _culprits(verdict: Verdict) -> Table:
    built = screen.table("SHARE", "TIER", "CGROUP", right=("SHARE",))
    for each in verdict.culprits:
        tier = each.tier.value.upper() if each.tier is not None else "-"
        built.add_row(f"{each.share:.0%}", tier, each.path)
    return built


def section(view: InterferenceView) -> list[RenderableType]:
    """For `qosctl status`: nothing where nobody suffers and nothing is done about it."""
    lines: list[RenderableType] = []
    if view.alarm is not None:
        lines.append(Text(f"! {view.alarm}", "bold red"))
    for record in view.verdicts:
        verdict = record.verdict
        lines.append(
            Text(
                f"! {verdict.path} waits for {verdict.kind} because of {_WHO[verdict.cause]}:"
                f" {verdict.signal} {verdict.value:.0f} against {verdict.threshold:.0f}"
                f" (qosctl explain --verdict {verdict.id})",
                "yellow",
            )
        )
    for rung in view.rungs:
        if rung.rung in _RUNGS:
            squeeze = f" ({rung.squeeze:.0%} of its allowance)" if rung.squeeze < 1 else ""
            held = "; it flapped, so this stays for a while" if rung.held else ""
            said = f"{_RUNGS[rung.rung]}{squeeze} for {rung.kind} since {screen.duration(rung.seconds)}{held}"
            lines.append(Text(said, "yellow"))
    lines += [Text(f"! {path} is to be frozen and some task in it does not stop") for path in view.incomplete]
    return lines
