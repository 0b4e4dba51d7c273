"""The file itself: whose it is, who may write it, and what it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from configkit import SHIPPED, WINDOW

from qosd.config import (
    Config,
)
from qosd.configfile import read_config
from qosd.errors import ConfigError


def shipped_copy(directory: Path) -> Path:
    path = directory / "qosd.toml"
    path.write_bytes(SHIPPED.read_bytes())
    path.chmod(0o644)
    return path


def test_a_time_zone_that_this_host_does_not_know_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "qosd.toml"
    path.write_text(WINDOW + 'zone = "Europe/Pari"')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"window\[0\]\.zone: this host knows no time zone 'Europe/Pari'"):
        read_config(str(path))
    path.write_text(WINDOW + 'zone = "Europe/Paris"')
    assert read_config(str(path)).window[0].zone == "Europe/Paris"


def test_a_host_without_any_time_zone_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoneinfo.available_timezones", set)
    path = tmp_path / "qosd.toml"
    path.write_text(WINDOW + 'zone = "Europe/Pari"')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="nor any other: apt install tzdata"):
        read_config(str(path))


def test_a_file_only_root_can_write_is_read(tmp_path: Path) -> None:
    assert read_config(str(shipped_copy(tmp_path))) == Config()


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = shipped_copy(tmp_path)
    path.chmod(mode)

    with pytest.raises(ConfigError, match=r"chmod go-w"):
        read_config(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = shipped_copy(tmp_path)
    os.chown(path, 65534, 65534)

    with pytest.raises(ConfigError, match=r"chown root"):
        read_config(str(path))


def test_a_fifo_in_its_place_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "qosd.toml"
    os.mkfifo(path)

    with pytest.raises(ConfigError, match=r"not a regular file"):
        read_config(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        read_config(str(tmp_path / "nowhere.toml"))


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a regular file"):
        read_config(str(tmp_path))


def test_bytes_that_are_no_text_are_refused_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "qosd.toml"
    path.write_bytes(b"mode = '\xff'")

    with pytest.raises(ConfigError, match=r"qosd\.toml: not UTF-8"):
        read_config(str(path))


def test_a_half_written_file_is_refused_or_means_something_valid(tmp_path: Path) -> None:
    """An editor that is not done yet: whatever prefix is there, never a traceback."""
    whole = SHIPPED.read_bytes()
    path = tmp_path / "qosd.toml"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with contextlib.suppress(ConfigError):
            read_config(str(path))
