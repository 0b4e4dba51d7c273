"""What `qosctl status` and `qosctl explain` show of memory."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from qosd.ctl import screen
from qosd.memory.decide import MemoryView, WorkloadMemory

_ROWS = 20
_QUIET = ("off", "below")


def section(view: MemoryView) -> Iterator[RenderableType]:
    """Of the status: trouble, and a row for each workload whose memory something is done about."""
    if view.trouble.short:
        yield Text(f"! only {view.trouble.available_pct:.1f} % of RAM is available", "yellow")
    if view.trouble.ls_stalled:
        yield Text(f"! LS waited {view.trouble.ls_full_pct:.0f} % of the last tick for memory", "yellow")
    if view.stuck:
        yield Text(f"! {view.stuck} requests to memory.reclaim have not come back", "yellow")
    shown = [each for each in view.workloads if _is_news(each)]
    if not shown:
        return
    table = screen.table("CGROUP", "PAGE CACHE", "FREED", "READ AGAIN", "MEMORY")
    for each in shown[:_ROWS]:
        table.add_row(
            each.path,
            screen.size(each.page_cache),
            screen.size(each.freed),
            screen.size(each.refaulted),
            Text(_short(each)),
        )
    yield table


def _is_news(each: WorkloadMemory) -> bool:
    limited = each.limit is not None and each.limit.startswith("not limited:")
    return each.phase not in _QUIET or each.freed > 0 or limited


def _short(each: WorkloadMemory) -> str:
    if each.limit is not None and each.limit.startswith("not limited:"):
        return f"! {each.limit}"
    return f"{'! ' if each.phase == 'held' else ''}{each.phase}: {each.reclaim}"


def sentences(each: WorkloadMemory) -> Iterator[Text]:
    """Of one workload, for `qosctl explain`."""
    if each.protection is not None:
        yield Text(f"Protection: {each.protection}.")
    if each.limit is not None:
        yield Text(f"Limit of memory: {each.limit}.")
    yield Text(f"Background reclaim: {each.phase}; {each.reclaim}.")
    if each.asked:
        yield Text(
            f"Asked for {screen.size(each.asked)}, freed {screen.size(each.freed)},"
            f" of which {screen.size(each.refaulted)} was read again."
        )
    for part in each.parts if len(each.parts) > 1 else ():
        how = {True: "uses no CPU", False: "works", None: "seen once"}[part.idle]
        held = f"; {part.held}" if part.held is not None else ""
        yield Text(f"  {part.path}: {screen.size(part.page_cache)} of page cache, {how}{held}")


def find(view: MemoryView | None, path: str) -> WorkloadMemory | None:
    if view is None:
        return None
    return next((each for each in view.workloads if each.path == path), None)
