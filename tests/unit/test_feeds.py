"""Operators' own signals: what is taken for a number, how old it may be, whom a silent server holds up."""

from __future__ import annotations

import http.server
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from treekit import FakeSys

from qosd.config import decode
from qosd.errors import ConfigError, QosdError
from qosd.feeds import Feeds, in_unit, number
from qosd.model import Feed
from qosd.prometheus import Answer, Call, Poller, Question, parse_answer
from qosd.schema.signal import SignalRule, Source
from qosd.schema.units import Duration

FED = SignalRule("p99", "web", slo=20.0)
WEB = '[[workload]]\nname = "web"\ntier = "ls"\nmatch = ["ls.slice"]\n'


def signals(text: str) -> str:
    """A configuration with one signal of these keys."""
    return f'{WEB}[[signal]]\nname = "p99"\nworkload = "web"\n{text}'


class Fed:
    """Feeds on a clock of its own."""

    def __init__(self, *rules: SignalRule, **kwargs: object) -> None:
        self.sys = FakeSys()
        self.feeds = Feeds(self.sys, rules, **kwargs)  # type: ignore[arg-type]

    def sample(self) -> Feed:
        (feed,) = self.feeds.sample(self.sys.monotonic_usec)
        return feed

    def give(self, value: object = 12.5, uid: int = 0, **request: object) -> dict:
        return self.feeds.answer({"name": "p99", "value": value, **request}, uid)


def test_a_value_is_known_until_it_is_too_old() -> None:
    fed = Fed(FED)
    assert fed.sample() == Feed("p99", "web", "ms", slo=20.0)

    assert fed.give(12.5) == {"ok": {"name": "p99", "value": 12.5, "unit": "ms", "slo": 20.0}}
    fed.sys.advance(10)
    assert fed.sample() == Feed("p99", "web", "ms", 12.5, 10_000_000, 20.0, news=True)
    assert fed.sample() == Feed("p99", "web", "ms", 12.5, 10_000_000, 20.0)
    fed.sys.advance(1)
    assert fed.sample().value is None
    assert fed.sample().age_usec == 11_000_000


@pytest.mark.parametrize(
    ("value", "unit", "expected"), [("0.0125", "s", 12.5), (900, "us", 0.9), (3, None, 3)]
)
def test_a_time_is_taken_in_any_unit_of_time(value: object, unit: str | None, expected: float) -> None:
    fed = Fed(FED)
    fed.give(value, unit=unit)

    assert fed.sample().value == pytest.approx(expected)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "", "1_0", "1e999", "12.5ms", None, "0x10", [1]])
def test_what_is_no_number_is_refused_and_changes_nothing(value: object) -> None:
    fed = Fed(FED)
    fed.give(1)

    assert "no number" in fed.give(value)["error"]
    assert fed.sample().value == 1


def test_a_unit_that_does_not_go_with_the_signal_is_refused() -> None:
    assert "does not go with" in Fed(FED).give(1, unit="MB")["error"]


def test_only_root_feeds_unless_the_signal_lets_the_group() -> None:
    assert Fed(FED).give(1, uid=1000)["kind"] == "not-permitted"
    assert "ok" in Fed(msgspec.structs.replace(FED, group_may_feed=True)).give(1, uid=1000)


def test_a_name_that_is_no_fed_signal_is_refused_with_those_there_are() -> None:
    other = SignalRule("file", "web", source=Source.FILE, file="/run/x")
    fed = Fed(FED, other)

    assert fed.feeds.answer({"name": "file", "value": 1}, 0)["error"].endswith("there are: p99")
    assert "none is configured" in Feeds(FakeSys(), ()).answer({"name": "p99", "value": 1}, 0)["error"]


def test_a_reload_keeps_the_value_of_a_rule_that_did_not_change() -> None:
    fed = Fed(FED)
    fed.give(5)
    fed.feeds.reconfigure((FED, SignalRule("other", "web")))
    assert fed.feeds.sample(fed.sys.monotonic_usec)[0].value == 5

    fed.feeds.reconfigure((msgspec.structs.replace(FED, unit="s"),))
    assert fed.sample().value is None


@pytest.fixture
def from_file(tmp_path: Path) -> Fed:
    return Fed(SignalRule("p99", "web", source=Source.FILE, file=str(tmp_path / "p99")))


def write_at(fed: Fed, text: str, seconds_ago: float) -> None:
    (rule,) = fed.feeds._rules.values()
    Path(rule.file or "").write_text(text)
    when = fed.sys.wall_seconds - seconds_ago
    os.utime(rule.file or "", (when, when))


def test_a_file_is_as_old_as_its_last_change(from_file: Fed) -> None:
    write_at(from_file, "7.5 measured by hand\n", 4)
    assert from_file.sample() == Feed("p99", "web", "ms", 7.5, 4_000_000, news=True)

    from_file.sys.advance(7)
    assert from_file.sample().value is None


def test_a_reading_is_news_once_and_the_same_value_again_is_another_reading(from_file: Fed) -> None:
    fed = Fed(FED)
    seen = []
    for comes in (True, False, True, False):
        if comes:
            fed.give(5)
            write_at(from_file, "7.5", seconds_ago=len(seen) / 10)
        fed.sys.advance(1)
        seen.append((fed.sample().news, from_file.sample().news))

    assert seen == [(True, True), (False, False), (True, True), (False, False)]


@pytest.mark.parametrize("text", ["", "\n", "fast", "\xff\xfe", "-3", "nan"])
def test_a_file_without_a_number_leaves_the_last_one_to_grow_old(from_file: Fed, text: str) -> None:
    write_at(from_file, "7.5", 0)
    from_file.sample()
    write_at(from_file, text, 0)

    feed = from_file.sample()
    assert feed.value == 7.5
    assert "no number" in (feed.error or "")


def test_a_file_that_is_not_there_or_a_pipe_or_from_the_future_is_unknown(
    from_file: Fed, tmp_path: Path
) -> None:
    assert "No such file" in (from_file.sample().error or "")
    write_at(from_file, "7.5", -3600)
    assert "in the future" in (from_file.sample().error or "")
    (tmp_path / "p99").unlink()
    os.mkfifo(tmp_path / "p99")
    assert from_file.sample().value is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('workload = "db"', "signal[0].workload"),
        ('source = "file"', "signal[0].file"),
        ('source = "file"\nfile = "/etc/p99"', "signal[0].file"),
        ('source = "file"\nfile = "/run/../etc/p99"', "signal[0].file"),
        ('file = "/run/p99"', "signal[0].file"),
        ('source = "prometheus"\nurl = "http://localhost:9090"', "signal[0].query"),
        ('source = "prometheus"\nurl = "ftp://x"\nquery = "up"', "signal[0].url"),
        ('source = "file"\nfile = "/run/p99"\ngroup_may_feed = true', "signal[0].group_may_feed"),
        ('valid = "99ms"', "signal[0].valid"),
        ('valid = "61min"', "signal[0].valid"),
        ('every = "0.9s"', "signal[0].every"),
        ('timeout = "11s"', "signal[0].timeout"),
        ("slo = 0", "signal[0].slo"),
        ('unit = ""', "signal[0].unit"),
        ('name = "a b"', "not TOML"),
        ("wrong = 1", "signal[0].wrong"),
    ],
)
def test_a_signal_that_cannot_be_is_refused_by_its_key(text: str, key: str) -> None:
    given = signals(text)
    if text.startswith("workload"):
        given = given.replace('workload = "web"\nworkload', "workload")
    with pytest.raises(ConfigError) as caught:
        decode(given)
    assert str(caught.value).startswith(key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'slo = 0.5\nvalid = "100ms"\nunit = "s"\ngroup_may_feed = true',
        'source = "file"\nfile = "/run/web/p99"\nvalid = "1h"',
        'source = "prometheus"\nurl = "http://127.0.0.1:9090/p"\nquery = "up"\nevery = "10min"',
    ],
)
def test_a_signal_of_each_source_is_taken(text: str) -> None:
    assert decode(signals(text)).signal[0].name == "p99"


def test_no_more_signals_than_can_be_asked_for_and_no_name_twice() -> None:
    with pytest.raises(ConfigError, match=r"^signal\[1\]\.name: "):
        decode(signals("") + '[[signal]]\nname = "p99"\nworkload = "web"\n')
    many = "".join(f'[[signal]]\nname = "s{number}"\nworkload = "web"\n' for number in range(33))
    with pytest.raises(ConfigError, match="at most 32"):
        decode(WEB + many)


@given(st.text(max_size=12) | st.floats() | st.integers() | st.none() | st.booleans())
def test_a_number_is_finite_and_not_negative_or_refused(given_value: object) -> None:
    try:
        value = number(given_value)
    except QosdError:
        return
    assert 0 <= value < math.inf


def test_a_unit_of_another_kind_stands_for_itself() -> None:
    assert in_unit("3", "requests", "requests") == 3.0


VECTOR = (
    b'{"status":"success","data":{"resultType":"vector",'
    b'"result":[{"metric":{"a":"b"},"value":[1.5,"0.25"]}]}}'
)


def test_the_one_sample_of_an_answer_is_taken() -> None:
    assert parse_answer(200, VECTOR) == 0.25
    assert parse_answer(200, b'{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}') == 7


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (VECTOR.replace(b"0.25", b"NaN"), "no number"),
        (b'{"status":"success","data":{"resultType":"vector","result":[]}}', "0 series"),
        (b'{"status":"success","data":{"resultType":"matrix","result":[{"values":[]}]}}', "not one number"),
        (b'{"status":"error","error":"bad query"}', "bad query"),
        (b"<html>", "HTTP status 200"),
        (b"\xff\xfe", "HTTP status 200"),
        (b"x" * 70_000, "too long"),
    ],
)
def test_any_other_answer_is_a_sentence(body: bytes, said: str) -> None:
    with pytest.raises(QosdError, match=said):
        parse_answer(200, body)


@contextmanager
def server(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server on loopback that treats each connection so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    handle(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def answers_of(poller: Poller, seconds: float = 20.0) -> list[Answer]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := poller.answers():
            return found
        time.sleep(0.01)
    raise AssertionError("no answer")


def test_a_server_is_asked_and_its_answer_is_the_value() -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(VECTOR)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.handle_request)
        thread.start()
        poller = Poller()
        url = f"http://127.0.0.1:{web.server_port}/prom/"
        assert poller.ask("p99", url, 'max(x{a="b"})', 2_000_000)
        assert not poller.ask("p99", url, "again", 2_000_000), "one at a time"
        (answer,) = answers_of(poller)
        poller.close()
        thread.join()
    assert (answer.name, answer.value, answer.error) == ("p99", 0.25, None)
    assert asked == ["/prom/api/v1/query?query=max%28x%7Ba%3D%22b%22%7D%29&timeout=2s"]


def trickle(connection: socket.socket) -> None:
    """A byte now and then: each read is short, the whole never ends."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(600):
            connection.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        return


@pytest.mark.parametrize("handle", [trickle, lambda _: time.sleep(1), lambda _: None])
def test_a_server_that_trickles_hangs_or_hangs_up_is_cut_off(handle: Callable[[socket.socket], None]) -> None:
    with server(handle) as url:
        poller = Poller()
        started = time.monotonic()
        poller.ask("p99", url, "up", 300_000)
        (answer,) = answers_of(poller)
        poller.close()

    assert answer.value is None
    assert answer.error
    assert time.monotonic() - started < 15


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(QosdError, match=r"^http://127\.0\.0\.1:1: .*refused"):
        Call().fetch(Question("p99", "http://127.0.0.1:1", "up", 1_000_000))


@pytest.mark.parametrize("url", ["http://[", "http://x:y", "http://a b", "http://" + "x" * 300, "http://"])
def test_an_address_that_is_none_is_a_sentence_too(url: str) -> None:
    """What else escaped would end the thread, and with it every signal of its kind."""
    with pytest.raises(QosdError):
        Call().fetch(Question("p99", url, "up", 1_000_000))


class Canned(Poller):
    """Answers as the test says; no thread."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Question] = []
        self.next: list[Answer] = []

    def ask(self, name: str, url: str, query: str, timeout_usec: int) -> bool:
        self.asked.append(Question(name, url, query, timeout_usec))
        return True

    def answers(self) -> list[Answer]:
        found, self.next = self.next, []
        return found


def test_a_query_is_asked_every_so_often_and_a_failure_leaves_the_value_to_grow_old() -> None:
    poller = Canned()
    rule = SignalRule(
        "p99", "web", source=Source.PROMETHEUS, url="http://x", query="q", every=Duration(5_000_000)
    )
    fed = Fed(rule, new_poller=lambda: poller)
    assert fed.sample().value is None
    for _ in range(9):
        fed.sys.advance(1)
        fed.sample()
    assert len(poller.asked) == 2

    poller.next = [Answer("p99", fed.sys.monotonic_usec, 0.5)]
    assert fed.sample().value == 0.5
    poller.next = [Answer("p99", fed.sys.monotonic_usec, error="refused")]
    fed.sys.advance(9)
    assert (fed.sample().value, fed.sample().error) == (0.5, "refused")
    fed.sys.advance(2)
    assert fed.sample().value is None
