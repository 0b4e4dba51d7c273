"""What a memory file holds without qosd: what qosd starts from, and never makes stricter for LS. Pure."""

from __future__ import annotations

from qosd.cgroupfs import parse_limit
from qosd.errors import Malformed
from qosd.model import Max, Snapshot, Workload
from qosd.plan import amount


def of_others(now: Snapshot, workload: Workload, file: str) -> float | None:
    """The size, infinite for "max"; None where there is no file or its text is none of the kernel's."""
    text = now.of_others(workload, file)
    try:
        size: int | Max | None = (
            None if text is None else parse_limit(text.encode("latin-1", "replace"), file)
        )
    except Malformed:
        return None
    return None if size is None else amount(size)
