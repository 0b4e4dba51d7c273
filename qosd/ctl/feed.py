"""`qosctl feed`: tell qosd how a service does, from whatever measures it."""

from __future__ import annotations

import click
import msgspec

from qosd.ctl import client
from qosd.ctl.options import Options, as_json, print_json, use


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("value")
@click.option("--unit", help="us, ms or s; by default the unit of the signal.")
@as_json
@use
def feed(options: Options, name: str, value: str, unit: str | None, json: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Give VALUE to the [[signal]] NAME of source = "feed": qosctl feed web-p99 12.5 --unit ms."""
    answer = client.ask(options.socket, "feed", name=name, value=value, unit=unit)
    if json:
        print_json(answer)
        return
    taken = msgspec.json.decode(answer)
    slo = "" if taken["slo"] is None else f"; slo {taken['slo']:g} {taken['unit']}"
    click.echo(f"{taken['name']}: {taken['value']:g} {taken['unit']}{slo}")
