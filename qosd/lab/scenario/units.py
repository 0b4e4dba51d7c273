"""Transient systemd units and the cgroup files below them."""

from __future__ import annotations

import os
import subprocess

CGROUPS = "/sys/fs/cgroup"
PREFIX = "qosd-demo-"
"""Of every unit the demo starts, so that all of them can be stopped, whatever happened."""


def command(*argv: str, check: bool = True, timeout: float = 60) -> str:
    """Run to the end and return stdout. A failure names the command and what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def start(name: str, slice_name: str, argv: tuple[str, ...], *properties: str) -> str:
    """Start argv as a transient service of `slice_name`; returns its cgroup directory."""
    unit = f"{PREFIX}{name}.service"
    flags = [f"--property={text}" for text in properties]
    command(
        "systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--slice={slice_name}", *flags, "--", *argv
    )
    return os.path.join(CGROUPS, slice_name, unit)


def stop(*names: str, wait: bool = True) -> None:
    """Stop units of ours; one that is gone already is what was wanted."""
    units = [f"{PREFIX}{name}.service" for name in names]
    command("systemctl", "stop", *([] if wait else ["--no-block"]), *units, check=False)


def stop_all() -> None:
    command("systemctl", "stop", f"{PREFIX}*", check=False)
    command("systemctl", "reset-failed", f"{PREFIX}*", check=False)


def read(cgroup: str, file: str) -> str | None:
    """An interface file's text, or None where the cgroup or the file is not there."""
    try:
        with open(os.path.join(cgroup, file), encoding="ascii") as opened:
            return opened.read().strip()
    except (FileNotFoundError, OSError):
        return None


def write(cgroup: str, file: str, value: str) -> None:
    with open(os.path.join(cgroup, file), "w", encoding="ascii") as opened:
        opened.write(value)


def usage_usec(cgroup: str) -> int | None:
    text = read(cgroup, "cpu.stat")
    if not text:
        return None
    return int(text.split()[1])  # usage_usec is the first key of cpu.stat in every cgroup
