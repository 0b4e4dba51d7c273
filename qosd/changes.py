"""What differs between two configurations, in the words of the file. Pure."""

from __future__ import annotations

from typing import Any


def changed_keys(before: Any, after: Any, key: str = "") -> list[str]:  # noqa: ANN401 - plain data
    """`cpu.bandwidth.floor_pct: 5.0 -> 10.0` for every leaf that differs."""
    one, other = _by_name(before), _by_name(after)
    if isinstance(one, dict) and isinstance(other, dict):
        prefix = f"{key}." if key else ""
        return [
            line
            for name in {**one, **other}
            for line in changed_keys(one.get(name), other.get(name), prefix + name)
        ]
    if before is None and isinstance(after, dict):
        said = ", ".join(f"{name} {value}" for name, value in after.items() if name != "name" and value)
        return [f"{key}: new, {said}"]
    if after is None and isinstance(before, dict):
        return [f"{key}: gone"]
    return [] if before == after else [f"{key}: {before} -> {after}"]


def _by_name(value: Any) -> Any:  # noqa: ANN401 - plain data
    """An array of tables that have names, as `[[workload]]`, by these."""
    if isinstance(value, list | tuple) and all(isinstance(each, dict) and "name" in each for each in value):
        return {each["name"]: each for each in value}
    return value
