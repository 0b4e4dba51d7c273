"""Runs the host's commands inside the guest: one loop over a virtio-serial port, standard library only.

Both directions are lines of JSON. The host sends
`{"id": N, "op": "start", "argv": [...], "input": base64 | null}` and `{"id": N, "op": "kill", "signal": S}`;
the agent answers `{"op": "hello"}` once, then `{"id": N, "op": "stdout" | "stderr", "data": base64}` as
output comes and `{"id": N, "op": "exit", "status": S}` last. A status below zero is the signal that ended it.

It asks nothing of PID 1 once it runs, so a test may stop systemd and still be heard.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import os
import selectors
import subprocess
import termios
from typing import IO, Any

PORT = "/dev/virtio-ports/org.qosd.lab"
CHUNK = 65536
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
}


@dataclasses.dataclass
class Job:
    number: int
    process: subprocess.Popen[bytes]
    pipes: dict[str, IO[bytes]]
    over: bool = False


class Agent:
    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._jobs: dict[int, Job] = {}
        self._unread = b""

    def serve(self) -> None:
        """Serve until the host hangs up."""
        self._selector.register(self._port, selectors.EVENT_READ, self._hear)
        self._send({"op": "hello"})
        while True:
            for key, _ in self._selector.select():
                # An earlier event of this round may have closed it, and its number be another's by now.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def _send(self, message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        while line:
            line = line[os.write(self._port, line) :]

    def _hear(self) -> None:
        received = os.read(self._port, CHUNK)
        if not received:
            raise EOFError(f"{PORT}: the host hung up")
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, message: dict[str, Any]) -> None:
        if message["op"] == "start":
            self._start(message)
        elif message["id"] in self._jobs:
            # The command leads a group of its own, so what it left in the group goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._jobs[message["id"]].process.pid, message["signal"])

    def _start(self, message: dict[str, Any]) -> None:
        # A file, not a pipe: the command may read its input as slowly as it likes.
        stdin = os.memfd_create("stdin")
        try:
            with open(stdin, "wb", closefd=False) as file:
                file.write(base64.b64decode(message["input"] or ""))
            os.lseek(stdin, 0, os.SEEK_SET)
            process = subprocess.Popen(
                message["argv"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as error:
            self._refuse(message["id"], error)
            return
        finally:
            os.close(stdin)
        pipes = {"stdout": process.stdout, "stderr": process.stderr}
        self._watch(Job(message["id"], process, {name: pipe for name, pipe in pipes.items() if pipe}))

    def _refuse(self, number: int, error: OSError) -> None:
        """Answer as a shell does: 127 for a command that is not there, 126 for one that cannot run."""
        self._output(number, "stderr", f"{error}\n".encode())
        self._send({"id": number, "op": "exit", "status": 127 if error.errno == errno.ENOENT else 126})

    def _watch(self, job: Job) -> None:
        self._jobs[job.number] = job
        for stream, pipe in job.pipes.items():
            copy = functools.partial(self._copy, job, stream, CHUNK)
            self._selector.register(pipe, selectors.EVENT_READ, copy)
        ended = os.pidfd_open(job.process.pid)
        self._selector.register(ended, selectors.EVENT_READ, functools.partial(self._finish, job, ended))

    def _output(self, number: int, stream: str, data: bytes) -> None:
        self._send({"id": number, "op": stream, "data": base64.b64encode(data).decode()})

    def _copy(self, job: Job, stream: str, limit: int) -> None:
        data = os.read(job.pipes[stream].fileno(), limit)
        if not data:
            pipe = job.pipes.pop(stream)
            self._selector.unregister(pipe)
            pipe.close()
        elif not job.over:
            self._output(job.number, stream, data)

    def _finish(self, job: Job, ended: int) -> None:
        """Report the end with all the command wrote itself.

        What it left running may hold the pipes open for ever: their later output is read, so that nobody is
        blocked or gets SIGPIPE, and dropped.
        """
        self._selector.unregister(ended)
        os.close(ended)
        status = job.process.wait()
        for stream, pipe in list(job.pipes.items()):
            waiting = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little")
            if waiting:
                self._copy(job, stream, waiting)
        job.over = True
        del self._jobs[job.number]
        self._send({"id": job.number, "op": "exit", "status": status})


def main() -> None:
    Agent(os.open(PORT, os.O_RDWR | os.O_CLOEXEC)).serve()


if __name__ == "__main__":
    main()
