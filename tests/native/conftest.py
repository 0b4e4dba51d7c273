from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from treekit import BOOT

from qosd.config import Config, WorkloadRule
from qosd.engine import Engine
from qosd.host import probe_host
from qosd.journal import Journal
from qosd.model import Tier
from qosd.sense import HostFiles
from qosd.sys import DIRECTORY, Sys


def remove(parent_fd: int, name: str) -> None:
    """A cgroup and all below it, however deep: by dirfd, since the path may be longer than PATH_MAX."""
    fds = [parent_fd]
    names = [name]
    while names:
        fd = os.open(names[-1], DIRECTORY, dir_fd=fds[-1])
        with os.scandir(fd) as entries:
            child = next((entry.name for entry in entries if entry.is_dir()), None)
        if child is not None:
            fds.append(fd)
            names.append(child)
            continue
        os.close(fd)
        os.rmdir(names.pop(), dir_fd=fds[-1])
        if names:
            os.close(fds.pop())


def engine_for(group: Path, run: Path, config: Config) -> Engine:
    """The real engine over the group's children `ls` and `be`."""
    rules = (
        WorkloadRule(name="ls", tier=Tier.LS, match=("ls",)),
        WorkloadRule(name="be", tier=Tier.BE, match=("be",)),
    )
    sys, root = Sys(), os.open(group, DIRECTORY)
    config = msgspec.structs.replace(config, workload=rules)
    return Engine(sys, root, config, Journal(sys, str(run), BOOT), None, HostFiles(sys, "/proc", "/sys"))


@pytest.fixture
def group() -> Iterator[Path]:
    """An empty cgroup of our own on this machine's cgroup2 mount."""
    root = probe_host().cgroup_root
    if root is None:
        pytest.skip("no cgroup2 is mounted here")
    if os.geteuid() != 0:
        pytest.skip("only root can make cgroups below the root")
    path = Path(root) / f"qosd-test-{os.getpid()}"
    path.mkdir()
    yield path
    fd = os.open(root, DIRECTORY)
    remove(fd, path.name)
    os.close(fd)
