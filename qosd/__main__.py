"""`qosd run`, `qosd check`, `qosd restore`. The restore path imports the standard library only."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from qosd import __version__

DEFAULT_CONFIG = "/etc/qosd/qosd.toml"
DEFAULT_RUNTIME = "/run/qosd"
_EX_CONFIG = 78


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        format="%(levelname)s %(message)s", level=arguments.log_level.upper(), stream=sys.stderr
    )
    command = {"run": _run, "check": _check, "restore": _restore}[arguments.command]
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qosd", description="Mixes latency-sensitive and best-effort work on one host."
    )
    parser.add_argument("--version", action="version", version=f"qosd {__version__}")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the daemon in the foreground")
    check = commands.add_parser("check", help="validate a configuration file and exit")
    restore = commands.add_parser("restore", help="put everything back that the journal says is ours")
    for command in (run, check):
        command.add_argument("--config", default=DEFAULT_CONFIG)
    for command in (run, restore):
        command.add_argument("--runtime", default=DEFAULT_RUNTIME, help="where the journal and socket are")
        command.add_argument("--cgroup-root", default=None, help="where cgroup2 is mounted (default: found)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from qosd.daemon import Daemon, Paths  # noqa: PLC0415 - keep `restore` free of third-party imports
    from qosd.errors import QosdError  # noqa: PLC0415 - same
    from qosd.sys import Sys  # noqa: PLC0415 - same

    try:
        paths = Paths(
            arguments.config,
            arguments.runtime,
            arguments.cgroup_root,
            state=os.environ.get("STATE_DIRECTORY"),
        )
        daemon = Daemon(Sys(), paths)
    except QosdError as error:
        print(f"qosd: {error}", file=sys.stderr)
        return _EX_CONFIG
    return daemon.run()


def _check(arguments: argparse.Namespace) -> int:
    from qosd.configfile import read_config  # noqa: PLC0415 - as above
    from qosd.errors import ConfigError  # noqa: PLC0415 - same

    try:
        read_config(arguments.config)
    except ConfigError as error:
        print(f"qosd: {error}", file=sys.stderr)
        return _EX_CONFIG
    print(f"{arguments.config}: ok")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    """Undo what a dead daemon left; a living one would only write again at its next tick."""
    from qosd import journal  # noqa: PLC0415 - as above
    from qosd.net import undo  # noqa: PLC0415 - same
    from qosd.procfs import cgroup2_mount  # noqa: PLC0415 - same
    from qosd.sys import Sys  # noqa: PLC0415 - same

    undone = undo.remove_all_said()
    for line in undone.lines:
        print(f"qosd: {line}", file=sys.stderr)
    root = arguments.cgroup_root or cgroup2_mount()
    if root is None:
        print("qosd: no cgroup v2 hierarchy is mounted: nothing to restore", file=sys.stderr)
        return int(undone.failed)
    outcomes = journal.restore_from(Sys(), arguments.runtime, root, journal.read_boot_id())
    for outcome in outcomes:
        path = outcome.path.encode("utf-8", "backslashreplace").decode()
        print(f"{path!r} {outcome.key.file}: {outcome.result} ({outcome.detail})", file=sys.stderr)
    return int(undone.failed or any(outcome.result == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
