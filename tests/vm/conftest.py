"""One boot of each kernel for the whole session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qosd.lab.image import KERNELS
from qosd.lab.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
