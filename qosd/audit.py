"""What the log says of decisions and restores: one line for each."""

from __future__ import annotations

import logging

from qosd.journal import Outcome
from qosd.model import printable
from qosd.status import DecisionRecord, SensorStatus

log = logging.getLogger("qosd")

NETWORK = "egress"
"""What stands for the interface file in a record about an uplink."""


def log_record(record: DecisionRecord) -> None:
    if record.file == NETWORK and record.result != "written":
        level = logging.WARNING if record.result == "failed" else logging.INFO
        log.log(level, "%s: %s", record.path, record.reason.text)
        return
    level = logging.INFO if record.error is None else logging.WARNING
    log.log(
        level,
        "%s %s: %s -> %s (%s): %s%s",
        record.path,
        record.file,
        record.old or "-",
        record.new,
        record.result,
        record.reason.text,
        f"; {record.error}" if record.error else "",
    )


def log_restored(outcomes: tuple[Outcome, ...] | list[Outcome]) -> None:
    for outcome in outcomes:
        log.info(
            "restore %s %s: %s (%s)",
            printable(outcome.path),
            outcome.key.file,
            outcome.result,
            outcome.detail,
        )


def log_sensors(silent: frozenset[str], sensors: tuple[SensorStatus, ...]) -> frozenset[str]:
    """Which of them say nothing now: told once when it begins and once when it ends."""
    now = frozenset(sensor.name for sensor in sensors if not sensor.ok and sensor.detail is None)
    for name in sorted(now - silent):
        log.warning("sensor %s: nothing to read; qosctl doctor says what is missing", name)
    for name in sorted(silent - now):
        log.info("sensor %s: speaks again", name)
    return now
