"""When memory is in trouble: little of it left, or LS waiting for it. Pure."""

from __future__ import annotations

import msgspec
from memkit import Host

from qosd.config import Config
from qosd.memory.trouble import trouble


def test_trouble_is_both_too_little_memory_and_ls_waiting_for_it() -> None:
    host = Host(Config())
    host.tick()
    host.available = 20
    assert host.tick().view.trouble.both is False
    host.ls.memory_full += 500_000
    assert host.tick().view.trouble.both is True
    host.available = 500
    host.ls.memory_full += 500_000
    assert host.tick().view.trouble.both is False


def test_pressure_of_be_is_no_trouble_and_neither_is_what_is_not_known() -> None:
    """A memory.high of ours makes BE wait: that must never count against anybody."""
    host = Host(Config())
    host.tick()
    host.available = 20
    host.be.memory_full += 900_000
    assert host.tick().view.trouble.ls_stalled is False
    alone = trouble(Config(), None, msgspec.structs.replace(host.snapshot(), workloads=()))
    assert alone.ls_stalled is None
    assert alone.both is False
