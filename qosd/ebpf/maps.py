"""Reading and writing BPF maps, the ring buffer, and what the programs cost: one kernel interface each."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator

import msgspec

from qosd.ebpf.errors import BpfCallError
from qosd.ebpf.libbpf import BPF_ANY, BPF_STATS_RUN_TIME, SAMPLE, Library, checked

_PERCPU_TYPES = frozenset({5, 6, 10, 21})
"""BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, PERCPU_CGROUP_STORAGE"""

_BATCH = 128
_MAP_INFO = struct.Struct("=5I")
"""The first members of struct bpf_map_info; the kernel fills as much as is asked for."""
_PROG_INFO = 224
"""Bytes of struct bpf_prog_info up to verified_insns; the kernel fills as much as is asked for."""
_RUN_TIME = struct.Struct("=QQ")
_RUN_TIME_OFFSET = 192
"""run_time_ns and run_cnt in struct bpf_prog_info (include/uapi/linux/bpf.h, since 5.1)."""


class RunTime(msgspec.Struct, frozen=True, gc=False):
    """What a program has cost since it was loaded, while statistics were on."""

    run_time_ns: int
    run_cnt: int


class Map:
    """One map by its fd. Values of per-CPU maps are the CPUs' values one after the other, 8-byte aligned."""

    def __init__(self, library: Library, fd: int, name: str, shape: tuple[int, int, int, int]) -> None:
        call = library.call
        self._call = call
        self.name = name
        self.fd = fd
        kind, self.key_size, size, self.max_entries = shape
        aligned = (size + 7) & ~7
        self.element_size: int = size
        """Bytes of one CPU's value, padded to 8 in per-CPU maps."""
        self.value_size: int = size
        if kind in _PERCPU_TYPES:
            self.element_size = aligned
            self.value_size = aligned * checked("libbpf_num_possible_cpus", call.libbpf_num_possible_cpus())
        self._room = max(1, min(self.max_entries, _BATCH))
        self._buffers: tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]] | None = None

    @classmethod
    def of_pointer(cls, library: Library, pointer: int) -> Map:
        """A map of an object that libbpf has loaded."""
        call = library.call
        kind, key = call.bpf_map__type(pointer), call.bpf_map__key_size(pointer)
        shape = (kind, key, call.bpf_map__value_size(pointer), call.bpf_map__max_entries(pointer))
        return cls(library, call.bpf_map__fd(pointer), call.bpf_map__name(pointer).decode(), shape)

    @classmethod
    def of_fd(cls, library: Library, fd: int, name: str) -> Map:
        """A map that somebody else has made."""
        info = ctypes.create_string_buffer(_MAP_INFO.size)
        size = ctypes.c_uint32(_MAP_INFO.size)
        result = library.call.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size))
        checked(f"{name}: BPF_OBJ_GET_INFO_BY_FD", result)
        kind, _id, key_size, value_size, max_entries = _MAP_INFO.unpack(info.raw)
        return cls(library, fd, name, (kind, key_size, value_size, max_entries))

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None if the key is not there."""
        value = ctypes.create_string_buffer(self.value_size)
        result = self._call.bpf_map_lookup_elem(self.fd, key, value)
        if result < 0 and ctypes.get_errno() == errno.ENOENT:
            return None
        checked(f"{self.name}: lookup", result)
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        if len(key) != self.key_size or len(value) != self.value_size:
            message = f"{self.name}: {len(key)}/{len(value)} bytes, not {self.key_size}/{self.value_size}"
            raise ValueError(message)
        checked(f"{self.name}: update", self._call.bpf_map_update_elem(self.fd, key, value, flags))

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        result = self._call.bpf_map_delete_elem(self.fd, key)
        if result < 0 and ctypes.get_errno() == errno.ENOENT:
            return False
        checked(f"{self.name}: delete", result)
        return True

    def items(self) -> Iterator[tuple[bytes, memoryview]]:
        """Every element, some hundred to a system call; a moving one may be seen twice or missed.

        The values are views of a buffer that the next batch overwrites.
        """
        token = None
        while True:
            keys, values = self._buffers or self._new_buffers()
            count = ctypes.c_uint32(self._room)
            following = ctypes.create_string_buffer(max(self.key_size, 8))
            result = self._call.bpf_map_lookup_batch(
                self.fd, token, following, keys, values, ctypes.byref(count), None
            )
            code = ctypes.get_errno() if result < 0 else 0
            if code == errno.ENOSPC:  # one hash bucket holds more than the room
                self._room, self._buffers = 2 * self._room, None
                continue
            if code not in (0, errno.ENOENT):
                raise BpfCallError(f"{self.name}: lookup_batch", code, os.strerror(code))
            yield from self._split(keys, values, count.value)
            if code == errno.ENOENT:  # that was the last one
                return
            token = following

    def _new_buffers(self) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
        self._buffers = (
            ctypes.create_string_buffer(self._room * self.key_size),
            ctypes.create_string_buffer(self._room * self.value_size),
        )
        return self._buffers

    def _split(
        self, keys: ctypes.Array[ctypes.c_char], values: ctypes.Array[ctypes.c_char], count: int
    ) -> Iterator[tuple[bytes, memoryview]]:
        names, contents = keys.raw, memoryview(values).cast("B")
        for i in range(count):
            key = names[i * self.key_size : (i + 1) * self.key_size]
            yield key, contents[i * self.value_size : (i + 1) * self.value_size]

    def mapped(self) -> mmap.mmap:
        """An array made with BPF_F_MMAPABLE, read without system calls. The caller closes it."""
        aligned = (self.element_size + 7) & ~7
        return mmap.mmap(self.fd, aligned * self.max_entries, mmap.MAP_SHARED, mmap.PROT_READ)


class RingBuffer:
    """The consumer's end of a BPF_MAP_TYPE_RINGBUF: `fd` is readable for epoll when records wait."""

    def __init__(self, library: Library, fd: int) -> None:
        self._call = library.call
        self._records: list[bytes] = []
        self._callback = SAMPLE(self._take)  # kept: libbpf holds its address
        pointer = self._call.ring_buffer__new(fd, self._callback, None, None)
        self._pointer: int | None = checked("ring_buffer__new", pointer)
        self.fd: int = self._call.ring_buffer__epoll_fd(self._pointer)

    def _take(self, _context: int | None, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return 0

    def consume(self) -> list[bytes]:
        """All records that wait; never blocks."""
        if self._pointer is None:
            return []
        checked("ring_buffer__consume", self._call.ring_buffer__consume(self._pointer))
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        if self._pointer is not None:
            self._call.ring_buffer__free(self._pointer)
            self._pointer = None


@contextlib.contextmanager
def run_time_statistics(library: Library) -> Iterator[None]:
    """Have the kernel time every BPF program while inside (some 20 ns a run), for whoever else looks too."""
    fd = checked("BPF_ENABLE_STATS", library.call.bpf_enable_stats(BPF_STATS_RUN_TIME))
    try:
        yield
    finally:
        os.close(fd)


def read_run_time(library: Library, program_fd: int) -> RunTime:
    info = ctypes.create_string_buffer(_PROG_INFO)
    size = ctypes.c_uint32(_PROG_INFO)
    result = library.call.bpf_obj_get_info_by_fd(program_fd, info, ctypes.byref(size))
    checked("BPF_OBJ_GET_INFO_BY_FD", result)
    run_time_ns, run_cnt = _RUN_TIME.unpack_from(info, _RUN_TIME_OFFSET)
    return RunTime(run_time_ns=run_time_ns, run_cnt=run_cnt)
