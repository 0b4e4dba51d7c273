"""A trigger of a real kernel cuts BE before the next tick would, and only where BE can be to blame."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vm.guest import CGROUP, Guest

pytestmark = pytest.mark.vm

TICK = 2  # seconds: what comes sooner came between two ticks
CONFIG = f"""interval = "{TICK}s"
[cpu.bandwidth]
enforce = "none"
[fast]
cut_idle = true
threshold_pct = 10
hold = "1min"
hold_max = "1min"
"""
REACTION = "cpu.bandwidth/cpu.squeeze"
"""The rule of a write between two ticks; those of a tick name the allowance."""


def started(guest: Guest) -> dict[str, Any]:
    """The daemon past its starting ticks, with BE hogs on every CPU and a trigger on an LS that is quiet."""
    guest.sh("systemctl start ls.slice be.slice")
    guest.configure(CONFIG)
    guest.hog(4)
    guest.sh("systemctl restart qosd")
    status = guest.status_when(
        lambda status: (
            status["mode"] == "enforce"
            and status["reflex"]["detection"] == "trigger"
            and (status["tiers"]["be"]["cpu_allowance_cores"] or 0) > 0
        ),
        tries=90,
    )
    assert guest.read("be.slice/cpu.max").startswith("max")
    return status


def ls(guest: Guest, threads: int, properties: str = "") -> None:
    guest.sh(
        f"systemd-run -q --collect --unit=test-ls --slice=ls.slice {properties} stress-ng --quiet --cpu {threads}"
    )


def writes_of_be(guest: Guest) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(guest.sh("qosctl decisions --json"))
    wanted = [record for record in records if (record["path"], record["file"]) == ("be.slice", "cpu.max")]
    return sorted(wanted, key=lambda record: record["id"])


def reactions(guest: Guest) -> dict[str, int]:
    counted: dict[str, int] = guest.status()["reflex"]["reactions"].get("psi", {})
    return counted


def test_a_burst_of_ls_cuts_be_between_two_ticks_and_a_daemon_killed_then_leaves_nothing(
    guest: Guest,
) -> None:
    status = started(guest)
    armed = status["reflex"]["armed"]["ls.slice"]

    ls(guest, 4)
    guest.until(f"! grep -q ^max {CGROUP}/be.slice/cpu.max", seconds=60)
    guest.sh("systemctl stop test-ls")  # four of its threads leave qosctl little to run on
    cuts = writes_of_be(guest)
    guest.sh("systemctl kill -s KILL qosd")

    assert cuts[0]["reason"]["rule"] == REACTION
    assert cuts[0]["result"] == "written"
    assert armed == ("10 ms in 100 ms" if guest.machine.hardware.kernel != "6.1" else "50 ms in 500 ms")
    guest.until(f"grep -q ^max {CGROUP}/be.slice/cpu.max", seconds=60)


def test_an_ls_that_its_own_limit_holds_back_costs_be_nothing(guest: Guest) -> None:
    """One thread under a CPUQuota waits for most of the time, and all of that is pressure.

    On both kernels: 6.1 has windows of 500 ms, and shows a group in debt in nr_throttled alone for longer.
    """
    started(guest)

    ls(guest, 1, "-p CPUQuota=10%")
    guest.status_when(
        lambda status: status["reflex"]["reactions"].get("psi", {}).get("self-throttled", 0) > 3
    )

    assert reactions(guest).get("cut", 0) == 0
    assert writes_of_be(guest) == []
    assert guest.read("be.slice/cpu.max").startswith("max")
