"""One round: bring the host into a mode, run LS and BE together, keep what was seen."""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import control, service, units
from .sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .planned import Mode, Plan

EVIDENCE_SECONDS = 6.0
"""How much longer LS goes on in the round where qosd is asked what it does and why; never counted."""


@contextmanager
def in_mode(mode: Mode, plan: Plan) -> Iterator[None]:
    """The daemon runs in mode qosd alone. Afterwards nothing of the round is left."""
    if mode == "qosd":
        if plan.daemon is None:
            raise RuntimeError("a round with qosd needs the daemon")
        units.command(*plan.daemon.start)
        control.wait_until_enforcing(plan.daemon.socket)
    try:
        yield
    finally:
        service.stop()
        if mode == "frozen":
            freeze(plan, "0")
        units.stop("be-first", "be-second")
        if mode == "qosd" and plan.daemon is not None:
            units.command(*plan.daemon.stop)


def freeze(plan: Plan, value: str) -> None:
    be_slice = os.path.join(units.CGROUPS, plan.be_slice)
    if os.path.exists(be_slice):  # a slice of nothing is not kept
        units.write(be_slice, "cgroup.freeze", value)


def slices(mode: Mode, plan: Plan) -> tuple[str, str]:
    """Without qosd there are no tiers: services and jobs alike are plain units of system.slice."""
    if mode == "uncontrolled":
        return "system.slice", "system.slice"
    return plan.ls_slice, plan.be_slice


def start_batch(name: str, slice_name: str, threads: int, directory: str) -> str:
    """A stress-ng job that counts its own work, and tells it when interrupted."""
    report = os.path.join(directory, f"{name}.yaml")
    argv = ("stress-ng", "--cpu", str(threads), "--cpu-method", "int64", "--metrics", "--yaml", report)
    properties = ("KillSignal=SIGINT", "KillMode=mixed", "TimeoutStopSec=4", "SuccessExitStatus=0 2 3")
    return units.start(name, slice_name, argv, *properties)


def bogo_ops(directory: str) -> int | None:
    """What the jobs of this round say they did; None where one was killed before it could say."""
    total = 0
    for name in ("be-first", "be-second"):
        path = os.path.join(directory, f"{name}.yaml")
        if not os.path.exists(path):
            return None
        with open(path, encoding="utf-8") as file:
            found = [line.split(":")[1] for line in file if line.strip().startswith("bogo-ops:")]
        os.unlink(path)
        if not found:
            return None
        total += sum(int(text) for text in found)
    return total


@dataclasses.dataclass(frozen=True)
class Stage:
    """What all rounds share."""

    plan: Plan
    load: dict[str, float]
    """As calibrated: `loops`, `rate`, `burst_rate`."""
    directory: str

    def rates(self) -> dict[float, float]:
        burst, over = self.plan.timing.burst
        return {0.0: self.load["rate"], burst: self.load["burst_rate"], over: self.load["rate"]}


def play(stage: Stage, mode: Mode, name: str, *, ask: bool = False) -> dict[str, Any]:
    """One round's raw figures; `ask` keeps LS going at its end, until qosd has answered."""
    with in_mode(mode, stage.plan):
        seen = _measure(stage, mode, name, ask=ask)
    # Only now: the jobs say what they did when they are interrupted.
    return {"mode": mode, **seen, "bogo_ops": bogo_ops(stage.directory)}


def _measure(stage: Stage, mode: Mode, name: str, *, ask: bool) -> dict[str, Any]:
    plan = stage.plan
    ls_slice, be_slice = slices(mode, plan)
    ls_cgroups = service.start(ls_slice)
    ls_cgroups.append(os.path.join(units.CGROUPS, ls_slice, f"{units.PREFIX}load.service"))
    sampler = Sampler(plan.be_slice, ls_cgroups)
    sampler.be_cgroups.append(start_batch("be-first", be_slice, 2 * service.cpus(), stage.directory))
    if mode == "frozen":
        freeze(plan, "1")
    generator = service.Load(ls_slice, stage.directory, name)
    seconds = plan.timing.end + (EVIDENCE_SECONDS if ask else 0)
    generator.begin(stage.rates(), seconds, int(stage.load["loops"]), plan.seed)
    began = time.monotonic()
    sampler.start()
    events = churn(stage, sampler, mode, began)
    _sleep_until(began + plan.timing.end + 1)
    answers = ask_qosctl(plan) if ask else None
    generator.wait()
    sampler.stop()
    return {
        "realtime": time.time() - time.monotonic(),
        "decisions": ask_daemon(mode, plan, "decisions") or [],
        "status": ask_daemon(mode, plan, "status"),
        "latency": generator.output,
        "samples": sampler.samples,
        "events": events,
        "answers": answers,
    }


def churn(stage: Stage, sampler: Sampler, mode: Mode, began: float) -> list[dict[str, Any]]:
    """The second batch comes and goes while the first one stays."""
    comes, goes = stage.plan.timing.second_batch
    _, be_slice = slices(mode, stage.plan)
    _sleep_until(began + comes)
    came = time.monotonic()
    sampler.be_cgroups.append(start_batch("be-second", be_slice, service.cpus(), stage.directory))
    _sleep_until(began + goes)
    went = time.monotonic()
    if mode == "frozen":  # systemd 252 thaws the whole slice when it stops one of its units
        return [{"at": came, "what": "a second BE job comes"}]
    units.stop("be-second", wait=False)
    return [{"at": came, "what": "a second BE job comes"}, {"at": went, "what": "it goes"}]


def _sleep_until(deadline: float) -> None:
    time.sleep(max(0.0, deadline - time.monotonic()))


def ask_qosctl(plan: Plan) -> dict[str, str] | None:
    """What qosctl says, while qosd is still at work; None where it cannot be run."""
    if plan.daemon is None:
        return None
    try:
        return {"explain": units.command(*plan.daemon.qosctl, "explain", plan.be_slice)}
    except (OSError, RuntimeError) as error:
        return {"error": str(error)}


def ask_daemon(mode: Mode, plan: Plan, command: str) -> Any | None:  # noqa: ANN401 - JSON
    """Its answer, in the rounds where it runs."""
    return control.ask(plan.daemon.socket, command) if mode == "qosd" and plan.daemon is not None else None
