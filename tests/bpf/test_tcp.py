"""TCP by workload on the running kernel, over the loopback device."""

from __future__ import annotations

import json
from typing import Any

from qosd.ebpf.libbpf import Library
from qosd.ebpf.runq import Root
from qosd.ebpf.samples import Tcp, TcpSample
from qosd.ebpf.tracing import Tracing, TracingOptions

ECHO = """
import json, socket, struct, sys, threading
server = socket.create_server(("127.0.0.1", 0))
def serve():
    peer, _ = server.accept()
    while data := peer.recv(64): peer.sendall(data)
threading.Thread(target=serve, daemon=True).start()
client = socket.create_connection(server.getsockname())
for _ in range(2000):
    client.sendall(b"x"); client.recv(64)
info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
open({path!r}, "w").write(json.dumps(struct.unpack_from("I", info, 68)[0]))
"""
"""tcpi_rtt, in microseconds, is 68 bytes into struct tcp_info."""

DEAF = """
import socket, struct, time
server = socket.create_server(("127.0.0.1", 0))
import ctypes
drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K: keep 0 bytes
server.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(drop)))  # SO_ATTACH_FILTER
client = socket.socket()
client.settimeout(2.5)
try: client.connect(server.getsockname())
except TimeoutError: pass
"""
"""A listener that hears nothing: the first SYN is sent again after a second."""


def tcp_of(tracing: Tracing) -> TcpSample:
    sample = tracing.read().tcp
    assert sample is not None
    return sample


def test_round_trips_are_those_that_the_socket_itself_tells_of(
    library: Library, cgroup: Any, tmp_path: Any
) -> None:
    ls, child, other = cgroup("ls"), cgroup("ls/child"), cgroup("other")
    path = tmp_path / "rtt"
    tracing = Tracing.open(library, {ls.id: Root(watched=True)}, TracingOptions(probes=("tcp",)))
    try:
        assert child.run(ECHO.format(path=str(path))).wait(timeout=60) == 0
        sample = tcp_of(tracing)
        assert other.run(ECHO.format(path=str(tmp_path / "of another"))).wait(timeout=60) == 0
        later = tcp_of(tracing)
    finally:
        tracing.close()
    rtt = sample.workloads[ls.id].rtt
    p50 = rtt.quantile_ns(0.5)
    assert 100 < rtt.count < 2000  # of some 4000 packets received at both ends
    assert p50 is not None
    assert 0.2 < p50 / 1000 / json.loads(path.read_text()) < 5
    assert sample.evicted == 0
    assert set(later.workloads) == {ls.id}  # the other is in no workload
    assert later.workloads[ls.id].rtt.count == rtt.count


def test_a_segment_that_is_sent_again_is_counted_for_its_workload(library: Library, cgroup: Any) -> None:
    ls, be = cgroup("ls"), cgroup("be")
    roots = {each.id: Root(watched=True) for each in (ls, be)}
    tracing = Tracing.open(library, roots, TracingOptions(probes=("tcp",)))
    try:
        assert be.run(DEAF).wait(timeout=60) == 0
        sample = tcp_of(tracing)
    finally:
        tracing.close()
    assert 1 <= sample.workloads[be.id].retransmits <= 3
    assert sample.workloads.get(ls.id, Tcp(sample.workloads[be.id].rtt, 0)).retransmits == 0
