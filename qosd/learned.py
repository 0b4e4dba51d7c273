"""When what was learned is put on disk, and how it comes back after a restart and a boot."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from qosd import checkpoint
from qosd.cpu import predict
from qosd.interference import baseline, recall
from qosd.schema.cpu import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    from qosd.config import Config
    from qosd.engine import Engine
    from qosd.sys import Sys

log = logging.getLogger("qosd")

T = TypeVar("T")


class Part(NamedTuple, Generic[T]):
    """One kind of knowledge, and its file in the StateDirectory."""

    what: str
    file: str
    version: int
    """Of the file: to be raised when an old one would be misread."""
    kind: type[T]
    every_usec: Callable[[Config], int]
    wanted: Callable[[Config], bool]
    """Whether a saved one is taken up at the start."""
    worth_saving: Callable[[Engine, int], T | None]
    """As of now; None while there is nothing."""
    take: Callable[[Engine, T, int, int], None]
    """What was saved, the time now and how long it was away, in usec."""


def _prediction(engine: Engine, now_usec: int) -> predict.Learned | None:
    if not engine.learned or not _predicts(engine.config):
        return None
    return predict.as_of(engine.learned, now_usec)


def _take_prediction(engine: Engine, saved: predict.Learned, now_usec: int, away_usec: int) -> None:
    engine.learned = predict.moved(saved, now_usec, away_usec)


def _predicts(config: Config) -> bool:
    return config.cpu.bandwidth.estimate is Estimate.PREDICTED


def _baselines(engine: Engine, now_usec: int) -> baseline.State | None:
    return baseline.as_of(engine.baselines, now_usec) if engine.baselines.learned else None


def _take_baselines(engine: Engine, saved: baseline.State, now_usec: int, away_usec: int) -> None:
    engine.baselines = baseline.moved(saved, now_usec, away_usec)


def _pressures(engine: Engine, _now_usec: int) -> recall.Remembered | None:
    state = engine.interference_state
    return recall.by_path(state.baselines, state.remembered, engine.snapshot) or None


def _take_pressures(engine: Engine, saved: recall.Remembered, _now_usec: int, away_usec: int) -> None:
    known = recall.aged(saved, away_usec, int(engine.config.ebpf.baseline.half_life))
    engine.interference_state = msgspec.structs.replace(engine.interference_state, remembered=known)


PREDICTION = Part(
    what="prediction",
    file="prediction.json",
    version=predict.VERSION,
    kind=predict.Learned,
    every_usec=lambda config: config.prediction.checkpoint,
    wanted=_predicts,
    worth_saving=_prediction,
    take=_take_prediction,
)
BASELINES = Part(
    what="baselines",
    file="baselines.json",
    version=1,
    kind=baseline.State,
    every_usec=lambda config: config.ebpf.baseline.checkpoint,
    wanted=lambda config: config.ebpf.probes != "off",
    worth_saving=_baselines,
    take=_take_baselines,
)
PRESSURES = Part(
    what="pressure baselines",
    file="pressure.json",
    version=1,
    kind=recall.Remembered,
    every_usec=lambda config: config.ebpf.baseline.checkpoint,
    wanted=lambda _config: True,
    worth_saving=_pressures,
    take=_take_pressures,
)
PARTS: tuple[Part[Any], ...] = (PREDICTION, BASELINES, PRESSURES)


class Learned(Generic[T]):
    """One part of an engine. Without a directory it starts cold, and nothing is saved."""

    def __init__(self, sys: Sys, directory: str | None, engine: Engine, part: Part[T]) -> None:
        self._sys = sys
        self._path = os.path.join(directory, part.file) if directory else None
        self._engine = engine
        self._part = part
        self._saved_usec = self._now_usec()
        self._refused: str | None = None

    def recall(self) -> None:
        """At the start, before the first tick."""
        part = self._part
        if self._path is None or not part.wanted(self._engine.config):
            return
        loaded = checkpoint.load(self._sys, self._path, part.version, part.kind)
        log.info("%s: %s", part.what, loaded.why)
        if loaded.value is not None:
            part.take(self._engine, loaded.value, self._now_usec(), loaded.away_usec)

    def save_if_due(self) -> None:
        """After a tick."""
        if self._now_usec() - self._saved_usec >= self._part.every_usec(self._engine.config):
            self.save()

    def save(self) -> None:
        """Now; also at the end. What cannot be saved is said once, and learned again."""
        now_usec = self._saved_usec = self._now_usec()
        value = None if self._path is None else self._part.worth_saving(self._engine, now_usec)
        if self._path is None or value is None:
            return
        try:
            checkpoint.save(self._sys, self._path, self._part.version, value)
        except OSError as error:
            if self._refused != str(error):
                log.warning("%s: not saved: %s, ignoring", self._part.what, error)
            self._refused = str(error)

    def _now_usec(self) -> int:
        return self._sys.monotonic_ns() // 1000
