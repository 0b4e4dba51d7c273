"""Compiled BPF objects in, running programs out. Nothing is pinned: it all goes when we close or die."""

from __future__ import annotations

import ctypes
import errno
import importlib.resources
import os
import re
from typing import TYPE_CHECKING, TypeVar

from qosd.ebpf.errors import (
    BpfCallError,
    BpfError,
    BtfMissingError,
    NotPermittedError,
    ObjectMissingError,
    RefusedError,
)
from qosd.ebpf.libbpf import (
    BTF_KIND_TYPEDEF,
    CGROUP_ITER_DESCENDANTS_PRE,
    IteratorOptions,
    IteratorTarget,
    Library,
    OpenOptions,
    checked,
    each,
)
from qosd.ebpf.maps import Map, RingBuffer, RunTime, read_run_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

VMLINUX_BTF = "/sys/kernel/btf/vmlinux"

_PROGRAM_SAID = re.compile(r"^libbpf: prog '([^']+)': ")
_LOG_FRAME = re.compile(r"-- (BEGIN|END) PROG LOAD LOG --\n?")
_STATISTICS = re.compile(r"processed \d+ insns|verification time|stack depth|^\s*$")


def read_object(name: str) -> bytes:
    """The compiled probe that the package ships."""
    path = importlib.resources.files("qosd.ebpf") / "probes" / f"{name}.bpf.o"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ObjectMissingError(f"{name}: {path} is not there; `make bpf` builds it") from None


class Object:
    """One object file: opened, then loaded, then attached program by program."""

    def __init__(self, library: Library, name: str, elf: bytes) -> None:
        self.name = name
        self._library = library
        self._call = library.call
        self._links: list[int] = []
        self._rings: list[RingBuffer] = []
        self._opened: dict[str, Map] = {}
        options = OpenOptions(ctypes.sizeof(OpenOptions), name.encode()[:15])
        with library.listening() as said:
            pointer = self._call.bpf_object__open_mem(elf, len(elf), ctypes.byref(options))
        if pointer is None:
            raise RefusedError(name, None, _last_words(said, "not a BPF object"), "".join(said))
        self._pointer: int | None = pointer
        self._programs = {
            self._call.bpf_program__name(program).decode(): program
            for program in each(self._call.bpf_object__next_program, pointer)
        }
        self._maps = {
            self._call.bpf_map__name(item).decode(): item
            for item in each(self._call.bpf_object__next_map, pointer)
        }

    @property
    def programs(self) -> dict[str, str]:
        """Program name to section, as `tp_btf/sched_switch`."""
        return {
            name: self._call.bpf_program__section_name(program).decode()
            for name, program in self._programs.items()
        }

    @property
    def maps(self) -> tuple[str, ...]:
        return tuple(self._maps)

    def shapes(self) -> dict[str, Map]:
        """What the maps will be, to look at before load too; they have no fd then."""
        return {name: Map.of_pointer(self._library, pointer) for name, pointer in self._maps.items()}

    def resize(self, name: str, max_entries: int) -> None:
        """Before load only."""
        result = self._call.bpf_map__set_max_entries(self._maps[name], max_entries)
        checked(f"{self.name}: {name}: max_entries {max_entries}", result)

    def retype(self, name: str, map_type: int) -> None:
        """Before load only."""
        result = self._call.bpf_map__set_type(self._maps[name], map_type)
        checked(f"{self.name}: {name}: type {map_type}", result)

    def leave_out(self, program: str) -> None:
        """Before load only: neither verified nor loaded."""
        result = self._call.bpf_program__set_autoload(self._programs[program], False)
        checked(f"{self.name}: {program}: autoload off", result)

    def leave_out_map(self, name: str) -> None:
        """Before load only, for a map of programs that are left out."""
        result = self._call.bpf_map__set_autocreate(self._maps[name], False)
        checked(f"{self.name}: {name}: autocreate off", result)

    def load(self) -> None:
        """Create the maps and have the programs verified; raises with the verifier's own last words."""
        with self._library.listening() as said:
            result = self._call.bpf_object__load(self._pointer)
            code = ctypes.get_errno()
        self._library.give_back_memory()
        if result < 0:
            raise self._refusal(code, said)

    def _refusal(self, code: int, said: list[str]) -> Exception:
        log = "".join(said)
        if code in (errno.EPERM, errno.EACCES) and not _LOG_FRAME.search(log):
            return NotPermittedError(
                f"{self.name}: the kernel refuses to load BPF programs ({os.strerror(code)}): "
                "CAP_BPF and CAP_PERFMON are needed, CAP_NET_ADMIN for network programs"
            )
        if not os.path.exists(VMLINUX_BTF):
            return BtfMissingError(
                f"{self.name}: no {VMLINUX_BTF}: the kernel was built without CONFIG_DEBUG_INFO_BTF"
            )
        programs = [match[1] for line in said if (match := _PROGRAM_SAID.match(line))]
        return RefusedError(
            self.name, programs[0] if programs else None, _last_words(said, os.strerror(code)), log
        )

    def map(self, name: str) -> Map:
        """After load."""
        if name not in self._opened:
            self._opened[name] = Map.of_pointer(self._library, self._maps[name])
        return self._opened[name]

    def ring_buffer(self, name: str) -> RingBuffer:
        """After load; freed by `close`."""
        ring = RingBuffer(self._library, self.map(name).fd)
        self._rings.append(ring)
        return ring

    def attach(self, program: str) -> int:
        """Attach to the hook that the program's section names; returns the link, held until `close`."""
        return self._hold(program, self._call.bpf_program__attach(self._programs[program]))

    def attach_cgroup(self, program: str, cgroup_fd: int) -> int:
        """Attach to a cgroup beside whatever else is there (a bpf_link is BPF_F_ALLOW_MULTI)."""
        return self._hold(program, self._call.bpf_program__attach_cgroup(self._programs[program], cgroup_fd))

    def attach_cgroup_iterator(self, program: str, cgroup_fd: int) -> int:
        """A walk over the cgroup and all below, parents first; `run_iterator` does it."""
        target = IteratorTarget(CGROUP_ITER_DESCENDANTS_PRE, cgroup_fd, 0)
        size = ctypes.sizeof(IteratorOptions)
        options = IteratorOptions(size, ctypes.addressof(target), ctypes.sizeof(target))
        pointer = self._programs[program]
        return self._hold(program, self._call.bpf_program__attach_iter(pointer, ctypes.byref(options)))

    def run_iterator(self, link: int) -> None:
        """One walk; what the program writes to its seq_file is dropped."""
        made = self._call.bpf_iter_create(self._call.bpf_link__fd(link))
        fd = checked(f"{self.name}: bpf_iter_create", made)
        try:
            while os.read(fd, 4096):
                pass
        finally:
            os.close(fd)

    def _hold(self, program: str, link: int | None) -> int:
        if link is None and ctypes.get_errno() in (errno.EPERM, errno.EACCES):
            raise NotPermittedError(
                f"{self.name}: the kernel refuses to attach {program} (CAP_PERFMON, CAP_NET_ADMIN)"
            )
        self._links.append(checked(f"{self.name}: attach {program}", link))
        return self._links[-1]

    def attach_device(self, program: str, ifindex: int, attach_type: int) -> int:
        """Attach to a network device; returns the link's fd, which the caller closes to detach.

        By number, since libbpf itself knows TCX only from 1.3 on; the kernel has it since 6.6.
        """
        program_fd = self._call.bpf_program__fd(self._programs[program])
        result: int = self._call.bpf_link_create(program_fd, ifindex, attach_type, None)
        return int(checked(f"{self.name}: attach {program} to device {ifindex}", result))

    def detach(self, link: int) -> None:
        self._links.remove(link)
        self._call.bpf_link__destroy(link)

    def run_time(self) -> dict[str, RunTime]:
        """Counts only while `run_time_statistics` (or sysctl kernel.bpf_stats_enabled) is on."""
        fds = {name: self._call.bpf_program__fd(program) for name, program in self._programs.items()}
        return {name: read_run_time(self._library, fd) for name, fd in fds.items() if fd >= 0}

    def close(self) -> None:
        """Programs off their hooks first, then everything else."""
        for link in self._links:
            self._call.bpf_link__destroy(link)
        for ring in self._rings:
            ring.close()
        self._links, self._rings = [], []
        if self._pointer is not None:
            self._call.bpf_object__close(self._pointer)
            self._pointer = None


def opened(library: Library, name: str, make: Callable[[Object], T]) -> T:
    """What is made of a loaded object that the package ships; nothing stays open if that fails."""
    loaded = Object(library, name, read_object(name))
    try:
        loaded.load()
        return make(loaded)
    except BpfError:
        loaded.close()
        raise


def _last_words(said: list[str], otherwise: str) -> str:
    """The line that says why: the last of the verifier's log that is not its statistics."""
    for text in said:
        if _LOG_FRAME.search(text):
            lines = _LOG_FRAME.sub("", text).splitlines()
            words = [
                line for line in lines if not _STATISTICS.search(line) and not line.startswith("libbpf:")
            ]
            if words:
                return words[-1].strip()
    return said[0].removeprefix("libbpf: ").strip() if said else otherwise


def missing_hooks(library: Library, name: str, elf: bytes) -> dict[str, str]:
    """The object's programs whose BTF tracepoint this kernel does not have, with the tracepoint's name."""
    opened = Object(library, name, elf)
    hooks = {
        program: section.removeprefix("tp_btf/")
        for program, section in opened.programs.items()
        if section.startswith("tp_btf/")
    }
    opened.close()
    known = kernel_has(library, [f"btf_trace_{hook}" for hook in hooks.values()], BTF_KIND_TYPEDEF)
    return {program: hook for program, hook in hooks.items() if f"btf_trace_{hook}" not in known}


def kernel_has(library: Library, names: Iterable[str], kind: int) -> frozenset[str]:
    """Which of the names the kernel's own BTF has, as a type or function of that kind."""
    with library.listening():
        btf = library.call.btf__load_vmlinux_btf()
        if btf is None:
            raise BtfMissingError(f"{VMLINUX_BTF} can't be read: {os.strerror(ctypes.get_errno())}")
        try:
            find = library.call.btf__find_by_name_kind
            return frozenset(name for name in names if find(btf, name.encode(), kind) >= 0)
        finally:
            library.call.btf__free(btf)


def open_cgroup(path: str | bytes) -> int:
    """A cgroup directory's fd to attach to."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise BpfCallError(
            f"open cgroup {os.fsdecode(path)}", error.errno or 0, str(error.strerror)
        ) from error
