"""One number from a Prometheus server, asked for by a thread of its own: the loop never waits for a network.

One question at a time, each with a deadline for all of it: a server that trickles is cut off by the loop,
which shuts the socket down under the thread.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from qosd.errors import QosdError

_ANSWER_MAX = 1 << 16


class Question(NamedTuple):
    name: str
    url: str
    query: str
    timeout_usec: int


class Answer(NamedTuple):
    """Either a value, or the reason why there is none; `at_usec` is CLOCK_MONOTONIC."""

    name: str
    at_usec: int
    value: float | None = None
    error: str | None = None


class _Data(msgspec.Struct):
    resultType: str  # noqa: N815 - Prometheus's name
    result: msgspec.Raw


class _Reply(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""


class _Series(msgspec.Struct):
    value: tuple[float, str]


class Call:
    """The HTTP exchange under way, to be cut off from another thread."""

    def __init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None

    def fetch(self, question: Question) -> float:
        """Raises QosdError with a sentence, whatever happens on the other side."""
        timeout = question.timeout_usec / 1e6
        fields = urllib.parse.urlencode({"query": question.query, "timeout": f"{timeout:g}s"})
        try:
            address = urllib.parse.urlsplit(question.url)
            self._connection = http.client.HTTPConnection(
                address.hostname or "", address.port, timeout=timeout
            )
            self._connection.request("GET", f"{address.path.rstrip('/')}/api/v1/query?{fields}")
            response = self._connection.getresponse()
            body = response.read(_ANSWER_MAX + 1)
            return parse_answer(response.status, body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise QosdError(f"{question.url}: {str(error) or type(error).__name__}") from None
        finally:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def cut(self) -> None:
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def parse_answer(status: int, body: bytes) -> float:
    """The one sample of an instant query; raises QosdError when it gives none, several or no number."""
    if len(body) > _ANSWER_MAX:
        raise QosdError("the answer is too long: the query must give one number")
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise QosdError(f"HTTP status {status} and no answer of Prometheus") from None
    if reply.status != "success" or reply.data is None:
        raise QosdError(f"the query was refused: {reply.error[:200]}")
    try:
        text = _only_sample(reply.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise QosdError(f"the query gives a {reply.data.resultType[:20]!r}, not one number") from None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise QosdError(f"the query gives {text[:20]}, which is no number")
    return value


def _only_sample(data: _Data) -> str:
    if data.resultType == "scalar":
        return msgspec.json.decode(data.result, type=tuple[float, str])[1]
    series = msgspec.json.decode(data.result, type=list[_Series])
    if len(series) != 1:
        raise QosdError(f"the query gives {len(series)} series; it must give one, as max(...) does")
    return series[0].value[1]


class Poller:
    """Asks in turn, on a thread that lives as long as there is something to ask."""

    def __init__(self, call: Call | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._call = call or Call()
        self._clock = clock
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._deadline_usec: int | None = None
        self._thread: threading.Thread | None = None

    def ask(self, name: str, url: str, query: str, timeout_usec: int) -> bool:
        """False while the last question of this name has no answer yet."""
        if name in self._waiting:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="prometheus", daemon=True)
            self._thread.start()
        self._waiting.add(name)
        self._questions.put(Question(name, url, query, timeout_usec))
        return True

    def answers(self) -> list[Answer]:
        """What came in since the last time; a call that takes too long is cut off, and answers so."""
        deadline = self._deadline_usec
        if deadline is not None and self._clock() // 1000 > deadline:
            self._call.cut()
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._answers.get_nowait())
        self._waiting.difference_update(answer.name for answer in found)
        return found

    def close(self) -> None:
        """The thread ends by itself once its call is cut off; nobody waits for it."""
        self._questions.put(None)
        self._call.cut()

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            self._deadline_usec = self._clock() // 1000 + question.timeout_usec
            value, error = None, None
            try:
                value = self._call.fetch(question)
            except QosdError as refused:
                error = str(refused)
            self._deadline_usec = None
            self._answers.put(Answer(question.name, self._clock() // 1000, value, error))
