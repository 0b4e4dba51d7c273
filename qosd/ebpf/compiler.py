"""The process in which bcc compiles and loads the run-queue probe, for `qosd.ebpf.bcc` to take over.

A process of its own, run by its path and with the standard library alone: the compiler takes 150 MB and
seconds of CPU time, and the daemon's loop must not wait for it, nor keep the memory. What it has loaded stays
in the kernel by the descriptors that it hands over.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import sys
from types import ModuleType

DIST_PACKAGES = "/usr/lib/python3/dist-packages"
SOURCE = "runq.bcc.c"
MISSING = "missing"
REFUSED = "refused"

_COMMON = re.compile(r"^include (/\S+)/Makefile", re.MULTILINE)
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
_RAW_TRACEPOINT = 17
"""BPF_PROG_TYPE_RAW_TRACEPOINT"""


class NoBccError(Exception):
    """Debian's python3-bpfcc is not installed."""


def import_bcc() -> ModuleType:
    """Debian's bcc, outside of our environment; the package called `bcc` on PyPI is something else."""
    sys.path.append(DIST_PACKAGES)
    try:
        bcc = importlib.import_module("bcc")  # megabytes of a compiler
    except (ImportError, OSError) as error:
        raise NoBccError(f"bcc can't be used, install python3-bpfcc: {error}") from None
    finally:
        sys.path.remove(DIST_PACKAGES)
    if not hasattr(bcc, "BPF"):
        raise NoBccError("the module called bcc is not Debian's python3-bpfcc")
    return bcc


def headers(root: str = "/") -> list[str]:
    """Flags for the kernel's headers where /lib/modules, at which bcc looks for them, is hidden by a sandbox.

    Debian's are in two directories: what one configuration generated, and what all have in common, where
    bcc's own relative paths lead once BCC_KERNEL_SOURCE is set to it.
    """
    release, machine = os.uname().release, os.uname().machine
    build = f"{root}usr/src/linux-headers-{release}"
    if os.path.isdir(f"{root}lib/modules/{release}/build"):
        return []
    try:
        with open(f"{build}/Makefile", encoding="utf-8") as makefile:
            common = _COMMON.search(makefile.read())
    except OSError:
        return []
    if common is None:
        return []
    os.environ["BCC_KERNEL_SOURCE"] = common[1]
    arch = f"arch/{_ARCHITECTURES.get(machine, machine)}/include/generated"
    return [f"-I{build}/{path}" for path in (arch, "include", f"{arch}/uapi", "include/generated/uapi")]


def load(programs: list[str], maps: list[str], flags: list[str]) -> list[int]:
    """The descriptors of the loaded programs and of the maps, in this order."""
    bcc = import_bcc()
    with open(os.path.join(os.path.dirname(__file__), "probes", SOURCE), encoding="utf-8") as source:
        bpf = bcc.BPF(text=source.read(), cflags=[*flags, *headers()])
    functions = [bpf.load_func(name, _RAW_TRACEPOINT).fd for name in programs]
    return [*functions, *(bpf[name].map_fd for name in maps)]


def main(channel_fd: int, request: str) -> None:
    asked = json.loads(request)
    with socket.socket(fileno=channel_fd) as channel:
        try:
            fds = load(asked["programs"], asked["maps"], asked["flags"])
        except NoBccError as error:
            channel.send(json.dumps({"kind": MISSING, "why": str(error)}).encode())
        except Exception as error:  # noqa: BLE001 - what bcc raises; it has said the rest on stderr
            channel.send(json.dumps({"kind": REFUSED, "why": str(error)}).encode())
        else:
            socket.send_fds(channel, [b"{}"], fds)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
