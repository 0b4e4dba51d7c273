"""OpenMetrics text over HTTP from one thread: the format is prometheus-client's, the server is forty lines.

prometheus-client's own server stands on http.server, ssl and wsgiref, which its `__init__` imports for all:
8.7 MB resident and 40 ms of CPU, half of what the daemon is without. One thread that answers one scrape after
another, each within two seconds, cannot use up threads or file descriptors whatever its clients do.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator

log = logging.getLogger("qosd")

_PACKAGE = "prometheus_client"
_PARTS = ("metrics_core", "openmetrics.exposition")
_REQUEST_MAX = 8192
_DEADLINE = 2.0
_PORT_MAX = 65535


def _import_parts() -> None:
    """Load the format and the metric families without the package's `__init__`, which stays importable."""
    if _PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return  # the plain import below says what is wrong
    bare = types.ModuleType(_PACKAGE)
    bare.__path__ = spec.submodule_search_locations
    sys.modules[_PACKAGE] = bare
    try:
        for part in _PARTS:
            importlib.import_module(f"{_PACKAGE}.{part}")
    finally:
        del sys.modules[_PACKAGE]


_import_parts()

from prometheus_client.metrics_core import (  # noqa: E402 - after the parts it needs are there
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.openmetrics.exposition import (  # noqa: E402 - same
    CONTENT_TYPE_LATEST,
    generate_latest,
)

__all__ = [
    "CounterMetricFamily",
    "GaugeMetricFamily",
    "HistogramMetricFamily",
    "InfoMetricFamily",
    "Metric",
    "StateSetMetricFamily",
    "serve",
    "text",
]

Collect = Callable[[], Iterator[Metric]]


class _Families:
    """What `generate_latest` asks a registry for."""

    def __init__(self, collect: Collect) -> None:
        self.collect = collect


def text(collect: Collect) -> bytes:
    rendered: bytes = generate_latest(_Families(collect))  # type: ignore[no-untyped-call]  # untyped there
    return rendered


def serve(listen: str, collect: Collect) -> tuple[str, int]:
    """Answer scrapes on `HOST:PORT` until the process ends; the address taken. Raises OSError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > _PORT_MAX:
        raise OSError(f"expected HOST:PORT, got {listen!r}")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, int(port)), family=family, backlog=16)
    thread = threading.Thread(target=_answer_all, args=(listener, collect), name="metrics", daemon=True)
    thread.start()
    address: tuple[str, int] = listener.getsockname()[:2]
    return address


def _answer_all(listener: socket.socket, collect: Collect) -> None:
    while True:
        client, _ = listener.accept()
        with client:
            try:
                _answer(client, collect)
            except OSError as error:
                log.debug("a scrape broke off: %s, ignoring", error)


def _answer(client: socket.socket, collect: Collect) -> None:
    request = _read_head(client)
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        _reply(client, "405 Method Not Allowed", b"only GET\n")
    elif path == b"/metrics":
        try:
            body = text(collect)
        except Exception:
            # A bug in here must cost a scrape, not the thread.
            log.exception("cannot render the metrics")
            _reply(client, "500 Internal Server Error", b"see the journal of qosd\n")
            return
        _reply(client, "200 OK", b"" if method == b"HEAD" else body, CONTENT_TYPE_LATEST)
    else:
        _reply(client, "404 Not Found", b"qosd: see /metrics\n")


def _read_head(client: socket.socket) -> bytes:
    deadline = time.monotonic() + _DEADLINE
    head = b""
    while b"\r\n\r\n" not in head:
        client.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = client.recv(_REQUEST_MAX)
        if not chunk or len(head) > _REQUEST_MAX:
            raise ConnectionAbortedError("not an HTTP request")
        head += chunk
    return head


def _reply(client: socket.socket, status: str, body: bytes, kind: str = "text/plain") -> None:
    client.settimeout(_DEADLINE)
    fields = (f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close")
    head = "\r\n".join((f"HTTP/1.1 {status}", *fields, "", ""))
    client.sendall(head.encode("ascii") + body)
