"""libbpf.so.1 by ctypes: the C declarations that qosd uses, and what the library says while it works.

libbpf 1.x returns NULL or a negative number and sets errno. Its messages go to stderr unless a print function
takes them, which is one for the whole process: the daemon opens one `Library` and keeps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from ctypes import c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

from qosd.ebpf.errors import BpfCallError, LibraryMissingError

SONAME = "libbpf.so.1"

_LOG_BYTES = 16 << 20
"""libbpf's own limit for a verifier log. Mapped, so only what is written costs memory."""

_WARN = 0
_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
SAMPLE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
"""ring_buffer_sample_fn"""

BPF_ANY = 0
BPF_STATS_RUN_TIME = 0
BPF_NOEXIST = 1
BTF_KIND_TYPEDEF = 8
BTF_KIND_FUNC = 12

CGROUP_ITER_DESCENDANTS_PRE = 2

MAP_PERCPU_HASH = 5
MAP_LRU_PERCPU_HASH = 10


class OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts up to object_name; libbpf reads as far as `sz` says."""

    _fields_ = (("sz", c_size_t), ("object_name", c_char_p))


class IteratorTarget(ctypes.Structure):
    """union bpf_iter_link_info, its cgroup member: the walk's order and the cgroup to begin at."""

    _fields_ = (("order", c_uint32), ("cgroup_fd", c_uint32), ("cgroup_id", c_uint64))


class IteratorOptions(ctypes.Structure):
    """As the C struct bpf_iter_attach_opts."""

    _fields_ = (("sz", c_size_t), ("link_info", c_void_p), ("link_info_len", c_uint32))


_DECLARATIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_mem": (c_void_p, (c_void_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__section_name": (c_char_p, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_cgroup": (c_void_p, (c_void_p, c_int)),
    "bpf_program__attach_iter": (c_void_p, (c_void_p, c_void_p)),
    "bpf_link_create": (c_int, (c_int, c_int, c_int, c_void_p)),
    "bpf_raw_tracepoint_open": (c_int, (c_char_p, c_int)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__type": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__set_autocreate": (c_int, (c_void_p, c_bool)),
    "bpf_map__set_type": (c_int, (c_void_p, c_int)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_lookup_batch": (c_int, (c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_enable_stats": (c_int, (c_int,)),
    "ring_buffer__new": (c_void_p, (c_int, SAMPLE, c_void_p, c_void_p)),
    "ring_buffer__free": (None, (c_void_p,)),
    "ring_buffer__epoll_fd": (c_int, (c_void_p,)),
    "ring_buffer__consume": (c_int, (c_void_p,)),
    "btf__load_vmlinux_btf": (c_void_p, ()),
    "btf__find_by_name_kind": (c_int, (c_void_p, c_char_p, c_uint32)),
    "btf__free": (None, (c_void_p,)),
}


_LIBC = ctypes.CDLL(None)
_LIBC.vsnprintf.argtypes = (c_void_p, c_size_t, c_void_p, c_void_p)
_LISTENERS: list[list[str]] = []


def _hear(level: int, text: int, arguments: int) -> int:
    """The one print function libbpf has for a whole process: of the module, so that it never goes away."""
    # va_list passes as a pointer on every 64-bit ABI that Debian has.
    if level == _WARN and _LISTENERS:
        with mmap.mmap(-1, _LOG_BYTES) as log:
            buffer = (ctypes.c_char * _LOG_BYTES).from_buffer(log)
            _LIBC.vsnprintf(buffer, _LOG_BYTES, text, arguments)
            _LISTENERS[-1].append(buffer.value.decode(errors="replace"))
            del buffer  # an exported buffer would keep the mapping
    return 0


_HEAR = _PRINT(_hear)


class Library:
    """The loaded library; `call` is its functions by their C names."""

    def __init__(self) -> None:
        try:
            self.call = ctypes.CDLL(SONAME, use_errno=True)
            for name, (result, arguments) in _DECLARATIONS.items():
                function = getattr(self.call, name)
                function.restype = result
                function.argtypes = arguments
        except (OSError, AttributeError) as error:
            raise LibraryMissingError(f"{SONAME} can't be used, install libbpf1: {error}") from None
        self.call.libbpf_set_print(_HEAR)

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[str]]:
        """The warnings of the calls inside, a verifier's log among them."""
        said: list[str] = []
        _LISTENERS.append(said)
        try:
            yield said
        finally:
            _LISTENERS.pop()

    def give_back_memory(self) -> None:
        """Parsing the kernel's whole BTF (5 MB) for each load leaves free pages that glibc would keep."""
        with contextlib.suppress(AttributeError):  # glibc only
            _LIBC.malloc_trim(0)


def checked(what: str, result: int | None) -> int:
    """A libbpf result, or its errno as an error: NULL and negative numbers are failures."""
    if result is None or result < 0:
        number = ctypes.get_errno()
        raise BpfCallError(what, number, os.strerror(number))
    return result


def each(following: Callable[[int, int | None], int | None], owner: int) -> Iterator[int]:
    """The items of bpf_object__next_program and its kind."""
    item = following(owner, None)
    while item is not None:
        yield item
        item = following(owner, item)
