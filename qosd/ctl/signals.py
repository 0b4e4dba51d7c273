"""The operators' own signals, as `qosctl status` and `qosctl top` show them."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from qosd.ctl import screen
from qosd.model import Feed


def table(feeds: tuple[Feed, ...], since_tick: float) -> Table:
    built = screen.table("SIGNAL", "WORKLOAD", "NOW", "SLO", "AGE", "", right=("NOW", "SLO", "AGE"))
    for feed in feeds:
        age = "-" if feed.age_usec is None else screen.duration(feed.age_usec / 1e6 + since_tick)
        built.add_row(
            feed.name,
            feed.workload,
            amount(feed.value, feed.unit),
            amount(feed.slo, feed.unit),
            age,
            standing(feed),
        )
    return built


def amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}"


def standing(feed: Feed) -> Text:
    """In a word, how it stands; an unknown one decides nothing."""
    if feed.value is None:
        why = feed.error or ("nothing came yet" if feed.age_usec is None else "too old")
        return Text(f"! unknown: {why}", "yellow")
    if feed.slo is None:
        return Text("")
    return Text("! over its slo", "bold red") if feed.value > feed.slo else Text("ok", "green")
