"""The daemon's own pages stay in memory, so that it can act when there is none.

MemoryMin= keeps what is charged to its cgroup. The interpreter and the libraries are charged to whoever read
them first, and go with the page cache just when qosd is to say whose fault that is. Its journal and its
configuration are read at the start; what a decision needs is its own pages.
"""

from __future__ import annotations

import ctypes
import os
import resource

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # linux/mman.h


def lock() -> str | None:
    """Why it could not be done; None if it was.

    MCL_ONFAULT: what is never touched costs nothing. A limit counts it all the same, and once it is reached
    mmap(2) fails, so nothing is locked under one.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY:
        return f"RLIMIT_MEMLOCK is {limit} bytes, which the unit has as LimitMEMLOCK=infinity"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        return f"mlockall: {os.strerror(ctypes.get_errno())}"
    return None
