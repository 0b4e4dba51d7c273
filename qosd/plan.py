"""From what governors want to what must be written: `Desired`, and the pure `diff` and `order`."""

from __future__ import annotations

import msgspec

from qosd.model import CgroupId, Setting, Tier


class Input(msgspec.Struct, frozen=True, gc=False):
    """A number that went into a decision, with its unit and how old it was."""

    name: str
    value: float
    unit: str
    age_ms: int = 0


class Reason(msgspec.Struct, frozen=True, gc=False):
    """Why a setting is wanted: the log line, the answer of `qosctl explain` and the audit record."""

    rule: str
    """The governor and its rule, as `cpu.bandwidth/allowance`."""
    text: str
    """One sentence for a person."""
    inputs: tuple[Input, ...] = ()
    threshold: str | None = None
    margin: str | None = None
    clamp: str | None = None
    """The bound that decided, when the formula's own result was not used: `floor`, `ramp`, `deadband`, ..."""


class Desired(msgspec.Struct, frozen=True, gc=False):
    """One wanted value of one interface file of one cgroup."""

    cgroup_id: CgroupId
    path: str
    tier: Tier
    setting: Setting
    reason: Reason
