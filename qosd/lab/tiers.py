"""The two rules that most loads need, as lines of a configuration."""

from __future__ import annotations

import json


def tiers(be: str = "", ls: tuple[str, ...] = ("ls.slice",)) -> str:
    """`be`: more keys of BE's rule; `ls`: what LS's rule matches."""
    return (
        f'\n[[workload]]\nname = "ls"\ntier = "ls"\nmatch = {json.dumps(ls)}\n'
        f'[[workload]]\nname = "be"\ntier = "be"\nmatch = ["be.slice"]\n{be}\n'
    )
