"""The load generator against servers that behave badly on purpose."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qosd.lab.demo.figures import percentile
from qosd.lab.demo.results import Latencies, read_latencies

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parents[2] / "qosd/lab/load/openloop.c"

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the load generator is built with gcc")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("openloop") / "openloop"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(built), str(SOURCE), "-lm"], check=True
    )
    return built


class Server(threading.Thread):
    """Answers each line with `reply`; sleeps `stall` seconds once, `after` seconds from the first request."""

    def __init__(
        self, path: Path, *, stall: float = 0.0, after: float = 0.0, reply: bytes = b":1\r\n"
    ) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._stall, self._after, self._reply = stall, after, reply

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as client:
            began = time.monotonic()
            while data := client.recv(65536):
                if self._stall and time.monotonic() - began > self._after:
                    time.sleep(self._stall)
                    self._stall = 0.0
                if self._reply:
                    client.sendall(self._reply * data.count(b"\n"))


@pytest.fixture
def load(binary: Path, tmp_path: Path) -> Callable[..., Latencies]:
    def play(*options: str, **server: object) -> Latencies:
        path = tmp_path / "socket"
        thread = Server(path, **server)  # type: ignore[arg-type]
        thread.start()
        request, output = tmp_path / "request", tmp_path / "output"
        request.write_bytes(b"PING\n")
        files = ["--request", str(request), "--output", str(output)]
        common = ["--connect", str(path), "--connections", "1", *files]
        subprocess.run([binary, *common, *options], check=True, capture_output=True, text=True, timeout=20)
        thread.join(5)
        return read_latencies(output.read_bytes())

    return play


def test_a_stall_is_seen_by_every_request_that_was_due_in_it(load: Callable[..., Latencies]) -> None:
    """200 ms without an answer at 500 requests/s: a closed loop sees it once, this one about 100 times.

    No upper bound: whatever else this machine does shows in the latencies as well, as it should.
    """
    found = load("--rate", "0:500", "--fixed", "--duration", "2", stall=0.2, after=0.5)
    ordered = sorted(request.latency_ms for request in found.requests)

    assert percentile(ordered, 99) > 150
    assert sum(1 for latency in ordered if latency > 20) > 60


def test_requests_are_intended_when_the_schedule_says_though_the_server_stalls(
    load: Callable[..., Latencies],
) -> None:
    found = load("--rate", "0:500", "--fixed", "--duration", "1", stall=0.3, after=0.2)
    gaps = [late.at - early.at for early, late in zip(found.requests, found.requests[1:], strict=False)]

    assert len(found.requests) == 499
    assert max(gaps) < 0.0021


def test_the_rate_changes_when_it_should(load: Callable[..., Latencies]) -> None:
    found = load("--rate", "0:200", "--rate", "0.5:1000", "--fixed", "--duration", "1")

    assert sum(1 for request in found.requests if request.at < 0.5) == pytest.approx(100, abs=2)
    assert sum(1 for request in found.requests if request.at >= 0.5) == pytest.approx(500, abs=2)


def test_the_same_seed_is_the_same_schedule(load: Callable[..., Latencies], tmp_path: Path) -> None:
    options = ("--rate", "0:500", "--duration", "0.5", "--seed", "7")
    first = [request.at for request in load(*options).requests]
    (tmp_path / "socket").unlink()

    assert [request.at for request in load(*options).requests] == first
    assert 180 < len(first) < 330


def test_a_request_without_an_answer_counts_with_the_time_it_waited(load: Callable[..., Latencies]) -> None:
    found = load("--rate", "0:50", "--fixed", "--duration", "0.5", reply=b"")

    assert found.unanswered == len(found.requests) == 24
    assert min(request.latency_ms for request in found.requests) > 1900


def test_an_error_of_the_server_ends_the_run(load: Callable[..., Latencies]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        load("--rate", "0:50", "--duration", "1", reply=b"-NOSCRIPT no such script\r\n")

    assert "NOSCRIPT" in failed.value.stderr


@pytest.mark.parametrize("rate", ["5:100", "0:0", "0:-3", "nonsense"])
def test_a_rate_that_makes_no_sense_is_refused(binary: Path, tmp_path: Path, rate: str) -> None:
    done = subprocess.run(
        [
            binary,
            "--connect",
            "/x",
            "--request",
            "r",
            "--output",
            str(tmp_path / "o"),
            "--duration",
            "1",
            "--rate",
            rate,
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("openloop: ")
