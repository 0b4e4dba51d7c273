"""What the ladder of answers asks of the governors that own the files. None: nothing is asked. Pure."""

from __future__ import annotations

import msgspec

from qosd.model import CgroupId
from qosd.plan import Reason


class Apart(msgspec.Struct, frozen=True, gc=False):
    """BE is to keep off CPUs."""

    cpus: tuple[int, ...]
    """Those that a victim is bound to."""
    spare: int
    """How many more it is to leave, for victims that may run anywhere."""
    reason: Reason


class Tighten(msgspec.Struct, frozen=True, gc=False):
    """BE workloads that keep LS waiting are to have less."""

    ids: frozenset[CgroupId]
    victims: frozenset[CgroupId]
    hot: bool
    """It was seen again in this tick: only then a step further."""
    quiet: bool
    """Nobody waits through BE any more: a step back may be taken."""
    reason: Reason
