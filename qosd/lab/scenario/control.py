"""Questions to the daemon over its socket: starting qosctl would cost CPU that the round would feel."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct(">I")
PATIENCE = 5.0
START_SECONDS = 30


def ask(path: str, command: str) -> Any | None:  # noqa: ANN401 - JSON
    """The daemon's answer; None where there is no daemon, or none that answers."""
    message = json.dumps({"command": command}).encode()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(path)
            client.sendall(_LENGTH.pack(len(message)) + message)
            reply = json.loads(_receive(client))
    except (OSError, EOFError, json.JSONDecodeError):
        return None
    return reply.get("ok")


def wait_until_enforcing(path: str) -> None:
    """On a host the daemon has long been up: its own start must not fall into a round."""
    for _ in range(START_SECONDS):
        status = ask(path, "status")
        if status is not None and status["mode"] == "enforce":
            return
        time.sleep(1)
    raise TimeoutError(f"the daemon at {path} did not come to enforce within {START_SECONDS} s")


def _receive(client: socket.socket) -> bytes:
    """Frames up to the empty one."""
    with client.makefile("rb") as stream:
        whole = b""
        while True:
            header = stream.read(_LENGTH.size)
            if len(header) < _LENGTH.size:
                raise EOFError("the daemon hung up")
            (length,) = _LENGTH.unpack(header)
            if length == 0:
                return whole
            whole += stream.read(length)
