"""An operator's BPF object on the kernel: what it may be, how it is loaded, what its maps say.

It is loaded only if it is what its declaration says, no hook and no map more, and small. The verifier does
the rest, and its own words are the refusal. Nothing is pinned: it goes when it is closed, or when we die.
"""

from __future__ import annotations

import contextlib
import struct

from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import Object
from qosd.ebpf.maps import Map, run_time_statistics
from qosd.model import CgroupId
from qosd.schema.policy import MAPS_MAX, OBJECT_MAX, Policy

_STATS_ENABLED = "/proc/sys/kernel/bpf_stats_enabled"
_ID = 8
_WATCHED = struct.Struct("=I")
_CALL = struct.Struct("<BBhi")
_CALL_HELPER = (0x85, 0, 0)
"""BPF_JMP | BPF_CALL with src_reg 0: the helper of the number in imm (include/uapi/linux/bpf.h)."""
_NOT_ONLY_LOOKING = {
    36: "bpf_probe_write_user",
    58: "bpf_override_return",
    109: "bpf_send_signal",
    117: "bpf_send_signal_thread",
}
_KERNEL_FUNCTIONS = b"\0.ksyms\0"
_OF_COMPILER = (".rodata", ".data", ".bss", ".kconfig")


class PolicyProbe:
    """Open with `PolicyProbe.open`. Everything it took is given back by `close`."""

    def __init__(self, policy: Policy, loaded: Object, library: Library) -> None:
        self.policy = policy
        self._object = loaded
        self._undo = contextlib.ExitStack()
        self._undo.callback(loaded.close)
        _time_programs(library, self._undo)
        self._watched: frozenset[CgroupId] = frozenset()

    @classmethod
    def open(cls, library: Library, policy: Policy, elf: bytes) -> PolicyProbe:
        """Raises BpfError with the reason; nothing stays in the kernel then."""
        if len(elf) > OBJECT_MAX:
            raise BpfError(f"{policy.name}: the object is larger than {OBJECT_MAX >> 20} MiB")
        _only_looks(policy, elf)
        opened = Object(library, policy.name, elf)
        with contextlib.ExitStack() as undo:
            undo.callback(opened.close)
            _is_as_declared(policy, opened)
            _fits(policy, opened.shapes())
            opened.load()
            probe = cls(policy, opened, library)
            undo.pop_all()
            undo.callback(probe.close)
            for program in opened.programs:
                opened.attach(program)
            undo.pop_all()
        return probe

    def watch(self, workloads: frozenset[CgroupId]) -> None:
        """Keep the map by which the program knows its workloads, if it has one."""
        name = self.policy.workloads_map
        if name is not None and workloads != self._watched:
            watched = self._object.map(name)
            for gone in self._watched - workloads:
                watched.delete(_key(gone))
            for new in workloads - self._watched:
                watched.update(_key(new), _WATCHED.pack(1))
        self._watched = workloads

    def read(self) -> dict[str, dict[CgroupId, int]]:
        """By signal and cgroup, per-CPU values summed; a cgroup that is not in a map has no value."""
        return {
            signal.name: {
                CgroupId(int.from_bytes(key, "little")): _total(value)
                for key, value in self._object.map(signal.map).items()
            }
            for signal in self.policy.signal
        }

    def run_time_ns(self) -> int:
        """CPU time that all its programs have used since they were loaded."""
        return sum(each.run_time_ns for each in self._object.run_time().values())

    def close(self) -> None:
        self._undo.close()


def _time_programs(library: Library, undo: contextlib.ExitStack) -> None:
    """Have the kernel time BPF programs: what cannot be measured cannot be limited, and is not loaded.

    BPF_ENABLE_STATS wants CAP_SYS_ADMIN (bpf_enable_stats() in kernel/bpf/syscall.c), which the unit does not
    have; the administrator's sysctl does the same.
    """
    try:
        undo.enter_context(run_time_statistics(library))
    except BpfError as error:
        with contextlib.suppress(OSError), open(_STATS_ENABLED, encoding="ascii") as file:
            if file.read().strip() == "1":
                return
        raise BpfError(
            f"its cost cannot be measured ({error}): sysctl kernel.bpf_stats_enabled=1, then load it again"
        ) from error


def _key(cgroup: CgroupId) -> bytes:
    return cgroup.to_bytes(_ID, "little")


def _total(value: memoryview) -> int:
    return sum(int.from_bytes(value[start : start + _ID], "little") for start in range(0, len(value), _ID))


def _only_looks(policy: Policy, elf: bytes) -> None:
    """No helper that changes what runs, and no kernel function, of which newer kernels have ever more.

    Sections of instructions are aligned to 8 bytes, so every instruction is one of these words.
    """
    for opcode, registers, offset, number in _CALL.iter_unpack(elf[: len(elf) & ~7]):
        if (opcode, registers, offset) == _CALL_HELPER and number in _NOT_ONLY_LOOKING:
            raise BpfError(f"{policy.name}: it calls {_NOT_ONLY_LOOKING[number]}, and a policy may only look")
    if _KERNEL_FUNCTIONS in elf:
        raise BpfError(f"{policy.name}: it uses kernel functions (__ksym), and a policy may only look")


def _is_as_declared(policy: Policy, opened: Object) -> None:
    """Before anything reaches the kernel. A map whose name begins with a dot is the compiler's own."""
    hooks, declared = set(opened.programs.values()), set(policy.hooks)
    maps = {name for name in opened.maps if not name.endswith(_OF_COMPILER) and "." not in name}
    for what, there, said in (("hook", hooks, declared), ("map", maps, set(policy.maps))):
        if more := sorted(there - said):
            raise BpfError(f"{policy.name}: the object has a {what} that is not declared: {', '.join(more)}")
        if less := sorted(said - there):
            raise BpfError(f"{policy.name}: the object lacks the {what} {', '.join(less)}")


def _fits(policy: Policy, maps: dict[str, Map]) -> None:
    size = sum(each.max_entries * (each.key_size + each.value_size) for each in maps.values())
    if size > MAPS_MAX:
        raise BpfError(f"{policy.name}: its maps can take {size >> 20} MiB, more than {MAPS_MAX >> 20} MiB")
    for signal in policy.signal:
        each = maps[signal.map]
        if (each.key_size, each.element_size) != (_ID, _ID):
            raise BpfError(f"{policy.name}: map {signal.map} must have u64 cgroup ids and u64 values")
    watched = maps.get(policy.workloads_map or "")
    if watched is not None and (watched.key_size, watched.element_size) != (_ID, _WATCHED.size):
        raise BpfError(f"{policy.name}: map {watched.name} must have u64 cgroup ids and u32 values")
