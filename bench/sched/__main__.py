"""LS tail latency and BE work under static modes, peers' laws and qosd, on this machine's own scheduler.

Interleaved rounds: within a round every mode meets the same arrivals, in an order that is shuffled and, in
the next round, reversed. A segment with steal over 2 % or a machine that others keep busy is run again, and
left out of its round when that does not help.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time

from bench.sched import follow, installed, report, segment
from bench.sched.groups import Groups
from bench.sched.load import Load, Programs, build, calibrated
from bench.sched.modes import STANDARD, Mode, parse
from bench.sched.report import Round
from bench.sched.segment import Experiment, Outcome

_STEAL_PCT = 2.0
_PROBE_SEC = 0.5


def shape(kind: str, pct: float) -> str:
    """MS:PCT with a mean of `pct`, repeating every 1 s (bursty), 4 s (stepping) or 10 s (square)."""
    match kind:
        case "steady":
            return f"1000:{pct:g}"
        case "bursty":
            high = min(3 * pct, 95.0)
            return f"800:{(5 * pct - high) / 4:g},200:{high:g}"
        case "stepping":
            high = min(1.5 * pct, 95.0)
            return f"2000:{2 * pct - high:g},2000:{high:g}"
        case "square":
            high = min(1.5 * pct, 95.0)
            return f"5000:{2 * pct - high:g},5000:{high:g}"
        case _:
            raise SystemExit(f"unknown shape {kind!r}")


_IN_THE_GUEST = {
    "loads": "30,60",
    "modes": "frozen idle uncontrolled qosd qosd:enforce=max",
    "rounds": 5,
    # Four times the work natively: an emulated CPU is slower at what the kernel does for a request.
    "work": 2000,
    "slo": 8000,
    "others": 25.0,
}
"""What differs there."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.sched", description=__doc__)
    parser.add_argument("--loads", default="30", help="LS load in per cent of the machine, comma-separated")
    parser.add_argument("--shapes", default="steady", help="steady, bursty, stepping, square")
    parser.add_argument("--modes", default=" ".join(STANDARD), help="space-separated, as name:key=value,...")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured, of each segment")
    parser.add_argument("--warmup", type=float, default=2.0, help="dropped, of each segment")
    parser.add_argument("--work", type=int, default=500, help="microseconds of CPU a request")
    parser.add_argument("--workers", type=int, default=0, help="LS threads; one a CPU")
    parser.add_argument("--hogs", type=int, default=0, help="BE threads; two a CPU")
    parser.add_argument("--slo", type=int, default=2000, help="microseconds")
    parser.add_argument(
        "--others", type=float, default=8.0, help="per cent of the machine: more is no quiet round"
    )
    parser.add_argument("--retries", type=int, default=3, help="of a disturbed segment")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--reference", default="qosd", help="the mode that the others are compared with")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument(
        "--follow", type=float, default=0.0, metavar="SEC", help="look so often at how the limit follows"
    )
    parser.add_argument("--installed", action="store_true", help=argparse.SUPPRESS)
    vm = parser.add_argument_group("in the lab's guest")
    vm.add_argument("--vm", action="store_true", help="there instead, with defaults of its own")
    vm.add_argument("--kernel", default="6.12")
    vm.add_argument("--smp", default="1", help="its CPUs; several with --icount= on a machine with as many")
    vm.add_argument("--icount", default="shift=1", help="QEMU's -icount: its time goes by its instructions")
    if "--vm" in sys.argv:
        parser.set_defaults(**_IN_THE_GUEST)
    return parser.parse_args()


_PASSED = (
    "loads", "shapes", "modes", "rounds", "seconds", "warmup", "work", "workers", "hogs", "slo", "others",
    "retries", "patience", "reference", "seed", "follow",
)  # fmt: skip


def _in_the_guest(args: argparse.Namespace) -> int:
    from bench.sched import guest  # noqa: PLC0415 - the lab is not in the package, which is all that the guest has

    arguments = [f"--{name}={getattr(args, name)}" for name in _PASSED]
    results = {f"--{name}": getattr(args, name) for name in ("json", "markdown") if getattr(args, name)}
    guest.measure(args.kernel, args.smp, args.icount or None, arguments, results)
    return 0


class Bench:
    def __init__(self, args: argparse.Namespace, programs: Programs, groups: Groups) -> None:
        self._args = args
        self._programs = programs
        self._groups = groups
        self._nr_cpus = len(os.sched_getaffinity(0))
        self._modes = [parse(label, self._nr_cpus, installed=args.installed) for label in args.modes.split()]
        self.stopped = False
        """By a signal: what was measured is still reported."""
        self.labels = [mode.label for mode in self._modes]

    def rounds(self, kind: str, pct: float) -> list[Round]:
        chance = random.Random(self._args.seed)  # noqa: S311 - an order, not a secret
        order = list(self._modes)
        good: list[Round] = []
        for number in range(self._args.rounds):
            if number % 2:
                order.reverse()
            else:
                chance.shuffle(order)
            try:
                one = self._round(order, kind, pct, number)
            except KeyboardInterrupt:
                self.stopped = True
                return good
            if one:
                good.append(one)
        return good

    def _round(self, order: list[Mode], kind: str, pct: float, number: int) -> Round:
        """Every mode once; a mode that was disturbed again and again is missing from it."""
        args = self._args
        load = Load(
            shape(kind, pct),
            round((args.warmup + args.seconds) * 1000),
            args.workers or self._nr_cpus,
            args.seed * 1000 + number,
            self._nr_cpus,
            args.work,
        )
        hogs = args.hogs or 2 * self._nr_cpus
        experiment = Experiment(load, args.warmup, args.slo, hogs, args.follow)
        result: Round = {}
        for mode in order:
            outcome = self._quiet(mode, experiment)
            if outcome is not None:
                result[mode.label] = outcome
        p99 = "  ".join(f"{label} {one.p99:.2f}/{one.kept_pct:.0f}" for label, one in result.items())
        _say(f"{kind} {pct:g} % round {number + 1}/{args.rounds} (p99 ms/BE kept %): {p99}")
        return result

    def _quiet(self, mode: Mode, experiment: Experiment) -> Outcome | None:
        """A segment that nobody disturbed, or None."""
        for _ in range(self._args.retries + 1):
            self._await_quiet()
            found = segment.run(self._programs, self._groups, mode, experiment)
            outcome = found.outcome
            if found.points:
                print(follow.text(found, experiment), flush=True)
            if outcome.steal_pct <= _STEAL_PCT and outcome.system_pct <= self._args.others:
                return outcome
            _say(f"  {mode.label}: steal {outcome.steal_pct:.1f} %, others {outcome.system_pct:.1f} %: again")
        return None

    def _await_quiet(self) -> None:
        """Wait until others leave the machine alone, but not for ever: then the segment itself tells."""
        deadline = time.monotonic() + self._args.patience
        while time.monotonic() < deadline and segment.busy_pct(_PROBE_SEC) > self._args.others:
            continue


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _stop(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    args = _arguments()
    if args.vm:
        return _in_the_guest(args)
    if os.geteuid() != 0:
        raise SystemExit("bench.sched makes cgroups of its own and needs root")
    signal.signal(signal.SIGTERM, _stop)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="qosd-bench-"))
        if args.installed:
            shutil.copytree("loads", directory, dirs_exist_ok=True)
            groups = stack.enter_context(installed.slices())
        else:
            build(directory)
            groups = Groups()
            stack.callback(groups.remove)
        return _measure(args, Bench(args, calibrated(directory), groups), groups.hierarchy)


def _measure(args: argparse.Namespace, bench: Bench, hierarchy: str) -> int:
    machine = f"{os.cpu_count()} CPUs, Linux {platform.release()}, {hierarchy}"
    results, texts = [], []
    for kind, pct in itertools.product(args.shapes.split(","), map(float, args.loads.split(","))):
        rounds = bench.rounds(kind, pct) if not bench.stopped else []
        if not rounds:
            print(f"LS {pct:g} % {kind}: no undisturbed round")
            continue
        reference = args.reference if args.reference in bench.labels else None
        table = report.rows(rounds, bench.labels, reference)
        title = f"LS {pct:g} % {kind}, {len(rounds)} rounds of {args.seconds:g} s, {machine}"
        print(f"\n{title}\n{report.plain(table)}", flush=True)
        texts.append(f"### {title}\n\n{report.markdown(table)}\n")
        outcomes = [{label: dataclasses.asdict(o) for label, o in one.items()} for one in rounds]
        results.append({"shape": kind, "load_pct": pct, "machine": machine, "rounds": outcomes})
    _save(args, results, texts)
    return 0 if results else 1


def _save(args: argparse.Namespace, results: list[dict[str, object]], texts: list[str]) -> None:
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    if args.markdown:
        with open(args.markdown, "w", encoding="utf-8") as file:
            file.write("\n".join(texts))


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
