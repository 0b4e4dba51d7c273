"""`qosctl simulate`: the governors against the model of a host in `qosd.simulate`."""

from __future__ import annotations

from typing import NamedTuple

import click
import msgspec

from qosd.beside import beside
from qosd.configfile import read_config
from qosd.ctl import exits
from qosd.ctl.options import print_json
from qosd.errors import ConfigError
from qosd.simulate import SCENARIOS, Result, Scenario, run


class Asked(NamedTuple):
    config: str
    duration_usec: int | None
    static: bool
    """The static modes too."""


def show(name: str | None, asked: Asked, *, json: bool) -> None:
    if name is None:
        _list(json=json)
        return
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise exits.Failure(f"no scenario {name!r}; there are: {', '.join(SCENARIOS)}", exits.NO)
    if asked.duration_usec is not None:
        scenario = msgspec.structs.replace(scenario, seconds=asked.duration_usec / 1e6)
    try:
        config = read_config(asked.config)
    except ConfigError as error:
        raise exits.Failure(str(error), exits.REFUSED_CONFIG) from None
    if asked.static:
        _beside(beside(scenario, config), json=json)
        return
    result = run(scenario, config)
    if json:
        print_json(msgspec.json.encode(msgspec.structs.replace(result, trace=())))
        return
    for line in lines(result):
        click.echo(line)


def _beside(results: dict[str, Result], *, json: bool) -> None:
    if json:
        short = {name: msgspec.structs.replace(result, trace=()) for name, result in results.items()}
        print_json(msgspec.json.encode(short))
        return
    click.echo(f"{'':<24} {'LS waited, p99 ms':>18} {'mean ms':>10} {'BE % of CPUs':>14} {'writes/min':>11}")
    for name, result in results.items():
        click.echo(
            f"{name:<24} {result.ls_delay_p99_ms:18.2f} {result.ls_delay_ms:10.2f} {result.be_pct:14.1f}"
            f" {result.limit_writes_per_minute:11.2f}"
        )


def _list(*, json: bool) -> None:
    if json:
        print_json(msgspec.json.encode(SCENARIOS))
        return
    for name, scenario in SCENARIOS.items():
        click.echo(f"{name:<10} {_words(scenario)}")


def _words(scenario: Scenario) -> str:
    steps = ", then ".join(f"{step.ls_pct:g} % for {step.seconds:g} s" for step in scenario.steps)
    load = steps if len(scenario.steps) > 1 else f"{scenario.steps[0].ls_pct:g} %"
    swing = f", +-{scenario.swing_pct:g} % over the day" if scenario.swing_pct else ""
    return (
        f"{scenario.seconds / 3600:.3g} h, {scenario.nr_cpus} CPUs, LS {load}{swing},"
        f" requests of {scenario.request_usec:g} us"
    )


def lines(result: Result) -> list[str]:
    """A figure a line; one that the scenario has no step long enough for is left out."""
    figures = {
        "simulated": (result.seconds, "s"),
        "ticks": (float(result.ticks), ""),
        "writes of limits": (result.limit_writes_per_minute, "a minute"),
        "BE used of what LS and system leave below the target": (result.be_kept_pct, "%"),
        "BE used of all CPUs": (result.be_pct, "%"),
        "LS waited, mean": (result.ls_delay_ms, "ms"),
        "LS waited, p99": (result.ls_delay_p99_ms, "ms"),
        "allowance past where it settles, worst": (result.overshoot_pct, "% of all CPUs"),
        "allowance settled after": (result.settle_ticks, "ticks"),
        "BE down after LS rose": (result.yield_sec, "s"),
        "BE back after LS fell": (result.recover_sec, "s"),
    }
    return [
        f"{name:<54} {value:10.2f} {unit}".rstrip()
        for name, (value, unit) in figures.items()
        if value is not None
    ]
