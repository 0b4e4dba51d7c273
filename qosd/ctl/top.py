"""`qosctl top`: each tick on one screen of 80 x 24 or more; lines or JSON where nobody looks."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from qosd.ctl import client, decisions
from qosd.ctl.exits import UNREACHABLE, Failure
from qosd.ctl.topview import Moment, View, footer, line, moment, render
from qosd.status import Status

_HISTORY = 300
_RECORDS = 50
_LATE_SECONDS = 0.05  # a tick is on show a little after its time
_AGAIN_SECONDS = 0.25
_QUIT = frozenset("qQ\x03\x04")


def ticks(socket: str, wait: Callable[[float], bool]) -> Iterator[bytes]:
    """The status of each tick, once; ends when `wait` says so. Raises `Failure`."""
    last: int | None = None
    while True:
        answer = client.ask(socket, "status")
        if answer == b"null":
            pause = _AGAIN_SECONDS
        else:
            brief = msgspec.json.decode(answer, type=_Brief)
            if brief.tick != last:
                last = brief.tick
                yield answer
            pause = brief.time + brief.interval_ms / 1000 + _LATE_SECONDS - time.time()
            if not 0 < pause <= brief.interval_ms / 1000:
                pause = _AGAIN_SECONDS
        if wait(pause):
            return


class _Brief(msgspec.Struct):
    tick: int
    time: float
    interval_ms: int


def show(socket: str, count: int | None, *, json: bool) -> None:
    if json or not sys.stdout.isatty() or not sys.stdin.isatty():
        with contextlib.suppress(KeyboardInterrupt):
            _print(socket, count, json=json)
        return
    with _keys(), contextlib.suppress(KeyboardInterrupt):
        _watch(socket, count)


def _print(socket: str, count: int | None, *, json: bool) -> None:
    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    for number, answer in enumerate(ticks(socket, wait), 1):
        text = answer.decode() if json else line(msgspec.json.decode(answer, type=Status))
        click.echo(text)
        sys.stdout.flush()
        if number == count:
            return


def _watch(socket: str, count: int | None) -> None:
    history: deque[Moment] = deque(maxlen=_HISTORY)
    console = Console(highlight=False, markup=False, emoji=False)  # of the size that the terminal has now
    seen = 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while count is None or seen < count:
            try:
                for answer in ticks(socket, _pressed):
                    status = msgspec.json.decode(answer, type=Status)
                    history.append(moment(status))
                    view = View(status, decisions.fetch(socket, _RECORDS), tuple(history))
                    live.update(render(view, time.time(), console.width, console.height), refresh=True)
                    seen += 1
                    if seen == count:
                        return
            except Failure as failure:
                if failure.exit_code != UNREACHABLE:
                    raise
                live.update(Group(Text(failure.message, "bold yellow"), footer(console.width)), refresh=True)
                if _pressed(1.0):
                    return
            else:
                return


def _pressed(seconds: float) -> bool:
    """Wait, and whether a key to quit came meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in _QUIT:
            return True
    return False


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys one by one and unseen; the terminal is as it was afterwards."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
