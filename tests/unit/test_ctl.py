from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ctl_daemon import NOW, answers, canned, daemon, qosctl, records
from rich.console import Console

from qosd.audit import NETWORK
from qosd.ctl import cgroups, client, decisions, explain
from qosd.ctl.exits import Failure
from qosd.ctl.main import cli
from qosd.errors import ConfigError
from qosd.files import Key
from qosd.journal import Entry, Journal, read_boot_id
from qosd.plan import Reason
from qosd.status import DecisionRecord
from qosd.sys import Sys

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.mark.parametrize(
    "words", [("status",), ("explain", "be.slice"), ("decisions",), ("reload",), ("pause",)]
)
def test_without_a_daemon_every_question_says_how_to_start_it_and_exits_3(words: tuple[str, ...]) -> None:
    result = qosctl(*words)
    assert result.exit_code == 3
    assert "qosd is not running" in result.stderr
    assert "systemctl start qosd" in result.stderr
    assert "journalctl -u qosd -n 20" in result.stderr
    assert result.stdout == ""


def test_a_socket_nobody_listens_on_any_more_is_a_daemon_that_is_down(sock: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(sock)
    assert qosctl("status", sock=sock).exit_code == 3


def test_a_daemon_that_hangs_up_without_an_answer_is_reported_as_such(sock: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sock)
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        asked = threading.Thread(target=hang_up)
        asked.start()
        result = qosctl("status", sock=sock)
        asked.join()
    assert result.exit_code == 3
    assert "does not answer" in result.stderr


def test_missing_permission_says_which_group_to_join_and_exits_4(
    sock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    result = qosctl("status", sock=sock)
    assert result.exit_code == 4
    assert "neither root nor in group qosd" in result.stderr


def test_status_as_json_is_what_the_daemon_sent(sock: str) -> None:
    with daemon(sock):
        document = json.loads(qosctl("status", "--json", sock=sock).stdout)
    assert document["mode"] == "enforce"
    assert document["tiers"]["be"]["cpu_allowance_cores"] == 2.1
    assert document["settings"][1]["original"] == "max 100000"


def test_an_answer_of_many_frames_comes_through_whole(sock: str) -> None:
    long = "x" * 300_000
    with daemon(sock, answers(status={"ok": {"long": long}})):
        assert json.loads(client.ask(sock, "status")) == {"long": long}


@pytest.mark.parametrize(
    ("answer", "says"),
    [(None, "not finished a tick yet"), ({"mode": 1}, "systemctl restart qosd after an upgrade")],
)
def test_an_answer_that_is_no_status_is_a_sentence_and_no_traceback(
    sock: str, answer: object, says: str
) -> None:
    with daemon(sock, answers(status={"ok": answer})):
        result = qosctl("status", sock=sock)
    assert result.exit_code == 1
    assert says in result.stderr


def test_status_for_people_has_no_escape_codes_off_a_terminal(sock: str) -> None:
    with daemon(sock):
        result = qosctl("status", sock=sock)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "enforcing" in result.stdout


def test_explain_gives_rule_inputs_threshold_margin_and_when_it_was_written(sock: str) -> None:
    with daemon(sock):
        text = qosctl("explain", "/sys/fs/cgroup/be.slice/", "--file", "cpu.max", sock=sock).stdout
    for part in (
        "be.slice is workload batch: tier BE, priority 2",
        "cpu.max = 21000 10000   set by qosd; before qosd it was 'max 100000'",
        "cpu.bandwidth/cpu.allowance",
        "ls 1.2 CPUs",
        "host.cpu_target_pct = 95 %",
        "+0.00 CPUs",
        "(decision 2, tick 38)",
    ):
        assert part in text
    assert "cpu.idle" not in text


def test_explain_as_json_carries_the_reason_and_the_decisions_newest_first(sock: str) -> None:
    with daemon(sock):
        (explained,) = json.loads(qosctl("explain", "be.slice", "--json", sock=sock).stdout)
    assert explained["not_managed"] is None
    assert {setting["file"] for setting in explained["settings"]} == {"cpu.idle", "cpu.max"}
    assert [record["id"] for record in explained["decisions"]] == [2, 1]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("be.slice", None),
        ("be.slice/job.scope", "it lies below be.slice (workload batch, BE)"),
        ("be.slice/inner.slice", "a rule matches it, but it lies inside be.slice"),
        ("", "it contains be.slice, ls.slice"),
        ("system.slice/nginx.service", "no [[workload]] rule matches it, so it counts as system"),
        ("be.slicer", "no [[workload]] rule matches it"),
    ],
)
def test_a_cgroup_without_settings_is_told_why(path: str, why: str | None) -> None:
    rules = (explain._Rule("batch", "be", ("be.slice",)),)
    given = explain.why_not(path, canned(), rules)
    assert given is None if why is None else given is not None and given.startswith(why)


def test_a_handler_that_fails_is_an_answer_and_the_next_one_is_served(
    sock: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_request: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    with daemon(sock, answers(reload=broken, pause={"ok": object()})):
        results = [qosctl(word, sock=sock) for word in ("reload", "pause", "status")]
    assert [result.exit_code for result in results] == [1, 1, 0]
    assert all("internal error" in result.stderr for result in results[:2])
    assert "ZeroDivisionError" in caplog.text


def test_explaining_a_cgroup_that_is_not_there_answers_and_exits_1(sock: str) -> None:
    with daemon(sock):
        result = qosctl("explain", "nothing.slice", sock=sock)
    assert result.exit_code == 1
    assert "no such cgroup" in result.stderr
    assert "web (LS): ls.slice; batch (BE): be.slice" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/sys/fs/cgroup/be.slice/", "be.slice"),
        ("/sys/fs/cgroup/unified/be.slice", "be.slice"),
        ("/mnt/cg/be.slice", "be.slice"),
        ("be.slice//a.scope", "be.slice/a.scope"),
        ("/", ""),
        ("be.slice/a\nb", r"be.slice/a\x0ab"),
        (r"be.slice/a\x2db", r"be.slice/a\x2db"),
    ],
)
def test_a_cgroup_may_be_named_by_any_path_to_it(text: str, path: str) -> None:
    assert cgroups.relative(text, "/mnt/cg") == path


def test_a_workload_and_a_known_unit_are_found_by_name() -> None:
    known = {"be.slice/be-batch.slice": "batch", "system.slice/nginx.service": "web"}
    assert cgroups.resolve("batch", known, None) == ["be.slice/be-batch.slice"]
    assert cgroups.resolve("nginx.service", known, None) == ["system.slice/nginx.service"]


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        ("be.slice", "be.slice"),
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        ("ssh.service", "system.slice/ssh.service"),
    ],
)
def test_an_unknown_unit_is_where_systemd_puts_it_by_default(unit: str, path: str) -> None:
    assert cgroups.guess_unit(unit) == path


def test_decisions_are_chosen_by_time_and_by_subtree() -> None:
    assert [record.id for record in decisions.select(records(), NOW - 600, None)] == [2, 3]
    assert [record.id for record in decisions.select(records(), None, "be.slice")] == [1, 2]
    assert decisions.select(records(), None, "be") == ()


def test_what_happened_to_an_uplink_is_said_whole() -> None:
    why = "not shaped: eth0 has a root qdisc of somebody else: tbf 1:"
    record = DecisionRecord(1, NOW, 1, "eth0", NETWORK, "", "", "failed", Reason("net.uplinks", why))
    console = Console(width=160)
    with console.capture() as said:
        console.print(decisions.table((record,), NOW))
    assert why in said.get()


def test_decisions_show_the_change_and_its_error(sock: str) -> None:
    with daemon(sock):
        text = qosctl("decisions", sock=sock, columns=160).stdout
    assert "19000 10000 -> 21000 10000" in text
    assert "LS runs before everything of default weight; EBUSY" in " ".join(text.split())


def test_a_wrong_duration_is_a_usage_error(sock: str) -> None:
    for words in (("pause", "3"), ("decisions", "--since", "soon")):
        assert qosctl(*words, sock=sock).exit_code == 2


def test_pause_sends_microseconds_and_says_until_when(sock: str) -> None:
    with daemon(sock, answers(pause={"ok": {"mode": "paused", "paused_until": NOW}})) as requests:
        result = qosctl("pause", "10m", sock=sock)
    assert requests == [{"command": "pause", "duration": "600000000us", "uid": os.getuid()}]
    assert result.stdout.startswith("Paused until ")


def test_resume_says_the_mode(sock: str) -> None:
    with daemon(sock, answers(resume={"ok": {"mode": "enforce", "paused_until": None}})):
        assert qosctl("resume", sock=sock).stdout == "Resumed: mode enforce.\n"


def test_reload_prints_each_change(sock: str) -> None:
    with daemon(sock, answers(reload={"ok": {"changes": ["interval: 1000000us -> 500000us"]}})):
        assert qosctl("reload", sock=sock).stdout == "interval: 1000000us -> 500000us\n"


@pytest.mark.parametrize(
    ("kind", "code"), [("config", 78), ("not-permitted", 4), (None, 1), ("of a later version", 1)]
)
def test_the_kind_of_error_decides_the_exit_status(sock: str, kind: str | None, code: int) -> None:
    with daemon(sock, answers(reload={"error": "qosd.toml: mod: unknown key", "kind": kind})):
        result = qosctl("reload", sock=sock)
    assert result.exit_code == code
    assert result.stderr == "qosctl: qosd.toml: mod: unknown key\n"


def test_check_takes_what_the_daemon_takes_and_refuses_the_rest_with_78(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('interval = "500ms"\n')
    bad.write_text("mod = 1\n")
    assert qosctl("check", str(good)).stdout == f"{good}: ok\n"
    result = qosctl("check", "--json", str(bad))
    assert result.exit_code == 78
    assert json.loads(result.stdout)["ok"] is False
    assert "mod: unknown key" in result.stderr
    good.chmod(0o666)
    assert "lets others write" in qosctl("check", str(good)).stderr


def test_restore_with_a_living_daemon_pauses_it_and_says_so(sock: str) -> None:
    gone = [{**setting, "original": None} for setting in answers()["status"]["ok"]["settings"]]  # type: ignore[index]
    with daemon(
        sock,
        answers(pause={"ok": {"mode": "paused", "paused_until": None}}, status={"ok": {"settings": gone}}),
    ) as requests:
        result = qosctl("restore", sock=sock)
    assert result.exit_code == 0
    assert "now paused" in result.stdout
    assert requests[0] == {"command": "pause", "uid": os.getuid()}


def test_restore_names_what_the_daemon_still_holds_and_exits_1(sock: str) -> None:
    with daemon(sock, answers(pause={"ok": {"mode": "paused", "paused_until": None}})):
        result = qosctl("restore", sock=sock)
    assert result.exit_code == 1
    assert "be.slice/cpu.idle" in result.stderr


def _left_behind(tmp_path: Path) -> Path:
    """What a daemon that was killed leaves: a value of its own, and a journal."""
    group = tmp_path / "tree/be.slice"
    group.mkdir(parents=True)
    (group / "cpu.weight").write_text("1\n")
    journal = Journal(Sys(), str(tmp_path), read_boot_id())
    journal.record(Key(group.stat().st_ino, "cpu.weight"), Entry("be.slice", "100", ("1",)))
    journal.close()
    return group


@pytest.mark.skipif(os.geteuid() != 0, reason="restoring from the journal is for root")
def test_restore_without_a_daemon_puts_back_what_its_journal_holds(tmp_path: Path, sock: str) -> None:
    group = _left_behind(tmp_path)
    words = ("restore", "--cgroup-root", str(tmp_path / "tree"))
    result = qosctl(*words, sock=sock)
    assert result.exit_code == 0
    assert result.stdout == "be.slice cpu.weight: done (100)\n"
    assert (group / "cpu.weight").read_text().strip() == "100"
    assert "holds nothing to put back" in qosctl(*words, sock=sock).stdout


def test_restore_without_a_daemon_is_for_root(
    tmp_path: Path, sock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = _left_behind(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = qosctl("restore", "--cgroup-root", str(tmp_path / "tree"), sock=sock)
    assert result.exit_code == 4
    assert (group / "cpu.weight").read_text() == "1\n"


def test_help_documents_every_exit_status_and_every_command_has_json() -> None:
    text = qosctl("--help").stdout
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "78 ", "125", "127"):
        assert f"\n    {code}" in text or code in text.split("run passes on")[1]
    assert all("--json" in qosctl(name, "--help").stdout for name in cli.commands if name != "run")


def test_a_question_does_not_wait_for_what_only_people_need() -> None:
    """rich, psutil and the TOML parser cost more than the whole answer."""
    script = (
        "import sys, qosd.ctl.main;"
        "heavy = {'rich', 'psutil', 'tomli', 'qosd.engine', 'prometheus_client'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_errors_carry_their_exit_status() -> None:
    assert Failure("no", 3).exit_code == 3
    assert not issubclass(Failure, ConfigError)
