"""One boot of each kernel for the whole session, and the package of this tree installed in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm.guest import Guest

from qosd.lab.image import KERNELS
from qosd.lab.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
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
    with Machine.boot(kernel=kernel, share=share) as booted:
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


@pytest.fixture
def guest(installed: Guest) -> Iterator[Guest]:
    """The guest with the package at its defaults and the daemon running; what a test did is undone after."""
    installed.reset()
    installed.sh("systemctl start qosd")
    yield installed
    installed.reset()
