from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import Result
from ctl_daemon import NOW, VERDICTS, answers, canned, daemon, qosctl
from rich.console import Console

from qosd.ctl.status import render
from qosd.interference.view import InterferenceView, RungView
from qosd.status import Status


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)


def shown(status: Status) -> str:
    out = io.StringIO()
    Console(file=out, width=120, highlight=False, markup=False, emoji=False).print(render(status, NOW, 120))
    return out.getvalue()


VERDICT_TABLE = """\
ID    AGO  LASTED  VICTIM    SIGNAL        PEAK  LIMIT  BECAUSE OF  WHY
 6  2.0 h   2 min  ls.slice  cpu.pressure    60     30  itself      BE did 74% of what was done with the CPUs
 7   20 s   still  ls.slice  cpu.pressure    60     30  BE          BE did 74% of what was done with the CPUs
"""


def plain(result: Result) -> str:
    return "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())


def test_verdicts_say_who_suffered_from_what_and_through_whom(sock: str) -> None:
    with daemon(sock):
        assert plain(qosctl("verdicts", sock=sock)) == VERDICT_TABLE
        assert [
            each["verdict"]["id"] for each in json.loads(qosctl("verdicts", "--json", sock=sock).stdout)
        ] == [
            6,
            7,
        ]


def test_verdicts_since_leaves_out_what_had_ended_before(sock: str) -> None:
    with daemon(sock):
        recent = json.loads(qosctl("verdicts", "--since", "1h", "--json", sock=sock).stdout)
    with daemon(sock, answers(verdicts={"ok": []})):
        nothing = qosctl("verdicts", sock=sock).stdout

    assert [each["verdict"]["id"] for each in recent] == [7]
    assert "No verdicts" in nothing


EXPLAINED = """\
ls.slice began to wait for cpu 20 s ago, and still does

Signal     cpu.pressure: peak 60.0, last 41.0
Threshold  30.0; baseline 5.0 while BE is quiet
Cause      BE, confidence 0.37: BE did 74% of what was done with the CPUs
Evidence   some stall 41 % of the time

SHARE  TIER  CGROUP
  74%  BE    be.slice
   2%  -     system
"""


def test_a_verdict_is_explained_with_its_evidence_and_culprits(sock: str) -> None:
    with daemon(sock):
        assert plain(qosctl("explain", "--verdict", "7", sock=sock)) == EXPLAINED
        document = json.loads(qosctl("explain", "--verdict", "7", "--json", sock=sock).stdout)
    assert document["verdict"]["cause"] == "be"


def test_a_verdict_that_is_not_remembered_is_said_to_be_so(sock: str) -> None:
    with daemon(sock):
        result = qosctl("explain", "--verdict", "99", sock=sock)
    assert result.exit_code == 1
    assert "verdict 99: not remembered" in result.stderr


@pytest.mark.parametrize("words", [(), ("be.slice", "--verdict", "7")])
def test_explain_wants_a_cgroup_or_a_verdict(sock: str, words: tuple[str, ...]) -> None:
    assert qosctl("explain", *words, sock=sock).exit_code == 2


VICTIM_TABLE = """\
Killing is allowed: interference.answer is kill. The budget leaves 4 now and 19 today, the next one later.

FREEZE   KILL  WORKLOAD  TIER  PRIORITY   MEMORY  CGROUP                WHY
     1      1  batch     BE           2  300 MiB  be.slice/job.service  priority 2, then memory
 never  never  web       LS           0  2.0 GiB  ls.slice              never: it is latency-sensitive
"""


def test_victims_are_shown_before_anything_happens(sock: str) -> None:
    with daemon(sock):
        assert plain(qosctl("victims", sock=sock)) == VICTIM_TABLE
        document = json.loads(qosctl("victims", "--json", sock=sock).stdout)
    assert [each["kill_rank"] for each in document["victims"]] == [1, None]


def test_the_status_says_who_suffers_what_is_done_and_what_could_not_be() -> None:
    view = InterferenceView(
        "kill",
        (
            RungView("cpu", "freeze", 3.0, 0.25, held=False),
            RungView("memory", "idle", 0.0, 1.0, held=False),
            RungView("io", "io", 90.0, 1.0, held=True),
        ),
        (VERDICTS[1],),
        incomplete=("be.slice",),
        alarm="the kill budget is used up",
    )
    text = shown(canned(interference=view))

    assert "! the kill budget is used up" in text
    assert (
        "! ls.slice waits for cpu because of BE: cpu.pressure 41 against 30 (qosctl explain --verdict 7)"
        in text
    )
    assert "BE is frozen (25% of its allowance) for cpu since 3 s" in text
    assert "BE has less IO for io since 2 min; it flapped, so this stays for a while" in text
    assert "! be.slice is to be frozen and some task in it does not stop" in text
    assert "memory since" not in text
    assert shown(canned(interference=InterferenceView("report", (), ()))) == shown(canned())
