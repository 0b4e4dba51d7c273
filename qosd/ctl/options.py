"""What every command of qosctl takes, and how it prints JSON."""

from __future__ import annotations

from typing import NamedTuple

import click
import msgspec


class Options(NamedTuple):
    socket: str


as_json = click.option("--json", "json", is_flag=True, help="Print one JSON document, for programs.")
use = click.pass_obj


def print_json(document: bytes) -> None:
    click.echo(msgspec.json.format(document, indent=2))


def whole_duration(text: str) -> int:
    """`10m`, `90s`, `1h` in microseconds: the units of the configuration, and `m` as people type it."""
    from qosd.schema.units import parse_duration  # noqa: PLC0415 - brings msgspec along

    try:
        return int(parse_duration(text + "in" if text.endswith("m") else text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
