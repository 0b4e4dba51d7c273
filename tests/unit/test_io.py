"""The io governors as pure functions: weights, the latency target, the limit that follows LS's waiting."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iokit import CONFIG, DISK, FILES, LIMITS, MIB, OTHER, Disks, rbps

from qosd import governors
from qosd.config import Config, ConfigError, WorkloadRule, decode
from qosd.files import Key, interface_file, line_of, line_to_write, value_of
from qosd.io import limits
from qosd.io.weight import bfq_weight
from qosd.model import (
    MAX,
    IoMax,
    Max,
    Snapshot,
    Tier,
)
from qosd.plan import Desired
from qosd.schema.io import Io, IoLatencies
from qosd.schema.units import Duration


def play(config: Config, snapshots: list[Snapshot]) -> list[tuple[Desired, ...]]:
    state, prev, wanted = limits.State(), None, []
    for now in snapshots:
        state, desired = limits.decide(config, prev, now, state)
        wanted.append(desired)
        prev = now
    return wanted


def test_be_is_halved_each_tick_that_ls_waits_and_comes_back_step_by_step() -> None:
    disks = Disks()
    snapshots = [disks.snapshot(be=100), disks.snapshot(waits=60, be=100), disks.snapshot(waits=60, be=50)]
    snapshots += [disks.snapshot(waits=0, be=25) for _ in range(16)]

    course = [rbps(desired) for desired in play(CONFIG, snapshots)]

    assert course[:3] == [None, 50 * MIB, 25 * MIB]
    assert course[3:6] == [30 * MIB, 35 * MIB, 40 * MIB]
    assert course[-1] is None, "back at all it did before, the limit goes"


def test_between_the_marks_the_limit_stays() -> None:
    disks = Disks()
    snapshots = [disks.snapshot(be=100), disks.snapshot(waits=60, be=100)]
    snapshots += [disks.snapshot(waits=5, be=50) for _ in range(5)]

    assert [rbps(desired) for desired in play(CONFIG, snapshots)[1:]] == [50 * MIB] * 6


def test_be_keeps_its_floor() -> None:
    disks = Disks()
    snapshots = [disks.snapshot(be=100), *(disks.snapshot(waits=90, be=100) for _ in range(20))]

    (last,) = play(CONFIG, snapshots)[-1]
    assert last.setting == IoMax(DISK, MIB, MAX, 50, MAX)
    assert last.reason.clamp == "floor"


def test_from_the_floor_the_way_back_begins_at_once() -> None:
    disks = Disks()
    snapshots = [disks.snapshot(be=100), *(disks.snapshot(waits=90, be=100) for _ in range(20))]
    snapshots.append(disks.snapshot(waits=0, be=1))

    limit = rbps(play(CONFIG, snapshots)[-1])
    assert isinstance(limit, int)
    assert limit > 5 * MIB


@pytest.mark.parametrize(
    ("why", "kwargs", "be"),
    [
        ("LS uses another disk", {"ls_device": OTHER}, 100.0),
        ("BE does less than its floor", {}, 0.1),
        ("BE has no io.max", {"be_files": {}}, 100.0),
        ("nobody can say what BE did", {}, None),
    ],
)
def test_be_is_not_limited_for_what_it_did_not_do(why: str, kwargs: dict, be: float | None) -> None:
    disks = Disks(**kwargs)
    snapshots = [disks.snapshot(waits=80, be=be) for _ in range(4)]

    assert play(CONFIG, snapshots)[-1] == (), why


def test_be_is_not_limited_when_ls_itself_is_nearly_all_of_the_load() -> None:
    disks = Disks()
    snapshots = [disks.snapshot(waits=80, be=5, ls=200) for _ in range(4)]

    assert play(CONFIG, snapshots)[-1] == ()


def test_it_is_off_by_default() -> None:
    disks = Disks()
    snapshots = [disks.snapshot(waits=80, be=100) for _ in range(4)]

    assert play(Config(), snapshots)[-1] == ()


def test_unknown_pressure_holds_the_limit_and_then_gives_it_up() -> None:
    disks = Disks()
    snapshots = [disks.snapshot(be=100), disks.snapshot(waits=60, be=100)]
    snapshots += [disks.snapshot(waits=None, be=100) for _ in range(LIMITS.release_ticks + 1)]

    course = [rbps(desired) for desired in play(CONFIG, snapshots)]
    assert course[1:-1] == [50 * MIB] * (LIMITS.release_ticks + 1)
    assert course[-1] is None


def test_a_limit_of_the_operators_is_never_widened() -> None:
    theirs = f"{DISK} rbps={10 * MIB} wbps=max riops=max wiops=max\n{OTHER} rbps=1 wbps=1 riops=1 wiops=1"
    disks = Disks(be_files={**FILES, "io.max": theirs})
    snapshots = [disks.snapshot(be=100), disks.snapshot(waits=60, be=100)]

    assert rbps(play(CONFIG, snapshots)[-1]) == 10 * MIB


COURSES = st.lists(
    st.tuples(st.none() | st.floats(0, 100), st.none() | st.floats(0, 500), st.floats(0, 500)), max_size=12
)


@given(COURSES)
def test_no_course_takes_be_below_its_floor_or_limits_what_it_never_did(course: list[tuple]) -> None:
    disks = Disks()
    snapshots = [disks.snapshot(waits=waits, be=be, ls=ls) for waits, be, ls in course]
    for desired in play(CONFIG, snapshots):
        for one in desired:
            assert isinstance(one.setting, IoMax)
            assert one.tier is Tier.BE
            assert isinstance(one.setting.rbps, Max) or one.setting.rbps >= MIB
            assert isinstance(one.setting.riops, Max) or one.setting.riops >= 50
            assert one.setting.wbps is MAX, "it never wrote"


@given(st.floats(0, 100), st.floats(0, 100))
def test_more_waiting_never_means_more_for_be(low: float, more: float) -> None:
    def after(waits: float) -> float:
        disks = Disks()
        first = [disks.snapshot(be=100), disks.snapshot(waits=50, be=100), disks.snapshot(waits=50, be=50)]
        limit = rbps(play(CONFIG, [*first, disks.snapshot(waits=waits, be=25)])[-1])
        return float("inf") if limit is None or isinstance(limit, Max) else limit

    assert after(max(low, more)) <= after(min(low, more))


def wanted(config: Config, now: Snapshot) -> dict[tuple[str, str], Any]:
    _, decision = governors.decide(config, None, now, governors.State())
    return {(each.path, each.setting.file): each.setting for each in decision.desired}


def test_weights_are_given_where_the_files_are_and_in_each_ones_scale() -> None:
    now = Disks().snapshot()

    everything = wanted(Config(), now)
    assert everything["ls.slice", "io.weight default"].weight == 1000
    assert everything["be.slice", "io.weight default"].weight == 10
    assert everything["ls.slice", "io.bfq.weight default"].weight == 181
    assert everything["be.slice", "io.bfq.weight default"].weight == 10
    assert not any("latency" in file or "oom" in file for _, file in everything)
    without = msgspec.structs.replace(
        now, workloads=tuple(msgspec.structs.replace(each, files={}) for each in now.workloads)
    )
    assert not any("io" in file for _, file in wanted(Config(), without))


@pytest.mark.parametrize(("weight", "bfq"), [(1, 1), (100, 100), (1000, 181), (10_000, 1000)])
def test_a_weight_reaches_bfq_as_systemd_would_give_it(weight: int, bfq: int) -> None:
    assert bfq_weight(weight) == bfq


def test_the_latency_target_is_for_ls_alone_and_for_every_disk() -> None:
    config = Config(io=Io(latency=IoLatencies(target=Duration(5000))))

    everything = wanted(config, Disks().snapshot())
    assert {key for key in everything if "latency" in key[1]} == {
        ("ls.slice", f"io.latency {DISK}"),
        ("ls.slice", f"io.latency {OTHER}"),
    }
    assert everything["ls.slice", f"io.latency {DISK}"].target_usec == 5000


def test_the_group_kill_is_for_be_rules_that_ask_for_it() -> None:
    rules = (
        WorkloadRule("ls", Tier.LS, ("ls.slice",)),
        WorkloadRule("be", Tier.BE, ("be.slice",), oom_group=True),
    )

    everything = wanted(Config(workload=rules), Disks().snapshot())
    assert everything["be.slice", "memory.oom.group"].group is True
    assert ("ls.slice", "memory.oom.group") not in everything


def test_ls_is_never_killed_as_a_whole() -> None:
    with pytest.raises(ConfigError, match=r"^workload\[0\]\.oom_group: "):
        decode('[[workload]]\nname = "web"\ntier = "ls"\nmatch = ["web.slice"]\noom_group = true')


def test_one_line_of_a_file_is_a_file_of_its_own() -> None:
    whole = "8:0 rbps=max wbps=1 riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max"
    files = {Key(7, "io.max"): whole, Key(7, "cpu.idle"): "1"}

    assert value_of(files, Key(7, "io.max 8:16")) == "rbps=2 wbps=max riops=max wiops=max"
    assert value_of(files, Key(7, "io.max 8:32")) == "rbps=max wbps=max riops=max wiops=max"
    assert value_of(files, Key(7, "cpu.idle")) == "1"
    assert value_of(files, Key(8, "io.max 8:16")) is None
    assert interface_file("io.max 8:16") == "io.max"
    assert line_of("io.weight default", "default 100\n8:0 50") == "100"
    assert line_to_write("io.weight default", "100") == "default 100"
    assert line_to_write("cpu.max", "max 100000") == "max 100000"
