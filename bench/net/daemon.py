"""What the installed daemon does in a steady minute, counted by the kernel's tracing. In the guest only."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.net.wire import MBIT, mbit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.net.wire import Wire

_SECONDS = 60
_TRACED = ("sys_enter_sendto", "sys_enter_sendmsg", "sys_enter_socket", "sys_enter_execve")
_CALL = re.compile(r": sys_(\w+)\((?:fd|family): ([0-9a-f]+)")
_AF_NETLINK = "10"
"""16, as the trace writes numbers."""
_TIDY = "systemctl stop 'bench-*' qosd 2>/dev/null; ip netns pids far | xargs -r kill; ip netns del far"
_LAY = """
ip netns add far && ip link set {far} netns far
ip addr add 10.0.0.1/24 dev {ours} && ip link set {ours} up
ip -n far addr add 10.0.0.2/24 dev {far} && ip -n far link set {far} up
ping -q -c 1 -W 10 10.0.0.2
for port in 5201 5202; do ip netns exec far iperf3 -s -D -p $port; done
cat >/etc/qosd/qosd.toml <<END
[net]
uplinks = ["{ours}"]
link_speed = {{ {ours} = "{link}Mbit" }}
END
systemctl restart qosd
timeout 60 bash -c 'until tc qdisc show dev {ours} | grep -q "^qdisc htb a001:"; do sleep 0.2; done'
run="systemd-run -q --collect"
$run --unit=bench-be --slice=be.slice iperf3 -c 10.0.0.2 -p 5201 -t 600 -P 2
$run --unit=bench-ls --slice=ls.slice iperf3 -c 10.0.0.2 -p 5202 -t 600 -b {ls}M
sleep 25
"""


def bench(wire: Wire, _rounds: int) -> None:
    assert wire.nics is not None, "it moves real devices"
    ours, far = wire.nics
    link = wire.links(20 * MBIT)[-1]
    try:
        _shell(_LAY.format(ours=ours, far=far, link=link // 10**6, ls=link // 10**7))
        pid = int(_shell("systemctl show -p MainPID --value qosd"))
        with _traced(pid) as trace:
            netlink, before = _netlink_fds(pid), _metrics()
            time.sleep(_SECONDS)
            after = _metrics()
        calls = _CALL.findall(trace.text)
        execs = trace.text.count("sys_execve(")
        opened = sum(call == "socket" and value == _AF_NETLINK for call, value in calls)
        sent = sum(call.startswith("send") and int(value, 16) in netlink for call, value in calls)
        ceilings = {each["qosd_net_be_ceiling_bits_per_second"] for each in (before, after)}
        requests = after["qosd_net_netlink_requests_total"] - before["qosd_net_netlink_requests_total"]
        print(
            f"\nThe installed daemon, {_SECONDS} s, BE at its ceiling and LS at a tenth of {mbit(link)},"
            f" counted by the kernel: {execs} execs, {sent} netlink messages sent (target 10),"
            f" {opened} netlink sockets opened; its own metric: {requests:g} requests; ceilings at both ends:"
            f" {', '.join(mbit(each) for each in sorted(ceilings))}"
        )
    finally:
        subprocess.run(["bash", "-c", _TIDY], check=False)


class _Trace:
    text = ""


@contextlib.contextmanager
def _traced(pid: int) -> Iterator[_Trace]:
    """The system calls of a process, its threads and what it starts."""
    _shell("mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing")
    instance = Path("/sys/kernel/tracing/instances/qosd-bench")
    instance.mkdir()
    trace = _Trace()
    try:
        (instance / "options/event-fork").write_text("1", encoding="ascii")
        threads = " ".join(os.listdir(f"/proc/{pid}/task"))
        (instance / "set_event_pid").write_text(threads, encoding="ascii")
        for name in _TRACED:
            (instance / f"events/syscalls/{name}/enable").write_text("1", encoding="ascii")
        yield trace
        for name in _TRACED:
            (instance / f"events/syscalls/{name}/enable").write_text("0", encoding="ascii")
        trace.text = (instance / "trace").read_text(encoding="utf-8")
    finally:
        instance.rmdir()


def _netlink_fds(pid: int) -> set[int]:
    lines = Path("/proc/net/netlink").read_text(encoding="ascii").splitlines()[1:]
    inodes = {f"socket:[{line.split()[-1]}]" for line in lines}
    links = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return {fd for fd, target in links.items() if target in inodes}


def _metrics() -> dict[str, float]:
    """The last sample of each family: of those looked at there is one."""
    text = _shell("curl -sf http://127.0.0.1:9753/metrics")
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name.split("{")[0]: float(value) for name, value in samples}


def _shell(script: str) -> str:
    done = subprocess.run(["bash", "-ec", script], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout
