"""Real traffic between network namespaces, for the tests and the benchmark; also a script.

The sink counts received bytes per port, TCP and UDP, both families, and reports them as JSON for every line
on its stdin, or of whoever connects to its control port. A sender runs in a cgroup of its own until its stdin
closes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO

PORTS = range(5000, 5008)
CONTROL = 4999
UDP_SEGMENT = 103  # linux/udp.h
SO_PRIORITY = 12
SO_SNDBUFFORCE = 32


class Counted:
    """What arrives somewhere, asked for over a pipe or a connection."""

    def __init__(self, ask: IO[str], answers: IO[str]) -> None:
        self._ask = ask
        self._answers = answers

    def bytes(self) -> tuple[float, dict[int, int]]:
        """The sink's own clock, and what arrived so far by port."""
        self._ask.write("\n")
        self._ask.flush()
        seconds, counted = json.loads(self._line())
        return seconds, {int(port): count for port, count in counted.items()}

    def rate_bps(self, seconds: float) -> dict[int, float]:
        """Bits per second of payload by port over the next seconds."""
        begin, before = self.bytes()
        time.sleep(seconds)
        end, after = self.bytes()
        return {port: 8 * (after.get(port, 0) - before.get(port, 0)) / (end - begin) for port in PORTS}

    def settled_rate_bps(self, ports: tuple[int, ...], seconds: float) -> dict[int, float]:
        """The same, half a second after every port has traffic: neighbour discovery alone takes one."""
        deadline = time.monotonic() + 60
        while not all(self.bytes()[1].get(port) for port in ports):
            assert time.monotonic() < deadline, f"no traffic on all of {ports}"
            time.sleep(0.02)
        time.sleep(0.5)
        return self.rate_bps(seconds)

    def _line(self) -> str:
        line = self._answers.readline()
        assert line, "the sink died"
        return line


class Sink(Counted):
    """The receiving process, at the far end or in a cgroup."""

    def __init__(
        self, enter: list[str], cgroup: Path | None = None, ports: range = PORTS, control: int = 0
    ) -> None:
        command = [*enter, sys.executable, __file__, "sink", "--ports", str(ports.start), str(ports.stop)]
        if control:
            command += ["--control", str(control)]
        self.process = subprocess.Popen(
            [*command, *_in(cgroup)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        super().__init__(self.process.stdin, self.process.stdout)
        self._line()  # it listens

    def close(self) -> None:
        finish(self.process)


class FarSink(Counted):
    """A sink on another machine, by its control port."""

    def __init__(self, address: str) -> None:
        self._connection = socket.create_connection((address, CONTROL), timeout=60)
        stream = self._connection.makefile("rw", encoding="ascii")
        super().__init__(stream, stream)
        self._earlier: dict[int, int] = {}
        self._earlier = self.bytes()[1]

    def bytes(self) -> tuple[float, dict[int, int]]:
        """Of what came since this was made: the sink is older than that, and had other senders before."""
        seconds, counted = super().bytes()
        return seconds, {port: count - self._earlier.get(port, 0) for port, count in counted.items()}

    def close(self) -> None:
        self._answers.close()
        self._connection.close()


def sender(cgroup: Path | None, *arguments: str, enter: list[str] | None = None) -> subprocess.Popen[str]:
    """Start `traffic.py send ARGUMENTS` inside a cgroup, before it opens its socket."""
    command = [*(enter or ()), sys.executable, __file__, "send", *arguments, *_in(cgroup)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)


def _in(cgroup: Path | None) -> list[str]:
    return [] if cgroup is None else ["--cgroup", str(cgroup)]


def finish(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    process.wait(10)
    if process.stdout is not None:
        process.stdout.close()


def _sink(ports: range, control: int) -> None:
    counts: Counter[int] = Counter()
    for port in ports:
        tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        udp.bind(("::", port))
        threading.Thread(target=_accept, args=(tcp, port, counts), daemon=True).start()
        threading.Thread(target=_drain, args=(udp, port, counts), daemon=True).start()
    if control:
        server = socket.create_server(("::", control), family=socket.AF_INET6, dualstack_ipv6=True)
        threading.Thread(target=_control, args=(server, counts), daemon=True).start()
    _say(sys.stdout, "listening")
    _answer(sys.stdin, sys.stdout, counts)


def _control(server: socket.socket, counts: Counter[int]) -> None:
    """One who asks at a time."""
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rw", encoding="ascii") as stream:
            _answer(stream, stream, counts)


def _answer(questions: IO[str], answers: IO[str], counts: Counter[int]) -> None:
    for _ in questions:
        _say(answers, json.dumps((time.monotonic(), dict(counts))))


def _say(answers: IO[str], line: str) -> None:
    answers.write(line + "\n")
    answers.flush()


def _accept(server: socket.socket, port: int, counts: Counter[int]) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_drain, args=(connection, port, counts), daemon=True).start()


def _drain(connection: socket.socket, port: int, counts: Counter[int]) -> None:
    buffer = bytearray(1 << 18)
    with contextlib.suppress(OSError):
        while received := connection.recv_into(buffer):
            counts[port] += received


def _send(options: argparse.Namespace) -> None:
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    family = socket.AF_INET6 if ":" in options.to else socket.AF_INET
    kind = socket.SOCK_STREAM if options.proto == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    if options.sndbuf:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, options.sndbuf)
    if options.priority:
        sock.setsockopt(socket.SOL_SOCKET, SO_PRIORITY, struct.pack("=I", int(options.priority, 16)))
    if options.proto == "udp-gso":
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
    sock.connect((options.to, options.port))
    size = {"tcp": 1 << 16, "udp": 1400, "udp-gso": 1400 * 40}[options.proto]
    _pump(sock, bytes(size), options.mbit)


def _pump(sock: socket.socket, payload: bytes, mbit: float) -> None:
    """Send as fast as it goes, or at a rate; ECONNREFUSED of a UDP peer that went away is the end."""
    begin, sent = time.monotonic(), 0
    with contextlib.suppress(ConnectionError):
        while True:
            if mbit:
                wait = begin + sent * 8 / (mbit * 1e6) - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
            sent += sock.send(payload)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("sink", "send"))
    parser.add_argument("--to")
    parser.add_argument("--port", type=int)
    parser.add_argument("--proto", default="tcp")
    parser.add_argument("--priority", help="SO_PRIORITY, hexadecimal: a class id")
    parser.add_argument("--sndbuf", type=int, default=0)
    parser.add_argument("--cgroup")
    parser.add_argument("--ports", type=int, nargs=2)
    parser.add_argument("--mbit", type=float, default=0)
    parser.add_argument("--control", type=int, default=0, help="port on which a sink answers as on stdin")
    options = parser.parse_args()
    if options.cgroup:
        Path(options.cgroup, "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    if options.mode == "sink":
        _sink(range(*options.ports), options.control)
    else:
        _send(options)


if __name__ == "__main__":
    main()
