"""`python -m qosd.lab.demo`: every step of `make demo`, from the tools it needs to the table."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from rich.console import Console

from qosd.lab.demo import neighbours, report, results, table, target
from qosd.lab.demo.steps import StepError, Steps, run
from qosd.lab.scenario.planned import MODES, Daemon, Plan, alternating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qosd.lab.scenario.planned import Mode

SOURCE = Path(__file__).parents[1] / "load" / "openloop.c"
SLO_IN_REQUESTS = 10
"""The SLO, unless given: ten times the CPU time of one request. Chosen before anything is measured."""


class Options(NamedTuple):
    host: bool
    modes: tuple[Mode, ...]
    rounds: int
    kernel: str
    slo_ms: float | None
    output: Path
    json_file: Path | None
    openloop: Path | None
    deb: Path | None

    @property
    def raw(self) -> Path:
        return self.output / "raw"


def build_load(steps: Steps, options: Options) -> Path:
    """Static, so that it runs in any target whatever C library that has."""
    if options.openloop is not None:
        return options.openloop
    binary = options.output / "openloop"
    with steps.step("building the load generator"):
        run([str(target.ROOT / "packaging/bootstrap"), "demo"], options.output / "log.txt")
        run(
            ["gcc", "-O2", "-Wall", "-static", "-o", str(binary), str(SOURCE), "-lm"],
            options.output / "log.txt",
        )
    return binary


def build_deb(steps: Steps, options: Options) -> Path:
    if options.deb is not None:
        return options.deb
    with steps.step("building the .deb"):
        run(["make", "-C", str(target.ROOT), "-o", ".venv/stamp", "deb"], options.output / "log.txt")
    packages = sorted((target.ROOT / "dist").glob("qosd_*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        raise StepError("`make deb` left no dist/qosd_*.deb")
    return packages[-1]


def in_guest(steps: Steps, options: Options) -> Iterator[dict[str, Any]]:
    """Build, boot, install, play; what the scenario says is given on."""
    from qosd.lab.image import ensure_image  # noqa: PLC0415 - `make demo HOST=1` needs no lab
    from qosd.lab.machine import Machine  # noqa: PLC0415

    with steps.step("installing what the lab needs"):
        run([str(target.ROOT / "packaging/bootstrap"), "lab"], options.output / "log.txt")
    openloop = build_load(steps, options)
    deb = build_deb(steps, options) if needs_package(options) else None
    with steps.step("the lab's image (built once, then cached)"):
        ensure_image()
    with tempfile.TemporaryDirectory(prefix="qosd-demo-") as name, contextlib.ExitStack() as stack:
        share = Path(name)
        with steps.step(f"booting Debian with Linux {options.kernel}"):
            machine = stack.enter_context(
                Machine.boot(kernel=options.kernel, share=share, memory="3G", smp="2")
            )
        guest = target.Guest(machine, share)
        if deb is not None:
            with steps.step(f"apt install ./{deb.name} in the guest"):
                guest.install(deb)
        plan = make_plan(
            options, guest.daemon() if "qosd" in options.modes else None, installed=deb is not None
        )
        yield from play(guest, share / "demo", openloop, plan, options)


def on_host(steps: Steps, options: Options) -> Iterator[dict[str, Any]]:
    refusals = target.host_refusals()
    if refusals:
        raise StepError("this host cannot run the demo itself:\n  " + "\n  ".join(refusals))
    openloop = build_load(steps, options)
    with tempfile.TemporaryDirectory(prefix="qosd-demo-") as name:
        directory = Path(name)
        daemon = target.host_daemon(directory) if "qosd" in options.modes else None
        plan = make_plan(options, daemon, installed=False)
        yield from play(target.Host(), directory / "demo", openloop, plan, options)


def needs_package(options: Options) -> bool:
    """Without qosd there is no need for it: the demo brings the shipped slices under names of its own."""
    return "qosd" in options.modes


def make_plan(options: Options, daemon: Daemon | None, *, installed: bool) -> Plan:
    """With the package the shipped slices are there; else the demo brings the same under other names."""
    rounds = alternating(options.modes, options.rounds)
    if installed:
        return Plan(rounds=rounds, daemon=daemon)
    return Plan(
        rounds=rounds,
        daemon=daemon,
        ls_slice=target.LS_SLICE,
        be_slice=target.BE_SLICE,
        slices=target.host_slices(),
    )


def play(
    where: target.Target, directory: Path, openloop: Path, plan: Plan, options: Options
) -> Iterator[dict[str, Any]]:
    """The scenario, and then its raw figures out of the target."""
    directory.mkdir()
    target.prepare(directory, openloop, plan)
    watched: dict[str, float] = {}
    yield from watch(target.play(where, directory), watched)
    (directory / "neighbours.json").write_text(json.dumps({} if options.host else watched))
    if options.raw.exists():
        shutil.rmtree(options.raw)
    shutil.copytree(directory, options.raw, ignore=shutil.ignore_patterns("openloop", "scenario"))


def watch(events: Iterator[dict[str, Any]], shares: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Keep for every round what others took of the machine meanwhile."""
    name, before = "", neighbours.look()
    for event in events:
        after = neighbours.look()
        if name:
            shares[name] = neighbours.others(before, after, os.cpu_count() or 1)
        name, before = (f"{event['number']}-{event['mode']}" if event["what"] == "round" else ""), after
        yield event


def show(steps: Steps, events: Iterator[dict[str, Any]], options: Options) -> None:
    """Show the scenario's words as progress. The steps before it are shown by themselves."""
    total = len(options.modes) * options.rounds + 2
    first = next(events)
    with steps.step("calibrating the LS load", total=total) as step:
        done = 0
        for event in itertools.chain([first], events):
            if event["what"] == "calibrated":
                step.now(f"LS: {event['rate']:.0f} requests/s", done)
            if event["what"] == "round":
                done += 1
                number = f"round {event['number']}/{options.rounds}" if event["number"] else "warm-up"
                step.now(f"{number}: {event['mode']}", done)
        step.now(f"{done} rounds played", total)


def demonstrate(steps: Steps, options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "log.txt").unlink(missing_ok=True)
    show(steps, on_host(steps, options) if options.host else in_guest(steps, options), options)
    plan = Plan.read(str(options.raw / "plan.json"))
    result = results.read(options.raw, plan, options.slo_ms or SLO_IN_REQUESTS * plan.request_ms)
    page = options.output / "report.html"
    page.write_text(report.render(result), encoding="utf-8")
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(results.as_json(result), indent=1) + "\n")
    finish(steps, result, page)


def finish(steps: Steps, result: results.Result, page: Path) -> None:
    console = steps.console
    console.print()
    console.print(table.build(result))
    for mode in result.modes:
        console.print(f"  {mode:12} {table.MEANINGS[mode]}", style="dim", highlight=False)
    console.print()
    for sentence in table.sentences(result):
        console.print(sentence, highlight=False)
    for warning in report.disturbances(result):
        console.print(f"Note: {warning}", style="yellow", highlight=False)
    console.print(f"\nReport: {page.resolve().as_uri()}   ({steps.elapsed:.0f} s in all)", highlight=False)


def _modes(_context: click.Context, _option: click.Parameter, value: str) -> tuple[Mode, ...]:
    wanted = value.split(",")
    for word in wanted:
        if word not in MODES:
            raise click.BadParameter(f"unknown mode {word!r}; known: {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in wanted)


@click.command()
@click.option("--host", is_flag=True, help="On this host itself instead of in the lab's guest.")
@click.option("--modes", callback=_modes, default=",".join(MODES), show_default=True)
@click.option("--rounds", type=click.IntRange(1, 50), default=3, show_default=True)
@click.option("--kernel", default="6.12", show_default=True, help="The guest's kernel.")
@click.option(
    "--slo-ms", type=click.FloatRange(0, min_open=True), help="Default: 10 times one request's CPU time."
)
@click.option(
    "--openloop", type=click.Path(path_type=Path, exists=True), help="The load generator, built before."
)
@click.option("--deb", type=click.Path(path_type=Path, exists=True), help="The package, built before.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there as JSON, too."
)
def main(**given: Any) -> None:  # noqa: ANN401 - click has checked them
    """Show what qosd does to a latency-sensitive service and best-effort jobs on one host."""
    steps = Steps(Console())
    try:
        demonstrate(steps, Options(**given))
    except StepError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
