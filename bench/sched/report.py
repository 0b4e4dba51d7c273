"""The tables: for the terminal, for docs, as JSON."""

from __future__ import annotations

import statistics

from bench.sched.segment import Outcome
from bench.sched.stats import Interval, interval, ratios, verdict

Round = dict[str, Outcome]
HEAD = (
    "mode", "rounds", "p50 ms", "p99 ms", "p99.9", "p99 / frozen [95 %]", "over SLO %", "excess us",
    "BE kept % [95 %]", "EMU %", "throttled %", "writes", "slowest 1 %: queue+wake+stretch", "stacked %",
    "beside the reference",
)  # fmt: skip


def rows(rounds: list[Round], modes: list[str], reference: str | None) -> list[tuple[str, ...]]:
    """One a mode; a round counts for it where the mode, and what it is compared with, were not disturbed."""
    return [_row(rounds, mode, reference) for mode in modes if any(mode in one for one in rounds)]


def _row(rounds: list[Round], mode: str, reference: str | None) -> tuple[str, ...]:
    of = [one[mode] for one in rounds if mode in one]
    return (
        mode,
        str(len(of)),
        f"{_median(of, 'p50'):.2f}",
        f"{_median(of, 'p99'):.2f}",
        f"{_median(of, 'p999'):.1f}",
        _bracket(_beside(rounds, mode, "frozen", "p99"), 2),
        f"{_median(of, 'over_slo_pct'):.2f}",
        f"{_median(of, 'excess_usec'):.1f}",
        _bracket(interval([o.kept_pct for o in of]), 0),
        f"{_median(of, 'emu_pct'):.0f}",
        f"{_median(of, 'throttled_pct'):.0f}",
        f"{_median(of, 'writes'):.0f}",
        " + ".join(f"{_median(of, f'slow_{part}_ms'):.1f}" for part in ("queue", "wake", "stretch")),
        f"{_median(of, 'stacked_pct'):.1f}",
        _against(rounds, mode, reference),
    )


def _against(rounds: list[Round], mode: str, reference: str | None) -> str:
    """The mode against the reference: p99, BE work, and who dominates."""
    if reference is None or mode in (reference, "frozen"):
        return ""
    latency = _beside(rounds, mode, reference, "p99")
    work = _beside(rounds, mode, reference, "be_pct")
    if latency is None or work is None:
        return "never in one round"
    return f"p99 x{_bracket(latency, 2)}, BE x{_bracket(work, 2)}: {verdict(latency, work)}"


def _beside(rounds: list[Round], mode: str, other: str, field: str) -> Interval | None:
    """The ratio of a figure to the other mode's, round by round."""
    pairs = [
        (getattr(one[mode], field), getattr(one[other], field))
        for one in rounds
        if {mode, other} <= one.keys()
    ]
    values = ratios([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    return interval(values) if values else None


def _median(outcomes: list[Outcome], field: str) -> float:
    values: list[float] = [getattr(outcome, field) for outcome in outcomes]
    return statistics.median(values)


def _bracket(value: Interval | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value.median:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def plain(table: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (HEAD, *table)) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (HEAD, *table)
    )


def markdown(table: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(lines)
