"""The objects as packaged, on each Debian kernel: loaded, right, and gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vm.guest import Guest

pytestmark = pytest.mark.vm

PYTHON = "/usr/lib/qosd/bin/python3 -I"

SCRIPT = r'''
import json, os, subprocess, sys, time
from qosd.ebpf.libbpf import Library
from qosd.ebpf.runq import Root
from qosd.ebpf.samples import ReclaimKey
from qosd.ebpf.skbprio import ClassId, SkbPrio
from qosd.ebpf.tracing import Tracing

BASE = "/sys/fs/cgroup/qosd-probes"
ids = {}
for name in ("", "/victim", "/hog"):
    os.mkdir(BASE + name)
    ids[name.strip("/")] = os.stat(BASE + name).st_ino

def run(group, code):
    enter = f"import os; open({BASE + '/' + group + '/cgroup.procs'!r}, 'w').write('0')\n"
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", enter + code])

library = Library()
start = time.perf_counter()
tracing = Tracing.open(library, {ids["victim"]: Root(watched=True, threshold_ns=1_000_000)})
opened = time.perf_counter() - start

pin = "os.sched_setaffinity(0, {1})\n"
hog = run("hog", pin + "while True: pass")
run("victim", pin + "import time\nfor _ in range(100): time.sleep(.002); sum(range(50000))").wait()
hog.kill(); hog.wait()
runq = tracing.read().runq

with open(BASE + "/cgroup.subtree_control", "w") as file: file.write("+memory +io")
with open(BASE + "/victim/memory.max", "w") as file: file.write(str(24 << 20))
run("victim", """
with open('/var/tmp/probe', 'wb') as file:
    for _ in range(96): file.write(bytes(1 << 20))
    os.fsync(file.fileno())
""").wait()
os.unlink("/var/tmp/probe")
sample = tracing.read()
stall = sample.reclaim.stalls.get(ReclaimKey(workload=ids["victim"], kind="memcg"))
ours = [(key, io) for key, io in sample.blkio.io.items() if key.workload == ids["victim"]]
written = [(io.bytes, io.latency.count) for key, io in ours if key.op == "write"]

prio = SkbPrio.open(library)
fd = os.open(BASE, os.O_RDONLY)
prio.attach(ids[""], fd, ClassId(0xA001, 0x20))
run("hog", """
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(10): udp.sendto(bytes(100), ('127.0.0.1', 9))
""").wait()
packets = prio.read()[ids[""]].packets

run("victim", """
import socket
server = socket.create_server(('127.0.0.1', 0))
client, (peer, _) = socket.create_connection(server.getsockname()), server.accept()
for _ in range(500): client.sendall(b'x'); peer.sendall(peer.recv(1)); client.recv(1)
""").wait()
tcp = tracing.read().tcp.workloads[ids["victim"]]

json.dump({
    "absent": {name: str(error) for name, error in tracing.absent.items()},
    "opened_ms": opened * 1e3,
    "p99_ms": runq.workloads[ids["victim"]].waits.quantile_ns(0.99) / 1e6,
    "culprits": {str(b.culprit): b.ns for b in runq.blames},
    "hog": str(ids["hog"]),
    "events": len(list(tracing.events())),
    "stalls": stall.count if stall else 0,
    "written": written,
    "packets": packets,
    "rtt_us": tcp.rtt.quantile_ns(.5) / 1e3 if tcp.rtt.count else None,
}, sys.stdout)
tracing.close(); prio.close()
for name in ("/hog", "/victim", ""):
    while "populated 1" in open(BASE + name + "/cgroup.events").read(): pass
    os.rmdir(BASE + name)
'''


@pytest.fixture
def answers(installed: Guest, share: Path) -> dict[str, Any]:
    installed.sh("systemctl stop qosd")
    (share / "probes.py").write_text(SCRIPT)
    found: dict[str, Any] = json.loads(installed.sh(f"{PYTHON} /mnt/share/probes.py", timeout=300))
    return found


def test_every_probe_answers_on_this_kernel(answers: dict[str, Any]) -> None:
    """Loaded without an absent one; a hog is blamed, a limit's stalls and its IO are charged, packets counted,
    round trips told."""
    assert answers["absent"] == {}
    assert answers["p99_ms"] > 1
    assert answers["culprits"][answers["hog"]] == max(answers["culprits"].values())
    assert answers["events"] > 0
    assert answers["stalls"] > 0
    assert sum(count for _, count in answers["written"]) > 0
    assert answers["packets"] == 10
    assert 1 < answers["rtt_us"] < 1_000_000
