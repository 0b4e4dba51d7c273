"""The second loader, for kernels without BTF: bcc compiles the run-queue probe on the host, with its headers.

Only bcc's compiler and loader are used; maps and the ring buffer are read as ever. It is Debian's
python3-bpfcc, outside of our environment. (The package called `bcc` on PyPI is something else.)
"""

from __future__ import annotations

import importlib
import importlib.resources
import os
import re
import sys
from types import ModuleType
from typing import Any

from qosd.ebpf.errors import BccMissingError, BpfError, NotByBccError, RefusedError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.maps import Map, RingBuffer, RunTime, read_run_time
from qosd.ebpf.runq import PROGRAMS, RunqOptions, pairs
from qosd.ebpf.tracing import ALL, Probe, Tracing, TracingOptions, possible_cpus

DIST_PACKAGES = "/usr/lib/python3/dist-packages"
NAME = "runq.bcc"

HOOKS = {"runq_switch": "sched_switch", "runq_wakeup": "sched_wakeup", "runq_wakeup_new": "sched_wakeup_new"}
NAMES = {".data.runq": "runq_settings"}
_COMMON = re.compile(r"^include (/\S+)/Makefile", re.MULTILINE)
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
_RAW_TRACEPOINT = 17
"""BPF_PROG_TYPE_RAW_TRACEPOINT"""


class BccObject:
    """As `loader.Object`, of programs that bcc has compiled and loaded."""

    def __init__(self, library: Library, bpf: Any) -> None:  # noqa: ANN401 - bcc has no types
        self.name = NAME
        self._library = library
        self._bpf = bpf
        self._functions = {name: bpf.load_func(name, _RAW_TRACEPOINT) for name in PROGRAMS}
        self._links: dict[int, str] = {}
        self._rings: list[RingBuffer] = []
        self._opened: dict[str, Map] = {}

    def map(self, name: str) -> Map:
        if name not in self._opened:
            table = self._bpf[NAMES.get(name, name)]
            self._opened[name] = Map.of_fd(self._library, table.map_fd, name)
        return self._opened[name]

    def ring_buffer(self, name: str) -> RingBuffer:
        ring = RingBuffer(self._library, self._bpf[name].map_fd)
        self._rings.append(ring)
        return ring

    def attach(self, program: str) -> int:
        hook = HOOKS[program]
        self._bpf.attach_raw_tracepoint(tp=hook, fn_name=program)
        link = int(self._bpf.raw_tracepoint_fds[hook.encode()])
        self._links[link] = hook
        return link

    def detach(self, link: int) -> None:
        self._bpf.detach_raw_tracepoint(tp=self._links.pop(link))

    def run_time(self) -> dict[str, RunTime]:
        return {name: read_run_time(self._library, each.fd) for name, each in self._functions.items()}

    def close(self) -> None:
        for link in list(self._links):
            self.detach(link)
        for ring in self._rings:
            ring.close()
        self._rings = []
        self._bpf.cleanup()


def open_tracing(library: Library, options: TracingOptions) -> Tracing:
    """The run-queue probe alone. Raises a BpfError if it cannot be had."""
    if "runq" not in options.probes:
        raise NotByBccError(options.probes[0])
    bcc = _import_bcc()
    cpus = possible_cpus(library)
    source = importlib.resources.files("qosd.ebpf") / "probes" / f"{NAME}.c"
    flags = [*definitions(options.runq, cpus), *headers()]
    try:
        bpf = bcc.BPF(text=source.read_text(encoding="utf-8"), cflags=flags)
        loaded = BccObject(library, bpf)
    except Exception as error:  # noqa: BLE001 - what bcc raises; it has said the rest on stderr
        raise RefusedError(NAME, None, str(error), str(error)) from None
    absent: dict[Probe, BpfError] = {probe: NotByBccError(probe) for probe in ALL if probe != "runq"}
    wanted = {probe: error for probe, error in absent.items() if probe in options.probes}
    try:
        tracing = Tracing(loaded, options, wanted, cpus)
        tracing.attach("runq", PROGRAMS)
    except BpfError:
        loaded.close()
        raise
    return tracing


def definitions(options: RunqOptions, cpus: int) -> list[str]:
    """What the program takes from its compiler's command line."""
    values = {
        "CPUS": cpus,
        "SLOTS": options.max_workloads + 1,
        "PAIRS": pairs(options, cpus),
        "BLAME_FLOOR_NS": f"{options.blame_floor_ns}ull",
        "EVENT_GAP_NS": f"{options.event_gap_ns}ull",
    }
    return [f"-D{name}={value}" for name, value in values.items()]


def _import_bcc() -> ModuleType:
    sys.path.append(DIST_PACKAGES)
    try:
        bcc = importlib.import_module("bcc")  # megabytes of a compiler
    except (ImportError, OSError) as error:
        raise BccMissingError(f"bcc can't be used, install python3-bpfcc: {error}") from None
    finally:
        sys.path.remove(DIST_PACKAGES)
    if not hasattr(bcc, "BPF"):
        raise BccMissingError("the module called bcc is not Debian's python3-bpfcc")
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
