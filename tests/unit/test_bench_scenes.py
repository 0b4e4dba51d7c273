"""The labelled scenes: the set itself, the rule of harm, and how verdicts are scored against it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.scenes import report
from bench.scenes.events import plan, read
from bench.scenes.labels import PACE, Harm, Label, Request, decode, label
from bench.scenes.score import Done, Said, Scored, kills, most_first, rates, score
from qosd.config import decode as decode_config
from qosd.interference.blame import Cause
from qosd.model import Tier

SCENES = Path(__file__).parents[2] / "bench/scenes"
SECOND = 1_000_000_000
SLOT = SECOND // 2
BEGIN = 100 * SECOND
SIGNALS = {"cpu.pressure", "memory.pressure", "io.pressure", "runq", "reclaim", "blkio"}


def test_the_set_has_sixty_events_and_every_one_of_them_can_be_run() -> None:
    kinds = read()
    events = [event for kind in kinds for event in kind.events]
    source = (SCENES / "load.c").read_text(encoding="utf-8")
    config = decode_config((SCENES / "qosd.toml").read_text(encoding="utf-8"))
    slices = {rule.name for rule in config.workload}

    assert len(events) >= 60
    assert len({event.id for event in events}) == len(events)
    assert all(kind.signals for kind in kinds if kind.cause != "none")
    assert {signal for kind in kinds for signal in kind.signals} <= SIGNALS
    assert {kind.cause for kind in kinds} <= {"none", *Cause}
    for event in plan(1):
        assert all(f'"{what.split()[0]}"' in source for _, what in event.loads)
        assert {by for by, _ in event.loads} <= slices | {"system"}
    assert {rule.name for rule in config.workload if rule.kill} == {"batch"}
    assert {rule.name for rule in config.workload if rule.tier is Tier.BE} == {"batch", "keep"}


def test_a_seed_always_runs_the_same_events_in_the_same_order() -> None:
    assert plan(1) == plan(1)
    assert [event.id for event in plan(1)] != [event.id for event in plan(2)]
    assert sorted(event.id for event in plan(1)) == sorted(event.id for event in plan(2))
    assert {event.seconds for event in plan(1)} != {event.seconds for event in plan(2)}


def requests(bad_slots: int, *, usec: int = 50_000, pace: int = 500, kind: int = 0) -> list[Request]:
    """Four calm seconds and an event of five, in which a kind was slow for so many slots."""
    found = []
    for due in range(BEGIN - 4 * SECOND, BEGIN + 5 * SECOND, SECOND // 40):
        bad = BEGIN <= due < BEGIN + bad_slots * SLOT
        found += [Request(due, usec if bad else 1_000, kind), Request(due, pace if bad else 500, PACE)]
    return found


@pytest.mark.parametrize(
    ("slots", "harm"), [(0, Harm.NO), (1, Harm.NO), (2, Harm.EDGE), (3, Harm.EDGE), (4, Harm.YES)]
)
def test_four_bad_slots_in_a_row_are_harm(slots: int, harm: Harm) -> None:
    found = label(requests(slots, kind=2), BEGIN, BEGIN + 5 * SECOND)

    assert found.harm is harm
    assert found.slots == slots
    assert not slots or (found.worst, found.ratio) == ("disk", 50.0)


def test_what_is_slow_because_the_machine_is_slow_is_no_harm() -> None:
    assert label(requests(8, pace=25_000), BEGIN, BEGIN + 5 * SECOND).harm is Harm.NO
    assert label(requests(8, usec=3_900), BEGIN, BEGIN + 5 * SECOND).harm is Harm.NO, "under the floor"


def test_a_log_is_read_in_the_order_of_due_times_and_a_torn_record_is_left_out() -> None:
    log = b"".join(
        due.to_bytes(8, "little") + (7).to_bytes(4, "little") + (1).to_bytes(4, "little") for due in (9, 3)
    )

    assert decode(log + b"torn") == [Request(3, 7, 1), Request(9, 7, 1)]


BE = Said("runq", "web.slice", ("be",), BEGIN // 1000 + 1_500_000, "batch.slice", "")


def scored(event_id: str, harm: Harm, *said: Said) -> Scored:
    event = next(each for each in plan(1) if each.id == event_id)
    return Scored(Done(event, BEGIN, BEGIN + 5 * SECOND, 1000.0), Label(harm, "cpu", 8, 9.0), said)


@pytest.mark.parametrize(
    ("event", "harm", "said", "counts"),
    [
        ("hog-4", Harm.YES, (BE,), (1, 0, 0)),
        ("hog-4", Harm.YES, (), (0, 0, 1)),
        ("hog-4", Harm.NO, (BE,), (0, 1, 0)),
        ("hog-4", Harm.NO, (), (0, 0, 0)),
        ("hog-4", Harm.EDGE, (BE,), (0, 0, 0)),
        ("hog-4", Harm.YES, (msgspec.structs.replace(BE, signal="blkio"),), (0, 0, 1)),
        ("hog-4", Harm.YES, (msgspec.structs.replace(BE, path="side.slice"),), (0, 0, 1)),
        ("quota-6", Harm.YES, (BE,), (0, 1, 0)),
        ("quota-6", Harm.YES, (msgspec.structs.replace(BE, causes=("self",)),), (0, 0, 0)),
        ("quota-6", Harm.YES, (msgspec.structs.replace(BE, causes=("self", "be")),), (0, 1, 0)),
        ("calm-1", Harm.NO, (BE,), (0, 1, 0)),
    ],
)
def test_a_verdict_against_be_is_right_only_where_be_harmed_the_service(
    event: str, harm: Harm, said: tuple[Said, ...], counts: tuple[int, int, int]
) -> None:
    found = rates([scored(event, harm, *said)])

    assert (found.hits, found.false, found.missed) == counts


def test_what_the_services_own_verdicts_say_goes_before_what_is_said_of_other_ls() -> None:
    """Another LS workload with too much to do waits for itself, and is in the service's way."""
    other = Said("cpu.pressure", "side.slice", ("self",), BE.began_usec, "", "")
    mine = msgspec.structs.replace(BE, causes=("ls", "system"))

    assert scored("side-4", Harm.YES, other, mine).found == "ls"
    assert scored("side-4", Harm.YES, other).found == "self"
    assert scored("side-4", Harm.YES, mine, msgspec.structs.replace(other, causes=("be",))).found == "be"


def test_a_verdict_says_first_what_most_of_its_bad_ticks_said() -> None:
    assert most_first(Counter({Cause.SYSTEM: 1, Cause.LS: 3})) == ("ls", "system")


def test_a_verdict_in_a_gap_is_held_against_the_event_before() -> None:
    first, second = plan(1)[:2]
    done = [
        Done(first, BEGIN, BEGIN + SECOND, 0.0),
        Done(second, BEGIN + 9 * SECOND, BEGIN + 10 * SECOND, 9.0),
    ]
    late = msgspec.structs.replace(BE, began_usec=(BEGIN + 8 * SECOND) // 1000)

    assert [each.said for each in score(done, requests(0), [late])] == [(late,), ()]


@pytest.mark.parametrize(
    ("event", "path", "wrong"),
    [
        ("grow-to-45", "batch.slice/scenes-batch.service", 0),
        ("grow-to-45", "keep.slice/scenes-keep.service", 1),
        ("grow-to-32", "batch.slice/scenes-batch.service", 1),
        ("hog-4", "batch.slice/scenes-batch.service", 1),
    ],
)
def test_a_kill_is_right_only_of_the_job_that_took_the_memory_and_may_be_killed(
    event: str, path: str, wrong: int
) -> None:
    kill: dict[str, Any] = {"path": path, "file": "cgroup.kill", "result": "killed", "time": 1003.0}

    count, bad = kills([scored(event, Harm.YES, BE)], [kill])

    assert (count, len(bad)) == (1, wrong)


def test_the_report_has_the_rates_the_confusion_and_every_miss_with_what_was_said() -> None:
    text = "\n".join(report.lines([scored("hog-4", Harm.YES, BE), scored("calm-1", Harm.NO, BE)]))

    assert "| all | 2 | 1 | 0 | 1 | 1 | 0 |" in text
    assert (
        "precision 0.500, recall 1.000; the culprit named first 1 of 1; median time to a verdict 1.5 s"
        in text
    )
    assert "calm-1: unharmed" in text
