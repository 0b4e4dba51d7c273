"""`qosctl run`: a command in a tier's slice, as a scope: terminal, directory and environment stay."""

from __future__ import annotations

import os
import shutil
import subprocess

import click

from qosd.ctl.exits import CANNOT_START, NOT_FOUND, Failure

_SYSTEMD = "/run/systemd/system"


def systemd_run(tier: str, command: tuple[str, ...], user: str | None) -> list[str]:
    """The scope's main process is the command itself: its exit status and signals are nobody else's."""
    as_user = [] if user is None else [f"--uid={user}"]
    return [
        "systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        f"--slice={tier}.slice",
        *as_user,
        "--",
        *command,
    ]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("tier", type=click.Choice(["ls", "be"]))
@click.option("--user", metavar="USER", help="Run it as this user; give it before the tier.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(tier: str, user: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND in ls.slice or be.slice: qosctl run be -- make -j8. Its exit status is passed on."""
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("which command? qosctl run be -- COMMAND")
    _check(tier, words[0])
    try:
        os.execvp("systemd-run", systemd_run(tier, words, user))  # noqa: S606 - no shell is the point
    except OSError as error:
        raise Failure(f"systemd-run: {error.strerror}", CANNOT_START) from None


def _check(tier: str, program: str) -> None:
    if not os.path.isdir(_SYSTEMD):
        raise Failure(
            "systemd does not run this host, and only it can put a command into a slice", CANNOT_START
        )
    if shutil.which("systemd-run") is None:
        raise Failure("systemd-run is not installed: apt install systemd", CANNOT_START)
    if os.geteuid() != 0:
        raise Failure(
            f"only root may start something in {tier}.slice: sudo qosctl run --user $USER {tier} -- ...",
            CANNOT_START,
        )
    if not _has_unit_file(f"{tier}.slice"):
        raise Failure(
            f"{tier}.slice has no unit file, so the command would run without the tier's weights: install the"
            " qosd package, or copy systemd/*.slice to /etc/systemd/system and run systemctl daemon-reload",
            CANNOT_START,
        )
    if shutil.which(program) is None:
        raise Failure(f"{program}: command not found", NOT_FOUND)


def _has_unit_file(unit: str) -> bool:
    """A slice without a file is made up by systemd with defaults: FragmentPath tells the two apart."""
    answer = subprocess.run(
        ["systemctl", "show", "--property=FragmentPath", "--value", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    return bool(answer.stdout.strip())
