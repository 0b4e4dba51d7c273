"""The table on the terminal, and the sentences under it: what differs, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from qosd.lab.demo.results import FIGURES, Figure, Result, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qosd.lab.demo.figures import Spread
    from qosd.lab.scenario.planned import Mode

ROUNDS_TO_TELL = 3

MEANINGS: dict[Mode, str] = {
    "frozen": "BE present, frozen: LS as if alone",
    "uncontrolled": "plain units at default weight, no qosd",
    "floor": "qosd's slices only, daemon stopped",
    "qosd": "the daemon enforcing",
}


def digits(value: float) -> str:
    """Three significant digits at most, as a table wants them."""
    if value == 0:
        return "0"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"  # noqa: PLR2004 - digits


def cell(figure: Spread) -> str:
    return f"{digits(figure.median)}\n{digits(figure.low)}–{digits(figure.high)}"


def build(result: Result) -> Table:
    figures = summary(result)
    rounds = max(len(result.of(mode)) for mode in result.modes)
    title = f"Median of {rounds} interleaved rounds, below it the lowest and the highest"
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("BE is …", no_wrap=True)
    for figure in FIGURES:
        table.add_column(heading(figure, result), justify="right", no_wrap=True)
    for mode in result.modes:
        style = "bold" if mode == "qosd" else None
        table.add_row(mode, *(cell(figures[mode][figure.key]) for figure in FIGURES), style=style)
    return table


def heading(figure: Figure, result: Result) -> str:
    unit = f"% > {result.slo_ms:g} ms" if figure.key == "over_slo_pct" else figure.unit
    return f"{figure.title}\n{unit}"


def sentences(result: Result) -> list[str]:
    """Qosd against the other ways to run the same jobs. Within the rounds' spread nothing is claimed."""
    others = [mode for mode in ("uncontrolled", "floor") if mode in result.modes]
    if "qosd" not in result.modes or not others:
        return []
    if len(result.of("qosd")) < ROUNDS_TO_TELL:
        return [f"Fewer than {ROUNDS_TO_TELL} rounds: no difference can be told from noise."]
    return [f"qosd against {mode}: {'; '.join(_against(result, mode))}." for mode in others]


def _against(result: Result, other: Mode) -> Iterator[str]:
    figures = summary(result)
    for figure in FIGURES:
        if figure.key not in ("p99_ms", "over_slo_pct", "be_cpus"):
            continue
        ours, theirs = figures["qosd"][figure.key], figures[other][figure.key]
        title = figure.title
        values = f"{digits(ours.median)} instead of {digits(theirs.median)} {figure.unit}"
        if ours.overlaps(theirs):
            yield f"{title} not different beyond the spread of the rounds ({values})"
        else:
            yield f"{title} {_change(figure, ours, theirs)}, {values}"


def _change(figure: Figure, ours: Spread, theirs: Spread) -> str:
    better = (ours.median < theirs.median) == (figure.better == "low")
    if theirs.median == 0:
        return "worse" if not better else "better"
    pct = 100 * (ours.median - theirs.median) / theirs.median
    return f"{'better' if better else 'worse'} by {abs(pct):.0f} %"
