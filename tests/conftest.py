"""Hypothesis profiles: `fast` by default; QOSD_HYPOTHESIS=thorough looks ten times as long and further."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# No database: a run's result depends on the tree alone. No deadline: CI machines stall.
_COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

settings.register_profile("fast", max_examples=100, stateful_step_count=20, **_COMMON)
settings.register_profile("thorough", max_examples=1000, stateful_step_count=40, **_COMMON)
settings.load_profile(os.environ.get("QOSD_HYPOTHESIS", "fast"))


ONE_AFTER_ANOTHER = ("bpf", "native")
"""They keep CPUs busy and ask who waited; those of `netns` look at rates, and wait for most of their time."""
LONGEST = (
    "test_mypy_strict_finds_nothing",
    "test_a_day_with_its_swing_runs_in_seconds_and_keeps_be_fed",
)
"""Begun first, so that in the end no worker waits for another's."""


@pytest.hookimpl(wrapper=True, tryfirst=True)  # xdist reads the groups, and pytest-randomly has its turn
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """What measures this machine runs before guests keep it busy; within a level order stays random."""
    for item in items:
        if item.get_closest_marker("vm"):
            item.add_marker(pytest.mark.xdist_group(_guest_of(item)))
        elif item.path.parent.name in ONE_AFTER_ANOTHER:
            item.add_marker(pytest.mark.xdist_group("one after another"))
    yield
    items.sort(key=_level)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """xdist goes by a suffix of the tests' ids: without it each worker would boot every guest."""
    lost = [name for name in ids if "/vm/" in name and "@" not in name]
    if lost:
        raise pytest.UsageError(f"pytest-xdist knows no groups of {len(lost)} tests, as of {lost[0]}")


def _level(item: pytest.Item) -> int:
    if item.get_closest_marker("vm"):
        return 3
    if item.get_closest_marker("native"):
        return 0
    return 1 if item.name in LONGEST else 2


def _guest_of(item: pytest.Item) -> str:
    """Tests of one boot belong together on one worker: the kernel's for the session, or the module's own."""
    kernel = getattr(item, "callspec", None) and item.callspec.params.get("kernel")
    if not kernel:
        return item.path.stem
    # Those of one kernel alone are as many again: a boot of their own, so that two workers share the work.
    alone = any(mark.args[0] == "kernel" for mark in item.iter_markers("parametrize"))
    return f"linux-{kernel}-alone" if alone else f"linux-{kernel}"
