"""Somebody else writes the same file: their choice stands, and no war is fought."""

from __future__ import annotations

from actkit import HALF, ORIGINAL, THIRD, be_max, key, on_file
from treekit import Loop, text_of

from qosd.config import OnForeignWrite, Ownership
from qosd.plan import Standing


def test_a_third_value_is_somebodys_choice_and_we_yield_to_it(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).write_text("70000 100000\n")

    plan, report = loop.tick(want)

    assert plan.states == {key(loop): Standing.YIELDED}
    assert report.applied == ()
    assert on_file(loop) == {}


def test_their_next_value_is_theirs_as_well(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).write_text("70000 100000\n")
    loop.tick(want)
    be_max(loop).write_text("80000 100000\n")

    plan, _ = loop.tick(want)

    assert plan.states == {key(loop): Standing.YIELDED}
    assert text_of(be_max(loop)) == "80000 100000"


def test_we_act_again_once_the_file_is_back_at_what_we_first_found(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).write_text("70000 100000\n")
    loop.tick(want)
    be_max(loop).write_text(ORIGINAL + "\n")

    loop.tick(want)
    assert text_of(be_max(loop)) == "50000 100000"
    loop.tick()
    assert text_of(be_max(loop)) == ORIGINAL


def test_a_yield_outlives_a_pause_of_our_wish(loop: Loop) -> None:
    """A governor that wants nothing for one tick must not turn their choice into our next original."""
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).write_text("70000 100000\n")
    loop.tick(want)
    loop.tick()

    plan, _ = loop.tick(want)

    assert plan.states == {key(loop): Standing.YIELDED}
    assert text_of(be_max(loop)) == "70000 100000"


def test_told_to_reassert_we_write_over_a_third_value_and_restore_the_first(loop: Loop) -> None:
    loop.ownership = Ownership(on_foreign_write=OnForeignWrite.REASSERT)
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).write_text("70000 100000\n")

    loop.tick(want)
    assert text_of(be_max(loop)) == "50000 100000"
    loop.tick()
    assert text_of(be_max(loop)) == ORIGINAL


def test_after_as_many_fights_as_configured_we_keep_off_for_a_while(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    standings = []
    for _ in range(3):
        be_max(loop).write_text(ORIGINAL + "\n")
        plan, _ = loop.tick(want)
        standings.append(plan.states[key(loop)])

    assert standings == [Standing.WRITING, Standing.WRITING, Standing.CONTESTED]
    assert text_of(be_max(loop)) == ORIGINAL
    loop.sys.advance(loop.ownership.contested_hold / 1e6)
    plan, _ = loop.tick(want)
    assert plan.states == {key(loop): Standing.WRITING}


def test_fights_further_apart_than_the_window_are_no_war(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    for _ in range(10):
        loop.sys.advance(loop.ownership.contested_window / 2e6)
        be_max(loop).write_text(ORIGINAL + "\n")
        plan, _ = loop.tick(want)
        assert plan.states == {key(loop): Standing.WRITING}


def test_a_systemd_reload_is_no_fight(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    for _ in range(10):
        be_max(loop).write_text(ORIGINAL + "\n")
        plan, _ = loop.tick(want, reloaded=True)
        assert plan.states == {key(loop): Standing.WRITING}
    assert text_of(be_max(loop)) == "50000 100000"


def test_a_reassertion_is_marked_as_one(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    first, _ = loop.tick(want)
    be_max(loop).write_text(ORIGINAL + "\n")
    second, _ = loop.tick(want, reloaded=True)
    third, _ = loop.tick(loop.want("be.slice", THIRD))

    assert [plan.writes[0].reassert for plan in (first, second, third)] == [False, True, False]


def test_a_file_we_yielded_is_not_restored(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).write_text("70000 100000\n")
    loop.tick(want)

    loop.tick()
    loop.crash()
    loop.start()

    assert text_of(be_max(loop)) == "70000 100000"
