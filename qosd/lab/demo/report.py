"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import html
import importlib.resources
import string
from typing import TYPE_CHECKING

from qosd.lab.demo import strips, table, timeline
from qosd.lab.demo.results import FIGURES, Decision, Result, Round, summary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qosd.lab.demo.figures import Spread

EMULATED = {"qemu", "bochs"}
"""What systemd-detect-virt calls QEMU without KVM."""


def render(result: Result, now: datetime.datetime | None = None) -> str:
    template = importlib.resources.files("qosd.lab.demo").joinpath("page.html").read_text(encoding="utf-8")
    date = (now or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%d %H:%M UTC")
    qosd = result.of("qosd")
    return string.Template(template).substitute(
        title=html.escape(str(result.facts["system"])),
        subtitle=html.escape(f"qosd demo · {_target(result)} · {date}"),
        headline=headline(result),
        strips=_strips(result),
        explanation=html.escape(_explanation(result)),
        sentences="".join(f"<p>{html.escape(sentence)}</p>" for sentence in table.sentences(result)),
        table=_table(result),
        all_rounds=timeline.all_rounds(result),
        close_up=_close_up(qosd, result),
        explain=_explain(qosd),
        facts=_facts(result),
        notes="".join(f'<p class="note">{html.escape(note)}</p>' for note in notes(result)),
    )


def headline(result: Result) -> str:
    """What was seen, in one sentence, whether it flatters qosd or not."""
    figures = summary(result)

    def words(mode: str) -> str:
        one = figures[mode]  # type: ignore[index] - a mode that is there
        return (
            f"LS p99 is {table.digits(one['p99_ms'].median)} ms"
            f" and BE gets {table.digits(one['be_cpus'].median)} of {result.facts['cpus']} CPUs"
        )

    said = []
    if "qosd" in figures:
        said.append(f"<b>With qosd</b>, {words('qosd')}.")
    if "uncontrolled" in figures:
        said.append(f"<i>Without</i>, {words('uncontrolled')}.")
    return " ".join(said) or "Best-effort jobs beside a latency-sensitive service"


def _target(result: Result) -> str:
    emulated = " (emulated)" if _is_emulated(result) else ""
    facts = result.facts
    return f"{facts['system']}, Linux {facts['kernel']}, {facts['cpus']} CPUs{emulated}"


def _is_emulated(result: Result) -> bool:
    return result.facts["virtualisation"] in EMULATED


def _strips(result: Result) -> str:
    by_key = {figure.key: figure for figure in FIGURES}
    return strips.strip(result, by_key["p99_ms"], "LS p99 latency, ms: lower is better") + strips.strip(
        result, by_key["be_cpus"], "BE work done, CPUs: higher is better"
    )


def _explanation(result: Result) -> str:
    return (
        f"LS is redis behind an open-loop load at {100 * result.load['share']:.0f} % of the CPUs, BE is stress-ng"
        " with more threads than CPUs. The two pictures belong together: BE frozen is the best that LS can get,"
        " and the most that BE can get leaves LS waiting."
    )


def _table(result: Result) -> str:
    figures = summary(result)
    heads = "".join(f"<th>{html.escape(table.heading(figure, result)).replace(chr(10), '<br>')}</th>" for figure in FIGURES)
    rows = []
    for mode in result.modes:
        cells = "".join(f"<td>{_cell(figures[mode][figure.key])}</td>" for figure in FIGURES)
        name = f"{html.escape(mode)}<small>{html.escape(table.MEANINGS[mode])}</small>"
        rows.append(f'<tr class="{mode}"><td>{name}</td>{cells}</tr>')
    return f"<table><thead><tr><th>BE is …</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(figure: Spread) -> str:
    return f"{table.digits(figure.median)} <small>{table.digits(figure.low)}–{table.digits(figure.high)}</small>"


KEY = (
    '<p class="key"><span style="--c:var(--mark)">what BE may use (cpu.max, cpuset.cpus)</span>'
    '<span class="fill" style="--c:var(--qosd)">what BE used</span>'
    '<span style="--c:var(--ink)">what LS used</span>'
    '<span style="--c:var(--qosd)">LS p99 (faint: p50)</span></p>'
)


def _close_up(rounds: list[Round], result: Result) -> str:
    if not rounds:
        return ""
    last, *others = reversed(rounds)
    more = "".join(
        f"<details><summary>round {one.number}</summary><div class='card'>{timeline.one_round(one, result)}</div></details>"
        for one in reversed(others)
    )
    return (
        f"<h2>qosd at work: round {last.number} from close by</h2>"
        "<p class='note'>LS bursts, jobs come and go, and qosd moves what BE may use. Each mark is a setting that"
        " changed in the kernel's files.</p>"
        f"<div class='card'>{timeline.one_round(last, result)}{KEY}</div>{_decisions(last.decisions, last)}{more}"
    )


def _decisions(decisions: Iterable[Decision], one: Round) -> str:
    shown = [decision for decision in decisions if 0 <= decision.at <= one.measured]
    if not shown:
        return "<p>qosd changed nothing in this round.</p>"
    rows = "".join(
        f"<tr><td>{decision.at:.1f} s</td><td class='text'><code>{html.escape(decision.file)}</code></td>"
        f"<td class='text'><code>{html.escape(decision.value)}</code></td>"
        f"<td class='text'>{html.escape(decision.reason or '')}</td></tr>"
        for decision in shown
    )
    head = "<tr><th>at</th><th style='text-align:left'>file</th><th style='text-align:left'>value</th><th style='text-align:left'>why</th></tr>"
    return f"<details><summary>{len(shown)} decisions</summary><div class='card'><table>{head}{rows}</table></div></details>"


def _explain(rounds: list[Round]) -> str:
    answers = next((one.answers for one in reversed(rounds) if one.answers), None)
    if not answers or not answers.get("explain"):
        return ""
    return (
        "<h2>Asked why: <code>qosctl explain</code></h2>"
        "<p class='note'>As it answered while the last round of qosd was running.</p>"
        f"<div class='card'><pre>{html.escape(answers['explain'].strip())}</pre></div>"
    )


def _facts(result: Result) -> str:
    load, facts = result.load, result.facts
    timing = result.timing
    pairs = {
        "Target": _target(result),
        "LS": f"redis {facts['redis'].removeprefix('v=')}, one per CPU, {load['rate']:.0f} requests/s"
        f" ({load['burst_rate']:.0f} in the burst), Poisson, {load['request_usec'] / 1000:.2f} ms of CPU each"
        " with the load generator's own",
        "BE": f"stress-ng {facts['stress_ng']}, {2 * facts['cpus']} threads, and {facts['cpus']} more for a while",
        "Latency": "from the intended start of every request (no coordinated omission); nothing is sampled or binned",
        "Rounds": f"{_rounds(result)} of {timing.measured:g} s per mode after {timing.settle:g} s of settling,"
        " every other time in reverse order; a warm-up is not counted",
        "BE work": "CPU time of the jobs' own cgroups per second of the round" + _ops(result),
    }
    return "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in pairs.items())


def _rounds(result: Result) -> int:
    return max(len(result.of(mode)) for mode in result.modes)


def _ops(result: Result) -> str:
    """CPU time is work only if a second of it does the same in every mode: stress-ng's own count says so."""
    found = []
    for mode in result.modes:
        values = [one.ops_per_cpu_second for one in result.of(mode) if one.ops_per_cpu_second]
        if values and mode != "frozen":
            found.append(f"{mode} {sum(values) / len(values):.0f}")
    return f"; stress-ng operations per CPU-second: {', '.join(found)}" if found else ""


def notes(result: Result) -> list[str]:
    """What a reader must know before believing a figure."""
    said = []
    if _is_emulated(result):
        said.append(
            "The CPUs are emulated in software, about ten times slower than real ones and at an uneven pace. Compare"
            " modes with each other, in this run; do not take a number of milliseconds for what real hardware shows."
        )
    said.append(
        "Frozen, not absent, is the baseline: with BE absent CPUs fall asleep, and waking them costs latency that"
        " has nothing to do with BE."
    )
    requests = min(len(one.requests) for one in result.rounds)
    said.append(
        f"p99.9 rests on the {max(requests // 1000, 1)} slowest of some {requests} requests of a round: take it as"
        " a hint. A difference within the spread of the rounds is no difference."
    )
    unanswered = sum(one.unanswered for one in result.rounds)
    if unanswered:
        said.append(f"{unanswered} requests had no answer 2 s after their round; they count with the time they waited.")
    steal = max(one.steal for one in result.rounds)
    if steal > 0.02:  # noqa: PLR2004 - two per cent of the CPU time
        said.append(f"Up to {100 * steal:.0f} % of the CPU time was withheld by the target's own host in a round.")
    return said
