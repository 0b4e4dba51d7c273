"""Writes that may hold up the writer: a lowered memory.high reclaims what is above it before it returns.

memory_high_write() sets the limit first and then reclaims, so a write that has begun is in force, whether or
not it has come back. Nothing here decides: the original is in the journal before the write is handed over.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from qosd.sys import WRITE, Sys, open_interface
from qosd.worker import Worker

_PATIENCE_SECONDS = 0.05  # a write that has nothing to reclaim is back in microseconds
_SETTLE_SECONDS = 1.0
_DEADLINE_USEC = 10_000_000
_MAY_BLOCK = ("memory.high",)


class Pending(NamedTuple):
    fd: int
    data: bytes


class BlockingWriter:
    def __init__(self, sys: Sys) -> None:
        self._sys = sys
        self.worker = Worker[Pending, int]("qosd-write", self._run, sys.monotonic_ns, _DEADLINE_USEC)
        """The result is 0 or an errno."""

    def takes(self, file: str) -> bool:
        return file in _MAY_BLOCK

    def write(self, dir_fd: int, key: int, file: str, text: str) -> bool:
        """Whether the kernel has come back within a moment; if not, the value is in force all the same.

        Raises OSError as the kernel gives it, and EBUSY where an earlier write has not come back.
        """
        self.worker.collect()
        # A descriptor of its own: the caller closes the directory while the write may still be under way.
        pending = Pending(open_interface(self._sys, dir_fd, file, WRITE), text.encode("ascii") + b"\n")
        job = self.worker.submit(key, pending)
        if job is None or (not self.worker.wait(job, _PATIENCE_SECONDS) and self.worker.cancel(job)):
            self._sys.close(pending.fd)
            raise OSError(errno.EBUSY, "an earlier write has not come back", file)
        if job.over and job.result:
            raise OSError(job.result, "refused", file)
        return job.over

    def settle(self) -> None:
        """Before a restore: a write that was handed over must not land after it."""
        self.worker.wait_idle(_SETTLE_SECONDS)

    def close(self) -> None:
        self.worker.close()

    def _run(self, pending: Pending) -> int:
        try:
            self._sys.write(pending.fd, pending.data)
        except OSError as error:
            return error.errno or errno.EIO
        else:
            return 0
        finally:
            self._sys.close(pending.fd)
