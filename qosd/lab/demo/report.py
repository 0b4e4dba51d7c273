"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import datetime as dt
import html
import importlib.resources
import string
from typing import TYPE_CHECKING

from qosd.lab.demo import strips, table, timeline
from qosd.lab.demo.results import FIGURES, Result, Round, summary

if TYPE_CHECKING:
    from qosd.lab.demo.figures import Spread
    from qosd.lab.scenario.planned import Mode

EMULATED = {"qemu", "bochs"}
"""What systemd-detect-virt calls QEMU without KVM."""


def render(result: Result, now: dt.datetime | None = None) -> str:
    template = importlib.resources.files("qosd.lab.demo").joinpath("page.html").read_text(encoding="utf-8")
    date = (now or dt.datetime.now(dt.UTC)).strftime("%Y-%m-%d %H:%M UTC")
    qosd = result.of("qosd")
    return string.Template(template).substitute(
        title=html.escape(str(result.facts["system"])),
        subtitle=html.escape(f"qosd demo · {_target(result)} · {date}"),
        headline=headline(result),
        strips=_strips(result),
        explanation=html.escape(_explanation(result)),
        sentences=_paragraphs(table.sentences(result)),
        disturbances=_paragraphs(disturbances(result), "warning"),
        table=_table(result),
        all_rounds=timeline.all_rounds(result),
        close_up=_close_up(qosd, result),
        explain=_explain(qosd),
        facts=_facts(result),
        notes=_paragraphs(notes(result), "note"),
    )


def _paragraphs(sentences: list[str], css: str = "") -> str:
    return "".join(f'<p class="{css}">{html.escape(sentence)}</p>' for sentence in sentences)


def headline(result: Result) -> str:
    """What was seen, in two sentences, whether it flatters qosd or not."""
    figures = summary(result)

    def words(mode: Mode) -> tuple[str, str]:
        one = figures[mode]
        return table.digits(one["p99_ms"].median), table.digits(one["be_cpus"].median)

    if "qosd" not in figures or "uncontrolled" not in figures:
        return "A latency-sensitive service beside best-effort jobs"
    (p99, work), (p99_without, work_without) = words("qosd"), words("uncontrolled")
    told = len(result.of("qosd")) >= table.ROUNDS_TO_TELL
    clear = told and not figures["qosd"]["p99_ms"].overlaps(figures["uncontrolled"]["p99_ms"])
    caveat = "" if clear else " For latency, that is within the spread of the rounds: no difference."
    return (
        f"<b>With qosd</b>, the service's p99 latency is {p99} ms while best-effort jobs get {work} of"
        f" {result.facts['cpus']} CPUs. <i>Without</i>, it is {p99_without} ms while they get {work_without}."
        + caveat
    )


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
        f"LS (latency-sensitive) is redis under an open-loop load of {100 * result.load['share']:.0f} % of"
        " the CPUs; BE (best-effort) is stress-ng with more threads than CPUs. Read the two together: with BE"
        " frozen LS is as fast as it gets, and nothing else is done."
    )


def _table(result: Result) -> str:
    figures = summary(result)
    heads = "".join(
        f"<th>{html.escape(table.heading(figure, result)).replace(chr(10), '<br>')}</th>"
        for figure in FIGURES
    )
    rows = []
    for mode in result.modes:
        cells = "".join(f"<td>{_cell(figures[mode][figure.key])}</td>" for figure in FIGURES)
        name = f"{html.escape(mode)}<small>{html.escape(table.MEANINGS[mode])}</small>"
        rows.append(f'<tr class="{mode}"><td>{name}</td>{cells}</tr>')
    return f"<table><thead><tr><th>BE is …</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(figure: Spread) -> str:
    return (
        f"{table.digits(figure.median)} <small>{table.digits(figure.low)}–{table.digits(figure.high)}</small>"
    )


KEY = (
    '<p class="key"><span style="--c:var(--mark)">what BE may use (cpu.max, cpuset.cpus)</span>'
    '<span class="fill" style="--c:var(--qosd)">what BE used</span>'
    '<span style="--c:var(--ink)">what LS used</span>'
    '<span style="--c:var(--qosd)">LS p99 (faint: p50)</span></p>'
)


def _close_up(rounds: list[Round], result: Result) -> str:
    if not rounds:
        return ""
    *others, last = rounds
    more = "".join(_folded(f"round {one.number}", timeline.one_round(one, result)) for one in others)
    return (
        f"<h2>qosd at work: round {last.number} from close by</h2>"
        "<p class='note'>LS bursts, jobs come and go, and qosd moves what BE may use. A mark is a write.</p>"
        f"<div class='card'>{timeline.one_round(last, result)}{KEY}</div>{_decisions(last)}{more}"
    )


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary><div class='card'>{content}</div></details>"


def _decisions(one: Round) -> str:
    shown = [decision for decision in one.decisions if 0 <= decision.at <= one.measured]
    if not shown:
        return "<p>qosd wrote nothing in this round.</p>"
    rows = "".join(
        f"<tr><td>{decision.at:.1f} s</td>{_code(f'{decision.path}/{decision.file}')}{_code(decision.value)}"
        f"<td class='text'>{html.escape(decision.reason)}</td></tr>"
        for decision in shown
    )
    heads = "".join(f"<th class='text'>{title}</th>" for title in ("at", "file", "value", "why"))
    return _folded(f"its {len(shown)} decisions", f"<table><tr>{heads}</tr>{rows}</table>")


def _code(words: str) -> str:
    return f"<td class='text'><code>{html.escape(words)}</code></td>"


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
    load, facts, timing = result.load, result.facts, result.timing
    pairs = {
        "Target": _target(result),
        "LS": f"redis {facts['redis'].removeprefix('v=')}, a server per CPU; {load['rate']:.0f} requests/s,"
        f" {load['burst_rate']:.0f} in the burst, arriving at random (Poisson);"
        f" {load['request_usec'] / 1000:.2f} ms of CPU each, the load generator's own share included",
        "BE": f"stress-ng {facts['stress_ng']}: {2 * facts['cpus']} CPU hogs,"
        f" and {facts['cpus']} more for a while",
        "Latency": "from each request's intended start (no coordinated omission); every request counts",
        "Rounds": f"{_rounds(result)} of {timing.measured:g} s per mode, after {timing.settle:g} s to settle;"
        " every other time in reverse order; a warm-up is not counted",
        "BE work": "CPU time of the jobs' own cgroups per second of the round" + _ops(result),
    }
    return "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in pairs.items()
    )


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


EMULATION = (
    "The CPUs are emulated in software, about ten times slower than real ones and at an uneven pace. Compare"
    " modes with each other within this run; do not take its milliseconds for what real hardware shows."
)
BASELINE = (
    "Frozen, not absent, is the baseline: with BE absent CPUs fall asleep, and waking them costs latency that"
    " has nothing to do with BE."
)
STEAL_WORTH_TELLING = 0.02


def notes(result: Result) -> list[str]:
    """What a reader must know before believing a figure."""
    requests = min(len(one.requests) for one in result.rounds)
    said = [EMULATION] if _is_emulated(result) else []
    said += [
        BASELINE,
        (
            f"p99.9 rests on the {max(requests // 1000, 1)} slowest of some {requests} requests of a round: a"
            " hint, no more. A difference within the spread of the rounds is no difference."
        ),
    ]
    return said


def disturbances(result: Result) -> list[str]:
    """What of this run's own makes its figures worth less."""
    said = []
    unanswered = sum(one.unanswered for one in result.rounds)
    if unanswered:
        said.append(
            f"{unanswered} requests were not answered at all; they count with the time they had waited."
        )
    steal = max(one.steal for one in result.rounds)
    if steal > STEAL_WORTH_TELLING:
        said.append(f"Up to {100 * steal:.0f} % of a round's CPU time was withheld by the target's own host.")
    others = max(one.others or 0.0 for one in result.rounds)
    if others > STEAL_WORTH_TELLING:
        said.append(
            f"Other programs on the machine took up to {100 * others:.0f} % of its CPU time in a round; the"
            " guest is not told, but its latency shows it."
        )
    return said
