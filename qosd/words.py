"""Words that all values of a tick are made of. Standard library only."""

from __future__ import annotations

import enum
from typing import NewType

CgroupId = NewType("CgroupId", int)
"""A cgroup's inode number: its identity. The path is only a label, and may come back as another cgroup."""


class Max(enum.Enum):
    """The kernel's word for "no limit"."""

    MAX = "max"


MAX = Max.MAX
