"""Where the demo runs: a guest of the lab, or this host. The same scenario is copied there and started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qosd.lab.demo.steps import StepError
from qosd.lab.scenario.planned import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qosd.lab.machine import Machine
    from qosd.lab.scenario.planned import Plan

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PATIENCE = 90.0
"""Seconds without a word from the scenario after which it is taken for lost; a step is at most one round."""


class Started(Protocol):
    @property
    def running(self) -> bool: ...


class Target(Protocol):
    def start(self, command: str) -> Started:
        """Start a shell command as root and return at once."""

    def inside(self, path: Path) -> str:
        """What a path below the shared directory is called in the target."""


class Guest:
    """A machine of the lab, with `share` at /mnt/share."""

    def __init__(self, machine: Machine, share: Path) -> None:
        self._machine = machine
        self._share = share

    def start(self, command: str) -> Started:
        return self._machine.start(command)

    def inside(self, path: Path) -> str:
        return f"/mnt/share/{path.relative_to(self._share)}"

    def install(self, deb: Path) -> None:
        """As a user would, with apt; the guest has no network, so everything it needs must be there."""
        shutil.copy(deb, self._share / deb.name)
        options = "-o Acquire::Languages=none -o DPkg::Use-Pty=0"
        self._machine.run(
            f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {options}"
            f" /mnt/share/{deb.name}",
            timeout=240,
        )

    def daemon(self) -> Daemon:
        return Daemon(
            start=("systemctl", "start", "qosd.service"),
            stop=("systemctl", "stop", "qosd.service"),
            qosctl=("qosctl",),
            socket="/run/qosd/control.sock",
        )


class _Process:
    def __init__(self, command: str) -> None:
        self._popen = subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True)

    @property
    def running(self) -> bool:
        return self._popen.poll() is None


class Host:
    """The host we are on, as it is."""

    def start(self, command: str) -> Started:
        return _Process(command)

    def inside(self, path: Path) -> str:
        return str(path)


def prepare(directory: Path, openloop: Path, plan: Plan) -> None:
    """Put all that the scenario needs into its directory."""
    source = HERE.parent / "scenario"
    shutil.copytree(source, directory / "scenario", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(openloop, directory / "openloop")
    plan.write(str(directory / "plan.json"))


def play(target: Target, directory: Path) -> Iterator[dict[str, Any]]:
    """Run the scenario, giving each thing it says as it says it."""
    inside = target.inside(directory)
    said = directory / "said.jsonl"
    said.touch()
    job = target.start(
        f"cd '{inside}' && PYTHONDONTWRITEBYTECODE=1 python3 -m scenario '{inside}' >said.jsonl 2>errors.txt"
    )
    deadline = time.monotonic() + PATIENCE
    with said.open(encoding="utf-8") as file:
        rest = ""
        while True:
            ended = not job.running  # looked at before the file: what was said last is then read below
            rest += file.read()
            *lines, rest = rest.split("\n")
            for line in lines:
                deadline = time.monotonic() + PATIENCE
                event = json.loads(line)
                if event["what"] == "failed":
                    raise StepError(f"the scenario failed: {event['error']}")
                yield event
                if event["what"] == "done":
                    return
            if ended or time.monotonic() > deadline:
                errors = (directory / "errors.txt").read_text(errors="replace")
                why = "ended early" if ended else f"said nothing for {PATIENCE:.0f} s"
                raise StepError(f"the scenario {why}:\n{errors}")
            time.sleep(0.2)  # the guest's file system tells the host nothing of its writes


# The host itself

LS_SLICE, BE_SLICE, OWN_SLICE = "qosdemols.slice", "qosdemobe.slice", "qosdemo.slice"
HOST_SLICES = {LS_SLICE: "ls.slice", BE_SLICE: "be.slice", OWN_SLICE: "qosd.slice"}
HOST_CONFIG = """\
[[workload]]
name = "demo-ls"
tier = "ls"
match = ["{ls}"]

[[workload]]
name = "demo-be"
tier = "be"
match = ["{be}"]

[control]
socket = "{socket}"
group = "root"

[metrics]
listen = "127.0.0.1:9754"
"""


def host_slices() -> dict[str, str]:
    """The shipped slices' own text under names that nobody else uses."""
    return {name: (ROOT / "systemd" / shipped).read_text() for name, shipped in HOST_SLICES.items()}


def host_daemon(directory: Path) -> Daemon:
    """The tree's own qosd as a transient unit with state of its own."""
    runtime = "/run/qosd-demo-daemon"
    config = directory / "qosd.toml"
    config.write_text(HOST_CONFIG.format(ls=LS_SLICE, be=BE_SLICE, socket=f"{runtime}/control.sock"))
    config.chmod(0o600)
    run = (sys.executable, "-m", "qosd")
    unit = "qosd-demo-daemon.service"
    properties = (
        "--property=Type=notify",
        "--property=NotifyAccess=main",
        "--property=RuntimeDirectory=qosd-demo-daemon",
        "--property=Delegate=cpu cpuset io memory",
        f"--property=WorkingDirectory={ROOT}",
        "--property=Environment=PYTHONDONTWRITEBYTECODE=1",
        f"--property=ExecStopPost={sys.executable} -m qosd restore --runtime {runtime}",
    )
    start = ("systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--slice={OWN_SLICE}", *properties)
    return Daemon(
        start=(*start, "--", *run, "run", "--config", str(config), "--runtime", runtime),
        stop=("systemctl", "stop", unit),
        qosctl=(
            "env",
            f"PYTHONPATH={ROOT}",
            sys.executable,
            "-m",
            "qosd.ctl.main",
            "--socket",
            f"{runtime}/control.sock",
        ),
        socket=f"{runtime}/control.sock",
    )


def host_refusals(root: str = "/") -> list[str]:
    """Why the demo cannot run on this host itself, a line per reason with what to do. Empty when it can."""
    cgroups = os.path.join(root, "sys/fs/cgroup")
    reasons = []
    if os.geteuid() != 0:
        reasons.append("it needs root: sudo make demo HOST=1")
    controllers = os.path.join(cgroups, "cgroup.controllers")
    if not os.path.exists(controllers):
        reasons.append(
            "/sys/fs/cgroup is not cgroup v2 alone: boot with systemd.unified_cgroup_hierarchy=1,"
            " or run `make demo`, which brings a guest that is"
        )
    elif "cpu" not in Path(controllers).read_text().split():
        reasons.append(
            "cgroup v2 has no cpu controller here: a v1 hierarchy or the kernel's command line took it"
        )
    if not os.path.isdir(os.path.join(root, "run/systemd/system")):
        reasons.append("systemd does not run here, and the demo's jobs are its units")
    reasons += [
        f"{program} is missing: apt install {program}"
        for program in ("redis-server", "stress-ng")
        if shutil.which(program) is None
    ]
    return reasons
