"""diff and order: what is written, in which order, and that it comes to an end."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from fakekernel import write_as_kernel
from hypothesis import given
from hypothesis import strategies as st
from treekit import CPU_FILES, NR_CPUS, make_tree, text_of

from qosd.cgroupfs import format_setting
from qosd.config import OnForeignWrite, Ownership
from qosd.files import RESTORE_ORDER, Key, restore_rank
from qosd.model import MAX, CgroupId, CpuMax, CpuMaxBurst, CpusetCpus, CpuWeight, Setting, Tier
from qosd.plan import Desired, FileState, Ledger, Now, Plan, Reason, Standing, Write, diff, order

PATHS = ("be.slice", "be.slice/a", "be.slice/a/b", "be.slice/c")
IDS = {path: CgroupId(number) for number, path in enumerate(PATHS, 100)}
WHY = Reason("test/rule", "because")
BE_MAX = Key(IDS["be.slice"], "cpu.max")
OURS, THEIRS, ORIGINAL = "50000 100000", "70000 100000", "max 100000"


def want(path: str, setting: Setting) -> Desired:
    return Desired(IDS[path], path, Tier.BE, setting, WHY)


def write(path: str, file: str, old: str, new: str) -> Write:
    return Write(Key(IDS[path], file), path, old, new, WHY)


LIMITS = st.builds(CpuMax, st.just(MAX) | st.integers(1000, 400_000), st.sampled_from([10_000, 100_000]))
MASKS = st.sets(st.integers(0, NR_CPUS - 1)).map(lambda cpus: CpusetCpus(tuple(sorted(cpus))))


@st.composite
def bandwidth_and_mask(draw: st.DrawFn) -> tuple[Setting, ...]:
    """The settings of one group as the kernel allows them together: the burst within the quota."""
    limit = draw(LIMITS)
    highest = 400_000 if limit.quota_usec is MAX else limit.quota_usec
    return limit, CpuMaxBurst(draw(st.integers(0, highest))), draw(MASKS)


HOSTS = st.fixed_dictionaries(dict.fromkeys(PATHS, bandwidth_and_mask()))


def share(limit: Setting) -> float:
    assert isinstance(limit, CpuMax)
    return float("inf") if limit.quota_usec is MAX else limit.quota_usec / limit.period_usec


def effective(limits: dict[str, float], path: str) -> float:
    """A group's limit is the tightest on its path."""
    return min(limits[above] for above in PATHS if path == above or path.startswith(above + "/"))


@given(before=HOSTS, after=HOSTS)
def test_the_kernel_takes_every_write_and_no_moment_is_tighter_than_both_ends(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[str, tuple[Setting, ...]],
    after: dict[str, tuple[Setting, ...]],
) -> None:
    """Played against the kernel's own rules: first widened from the top down, then narrowed from below."""
    root = tmp_path_factory.mktemp("order")
    writes = []
    for path in PATHS:
        make_tree(root / path, {**CPU_FILES, "cgroup.events": "populated 0\n"})
        for old, new in zip(before[path], after[path], strict=True):
            (root / path / old.file).write_text(format_setting(old) + "\n")
            if old != new:
                writes.append(write(path, old.file, format_setting(old), format_setting(new)))
    start = {path: share(before[path][0]) for path in PATHS}
    end = {path: share(after[path][0]) for path in PATHS}
    narrower = {path for path in PATHS if end[path] < start[path]}

    limits, narrowed = dict(start), set()
    for change in order(writes):
        write_as_kernel(root / change.path / change.key.file, change.new.encode())
        if change.key.file != "cpu.max":
            continue
        limits[change.path] = end[change.path]
        assert all(
            effective(limits, path) >= min(effective(start, path), effective(end, path)) for path in PATHS
        )
        if change.path in narrower:
            narrowed.add(change.path)
            below = {path for path in narrower if path.startswith(change.path + "/")}
            assert below <= narrowed, "a parent was narrowed before its child"
            assert all(limits[path] == end[path] for path in set(PATHS) - narrower), (
                "something to widen is left"
            )
    assert all(text_of(root / change.path / change.key.file) == change.new for change in writes)


def test_a_burst_falls_before_its_limit_and_rises_after_it() -> None:
    falling = [
        write("be.slice", "cpu.max", "100000 100000", "50000 100000"),
        write("be.slice", "cpu.max.burst", "80000", "0"),
    ]
    rising = [
        write("be.slice", "cpu.max.burst", "0", "80000"),
        write("be.slice", "cpu.max", "50000 100000", "100000 100000"),
    ]

    assert [w.key.file for w in order(falling)] == ["cpu.max.burst", "cpu.max"]
    assert [w.key.file for w in order(rising)] == ["cpu.max", "cpu.max.burst"]


def test_idle_is_left_before_a_weight_is_given() -> None:
    """cpu.weight is EINVAL while cpu.idle is 1."""
    writes = [write("be.slice", "cpu.weight", "100", "5"), write("be.slice", "cpu.idle", "1", "0")]

    assert [w.key.file for w in order(writes)] == ["cpu.idle", "cpu.weight"]


def test_masks_widen_from_the_top_and_narrow_from_the_bottom() -> None:
    widening = [write(path, "cpuset.cpus", "0", "0-3") for path in reversed(PATHS[:3])]
    narrowing = [write(path, "cpuset.cpus", "0-3", "0") for path in PATHS[:3]]

    assert [w.path for w in order(widening)] == list(PATHS[:3])
    assert [w.path for w in order(narrowing)] == list(reversed(PATHS[:3]))


def test_files_are_restored_in_the_order_the_kernel_takes_them() -> None:
    assert restore_rank(Key(1, "cgroup.freeze")) == 0
    files = ["cpu.max.burst", "cpu.max", "cpu.idle", "cpu.weight", "cpuset.cpus", "something.new"]

    assert sorted(set(files), key=lambda file: restore_rank(Key(1, file))) == files
    assert set(files) - set(RESTORE_ORDER) == {"something.new"}


STATES = st.builds(
    FileState,
    original=st.sampled_from([None, ORIGINAL]),
    ours=st.sampled_from([None, OURS]),
    contested_until=st.sampled_from([0, 50]),
    yielded_to=st.sampled_from([None, THEIRS]),
    yielded_original=st.sampled_from([None, ORIGINAL]),
    retry_at=st.sampled_from([0, 50]),
    failures=st.integers(0, 70),
).filter(
    lambda state: (state.ours is None) == (state.original is None) and not (state.ours and state.yielded_to)
)
OWNERSHIPS = st.builds(
    Ownership, on_foreign_write=st.sampled_from(OnForeignWrite), contested_after=st.integers(1, 3)
)


@given(
    state=STATES,
    current=st.sampled_from([None, OURS, THEIRS, ORIGINAL, "30000 100000", "", "max", "9" * 5000, "max\0 1"]),
    wanted=st.sampled_from([None, CpuMax(50_000, 100_000), CpuMax(30_000, 100_000), CpuMax(MAX, 100_000)]),
    reloaded=st.booleans(),
    at=st.sampled_from([10, 100]),
    ownership=OWNERSHIPS,
)
def test_no_state_of_a_file_makes_us_write_over_or_lose_somebody_elses_value(
    state: FileState,
    current: str | None,
    wanted: CpuMax | None,
    at: int,
    ownership: Ownership,
    *,
    reloaded: bool,
) -> None:
    """Every state x content x wish: at most one of write, restore, forget; what is ours stays ours."""
    files = {} if current is None else {BE_MAX: current}
    desired = () if wanted is None else (want("be.slice", wanted),)
    following, plan = diff(Now(at, files, reloaded), desired, {BE_MAX: state}, ownership)

    assert len(plan.writes) + len(plan.restores) + len(plan.forgets) <= 1
    assert set(plan.states) == ({BE_MAX} if desired else set())
    for planned in plan.writes:
        assert planned.old == current != planned.new
        foreign = state.ours is not None and current not in (state.ours, state.original)
        assert not (foreign and ownership.on_foreign_write is OnForeignWrite.YIELD)
        assert at >= max(state.retry_at, state.contested_until)
    if plan.restores:
        assert state.ours is not None
        assert current in (None, state.ours, state.original)
    if current is not None and current == state.ours and not plan.restores:
        assert following[BE_MAX].ours == state.ours, "our value stands and nobody remembers"
    if plan.forgets:
        assert current not in (None, state.ours, state.original)


@given(
    st.lists(st.tuples(st.sampled_from(PATHS), LIMITS | MASKS | st.builds(CpuWeight, st.integers(1, 10_000))))
)
def test_there_is_nothing_to_write_once_it_is_applied(wishes: list[tuple[str, Setting]]) -> None:
    desired = tuple({(path, setting.file): want(path, setting) for path, setting in wishes}.values())
    originals = {"cpu.max": ORIGINAL, "cpuset.cpus": "", "cpu.weight": "100"}
    files = {Key(IDS[path], file): text for path in PATHS for file, text in originals.items()}
    ledger, plan = diff(Now(1, files), desired, {}, Ownership())
    files, ledger = applied(plan, files, ledger)

    again, idle = diff(Now(2, files), desired, ledger, Ownership())
    assert (idle.writes, idle.restores, idle.forgets) == ((), (), ())
    _, released = diff(Now(3, files), (), again, Ownership())
    assert set(released.restores) == {planned.key for planned in plan.writes}
    assert released.writes == ()


def applied(plan: Plan, files: dict[Key, str], ledger: Ledger) -> tuple[dict[Key, str], Ledger]:
    """As if the kernel had taken every write."""
    files, ledger = dict(files), dict(ledger)
    for planned in plan.writes:
        files[planned.key] = planned.new
        ledger[planned.key] = FileState(original=planned.old, ours=planned.new)
    return files, ledger


@given(STATES, st.sampled_from([OURS, THEIRS, ORIGINAL]))
def test_the_ledger_given_is_not_changed(state: FileState, current: str) -> None:
    ledger = {BE_MAX: state}
    diff(Now(100, {BE_MAX: current}), (want("be.slice", CpuMax(1000, 1000)),), ledger, Ownership())

    assert ledger == {BE_MAX: state}


def test_nothing_wanted_and_nothing_ours_is_nothing_to_do() -> None:
    assert diff(Now(1, {BE_MAX: ORIGINAL}), (), {}, Ownership()) == ({}, Plan())


@pytest.mark.parametrize("garbage", ["", "max", "1 2 3", "kaputt", "\0"])
def test_one_unreadable_file_does_not_stop_the_others(garbage: str) -> None:
    other = Key(IDS["be.slice/a"], "cpu.max")
    files = {BE_MAX: garbage, other: ORIGINAL}
    wishes = (want("be.slice", CpuMax(1000, 1000)), want("be.slice/a", CpuMax(1000, 1000)))

    _, plan = diff(Now(1, files), wishes, {}, Ownership())

    assert [planned.key for planned in plan.writes] == [other]
    assert plan.states[BE_MAX] is Standing.ABSENT


def test_a_truce_outlives_a_pause_of_our_wish() -> None:
    state = FileState(original=ORIGINAL, ours=OURS, contested_until=50)
    now = Now(10, {BE_MAX: ORIGINAL})
    paused, _ = diff(now, (), {BE_MAX: state}, Ownership())

    _, plan = diff(now, (want("be.slice", CpuMax(50_000, 100_000)),), paused, Ownership())
    assert plan.states == {BE_MAX: Standing.CONTESTED}
    _, later = diff(Now(60, now.files), (want("be.slice", CpuMax(50_000, 100_000)),), paused, Ownership())
    assert later.states == {BE_MAX: Standing.WRITING}


def test_what_is_remembered_of_files_that_are_gone_does_not_grow() -> None:
    """A thousand cgroups come and go: the ledger must be empty in the end."""
    ledger: Ledger = {
        Key(number, "cpu.max"): FileState(yielded_to=THEIRS, yielded_original=ORIGINAL)
        for number in range(1000)
    }
    following, _ = diff(Now(10, {}), (), ledger, Ownership())

    assert following == {}


def test_the_kernel_of_these_tests_refuses_what_the_real_one_does(tmp_path: Path) -> None:
    """Else the order test would prove nothing. Seen on Linux 6.12: EINVAL, EINVAL, ERANGE, ERANGE."""
    make_tree(tmp_path, {**CPU_FILES, "cpu.max": "50000 100000\n", "cpu.max.burst": "40000\n"})
    refused = {}
    for file, text in {
        "cpu.max": "30000 100000",
        "cpu.max.burst": "60000",
        "cpu.weight": "0",
        "cpuset.cpus": "0-99",
    }.items():
        with pytest.raises(OSError, match=r"Invalid|range") as caught:
            write_as_kernel(tmp_path / file, text.encode())
        refused[file] = errno.errorcode[caught.value.errno]
    write_as_kernel(tmp_path / "cpu.idle", b"1")
    with pytest.raises(OSError, match=r"Invalid argument"):
        write_as_kernel(tmp_path / "cpu.weight", b"5")

    assert refused == {
        "cpu.max": "EINVAL",
        "cpu.max.burst": "EINVAL",
        "cpu.weight": "ERANGE",
        "cpuset.cpus": "ERANGE",
    }
