"""`qosctl top`: what a screen of 80 x 24 shows, lines for pipes, and the way out."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from ctl_daemon import NOW, VERDICTS, answers, canned, daemon, records
from rich.console import Console

from qosd.ctl import top, topview
from qosd.ctl.main import cli
from qosd.ebpf.status import Latency, ProbesView
from qosd.interference.view import InterferenceView, RungView
from qosd.model import Feed

FEEDS = (
    Feed("web-p99", "web", "ms", 31.0, 400_000, 20.0),
    Feed("db-p99", "web", "ms", None, 60_000_000, 5.0),
    Feed("queue", "web", "jobs", 3.0, 100_000, None),
)


def printed(view: topview.View, width: int, height: int) -> list[str]:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=width, height=height, record=True, file=nowhere)
        console.print(topview.render(view, NOW, width, height))
    return [line.rstrip() for line in console.export_text().splitlines()]


def shown(width: int, height: int, **changes: object) -> list[str]:
    status = canned(**changes)
    history = tuple(topview.Moment(n % 4, 1.0, 2.0, 5.0) for n in range(200))
    return printed(topview.View(status, records(), history), width, height)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 10), (300, 100)])
def test_it_fills_the_screen_exactly_and_ends_with_the_way_out(width: int, height: int) -> None:
    lines = shown(width, height, feeds=FEEDS)

    assert len(lines) == height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("q quits")


def test_eighty_by_twenty_four_shows_tiers_allowance_waits_signals_and_decisions() -> None:
    screen = "\n".join(shown(80, 24, feeds=FEEDS))

    for part in (
        "enforcing",
        "LS 1.20",
        "BE may use 2.10 CPUs",
        "LS waits",
        "CPU WAIT",
        "batch",
        "! over its slo",
        "! unknown: too old",
        "LATEST DECISIONS",
        "be.slice cpu.max: 19000 10000 -> 21000 10000",
    ):
        assert part in screen, screen


def test_run_queue_waits_rungs_and_verdicts_are_shown_where_there_are_any() -> None:
    waits = (
        Latency("ls.slice", "web", "ls", "runq", 900, 40.0, 1234.6, 1000.0, breach=True),
        Latency("be.slice", "batch", "be", "runq", 900, 40.0, 9999.0),
        Latency("ls.slice", "web", "ls", "blkio", 9, 40.0, 7777.0),
    )
    answered = InterferenceView("throttle", (RungView("cpu", "squeeze", 3.0, 0.7, held=False),), VERDICTS)
    status = canned(ebpf=ProbesView("libbpf", None, (), waits), interference=answered)
    view = topview.View(status, records(), ())

    lines = printed(view, 80, 24)
    assert "Run queue p99   web 1235 us !" in lines
    assert "Rungs           cpu squeeze" in lines
    assert any(line.startswith(f"Verdict         {VERDICTS[0].verdict.text[:40]}") for line in lines)


def test_a_course_is_one_character_a_tick_and_the_unknown_is_not_zero() -> None:
    assert topview.course([0.0, 0.01, 4.0, 9.0, None], 4.0) == " .@@?"


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def advancing() -> dict:
    """A daemon that is a tick further at each question."""
    ticks = itertools.count()

    def status(_: dict) -> dict:
        now = canned(tick=next(ticks), time=time.time(), interval_ms=100, feeds=FEEDS)
        return {"ok": msgspec.to_builtins(now)}

    return answers(status=status)


def test_piped_it_is_a_line_a_tick(socket: str) -> None:
    with daemon(socket, advancing()):
        done = CliRunner().invoke(cli, ["--socket", socket, "top", "--ticks", "3"])

    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "enforce LS 1.20 system 0.50 BE 2.00 BE may use 2.10 LS waits 3% web-p99 31 ms" in lines[0]


def test_as_json_it_is_a_document_a_tick_and_no_tick_twice(socket: str) -> None:
    with daemon(socket, advancing()):
        done = CliRunner().invoke(cli, ["--socket", socket, "top", "--ticks", "3", "--json"])

    ticks = [json.loads(line)["tick"] for line in done.stdout.splitlines()]
    assert ticks == sorted(set(ticks))
    assert len(ticks) == 3


def test_a_tick_that_does_not_end_is_not_shown_again(socket: str) -> None:
    waits = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    with daemon(socket):
        assert len(list(top.ticks(socket, wait))) == 1


def test_without_a_daemon_a_pipe_ends_with_the_status_that_says_so(socket: str) -> None:
    assert CliRunner().invoke(cli, ["--socket", socket, "top"]).exit_code == 3


def until_seen(fd: int, wanted: bytes, seconds: float = 30.0) -> bytes:
    seen = b""
    until = time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < until:
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 65536)
    assert wanted in seen, seen
    return seen


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_on_a_terminal_a_key_ends_it_and_the_terminal_is_as_before(socket: str, key: bytes) -> None:
    with daemon(socket, advancing()):
        pid, fd = pty.fork()
        if pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="80", LINES="24")
            os.execv(sys.executable, [sys.executable, "-m", "qosd.ctl.main", "--socket", socket, "top"])  # noqa: S606 - a child of ours
        try:
            until_seen(fd, b"q quits")
            os.write(fd, key)
            until_seen(fd, b"\x1b[?1049l")
            _, status = os.waitpid(pid, 0)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 0
