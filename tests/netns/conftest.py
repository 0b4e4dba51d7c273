from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from netns import lab as lab_module

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lab() -> Iterator[lab_module.Lab]:
    reason = lab_module.missing()
    if reason is not None:
        pytest.skip(reason)
    lab = lab_module.Lab()
    try:
        yield lab
    finally:
        lab.close()
