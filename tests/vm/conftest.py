"""One boot of each kernel for the whole session, and the package of this tree installed in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm.guest import Guest

from qosd.lab.image import KERNELS
from qosd.lab.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
# Tests patch the guest's kernel all the time (quotas, probes): qosd/lab/hardware.py says what that risks. And two
# guests at a time have a host CPU each.
os.environ.setdefault("QOSD_LAB_TCG", "single")
SHIPPED = ("qosd", "systemd", "etc", "packaging")


@pytest.fixture(scope="session", params=sorted(KERNELS), ids=lambda kernel: f"linux-{kernel}")
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the host that the machines see as /mnt/share."""
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="session")
def machine(kernel: str, share: Path) -> Iterator[Machine]:
    with Machine.boot(kernel=kernel, share=share, nics=2) as booted:
        yield booted


@pytest.fixture(scope="session")
def deb(share: Path) -> Path:
    """The package of this tree, which `make test` built just now, as /mnt/share/qosd.deb."""
    built = sorted((ROOT / "dist").glob("qosd_*.deb"))
    sources = [path for name in SHIPPED for path in (ROOT / name).rglob("*") if path.suffix != ".o"]
    newest = max(
        path.stat().st_mtime for path in sources if path.is_file() and "__pycache__" not in path.parts
    )
    assert built, "dist has no package: make deb"
    assert built[-1].stat().st_mtime > newest, f"{built[-1].name} is older than the tree: make deb"
    return Path(shutil.copy(built[-1], share / "qosd.deb"))


@pytest.fixture(scope="session")
def installed(machine: Machine, deb: Path) -> Guest:
    guest = Guest(machine)
    guest.install(deb.name)
    return guest


@pytest.fixture(scope="module")
def tidied(installed: Guest) -> Iterator[Guest]:
    """What the tests of a module did is undone before other modules see the machine."""
    yield installed
    installed.reset()


@pytest.fixture
def idle(tidied: Guest) -> Guest:
    """The guest with the package at its defaults and the daemon stopped; nothing of the last test is left."""
    tidied.reset()
    return tidied


@pytest.fixture
def guest(idle: Guest) -> Guest:
    """The same with the daemon running."""
    idle.sh("systemctl start qosd")
    return idle
