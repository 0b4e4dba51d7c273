"""Ten thousand real cgroups of which a thousand come and go with every tick."""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from pathlib import Path

import pytest
from treekit import BOOT

from qosd.config import Config, Mode, WorkloadRule
from qosd.engine import Engine
from qosd.journal import Journal
from qosd.model import Tier
from qosd.sense import HostFiles
from qosd.sys import DIRECTORY, Sys

pytestmark = pytest.mark.native

COUNT, CHURN, ROUNDS = 10_000, 1_000, 8
RULES = (
    WorkloadRule(name="ls", tier=Tier.LS, match=("ls",)),
    WorkloadRule(name="be", tier=Tier.BE, match=("be",)),
)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_ten_thousand_cgroups_with_a_thousand_new_ones_a_tick_cost_less_than_a_second_and_no_more_each_time(
    group: Path, tmp_path: Path
) -> None:
    """CPU time of the tick, since others run here too; fds within the budget, memory and ledger flat."""
    for name in ("ls", "be"):
        (group / name).mkdir()
    jobs = deque(group / "be" / f"job{number}" for number in range(COUNT))
    for job in jobs:
        job.mkdir()
    config = Config(mode=Mode.OBSERVE, workload=RULES)
    sys = Sys()
    before = open_fds()
    root_fd = os.open(group, DIRECTORY)
    engine = Engine(
        sys, root_fd, config, Journal(sys, str(tmp_path), BOOT), None, HostFiles(sys, "/proc", "/sys")
    )
    for _ in range(3):
        engine.tick()
    costs, resident = [], []
    for number in range(ROUNDS):
        for new in range(CHURN):
            jobs.popleft().rmdir()
            jobs.append(group / "be" / f"new{number}-{new}")
            jobs[-1].mkdir()
        start = time.process_time()
        engine.tick()
        costs.append(time.process_time() - start)
        gc.collect()
        resident.append(resident_mib())
        assert open_fds() <= before + config.sense.fd_budget + 100
        assert engine.snapshot is not None
        assert len(engine.snapshot.descendants) >= CHURN, "hot ones, and a tenth of the cold ones"

    assert max(costs) < 1.0
    assert resident[-1] - resident[2] < 4.0, f"it grows: {resident}"
    assert len(engine._ledger) < 10
    engine.close()
    os.close(root_fd)
    assert open_fds() <= before + 1
