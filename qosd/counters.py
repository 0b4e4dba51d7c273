"""Running totals of the engine, for the metrics."""

from __future__ import annotations

from qosd.act import Report
from qosd.files import interface_file


class Counters:
    """Running totals for the metrics; only the engine writes them."""

    def __init__(self) -> None:
        self.ticks = 0
        self.late_ticks = 0
        self.writes: dict[tuple[str, str], int] = {}
        self.errors: dict[str, int] = {}
        self.reloads: dict[str, int] = {"ok": 0, "refused": 0}
        self.failures = 0

    def add(self, report: Report) -> None:
        for done in report.applied:
            pair = (interface_file(done.write.key.file), "reasserted" if done.write.reassert else done.result)
            self.writes[pair] = self.writes.get(pair, 0) + 1
            if done.errno_name is not None:
                self.errors[done.errno_name] = self.errors.get(done.errno_name, 0) + 1
        for outcome in report.restored:
            pair = (interface_file(outcome.key.file), f"restore_{outcome.result}")
            self.writes[pair] = self.writes.get(pair, 0) + 1
