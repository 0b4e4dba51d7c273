"""A cgroup that two rules match: the first of them has it, in the sums, in the files and after a reload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from treekit import GROUP_FILES, Box, make_tree, text_of

from qosd.config import decode
from qosd.errors import ConfigError

RULE = '[[workload]]\nname = "{0}"\ntier = "{1}"\nmatch = [{2}]\n{3}\n'
LS = RULE.format("ls", "ls", '"ls.slice"', "")
FIRST = RULE.format("first", "be", '"be.slice/job.service"', "cpu_max_pct = 25")
SECOND = RULE.format("second", "be", '"be.slice/*.service"', "cpu_max_pct = 50")
BUSY = {"ls": 0.5, "be": 3.0, "system": 0.1}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path, decode(LS + FIRST + SECOND))
    make_tree(box.root / "be.slice/other.service", GROUP_FILES)
    yield box
    box.close()


def quotas(box: Box) -> dict[str, str]:
    return {
        name: text_of(box.root / f"be.slice/{name}.service/cpu.max").split()[0] for name in ("job", "other")
    }


def test_the_first_rule_that_matches_a_cgroup_has_it_and_it_counts_once(box: Box) -> None:
    status = box.settle(**BUSY)

    named = sorted((workload.path, workload.name) for workload in status.workloads)
    assert named == [
        ("be.slice/job.service", "first"),
        ("be.slice/other.service", "second"),
        ("ls.slice", "ls"),
    ]
    assert quotas(box) == {"job": "10000", "other": "20000"}, "25 and 50 % of four CPUs, of 10 ms"
    why = "rule 'second' matches it too; the first one, 'first', holds"
    assert status.refused == {"be.slice/job.service": why}


def test_a_reload_that_turns_the_rules_round_turns_their_files_round(box: Box) -> None:
    box.settle(**BUSY)

    box.engine.reconfigure(decode(LS + SECOND + FIRST))
    status = box.settle(**BUSY)

    assert {workload.name for workload in status.workloads} == {"ls", "second"}
    assert quotas(box) == {"job": "20000", "other": "20000"}


def test_a_cgroup_below_one_of_another_rule_counts_in_the_upper_one_alone(tmp_path: Path) -> None:
    box = Box(tmp_path, decode(LS + RULE.format("all", "be", '"be.slice"', "cpu_max_pct = 50") + FIRST))
    status = box.settle(**BUSY)

    assert {workload.name for workload in status.workloads} == {"ls", "all"}
    assert text_of(box.root / "be.slice/job.service/cpu.max") == "max 100000"
    be = next(workload for workload in status.workloads if workload.name == "all")
    assert be.cpu_cores == pytest.approx(3.0, abs=0.05)
    box.close()


def test_two_rules_of_different_tiers_for_one_cgroup_are_refused() -> None:
    with pytest.raises(ConfigError, match="a cgroup can be in one tier only"):
        decode(RULE.format("web", "ls", '"be.slice/job.service"', "") + SECOND)
