"""What the log says of decisions and restores: one line for each."""

from __future__ import annotations

import logging

from qosd.journal import Outcome
from qosd.model import printable
from qosd.status import DecisionRecord

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
