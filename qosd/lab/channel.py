"""The host's end of the line to the guest's agent: commands out, their output and status back."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence


class MachineLostError(Exception):
    """The machine ended, or never answered; the message ends with its console's last lines."""


class CommandError(Exception):
    """A command in the guest failed or took too long."""

    def __init__(self, what: str, done: Done) -> None:
        super().__init__(f"{what}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}")
        self.done = done


@dataclasses.dataclass(frozen=True)
class Done:
    """A command's outcome: a returncode below zero is the signal that ended it, None that it still ran."""

    returncode: int | None
    stdout: str
    stderr: str


class Job:
    """A command running in the guest."""

    def __init__(self, channel: Channel, number: int, what: str) -> None:
        self._channel = channel
        self._number = number
        self._what = what
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._status: int | None = None

    @property
    def running(self) -> bool:
        return self._status is None

    @property
    def so_far(self) -> Done:
        """The output until now, and the status if there is one."""
        with self._channel.changed:
            output = {name: data.decode(errors="replace") for name, data in self._output.items()}
            return Done(self._status, **output)

    def wait(self, timeout: float | None = None, *, check: bool = True) -> Done:
        """Wait at most `timeout` seconds of the host's time, then kill it. With `check`, a failure raises."""
        start = time.monotonic()
        if not self._channel.wait_for(lambda: not self.running, timeout):
            self.kill()
            # What SIGKILL cannot end (a frozen cgroup before 5.2, uninterruptible sleep) is left behind.
            self._channel.wait_for(lambda: not self.running, 10)
            seconds = time.monotonic() - start
            raise CommandError(f"{self._what}: killed, not done after {seconds:.0f} s", self.so_far)
        done = self.so_far
        if check and done.returncode != 0:
            raise CommandError(f"{self._what}: status {done.returncode}", done)
        return done

    def lines(self, timeout: float) -> Iterator[str]:
        """Whole lines of standard output as they come, to its end or for `timeout` seconds of the host's."""
        deadline = time.monotonic() + timeout
        read = 0

        def whole() -> str:
            text = self.so_far.stdout
            return text[read : text.rfind("\n") + 1]

        while self._channel.wait_for(lambda: bool(whole()) or not self.running, deadline - time.monotonic()):
            new = whole()
            if not new:
                return
            read += len(new)
            yield from new.removesuffix("\n").split("\n")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the command's whole process group."""
        if self.running:
            self._channel.send({"id": self._number, "op": "kill", "signal": int(number)})

    def receive(self, message: dict[str, Any]) -> bool:
        """Take one of the agent's messages, under the channel's lock; True when it was the last."""
        if message["op"] == "exit":
            self._status = message["status"]
            return True
        self._output[message["op"]] += base64.b64decode(message["data"])
        return False


class Channel:
    """Several commands at once over one socket; a thread sorts what comes back."""

    def __init__(self, line: socket.socket, last_words: Callable[[], str]) -> None:
        self.changed = threading.Condition()
        self._line = line
        self._last_words = last_words
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._greeted = False
        self._lost = False
        threading.Thread(target=self._listen, name="lab-channel", daemon=True).start()

    def wait_for_agent(self, timeout: float) -> None:
        """Wait until the guest's agent speaks."""
        if not self.wait_for(lambda: self._greeted, timeout):
            raise MachineLostError(f"no word from the guest's agent in {timeout:.0f} s\n{self._last_words()}")

    def start(self, command: str | Sequence[str], stdin: bytes = b"") -> Job:
        """Start a command: a string goes to bash, a list is run as it is."""
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)
        with self.changed:
            number = next(self._numbers)
            job = self._jobs[number] = Job(
                self, number, " ".join(argv[2:] if isinstance(command, str) else argv)
            )
        self.send({"id": number, "op": "start", "argv": argv, "input": base64.b64encode(stdin).decode()})
        return job

    def send(self, message: dict[str, Any]) -> None:
        try:
            with self._sending:
                self._line.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise MachineLostError(f"the machine is gone: {error}\n{self._last_words()}") from error

    def wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for something the agent's messages change; False on time-out."""
        with self.changed:
            self.changed.wait_for(lambda: condition() or self._lost, timeout)
            if condition():
                return True
            if self._lost:
                raise MachineLostError(f"the machine ended\n{self._last_words()}")
            return False

    def _listen(self) -> None:
        try:
            with self._line.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except OSError:
            pass  # the socket was closed under us: the same as its end
        finally:
            with self.changed:
                self._lost = True
                self.changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        with self.changed:
            if message["op"] == "hello":
                self._greeted = True
            elif self._jobs[message["id"]].receive(message):
                del self._jobs[message["id"]]
            self.changed.notify_all()
