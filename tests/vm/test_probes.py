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


WALK = r"""
import json, os, signal, sys, time
from qosd import cgroupfs
from qosd.ebpf.libbpf import Library
from qosd.ebpf.tree import Tree
from qosd.ebpf.treerecords import decode, split

BASE = "/sys/fs/cgroup/qosd-walk"
PAGE = os.sysconf("SC_PAGE_SIZE")
made, pids = {}, []

def write(path, text):
    with open(path, "w") as file: file.write(text)

def make(name, control=""):
    path = f"{BASE}/{name}".rstrip("/")
    os.mkdir(path)
    made[os.stat(path).st_ino] = path
    write(path + "/cgroup.subtree_control", control)
    return path

def run(path, work):
    pids.append(os.fork())
    if pids[-1] == 0:
        write(path + "/cgroup.procs", "0")
        work()

def spin():
    while True: pass

def fill():
    kept = b"x" * (8 << 20)
    signal.pause()

def files(path):
    def read(name, parse):
        try:
            with open(f"{path}/{name}", "rb") as file: return parse(file.read())
        except FileNotFoundError:
            return None
    cpu = read("cpu.stat", cgroupfs.parse_cpu_stat)
    told = [cpu.usage_usec, cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec, cpu.nr_bursts, cpu.burst_usec]
    return told, read("memory.current", cgroupfs.parse_memory_current)

make("", "+cpu +memory")
for number in range(4):
    make(f"both{number}", "+cpu +memory")
    for leaf in range(3):
        make(f"both{number}/{leaf}")
for number in range(3):
    make(f"memory{number}", "+memory")
    for leaf in range(2):
        make(f"memory{number}/{leaf}")
make("none")
make("none/0")
for path, limit in ((BASE + "/both0/0", "10000"), (BASE + "/both1", "20000")):
    write(path + "/cpu.max", limit + " 100000")
    write(path + "/cpu.max.burst", "5000")
for name, work in (("both0/0", spin), ("both1/1", spin), ("memory0/1", fill), ("both2/0", fill), ("none/0", spin)):
    run(f"{BASE}/{name}", work)

def throttled(path):
    return files(path)[0][3]

deadline = time.monotonic() + 60
def busy():
    held = all(throttled(BASE + name) for name in ("/both0/0", "/both1"))
    return held and all(files(BASE + name)[1] > 4 << 20 for name in ("/both2/0", "/memory0/1"))

while not busy():
    assert time.monotonic() < deadline, "nobody was throttled"
    time.sleep(0.1)
write(BASE + "/cgroup.freeze", "1")
while "frozen 0" in open(BASE + "/cgroup.events").read(): time.sleep(0.05)
still = None
while still != (still := [files(path)[0] for path in made.values()]): time.sleep(0.5)  # the last period ends

tree = Tree.open(Library(), 100)
fd = os.open(BASE, os.O_RDONLY)
subtree = tree.attach(fd)
before = {number: files(path) for number, path in made.items()}
records = {number: decode(record, PAGE) for number, (record,) in split(tree.walk(subtree))}
after = {number: files(path) for number, path in made.items()}
walked = {
    number: ([cpu.usage_usec, cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec, cpu.nr_bursts, cpu.burst_usec], memory)
    for number, (cpu, memory) in records.items()
}
for pid in pids: os.kill(pid, signal.SIGKILL)
write(BASE + "/cgroup.freeze", "0")
for pid in pids: os.waitpid(pid, 0)
for path in reversed(made.values()): os.rmdir(path)
gone = len(tree.walk(subtree))
tree.close()
json.dump({
    "cgroups": [path.removeprefix(BASE) for path in made.values()],
    **{name: [values.get(number) for number in made] for name, values in
       (("before", before), ("walked", walked), ("after", after))},
    "strangers": len(walked.keys() - made.keys()),
    "gone": gone,
}, sys.stdout)
"""
"""Cgroups of which some have both controllers, some one, some none; two are throttled, then all is frozen."""


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


def test_a_walk_tells_on_this_kernel_what_the_files_tell(installed: Guest, share: Path) -> None:
    """To the microsecond, since nothing runs; memory that is given back meanwhile lies between two reads."""
    (share / "walk.py").write_text(WALK)
    told = json.loads(installed.sh(f"{PYTHON} /mnt/share/walk.py", timeout=300))
    before, walked, after = ([tuple(each) for each in told[name]] for name in ("before", "walked", "after"))
    of = dict(zip(told["cgroups"], walked, strict=True))
    assert len(of) == 28
    for name, first, found, last in zip(of, before, walked, after, strict=True):
        assert found[0] == first[0] == last[0], name
        low, high = sorted((first[1], last[1])) if first[1] is not None else (None, None)
        assert found[1] == low or low < found[1] <= high, name
    for throttled in (of["/both0/0"], of["/both1"]):
        assert min(throttled[0][:4]) > 0
    assert of["/both1/1"][0][1:] == [0, 0, 0, 0, 0], "its own quota only"
    assert of["/memory0"][0][1:4] == [0, 0, 0]
    assert of["/memory0/1"][0][1:] == [None] * 5
    assert of["/memory0/1"][1] > 4 << 20
    assert of["/none/0"][0][0] > 0
    assert of["/none/0"][1] is None
    assert (told["strangers"], told["gone"]) == (0, 0)
