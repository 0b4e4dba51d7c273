"""What was learned comes back after a restart of the daemon, and costs nothing where it is not wanted."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
from treekit import Box

from qosd.config import Config, decode
from qosd.learned import PREDICTION, Learned

PREDICTED = decode('[cpu.bandwidth]\nestimate = "predicted"')
FILE = PREDICTION.file
BUSY = {"ls": 1.0, "be": 2.0}


def box_with(directory: Path, config: Config) -> Box:
    directory.mkdir(exist_ok=True)
    return Box(directory, config)


def test_a_restart_goes_on_with_what_was_known(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    first = box_with(tmp_path / "first", PREDICTED)
    first.settle(40, **BUSY)
    Learned(first.sys, str(state), first.engine, PREDICTION).save()
    known = first.engine.learned["ls.slice"]

    second = box_with(tmp_path / "second", PREDICTED)
    second.sys.wall_seconds = first.sys.wall_seconds + 60
    Learned(second.sys, str(state), second.engine, PREDICTION).recall()

    assert second.engine.learned["ls.slice"].quantile(0.95) == known.quantile(0.95)
    status = second.settle(4, **BUSY)
    reason = status.tiers["be"].reason
    assert reason is not None
    assert "of 120 s learned" in reason.text
    assert second.engine.learned["ls.slice"].total(second.sys.monotonic_usec) > 35
    first.close()
    second.close()


def test_it_is_saved_when_it_is_due_and_not_before(tmp_path: Path) -> None:
    box = box_with(
        tmp_path / "box", decode('[cpu.bandwidth]\nestimate = "predicted"\n[prediction]\ncheckpoint = "30s"')
    )
    learned = Learned(box.sys, str(tmp_path), box.engine, PREDICTION)
    saved = []
    for _ in range(70):
        box.tick(1, **BUSY)
        learned.save_if_due()
        saved.append((tmp_path / FILE).exists() and (tmp_path / FILE).stat().st_ino)

    assert saved[28] is False
    assert len({inode for inode in saved if inode}) == 2
    box.close()


@pytest.mark.parametrize("directory", [None, "state"])
def test_without_the_prediction_nothing_is_read_or_written(tmp_path: Path, directory: str | None) -> None:
    box = box_with(tmp_path / "box", Config())
    learned = Learned(box.sys, directory and str(tmp_path), box.engine, PREDICTION)
    learned.recall()
    box.settle(**BUSY)
    learned.save()

    assert not (tmp_path / FILE).exists()
    assert box.engine.learned == {}
    box.close()


def test_a_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = box_with(tmp_path / "box", PREDICTED)
    learned = Learned(box.sys, str(tmp_path), box.engine, PREDICTION)
    box.settle(**BUSY)
    box.sys.fail(errno.EROFS, "create")

    with caplog.at_level(logging.INFO):
        for _ in range(5):
            learned.save()

    assert caplog.text.count("not saved") == 1
    box.close()


def test_a_damaged_file_is_one_line_and_a_cold_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(b'{"version":1,"saved_at":0,"value":{"ls.slice":{"half_life_usec":-4}}}')
    box = box_with(tmp_path / "box", PREDICTED)

    with caplog.at_level(logging.INFO):
        Learned(box.sys, str(tmp_path), box.engine, PREDICTION).recall()

    assert len(caplog.records) == 1
    assert "starting cold" in caplog.text
    box.settle(**BUSY)
    box.close()


def test_unknown_use_and_a_suspend_do_not_cost_what_was_learned(tmp_path: Path) -> None:
    box = box_with(tmp_path / "box", PREDICTED)
    box.settle(20, **BUSY)
    known = box.engine.learned["ls.slice"].total(box.sys.monotonic_usec)

    box.sys.advance(1, suspended=7200)
    box.engine.tick()
    stat = box.proc / "stat"
    whole = stat.read_bytes()
    for _ in range(40):
        stat.write_bytes(b"cpu  x\n")
        box.sys.advance(1)
        box.engine.tick()
    stat.write_bytes(whole)

    assert box.engine.learned["ls.slice"].total(box.sys.monotonic_usec) > known * 0.9
    box.close()
