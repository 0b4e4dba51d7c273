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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What measures this machine runs before a guest keeps it busy; within a level order stays random."""
    items.sort(key=_level)


def _level(item: pytest.Item) -> int:
    if item.get_closest_marker("vm"):
        return 2
    return 0 if item.get_closest_marker("native") else 1
