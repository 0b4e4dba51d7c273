"""What `qosctl status` says of the time between two ticks."""

from __future__ import annotations

from qosd.reflex import ReflexStatus

_FEW = 3


def line(reflex: ReflexStatus, interval_ms: int) -> str:
    """How a breach is found, and what came of those that were."""
    return "; ".join([_found(reflex, interval_ms), *_done(reflex)])


def _found(reflex: ReflexStatus, interval_ms: int) -> str:
    why = [f"{path}: {said}" if path else said for path, said in reflex.why_not.items()]
    without = ", ".join([*why[:_FEW], *([f"{len(why) - _FEW} more"] if len(why) > _FEW else [])])
    if reflex.detection == "poll":
        return f"only looked for at each tick, every {interval_ms / 1000:g} s ({without})"
    first = next(iter(reflex.armed.items()))
    others = f" and {len(reflex.armed) - 1} more" if len(reflex.armed) > 1 else ""
    return f"the kernel reports {first[0]} waiting {first[1]}{others}" + (f", not {without}" if why else "")


def _done(reflex: ReflexStatus) -> list[str]:
    done = [
        f"{source} {outcome} {count}"
        for source, outcomes in reflex.reactions.items()
        for outcome, count in outcomes.items()
    ]
    return done + ([f"BE is squeezed to {reflex.squeeze:.0%} of its allowance"] if reflex.squeeze < 1 else [])
