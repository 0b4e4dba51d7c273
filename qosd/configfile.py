"""Read the configuration file, once it is certain that only root could have written it."""

from __future__ import annotations

import os
import stat

from qosd.clock import is_known, knows_none
from qosd.config import Config, decode
from qosd.errors import ConfigError


def read_config(path: str) -> Config:
    """Raises `ConfigError` naming the file and what to do."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise ConfigError(f"{path}: not a regular file")
    with open(fd, "rb") as file:
        if info.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"{path}: owned by uid {info.st_uid}; whoever owns it commands qosd: chown root {path}"
            )
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"{path}: mode {info.st_mode & 0o7777:04o} lets others write: chmod go-w {path}"
            )
        data = file.read()
    try:
        return _with_known_zones(decode(data.decode()))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _with_known_zones(config: Config) -> Config:
    """The one thing of the configuration that only the host can tell."""
    for index, window in enumerate(config.window):
        if not is_known(window.zone):
            raise ConfigError(
                f"window[{index}].zone: this host knows no time zone {window.zone!r}"
                + (
                    ' nor any other: apt install tzdata, or "localtime"'
                    if knows_none()
                    else '; an IANA name such as "Europe/Paris", or "localtime"'
                )
            )
    return config
