"""When what the governors learned is put on disk, and how it comes back after a restart."""

from __future__ import annotations

import logging
import os

from qosd import checkpoint
from qosd.cpu import predict
from qosd.engine import Engine
from qosd.schema.cpu import Estimate
from qosd.sys import Sys

log = logging.getLogger("qosd")

FILE = "prediction.json"


class Learned:
    """One file in the StateDirectory. Without a directory everything starts cold, and nothing is saved."""

    def __init__(self, sys: Sys, directory: str | None, engine: Engine) -> None:
        self._sys = sys
        self._path = os.path.join(directory, FILE) if directory else None
        self._engine = engine
        self._saved_usec = _now_usec(sys)
        self._refused: str | None = None

    def recall(self) -> None:
        """At the start, before the first tick."""
        if self._path is None or not self._wanted():
            return
        loaded = checkpoint.load(self._sys, self._path, predict.VERSION, predict.Learned)
        log.info("prediction: %s", loaded.why)
        if loaded.value is not None:
            self._engine.learned = predict.moved(loaded.value, _now_usec(self._sys), loaded.away_usec)

    def save_if_due(self) -> None:
        """After a tick."""
        if _now_usec(self._sys) - self._saved_usec >= self._engine.config.prediction.checkpoint:
            self.save()

    def save(self) -> None:
        """Now; also at the end. What cannot be saved is said once, and learned again."""
        now_usec = _now_usec(self._sys)
        self._saved_usec = now_usec
        if self._path is None or not self._wanted() or not self._engine.learned:
            return
        try:
            value = predict.as_of(self._engine.learned, now_usec)
            checkpoint.save(self._sys, self._path, predict.VERSION, value)
        except OSError as error:
            if self._refused != str(error):
                log.warning("prediction: not saved: %s, ignoring", error)
            self._refused = str(error)

    def _wanted(self) -> bool:
        return self._engine.config.cpu.bandwidth.estimate is Estimate.PREDICTED


def _now_usec(sys: Sys) -> int:
    return sys.monotonic_ns() // 1000
