#!/usr/bin/env python3
"""Writes packaging/requirements.txt: the exact libraries that the .deb carries, with the hash of each wheel.

Run it to take newer ones (`make pins`), then `make test`. Resolved from pyproject.toml for every architecture
we build for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "packaging/requirements.txt"
MACHINES = ("x86_64", "aarch64")
MANYLINUX = ("2014", "_2_17", "_2_28")  # Debian 12 has glibc 2.36
UNUSED = frozenset({"markdown-it-py", "mdurl", "pygments"})
"""What rich wants for Markdown and source code, which qosctl never prints: half of the package's size."""


def report(dependencies: list[str], machine: str) -> dict[str, list[dict[str, object]]]:
    """Pip's own account of what it would install on Debian 12 with this processor."""
    platforms = [f"--platform=manylinux{version}_{machine}" for version in MANYLINUX]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--report=-",
    ]
    command += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--target=unused"]
    answer = subprocess.run([*command, *platforms, *dependencies], check=True, capture_output=True)
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


def pins(reports: list[dict[str, list[dict[str, object]]]]) -> dict[str, set[str]]:
    """`name==version` to the hashes of its wheels, one for each architecture at most."""
    found: dict[str, set[str]] = {}
    for item in (item for answer in reports for item in answer["install"]):
        metadata, source = item["metadata"], item["download_info"]
        if not isinstance(metadata, dict) or not isinstance(source, dict):
            raise TypeError(f"pip's report has an unknown form: {item!r}")
        name = metadata["name"].lower().replace("_", "-")
        if name not in UNUSED:
            pin = f"{name}=={metadata['version']}"
            found.setdefault(pin, set()).add(source["archive_info"]["hashes"]["sha256"])
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pins([report(project["dependencies"], machine) for machine in MACHINES])
    lines = [
        "# What the .deb carries, and nothing else: installed with --no-deps. Written by packaging/pin.py."
    ]
    lines += [
        " \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in sorted(found[pin]))])
        for pin in sorted(found)
    ]
    TARGET.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
