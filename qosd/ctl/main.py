"""qosctl: look at and steer qosd. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

from typing import NamedTuple

import click
import msgspec

from qosd import __version__
from qosd.ctl import client, exits

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Options(NamedTuple):
    socket: str


as_json = click.option("--json", "json", is_flag=True, help="Print one JSON document for programs.")


def print_json(document: bytes) -> None:
    click.echo(msgspec.json.format(document, indent=2))


@click.group(context_settings=_CONTEXT, epilog=exits.TEXT)
@click.version_option(__version__, message="qosctl %(version)s")
@click.option(
    "--socket",
    envvar="QOSD_SOCKET",
    default=client.DEFAULT_SOCKET,
    show_default=True,
    show_envvar=True,
    help="The daemon's control socket.",
)
@click.pass_context
def cli(context: click.Context, socket: str) -> None:
    """Look at and steer qosd, which mixes latency-sensitive (LS) and best-effort (BE) work on this host."""
    context.obj = Options(socket)


@cli.command()
@as_json
@click.option("--watch", is_flag=True, help="Show it anew each second until interrupted.")
@click.pass_obj
def status(options: Options, json: bool, watch: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Mode, host, tiers, workloads, and every setting in force with what it was and why."""
    if json:
        print_json(client.ask(options.socket, "status"))
        return
    from qosd.ctl import status as screen  # noqa: PLC0415 - rich

    screen.show(options.socket, watch=watch)


def main() -> None:
    cli(prog_name="qosctl")


if __name__ == "__main__":
    main()
