"""Hypothesis profiles: `fast` by default; QOSD_HYPOTHESIS=thorough looks ten times as long and further."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# No database: a run's result depends on the tree alone. No deadline: CI machines stall.
_COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

settings.register_profile("fast", max_examples=100, stateful_step_count=20, **_COMMON)
settings.register_profile("thorough", max_examples=1000, stateful_step_count=40, **_COMMON)
settings.load_profile(os.environ.get("QOSD_HYPOTHESIS", "fast"))


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What measures this machine runs before guests keep it busy; within a level order stays random."""
    items.sort(key=_level)
    for item in items:
        if item.get_closest_marker("vm"):
            item.add_marker(pytest.mark.xdist_group(_guest_of(item)))


def _level(item: pytest.Item) -> int:
    if item.get_closest_marker("vm"):
        return 2
    return 0 if item.get_closest_marker("native") else 1


def _guest_of(item: pytest.Item) -> str:
    """Tests of one boot belong together on one worker: the kernel's for the session, or the module's own."""
    kernel = getattr(item, "callspec", None) and item.callspec.params.get("kernel")
    return f"linux-{kernel}" if kernel else item.path.stem
