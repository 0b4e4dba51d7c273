"""What was learned survives a restart, and nothing that happens to the file is more than a cold start."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest
from treekit import FakeSys

from qosd.checkpoint import Loaded, load, save
from qosd.decay import Histogram

Value = dict[str, Histogram]
VALUE: Value = {"ls.slice": Histogram(3_600_000_000, 0.01).add(1.5, 2.0, 7)}


def reload(sys: FakeSys, path: Path) -> Loaded[Value]:
    return load(sys, str(path), 3, Value)


def test_what_was_saved_comes_back_with_its_age(sys: FakeSys, tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    save(sys, str(path), 3, VALUE)
    sys.advance(90)

    assert reload(sys, path)[:2] == (VALUE, 90_000_000)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sys.fds == set()


def test_a_wall_clock_set_back_makes_no_negative_age(sys: FakeSys, tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    save(sys, str(path), 3, VALUE)
    sys.wall_seconds -= 86_400

    assert reload(sys, path).away_usec == 0


def test_an_absent_file_is_a_cold_start(sys: FakeSys, tmp_path: Path) -> None:
    loaded = reload(sys, tmp_path / "learned.json")

    assert loaded.value is None
    assert "does not exist yet; starting cold" in loaded.why


def test_a_file_of_another_version_is_a_cold_start(sys: FakeSys, tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    save(sys, str(path), 2, VALUE)

    assert reload(sys, path) == (None, 0, f"{path} is of version 2, not 3; starting cold")


def test_a_file_cut_at_any_byte_is_whole_or_a_cold_start(sys: FakeSys, tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    save(sys, str(path), 3, VALUE)
    whole = path.read_bytes()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        loaded = reload(sys, path)
        assert loaded.value is None
        assert "\n" not in loaded.why


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\0",
        b"[]",
        b"null",
        b'{"version":3}',
        b"[" * 100_000,
        b'{"version":3,"saved_at":1,"value":7}',
    ],
)
def test_a_damaged_file_is_a_cold_start(sys: FakeSys, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "learned.json"
    path.write_bytes(content)

    assert reload(sys, path).value is None


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_file_that_cannot_be_read_is_a_cold_start(sys: FakeSys, tmp_path: Path, error: int) -> None:
    path = tmp_path / "learned.json"
    save(sys, str(path), 3, VALUE)
    sys.fail(error, "open")

    assert reload(sys, path).value is None


@pytest.mark.parametrize("call", ["write", "rename", "create"])
def test_a_save_that_fails_leaves_the_old_file(sys: FakeSys, tmp_path: Path, call: str) -> None:
    path = tmp_path / "learned.json"
    save(sys, str(path), 3, VALUE)
    sys.fail(errno.ENOSPC, call)

    with pytest.raises(OSError, match="No space"):
        save(sys, str(path), 3, {})

    sys.heal()
    assert reload(sys, path).value == VALUE
    assert sys.fds == set()


def test_a_name_that_was_made_a_link_is_not_followed(sys: FakeSys, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(msgspec.json.encode({"version": 3, "saved_at": 0.0, "value": {}}))
    (tmp_path / "learned.json").symlink_to(target)
    (tmp_path / "learned.json.new").symlink_to(target)

    assert reload(sys, tmp_path / "learned.json").value is None
    with pytest.raises(OSError, match="symbolic link"):
        save(sys, str(tmp_path / "learned.json"), 3, VALUE)
