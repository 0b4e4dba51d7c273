"""How qosctl writes for people: plain ASCII, colour on a terminal only, the width that is there."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from qosd.model import Pressure

_PIPED_COLUMNS = 120
_PATH_MIN = 18
_GIB, _MIB = 1 << 30, 1 << 20
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def console() -> Console:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # cgroup names are UTF-8, this terminal may not be
    width = shutil.get_terminal_size((_PIPED_COLUMNS, 24)).columns
    return Console(width=max(width, 60), highlight=False, markup=False, emoji=False, soft_wrap=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Columns side by side without lines; only the last one wraps at words."""
    built = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in columns:
        last = name == columns[-1]
        built.add_column(
            name,
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=not last and name != "CGROUP",
        )
    return built


def facts() -> Table:
    """Label and text, the text wrapping under itself."""
    built = Table.grid(padding=(0, 2, 0, 0))
    built.add_column(style="bold", no_wrap=True)
    built.add_column(overflow="fold")
    return built


def tail(path: str, width: int) -> str:
    """The end of a long path: the part in which cgroups of one tier differ."""
    width = max(width, _PATH_MIN)
    return path if len(path) <= width else f"...{path[3 - width :]}"


def size(count: int | None) -> str:
    if count is None:
        return "-"
    if count >= _GIB:
        return f"{count / _GIB:.1f} GiB"
    return f"{count / _MIB:.0f} MiB"


def cores(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def stalled(pressure: Pressure | None) -> str:
    """The share of the last ten seconds in which some task waited for the resource."""
    return "-" if pressure is None else f"{pressure.some.avg10:.0f}%"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < _DAY:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _DAY:.1f} days"
