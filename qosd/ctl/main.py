"""qosctl: look at and steer qosd. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

import click

from qosd import __version__
from qosd.ctl import client, exits, feed, policy, run, steer
from qosd.ctl.options import Options, as_json, print_json, use, whole_duration

_DEFAULT_CONFIG = "/etc/qosd/qosd.toml"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=exits.TEXT
)
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
@use
def status(options: Options, json: bool, watch: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Mode, host, tiers, workloads, and every setting in force with what it was and why."""
    if json:
        print_json(client.ask(options.socket, "status"))
        return
    from qosd.ctl import status as screen  # noqa: PLC0415 - rich

    screen.show(options.socket, watch=watch)


@cli.command()
@click.option("--ticks", "count", type=click.IntRange(min=1), metavar="N", help="Only so many ticks.")
@click.option("--json", "json", is_flag=True, help="Print one JSON document a tick, each on a line.")
@use
def top(options: Options, count: int | None, json: bool) -> None:  # noqa: FBT001 - as above
    """Each tick as it happens: tiers, allowance, waits, signals and decisions; q quits. Lines when piped."""
    from qosd.ctl import top as screen  # noqa: PLC0415 - rich

    screen.show(options.socket, count, json=json)


@cli.command()
@click.argument("cgroup", required=False)
@click.option("--file", help="Only this interface file, as cpu.max.")
@click.option("--verdict", type=int, metavar="ID", help="A verdict of `qosctl verdicts` instead.")
@as_json
@use
def explain(
    options: Options,
    cgroup: str | None,
    file: str | None,
    verdict: int | None,
    json: bool,  # noqa: FBT001 - as above
) -> None:
    """Why each setting of CGROUP (path, unit, workload) or of an uplink is what it is, or is left alone."""
    if (cgroup is None) is (verdict is None):
        raise click.UsageError("name a CGROUP, or a verdict with --verdict ID")
    if verdict is not None:
        from qosd.ctl import verdicts  # noqa: PLC0415 - rich

        verdicts.explain(options.socket, verdict, json=json)
        return
    from qosd.ctl import explain as screen  # noqa: PLC0415 - rich

    screen.show(options.socket, str(cgroup), file, json=json)


@cli.command()
@click.option("--since", metavar="DURATION", help="Only the last 90s, 10m, 1h, ...")
@click.option("--path", metavar="CGROUP", help="Only this cgroup and those below it.")
@as_json
@use
def decisions(options: Options, since: str | None, path: str | None, json: bool) -> None:  # noqa: FBT001 - as above
    """What qosd wrote and restored of late, and why; it remembers the last 512."""
    from qosd.ctl import cgroups  # noqa: PLC0415 - rich
    from qosd.ctl import decisions as screen  # noqa: PLC0415 - same

    since_usec = None if since is None else whole_duration(since)
    wanted = None if path is None else cgroups.relative(path, None)
    screen.show(options.socket, since_usec, wanted, json=json)


@cli.command()
@click.option("--since", metavar="DURATION", help="Only the last 90s, 10m, 1h, ...")
@as_json
@use
def verdicts(options: Options, since: str | None, json: bool) -> None:  # noqa: FBT001 - as above
    """Which LS workload suffered from what and through whom; it remembers the last 256."""
    from qosd.ctl import verdicts as screen  # noqa: PLC0415 - rich

    screen.show(options.socket, None if since is None else whole_duration(since), json=json)


@cli.command()
@as_json
@use
def victims(options: Options, json: bool) -> None:  # noqa: FBT001 - as above
    """Who would be frozen and killed first, who never, and why, before anything happens."""
    from qosd.ctl import victims as screen  # noqa: PLC0415 - rich

    screen.show(options.socket, json=json)


@cli.command()
@click.argument("file", default=_DEFAULT_CONFIG)
@as_json
def check(file: str, json: bool) -> None:  # noqa: FBT001 - as above
    """Whether the daemon would take FILE as its configuration (/etc/qosd/qosd.toml); needs no daemon."""
    from qosd.configfile import read_config  # noqa: PLC0415 - the TOML parser
    from qosd.errors import ConfigError  # noqa: PLC0415 - same

    error = None
    try:
        read_config(file)
    except ConfigError as refused:
        error = str(refused)
    if json:
        import msgspec  # noqa: PLC0415 - same

        print_json(msgspec.json.encode({"file": file, "ok": error is None, "error": error}))
    elif error is None:
        click.echo(f"{file}: ok")
    if error is not None:
        raise exits.Failure(error, exits.REFUSED_CONFIG)


@cli.command()
@click.option("--config", default=_DEFAULT_CONFIG, show_default=True, help="The configuration to judge by.")
@as_json
@use
def doctor(options: Options, config: str, json: bool) -> None:  # noqa: FBT001 - as above
    """What this host lacks and the exact remedy; needs no daemon. 1 if qosd cannot work here at all."""
    from qosd.ctl import doctor as screen  # noqa: PLC0415 - rich and psutil

    screen.show(options.socket, config, json=json)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False), default="trace.jsonl.zst")
@click.option("--for", "duration", metavar="DURATION", default="1m", show_default=True, help="How long.")
@as_json
@use
def record(options: Options, file: str, duration: str, json: bool) -> None:  # noqa: FBT001 - as above
    """Write what the daemon sees at every tick to a new FILE, one JSON snapshot a line, for `qosctl replay`.

    FILE is trace.jsonl.zst by default. A name in .zst is compressed by zstd, one in .gz by gzip, others not.
    Ctrl-C ends it early, and the file is whole.
    """
    from qosd.ctl import trace  # noqa: PLC0415 - the governors

    trace.record(options.socket, file, whole_duration(duration), json=json)


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--config", default=_DEFAULT_CONFIG, show_default=True, help="The configuration to try.")
@click.option(
    "--against", metavar="CONFIG", help="Compare with this one: writes, allowance, what is held back."
)
@as_json
def replay(file: str, config: str, against: str | None, json: bool) -> None:  # noqa: FBT001 - as above
    """What qosd would have written on a recorded FILE under another configuration; needs no daemon.

    It is told what was seen then; how the workloads would have answered to other limits nobody knows.
    """
    from qosd.ctl import trace  # noqa: PLC0415 - the governors

    trace.replay_file(file, config, against, json=json)


@cli.command()
@click.argument("scenario", required=False)
@click.option("--config", default=_DEFAULT_CONFIG, show_default=True, help="The configuration to try.")
@click.option("--for", "duration", metavar="DURATION", help="How long, of the simulated time.")
@click.option("--static", is_flag=True, help="The same load under settings that nobody changes, too.")
@as_json
def simulate(
    scenario: str | None,
    config: str,
    duration: str | None,
    static: bool,  # noqa: FBT001 - as above
    json: bool,  # noqa: FBT001 - as above
) -> None:
    """The governors against a model of a host under a load: hours in seconds, nothing is touched.

    SCENARIO is one of those that it lists without one. The model: CPUs are one fluid without caches, SMT or
    wake-up cost; LS is an open loop of Poisson arrivals in one queue; LS runs before BE by weight; BE is hogs
    that take all they may; limits hold at once and exactly. So the LS delay is a lower bound, and what comes
    from placing tasks on CPUs (docs/cpu.md) is not in it.
    """
    from qosd.ctl import simulation  # noqa: PLC0415 - the governors

    usec = None if duration is None else whole_duration(duration)
    simulation.show(scenario, simulation.Asked(config, usec, static), json=json)


for _command in (feed.feed, policy.policy, steer.reload, steer.pause, steer.resume, steer.restore, run.run):
    cli.add_command(_command)


def main() -> None:
    cli(prog_name="qosctl")


if __name__ == "__main__":
    main()
