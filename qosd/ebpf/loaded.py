"""What a probe asks of whoever loaded it: libbpf's `Object`, or bcc's."""

from __future__ import annotations

from typing import Protocol

from qosd.ebpf.maps import Map, RingBuffer, RunTime


class Loaded(Protocol):
    """Programs in the kernel, with their maps. Nothing is pinned: `close` or our end takes it all away."""

    name: str

    def map(self, name: str) -> Map: ...

    def ring_buffer(self, name: str) -> RingBuffer: ...

    def attach(self, program: str) -> int: ...

    def detach(self, link: int) -> None: ...

    def run_time(self) -> dict[str, RunTime]: ...

    def close(self) -> None: ...
