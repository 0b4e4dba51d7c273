"""What the benchmarks of memory make of what they measured."""

from __future__ import annotations

import pytest

from bench import memory, oom_why


def test_a_goal_that_is_a_share_of_a_mode_is_judged_by_rounds_with_an_interval() -> None:
    rows = [("off", {"job passes a second": 2.0}), ("on", {"job passes a second": 1.98})] * 8
    assert memory.pairs(rows, "on", "job passes a second").endswith("0.99, 95 % interval 0.99 to 0.99")


def test_a_goal_of_its_own_and_rounds_without_a_partner_have_no_interval() -> None:
    rows = [("on", {"job passes a second": 1.98, "LS waited for memory, share": 0.0})]
    assert memory.pairs(rows, "on", "job passes a second") == ""
    assert memory.pairs(rows, "on", "LS waited for memory, share") == ""


def samples(**counters: list[float]) -> list[dict[str, object]]:
    """One each second."""
    number = len(next(iter(counters.values())))
    return [
        {"at": 100.0 + n, "LS": "R 0", "frozen": 0, **{key: each[n] for key, each in counters.items()}}
        for n in range(number)
    ]


def test_late_requests_that_overlap_are_one_stretch_with_what_went_by_in_it() -> None:
    seen = samples(waited=[0, 0, 0.5, 1.5, 1.5, 1.5])
    (stretch,) = oom_why.told(seen, [(101.5, 102.5), (102.0, 103.0)])
    assert (stretch["from"], stretch["late"], stretch["waited"]) == (1.5, 1.5, 1.5)


def test_a_stretch_without_samples_of_ours_says_how_long_the_gap_was() -> None:
    seen = samples(waited=[0, 0])
    seen[1]["at"] = 109.0
    (stretch,) = oom_why.told(seen, [(101.0, 108.0)])
    assert stretch["longest gap of ours"] == pytest.approx(9)


def test_who_used_the_cpu_is_told_of_the_stretch_alone_whatever_his_name_is_now() -> None:
    seen = samples(waited=[0, 0, 0])
    seen[0]["all"] = {"7": ("kworker/a", 50.0), "8": ("python3", 1.0)}
    seen[2]["all"] = {"7": ("kworker/b", 50.1), "8": ("python3", 2.0)}
    (stretch,) = oom_why.told(seen, [(100.5, 101.5)])
    assert stretch["busiest"] == ["python3 1.00", "kworker/b 0.10"]
