"""The LS service: redis servers that answer a request of a chosen CPU cost, and the load on them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from . import units

if TYPE_CHECKING:
    from .planned import Plan

RUNTIME = "/run/qosd-demo"
SCRIPT = "local x = 1 for i = 1, tonumber(ARGV[1]) do x = (x * 31 + i) % 65521 end return x"
PROBES = (100, 4000)  # loop lengths between which the cost of one turn is measured
PROBE_REQUESTS = 150
CALIBRATION_SECONDS = 3.0
CONNECTIONS_PER_SERVER = 4


def cpus() -> int:
    return os.cpu_count() or 1


def servers() -> int:
    """One single-threaded redis per CPU; beyond 8 the one load generator would be the bottleneck."""
    return min(cpus(), 8)


def _socket(number: int) -> str:
    return f"{RUNTIME}/redis{number}.sock"


def command_bytes(*words: str) -> bytes:
    """A command in RESP, as redis clients send it."""
    parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


def request(loops: int) -> bytes:
    digest = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
    return command_bytes("EVALSHA", digest, "0", str(loops))


def start(slice_name: str) -> list[str]:
    """Start the servers with the script loaded; returns their cgroups."""
    os.makedirs(RUNTIME, exist_ok=True)
    return [_start_one(number, slice_name) for number in range(servers())]


def _start_one(number: int, slice_name: str) -> str:
    path = _socket(number)
    options = "--port 0 --save '' --appendonly no --daemonize no --loglevel warning --busy-reply-threshold 0"
    argv = ("/bin/sh", "-c", f"exec redis-server {options} --unixsocket {path}")
    cgroup = units.start(f"redis{number}", slice_name, argv, "TimeoutStopSec=3")
    with connect(path) as client:
        client.sendall(command_bytes("SCRIPT", "LOAD", SCRIPT))
        client.recv(4096)
    return cgroup


def stop() -> None:
    units.stop(*(f"redis{number}" for number in range(servers())), "load")


def connect(path: str, patience: float = 20) -> socket.socket:
    """A connection to a server that is just starting."""
    deadline = time.monotonic() + patience
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # redis tells nobody when its socket is there
        else:
            return client


def _cost_usec(loops: int, cgroup: str) -> float:
    """CPU time of one request in the server, from the server's own cgroup."""
    with connect(_socket(0)) as client:
        message = request(loops)
        before = units.usage_usec(cgroup)
        for _ in range(PROBE_REQUESTS):
            client.sendall(message)
            client.recv(4096)
        after = units.usage_usec(cgroup)
    if before is None or after is None:
        raise RuntimeError(f"{cgroup}/cpu.stat: cannot be read, so the load cannot be calibrated")
    return (after - before) / PROBE_REQUESTS


def calibrate(plan: Plan, directory: str) -> dict[str, float]:
    """The loop length that costs `request_ms` in redis, and the rate at which all of LS uses `share`."""
    cgroups = start(plan.ls_slice)
    _cost_usec(PROBES[0], cgroups[0])  # the first requests warm caches, and an emulator's translations
    short, long = (_cost_usec(loops, cgroups[0]) for loops in PROBES)
    per_loop = max((long - short) / (PROBES[1] - PROBES[0]), 1e-4)
    loops = max(round((plan.request_ms * 1000 - short) / per_loop), 1)
    slice_cgroup = os.path.join(units.CGROUPS, plan.ls_slice)
    guess = plan.share * cpus() * 1000 / (plan.request_ms * 1.4)
    before = units.usage_usec(slice_cgroup) or 0
    load = Load(plan.ls_slice, directory, "calibration")
    load.begin({0.0: guess}, CALIBRATION_SECONDS, loops, plan.seed)
    load.wait()
    used = (units.usage_usec(slice_cgroup) or 0) - before
    stop()
    per_request = used / (guess * CALIBRATION_SECONDS)
    return {
        "share": plan.share,
        "loops": loops,
        "request_usec": per_request,
        "rate": plan.share * cpus() * 1e6 / per_request,
        "burst_rate": plan.burst_share * cpus() * 1e6 / per_request,
    }


class Load:
    """One run of the load generator as a unit of the LS tier, so that its own CPU time is LS's."""

    def __init__(self, slice_name: str, directory: str, name: str) -> None:
        self._slice = slice_name
        self._directory = directory
        self.output = f"{name}.latency"
        self._process: subprocess.Popen[str] | None = None

    def begin(self, rates: dict[float, float], seconds: float, loops: int, seed: int) -> None:
        """`rates`: from which second on, how many requests a second."""
        message = os.path.join(RUNTIME, "request")
        with open(message, "wb") as file:
            file.write(request(loops))
        argv = [os.path.join(self._directory, "openloop"), "--request", message, "--seed", str(seed)]
        argv += ["--output", os.path.join(self._directory, self.output), "--duration", str(seconds)]
        argv += ["--connections", str(CONNECTIONS_PER_SERVER * servers())]
        for number in range(servers()):
            argv += ["--connect", _socket(number)]
        for second, rate in rates.items():
            argv += ["--rate", f"{second}:{rate:.3f}"]
        unit = f"--unit={units.PREFIX}load.service"
        systemd = ["systemd-run", "--quiet", "--collect", "--wait", "--pipe", unit, f"--slice={self._slice}"]
        self._process = subprocess.Popen(
            [*systemd, "--", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait(self) -> None:
        if self._process is None:
            raise RuntimeError("the load generator was not started")
        said, _ = self._process.communicate(timeout=120)
        if self._process.returncode != 0:
            raise RuntimeError(f"openloop: exit {self._process.returncode}: {json.dumps(said)}")
