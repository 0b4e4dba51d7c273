"""Why a probe could not be had, each as one sentence for `qosctl doctor`; the daemon goes on without it."""

from __future__ import annotations

from qosd.errors import QosdError


class BpfError(QosdError):
    """Anything of BPF that failed. `str()` is one sentence."""


class LibraryMissingError(BpfError):
    """libbpf.so.1 is not installed."""


class ObjectMissingError(BpfError):
    """The compiled object is not in the package."""


class BtfMissingError(BpfError):
    """The kernel does not describe its types: no CO-RE."""


class NotPermittedError(BpfError):
    """The kernel refuses BPF to this process."""


class HookMissingError(BpfError):
    """The kernel has no tracepoint (or attach point) that the probe can't do without."""

    def __init__(self, probe: str, hooks: tuple[str, ...]) -> None:
        super().__init__(f"{probe}: this kernel has no {', '.join(hooks)}")
        self.hooks = hooks


class RefusedError(BpfError):
    """The verifier (or libbpf's relocation before it) said no. `log` is what it said, all of it."""

    def __init__(self, probe: str, program: str | None, last_words: str, log: str) -> None:
        what = f"program {program}" if program else "the object"
        super().__init__(f"{probe}: the kernel refused {what}: {last_words}")
        self.program = program
        self.last_words = last_words
        self.log = log


class BpfCallError(BpfError):
    """Any other errno of a bpf call, with what was tried."""

    def __init__(self, what: str, errno: int, reason: str) -> None:
        super().__init__(f"{what}: {reason} (errno {errno})")
        self.errno = errno


class TooDearError(BpfError):
    """The probe cost more than it may, by its own clock, and was taken off its hooks."""

    def __init__(self, probe: str, share_pct: float, window_sec: float, limit_pct: float) -> None:
        super().__init__(
            f"{probe}: it took {share_pct:.2f} % of the CPUs' time over {window_sec:g} s,"
            f" more than ebpf.max_overhead_pct ({limit_pct:g} %)"
        )


class BccMissingError(BpfError):
    """Debian's python3-bpfcc is not installed."""


class NotByBccError(BpfError):
    """The probe needs libbpf, and so a kernel that describes its types."""

    def __init__(self, probe: str) -> None:
        super().__init__(f"{probe}: bcc loads the runq probe only")
