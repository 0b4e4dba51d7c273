"""The same in the lab's guest, on cgroup v2 with the daemon as it is installed: the host's side.

The guest has no compiler, so the loads come with it. What they do is measured by the guest's own speed: a
request is a share of its CPU, so the figures to compare are ratios of one run.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

from bench.sched.load import build
from qosd.lab.machine import Machine

_ROOT = Path(__file__).resolve().parents[2]
_INSTALL = "dpkg --force-unsafe-io --install /mnt/share/qosd.deb && systemctl stop qosd"
_BENCH = "cd /mnt/share && PYTHONDONTWRITEBYTECODE=1 exec /usr/lib/qosd/bin/python3 -u -m bench.sched"
_PATIENCE_SEC = 3600.0
_FOLLOW = (
    "--modes qosd:enforce=max --rounds 1 --seconds 118 --follow 0.25 --work 2000 --others 100 --patience 1"
)
_FOLLOWED = (
    f"{_FOLLOW} --shapes steady --loads 30",
    f"{_FOLLOW} --shapes square --loads 40",
)
"""How steady the limits are: two minutes each; the square wave is at 20 and 60 per cent in turns."""


def measure(kernel: str, smp: str, icount: str | None, arguments: list[str], results: dict[str, str]) -> None:
    """Print what the benchmark prints in there, as it comes; `results` are options and the files for them."""
    built = sorted((_ROOT / "dist").glob("qosd_*.deb"))
    if not built:
        raise SystemExit("dist has no package: make deb")
    with tempfile.TemporaryDirectory() as directory:
        share = Path(directory)
        shutil.copy(built[-1], share / "qosd.deb")
        shutil.copytree(_ROOT / "bench", share / "bench", ignore=shutil.ignore_patterns("__pycache__"))
        (share / "loads").mkdir()
        build(str(share / "loads"), static=True)
        with Machine.boot(kernel=kernel, smp=smp, share=share, icount=icount) as machine:
            machine.run(_INSTALL, timeout=300)
            release = machine.run("uname -r").stdout.strip()
            print(
                f"In the guest: Linux {release}, -smp {smp}, {machine.accelerator}, icount {icount}",
                flush=True,
            )
            asked = [f"{option} /mnt/share/{option.strip('-')}" for option in results]
            _run(machine, " ".join([*map(shlex.quote, arguments), *asked]))
            for followed in _FOLLOWED:
                _run(machine, followed)
        for option, file in results.items():
            shutil.copy(share / option.strip("-"), file)


def _run(machine: Machine, arguments: str) -> None:
    job = machine.start(f"{_BENCH} --installed {arguments} 2>&1")
    for line in job.lines(_PATIENCE_SEC):
        print(line, flush=True)
    job.wait(timeout=1)
