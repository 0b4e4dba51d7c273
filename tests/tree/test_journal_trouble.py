"""What cannot be put on record is not written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from actkit import HALF, ORIGINAL, THIRD, be_max
from treekit import Loop, text_of

from qosd.journal import FILE
from qosd.model import CpuWeight


def _fail_outside_the_tree(loop: Loop, name: str, error: int):  # noqa: ANN202 - a hook
    def hook(call) -> None:  # noqa: ANN001 - a Call
        if call.name == name and not call.path.startswith(str(loop.root)):
            raise OSError(error, os.strerror(error), call.path)

    return hook


def _snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["create", "write", "rename"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EMFILE], ids=errno.errorcode.get)
def test_without_a_journal_nothing_is_written(loop: Loop, name: str, error: int) -> None:
    """What could not be undone is not done: no throttling at all."""
    loop.sys.hooks.append(_fail_outside_the_tree(loop, name, error))
    before = _snapshot(loop.root)

    _, report = loop.tick(
        loop.want("be.slice", HALF), loop.want("be.slice", CpuWeight(1)), loop.want("ls.slice", HALF)
    )

    assert report.applied == ()
    assert report.journal_error is not None
    assert _snapshot(loop.root) == before
    loop.sys.heal()
    loop.tick(loop.want("be.slice", HALF))
    assert text_of(be_max(loop)) == "50000 100000"


def test_a_journal_that_fills_up_later_stops_new_writes_and_keeps_the_old_undoable(
    loop: Loop,
) -> None:
    loop.tick(loop.want("be.slice", HALF))
    loop.sys.hooks.append(_fail_outside_the_tree(loop, "write", errno.ENOSPC))

    _, report = loop.tick(loop.want("be.slice", THIRD))

    assert report.journal_error is not None
    assert text_of(be_max(loop)) == "50000 100000"
    loop.crash()
    loop.start()
    assert text_of(be_max(loop)) == ORIGINAL


def test_a_journal_removed_behind_our_back_is_written_anew(loop: Loop) -> None:
    """Records in an unlinked file would undo nothing."""
    loop.tick(loop.want("be.slice", HALF))
    (loop.run / FILE).unlink()
    loop.tick(loop.want("be.slice", THIRD))

    loop.crash()
    loop.start()

    assert text_of(be_max(loop)) == ORIGINAL


def test_what_a_failed_restore_left_behind_keeps_its_true_original(loop: Loop) -> None:
    """A start-up that could not undo a leftover must not take it for the host's own value."""
    loop.tick(loop.want("be.slice", HALF))
    loop.crash()
    loop.sys.fail(errno.EBUSY, file="cpu.max")
    loop.start()
    loop.sys.heal()
    loop.tick(loop.want("be.slice", THIRD))

    loop.tick()

    assert text_of(be_max(loop)) == ORIGINAL
