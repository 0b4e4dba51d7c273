"""The control socket: one framed JSON request a connection, answered between ticks, never blocking the loop.

A frame is a big-endian 32-bit length and that many bytes of JSON, 64 KiB at most. A reply is as many frames
as it needs and an empty one. The socket's mode lets root and one group in; the kernel says who is calling
(SO_PEERCRED), and only uid 0 may change anything.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import logging
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

log = logging.getLogger("qosd")

FRAME_MAX = 64 * 1024
CLIENTS_MAX = 16
DEADLINE_USEC = 2_000_000
_HEADER = struct.Struct(">I")
_PEERCRED = struct.Struct("3i")

Handler = Callable[[dict[str, Any], int], dict[str, Any]]
"""(request, uid of the caller) to reply. What it raises is a bug, which the caller only hears of."""


def frames(reply: bytes) -> bytes:
    """A whole reply on the wire."""
    chunks = [reply[start : start + FRAME_MAX] for start in range(0, len(reply), FRAME_MAX)]
    return b"".join(_HEADER.pack(len(chunk)) + chunk for chunk in [*chunks, b""])


class Client:
    __slots__ = ("deadline_usec", "inbound", "outbound", "sock", "uid")

    def __init__(self, sock: socket.socket, deadline_usec: int) -> None:
        self.sock = sock
        self.deadline_usec = deadline_usec
        self.inbound = b""
        self.outbound = b""
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        self.uid: int = _PEERCRED.unpack(credentials)[1]


class Server:
    def __init__(self, epoll: select.epoll, path: str, group: str, handler: Handler) -> None:
        self._epoll = epoll
        self._path = path
        self._handler = handler
        self._clients: dict[int, Client] = {}
        self._listener = _listen(path, group)
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def owns(self, fd: int) -> bool:
        return fd == self._listener.fileno() or fd in self._clients

    def on_event(self, fd: int, events: int, now_usec: int) -> None:
        if fd == self._listener.fileno():
            self._accept(now_usec)
            return
        client = self._clients[fd]
        try:
            if events & select.EPOLLOUT:
                self._send(client)
            elif events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._receive(client)
        except OSError:
            self._drop(client)

    def expire(self, now_usec: int) -> None:
        """Close the connections that took longer than their two seconds."""
        for client in [client for client in self._clients.values() if client.deadline_usec < now_usec]:
            self._drop(client)

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self, now_usec: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= CLIENTS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        client = Client(sock, now_usec + DEADLINE_USEC)
        self._clients[sock.fileno()] = client
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _receive(self, client: Client) -> None:
        data = client.sock.recv(FRAME_MAX + _HEADER.size)
        if not data:
            self._drop(client)
            return
        client.inbound += data
        if len(client.inbound) < _HEADER.size:
            return
        (length,) = _HEADER.unpack_from(client.inbound)
        if length > FRAME_MAX:
            self._reply(client, msgspec.json.encode({"error": f"a request is at most {FRAME_MAX} bytes"}))
        elif len(client.inbound) >= _HEADER.size + length:
            self._reply(client, self._answer(client, client.inbound[_HEADER.size : _HEADER.size + length]))

    def _answer(self, client: Client, body: bytes) -> bytes:
        try:
            request = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return msgspec.json.encode({"error": f"not a JSON object: {error}"})
        try:
            return msgspec.json.encode(self._handler(request, client.uid))
        except Exception:
            # A bug behind one question must not end the daemon, whose end would lift every limit.
            log.exception("cannot answer %r", request.get("command"))
            return msgspec.json.encode({"error": "internal error: journalctl -u qosd has it"})

    def _reply(self, client: Client, reply: bytes) -> None:
        client.outbound = frames(reply)
        self._epoll.modify(client.sock.fileno(), select.EPOLLOUT)
        self._send(client)

    def _send(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.outbound, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        client.outbound = client.outbound[sent:]
        if not client.outbound:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        fd = client.sock.fileno()
        self._clients.pop(fd, None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        client.sock.close()


def _listen(path: str, group: str) -> socket.socket:
    """Bind 0660 root:GROUP. A stale socket goes only after nobody answers on it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _answers(path):
                raise
            os.unlink(path)
            listener.bind(path)
    finally:
        os.umask(mask)
    if share_with_group(path, group):
        os.chmod(path, 0o660)
    listener.listen(CLIENTS_MAX)
    return listener


def share_with_group(path: str, group: str) -> bool:
    """Give a file to the group that may read the daemon's state; without such a group it stays root's."""
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except (KeyError, PermissionError):
        return False
    return True


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
