"""What systemd says of a unit, asked by systemctl: for commands of people, never for the daemon."""

from __future__ import annotations

import os
import subprocess


def unit_property(unit: str, name: str) -> str | None:
    """The value as systemd has it now; None where it does not run, does not answer or refuses."""
    if not os.path.isdir("/run/systemd/system"):
        return None
    try:
        answer = subprocess.run(
            ["systemctl", "show", f"--property={name}", "--value", "--", unit],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
