"""The demo's table and report, from a small made-up result."""

from __future__ import annotations

import datetime as dt
import html.parser
import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from qosd.lab.demo import report, results, table
from qosd.lab.scenario.planned import MODES, Daemon, Plan, alternating

if TYPE_CHECKING:
    from pathlib import Path

    from qosd.lab.demo.results import Result
    from qosd.lab.scenario.planned import Mode

STARTED = 100.0
BASE_MS: dict[Mode, float] = {"frozen": 2.0, "uncontrolled": 8.0, "floor": 4.0, "qosd": 3.0}
BE_CPUS: dict[Mode, float] = {"frozen": 0.0, "uncontrolled": 1.5, "floor": 1.25, "qosd": 1.0}
WHY = "LS took 0.9 of 2 CPUs <so BE gives way>"
VOID = {"meta", "line", "rect", "circle", "polyline", "polygon", "br"}


def latency_file(base_ms: float, seconds: float) -> bytes:
    records = [(at * 10_000, int(base_ms * 1000) + at % 100) for at in range(int(seconds * 100))]
    header = results.HEADER.pack(b"openloop", int(STARTED * 1e9), 0, len(records), 0)
    return header + b"".join(results.RECORD.pack(*record) for record in records)


def raw_round(mode: Mode, number: int, plan: Plan) -> dict[str, Any]:
    quota = {"qosd": ("max 100000", "90000 100000")}.get(mode, ("max 100000",) * 2)
    samples = [
        {
            "at": STARTED + tick / 4,
            "be_usec": int(BE_CPUS[mode] * tick * 250_000),
            "ls_usec": tick * 150_000,
            "be": {"cpu.max": quota[tick > 20], "cpuset.cpus": "", "cgroup.freeze": "0", "cpu.idle": None},
            "host": [tick * 50, 0, 0, 0, 0, 0, 0, 0],
        }
        for tick in range(int(plan.timing.end * 4) + 4)
    ]
    change = {
        "path": "be.slice",
        "file": "cpu.max",
        "new": "90000 100000",
        "reason": {"text": WHY},
        "error": None,
    }
    failed = change | {"new": "1 1", "error": "EINVAL"}
    decisions = [record | {"time": 1000 + STARTED + 5.25} for record in (change, failed)]
    return {
        "mode": mode,
        "round": number,
        "latency": f"{number}-{mode}.latency",
        "samples": samples,
        "events": [{"at": STARTED + 4, "what": "a second BE job comes"}],
        "bogo_ops": 9000 if mode != "frozen" else None,
        "realtime": 1000.0,
        "decisions": decisions if mode == "qosd" else [],
        "answers": {"explain": f"be.slice cpu.max: {WHY}"} if mode == "qosd" else None,
    }


@pytest.fixture
def result(tmp_path: Path) -> Result:
    plan = Plan(rounds=alternating(MODES, 3), daemon=Daemon(("a",), ("b",), ("c",), "/socket"))
    for number, modes in enumerate(plan.rounds, start=1):
        for mode in modes:
            raw = raw_round(mode, number, plan)
            (tmp_path / f"{number}-{mode}.json").write_text(json.dumps(raw))
            (tmp_path / raw["latency"]).write_bytes(
                latency_file(BASE_MS[mode] + number / 10, plan.timing.end)
            )
    facts = {
        "kernel": "6.12",
        "system": "Debian <12>",
        "cpus": 2,
        "virtualisation": "qemu",
        "redis": "v=7",
        "stress_ng": "0.15",
    }
    load = {"share": 0.3, "loops": 900, "request_usec": 1300.0, "rate": 400.0, "burst_rate": 700.0}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    (tmp_path / "neighbours.json").write_text(json.dumps({"1-qosd": 0.25}))
    (tmp_path / "load.json").write_text(json.dumps(load))
    return results.read(tmp_path, plan, 5.0)


class Balanced(html.parser.HTMLParser):
    """Refuses what a browser would repair in silence, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, tag
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag


def test_only_what_is_within_the_counted_seconds_counts(result: Result) -> None:
    one = result.of("qosd")[0]

    assert len(one.requests) == 1000
    assert one.requests[0].at == pytest.approx(0)
    assert one.be_cpus == pytest.approx(1.0)
    assert one.ls_cpus == pytest.approx(0.6)


def test_the_modes_come_in_one_order_whatever_was_played_first(result: Result) -> None:
    assert result.modes == list(MODES)
    assert [one.mode for one in result.rounds[:5]] == [*MODES, "qosd"]


def test_a_write_of_qosds_is_a_decision_with_its_reason(result: Result) -> None:
    (decision,) = result.of("qosd")[0].decisions

    assert decision == (pytest.approx(3.25), "be.slice", "cpu.max", "90000 100000", WHY)
    assert result.of("floor")[0].decisions == []


def test_the_allowance_is_the_smaller_of_quota_and_cpuset_and_none_when_frozen() -> None:
    assert results.allowed_cpus({"cpu.max": "max 100000"}, 4) == 4
    assert results.allowed_cpus({"cpu.max": "150000 100000"}, 4) == 1.5
    assert results.allowed_cpus({"cpu.max": "350000 100000", "cpuset.cpus": "0-1,3"}, 4) == 3
    assert results.allowed_cpus({"cpu.max": None, "cpuset.cpus": None}, 4) == 4
    assert results.allowed_cpus({"cpu.max": "max 100000", "cgroup.freeze": "1"}, 4) == 0


def test_a_torn_file_of_latencies_is_refused() -> None:
    whole = latency_file(1.0, 1.0)

    assert len(results.read_latencies(whole).requests) == 100
    for torn in (b"", whole[:-1], b"x" * len(whole)):
        with pytest.raises(ValueError, match=r"header|whole"):
            results.read_latencies(torn)


def test_the_table_gives_every_mode_with_median_and_spread(result: Result) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.build(result))
    text = console.export_text()

    rows = [words[1] for line in text.splitlines() if len(words := line.split()) > 1]
    assert [word for word in rows if word in MODES] == list(MODES)
    assert "3.20–3.40" in text
    assert "over SLO" in text
    assert "…" not in text.replace("BE is …", "")


def test_what_lies_within_the_spread_is_not_called_a_difference(result: Result) -> None:
    same = result._replace(
        rounds=[one._replace(mode="floor") for one in result.of("qosd")] + result.of("qosd")
    )

    assert "better" not in " ".join(table.sentences(same))
    assert "worse" not in " ".join(table.sentences(same))
    assert "LS p99 better by 60 %" in " ".join(table.sentences(result))
    assert "BE work worse by 33 %" in " ".join(table.sentences(result))


def test_from_one_round_no_difference_is_claimed(result: Result) -> None:
    first = result._replace(rounds=[one for one in result.rounds if one.number == 1])

    assert "no difference" in report.headline(first)
    assert "no difference" not in report.headline(result)
    assert table.sentences(first) == ["Fewer than 3 rounds: no difference can be told from noise."]


def test_the_report_is_one_well_formed_file_that_fetches_nothing(result: Result) -> None:
    page = report.render(result, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    parser = Balanced()
    parser.feed(page)
    parser.close()

    assert parser.open == []
    assert not re.search(r"https?://|@import|url\(", page)
    assert "Debian &lt;12&gt;" in page
    assert "&lt;so BE gives way&gt;" in page


def test_the_report_tells_what_others_took_of_the_machine(result: Result) -> None:
    assert "took up to 25 % of its CPU time" in report.render(result)


def test_the_report_does_without_qosd_and_without_its_answers(result: Result) -> None:
    without = result._replace(rounds=[one for one in result.rounds if one.mode != "qosd"])
    silent = result._replace(rounds=[one._replace(answers=None, decisions=[]) for one in result.rounds])

    assert "qosctl explain" not in report.render(without)
    assert "qosd wrote nothing" in report.render(silent)


def test_the_figures_are_there_for_programs_too(result: Result) -> None:
    figures = json.loads(json.dumps(results.as_json(result)))

    assert figures["modes"]["qosd"]["p99_ms"]["median"] == pytest.approx(3.298, abs=0.01)
    assert len(figures["rounds"]) == 12


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    for daemon in (None, Daemon(("start",), ("stop",), ("qosctl",), "/socket")):
        plan = Plan(rounds=alternating(MODES, 3), daemon=daemon, slices={"a.slice": "[Slice]\n"})
        plan.write(path)

        assert Plan.read(path) == plan
