"""Ask the daemon over its control socket (`qosd.control` has the protocol)."""

from __future__ import annotations

import grp
import os
import socket
import struct
from typing import Any, TypeVar

import msgspec

from qosd.ctl.exits import NO, NOT_PERMITTED, REFUSED_CONFIG, UNREACHABLE, Failure

DEFAULT_SOCKET = "/run/qosd/control.sock"
_TIMEOUT = 5.0  # more than the two seconds the daemon gives a connection
_HEADER = struct.Struct(">I")
_CODES = {"not-permitted": NOT_PERMITTED, "config": REFUSED_CONFIG}


T = TypeVar("T")


class Reply(msgspec.Struct):
    ok: msgspec.Raw = msgspec.Raw()
    error: str | None = None
    kind: str | None = None
    """Which sort of error, for the exit status: `not-permitted`, `config`, or nothing special."""


def ask(path: str, command: str, **arguments: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """The JSON of the daemon's answer. Raises `Failure` with what to do about it."""
    body = _exchange(path, msgspec.json.encode({"command": command, **arguments}))
    try:
        reply = msgspec.json.decode(body, type=Reply)
    except msgspec.DecodeError as error:
        raise Failure(f"{path}: not an answer of qosd: {error}", UNREACHABLE) from None
    if reply.error is not None:
        raise Failure(reply.error, _CODES.get(reply.kind or "", NO))
    return bytes(reply.ok)


def ask_for(path: str, command: str, kind: type[T], **arguments: Any) -> T:  # noqa: ANN401 - as above
    """The answer as a value. Raises `Failure`, also when the two are of different versions."""
    answer = ask(path, command, **arguments)
    if answer == b"null":
        raise Failure("qosd has not finished a tick yet; if this lasts: journalctl -u qosd -n 20", NO)
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.ValidationError as error:
        raise Failure(
            f"qosd answers what this qosctl does not know ({error}): systemctl restart qosd after an upgrade",
            NO,
        ) from None


def is_running(path: str) -> bool:
    """Whether a daemon listens on the socket; raises `Failure` when we may not even look."""
    try:
        _connect(path).close()
    except Failure as failure:
        if failure.exit_code == UNREACHABLE:
            return False
        raise
    return True


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(_TIMEOUT)
    try:
        sock.connect(path)
    except PermissionError:
        sock.close()
        raise Failure(_not_permitted(path), NOT_PERMITTED) from None
    except OSError as error:
        sock.close()
        raise Failure(_not_running(path, error), UNREACHABLE) from None
    return sock


def _exchange(path: str, request: bytes) -> bytes:
    with _connect(path) as sock:
        try:
            sock.sendall(_HEADER.pack(len(request)) + request)
            return _read_frames(sock)
        except OSError as error:
            raise Failure(
                f"qosd listens on {path} but does not answer ({error}); its last words:"
                " journalctl -u qosd -n 20",
                UNREACHABLE,
            ) from None


def _read_frames(sock: socket.socket) -> bytes:
    """Every frame up to the empty one; a connection that ends before it was cut off."""
    body = b""
    while length := _HEADER.unpack(_read(sock, _HEADER.size))[0]:
        body += _read(sock, length)
    return body


def _read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise ConnectionResetError("it closed the connection; is it overloaded?")
        data += chunk
    return data


def _not_running(path: str, error: OSError) -> str:
    found = "" if path == DEFAULT_SOCKET else f" ({path}: {error.strerror})"
    return (
        f"qosd is not running{found}: systemctl start qosd\n        its last words: journalctl -u qosd -n 20"
    )


def _not_permitted(path: str) -> str:
    """What keeps this user out, as far as it can be seen from outside."""
    try:
        group = grp.getgrgid(os.stat(os.path.dirname(path)).st_gid).gr_name
    except (OSError, KeyError):
        group = "qosd"
    group = "qosd" if group == "root" else group
    return (
        f"not permitted to talk to qosd: you are neither root nor in group {group}: "
        f"sudo usermod -aG {group} $USER, then log in again (or use sudo)"
    )
