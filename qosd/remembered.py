"""What is normal for LS (`qosd.interference.baseline`), kept over a restart and a boot."""

from __future__ import annotations

import logging
import os

from qosd import checkpoint
from qosd.engine import Engine
from qosd.interference import baseline
from qosd.sys import Sys

log = logging.getLogger("qosd")

FILE = "baselines.json"
VERSION = 1


class Remembered:
    """One file in the StateDirectory. Without a directory everything starts cold, and nothing is saved."""

    def __init__(self, sys: Sys, directory: str | None, engine: Engine) -> None:
        self._sys = sys
        self._path = os.path.join(directory, FILE) if directory else None
        self._engine = engine
        self._saved_usec = self._now_usec()
        self._refused: str | None = None

    def recall(self) -> None:
        """At the start, before the first tick."""
        if self._path is None or self._engine.config.ebpf.probes == "off":
            return
        loaded = checkpoint.load(self._sys, self._path, VERSION, baseline.State)
        log.info("baselines: %s", loaded.why)
        if loaded.value is not None:
            self._engine.baselines = baseline.moved(loaded.value, self._now_usec(), loaded.away_usec)

    def save_if_due(self) -> None:
        """After a tick."""
        if self._now_usec() - self._saved_usec >= self._engine.config.ebpf.baseline.checkpoint:
            self.save()

    def save(self) -> None:
        """Now; also at the end. What cannot be saved is said once, and learned again."""
        now_usec = self._saved_usec = self._now_usec()
        if self._path is None or not self._engine.baselines.learned:
            return
        try:
            checkpoint.save(self._sys, self._path, VERSION, baseline.as_of(self._engine.baselines, now_usec))
        except OSError as error:
            if self._refused != str(error):
                log.warning("baselines: not saved: %s, ignoring", error)
            self._refused = str(error)

    def _now_usec(self) -> int:
        return self._sys.monotonic_ns() // 1000
