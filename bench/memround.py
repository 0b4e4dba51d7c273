"""One round of bench/memory.py, in the guest: `python3 -m bench.memround SCENE MODE`, its figures as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from bench.memdirect import direct
from bench.mempace import pace
from bench.memscenes import clean, edge, isol, protect, reclaim

SCENES: dict[str, Callable[[str], object]] = {
    "protect": protect,
    "reclaim": reclaim,
    "pace": pace,
    "isol": isol,
    "direct": direct,
    "edge": edge,
}


def main() -> None:
    name, mode = sys.argv[1:]
    print(json.dumps(SCENES[name](mode)))
    clean()


if __name__ == "__main__":
    main()
