"""What `qosctl status` and `qosctl explain` show of windows, pools and bursts."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from qosd.cpu.burst import BurstView
from qosd.cpu.lstarget import words
from qosd.cpu.pools import PoolView
from qosd.cpu.view import CpuView
from qosd.cpu.windows import duration
from qosd.ctl import screen

_ROWS = 20


def section(cpu: CpuView) -> Iterator[RenderableType]:
    """Of the status; nothing where there is none of it."""
    for window in cpu.windows:
        zone = "" if window.zone == "localtime" else f" ({window.zone})"
        yield Text(
            f"Window {window.name} is open for {duration(window.left_minutes)} more{zone}: {window.changes}",
            "bold",
        )
    if cpu.target is not None:
        yield Text(f"LS, system and BE together are held to {cpu.target.pct:g} %: {words(cpu.target)}")
    if cpu.pools:
        yield _pools(cpu.pools)
    for burst in cpu.bursts[:_ROWS]:
        yield Text(f"{burst.path}: {burst_sentence(burst)}")
    for overrun in cpu.ineffective:
        yield Text(
            f"! {overrun.path}: cpu.max ineffective: it used {overrun.use_cores:.2f} CPUs under a limit of"
            f" {overrun.limit_cores:.2f}, as real-time tasks can; it is kept to few CPUs instead",
            "yellow",
        )


def _pools(pools: tuple[PoolView, ...]) -> RenderableType:
    numbers = ("PRIO", "WORKLOADS", "SIZE", "USE", "BAND")
    table = screen.table("POOL", "TIER", *numbers, "WHY", right=numbers)
    for pool in pools[:_ROWS]:
        held = f"; held: {', '.join(pool.degraded)}" if pool.degraded else ""
        table.add_row(
            pool.name,
            (pool.tier or "-").upper(),
            str(pool.priority),
            str(len(pool.paths)),
            screen.cores(pool.size_cores),
            screen.cores(pool.use_cores),
            f"{pool.load_low_pct:g}-{pool.load_high_pct:g}%",
            Text(pool.text + held),
        )
    return table


def burst_sentence(burst: BurstView) -> str:
    raised = f"is raised to {burst.original_cores * burst.factor:.2f} for now"
    own = f"its own limit of {burst.original_cores:.2f} CPUs {raised if burst.factor != 1 else 'stands'}"
    return f"{own} ({burst.text}); {burst.budget_pct:.0f} % of its burst budget is left"


def sentences(cpu: CpuView, path: str) -> tuple[str, ...]:
    """What is to be said of one cgroup beside its settings."""
    pools = [
        f"It is in pool {pool.name}, priority {pool.priority}: {pool.text}."
        for pool in cpu.pools
        if path in pool.paths
    ]
    bursts = [f"As to cpu.max, {burst_sentence(burst)}." for burst in cpu.bursts if burst.path == path]
    target = cpu.target
    if target is None or target.path != path:
        return (*pools, *bursts)
    return (
        *pools,
        *bursts,
        f"BE is held to what LS and system leave of {target.pct:g} %: {words(target)}.",
    )
