"""A daemon for qosctl to talk to: the real control server and protocol, canned answers."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from qosd.control import Server
from qosd.cpu.burst import BurstView
from qosd.cpu.overrun import OverrunView
from qosd.cpu.pools import PoolView
from qosd.cpu.view import CpuView
from qosd.cpu.windows import WindowView
from qosd.ctl.main import cli
from qosd.ebpf.status import Latency, ProbeStatus, ProbesView, Rate, Retransmits
from qosd.interference.blame import Cause, Culprit
from qosd.interference.kills import Left
from qosd.interference.signals import Kind
from qosd.interference.verdict import Verdict
from qosd.interference.view import VerdictRecord, VictimsView, VictimView
from qosd.memory.decide import MemoryView, WorkloadMemory
from qosd.memory.trouble import Trouble
from qosd.model import CgroupId, Pressure, Stall, Tier
from qosd.net.status import ClassStatus, EgressStatus, IngressStatus, NetView, UplinkView
from qosd.plan import Input, Reason
from qosd.status import (
    DecisionRecord,
    HostStatus,
    SensorStatus,
    SettingStatus,
    Status,
    TierStatus,
    WorkloadStatus,
)

NOW = 1_700_000_000.0
Answer = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]

_ALLOWANCE = Reason(
    "cpu.bandwidth/cpu.allowance",
    "BE may use 2.10 CPUs: 4.00 x 95 % - 1.70 used by LS and system = 2.10",
    (Input("ls", 1.2, "CPUs"), Input("system", 0.5, "CPUs", age_ms=1000)),
    threshold="host.cpu_target_pct = 95 %",
    margin="+0.00 CPUs to the formula's own result",
)
_IDLE = Reason("cpu.weight", "BE runs only when no LS or system task wants the CPU (SCHED_IDLE group)")
_WEIGHT = Reason("cpu.weight", "LS runs before everything of default weight")


def pressure(avg10: float) -> Pressure:
    return Pressure(Stall(avg10, 0.0, 0.0, 1_000_000), None)


def canned(**changes: Any) -> Status:
    """A busy host of four CPUs, one second after NOW - 1."""
    whole = Status(
        version="0.1.0",
        mode="enforce",
        tick=42,
        time=NOW - 1,
        interval_ms=1000,
        late_ticks=2,
        tick_ms=1.5,
        config="/etc/qosd/qosd.toml",
        config_error=None,
        host=HostStatus(4, 4.0, 0.5, 8 << 30, 6 << 30, pressure(12.4), pressure(0.0), None),
        tiers={"ls": TierStatus(1.2), "be": TierStatus(2.0, 2.1, _ALLOWANCE)},
        workloads=(
            WorkloadStatus(
                "batch", Tier.BE, 2, "be.slice", 7, 2.0, 300 << 20, pressure(80), pressure(1), None
            ),
            WorkloadStatus(
                "web", Tier.LS, 0, "ls.slice", 8, 1.2, 2 << 30, pressure(3), pressure(0), pressure(0)
            ),
        ),
        settings=(
            SettingStatus("be.slice", "cpu.idle", 7, "1", "1", "0", "in-force", _IDLE),
            SettingStatus(
                "be.slice", "cpu.max", 7, "21000 10000", "21000 10000", "max 100000", "in-force", _ALLOWANCE
            ),
            SettingStatus("ls.slice", "cpu.weight", 8, "500", "1000", None, "yielded", _WEIGHT),
        ),
        sensors=(
            SensorStatus("cpu", ok=True, age_ms=0),
            SensorStatus("memory", ok=True, age_ms=0),
            SensorStatus("pressure", ok=False, age_ms=9000),
        ),
        refused={"be.slice/inner.slice": "it lies inside be.slice (workload 'batch')"},
    )
    return msgspec.structs.replace(whole, **changes)


_CEILING = Reason(
    "net.shaping/ceiling",
    "BE may send 700.0 Mbit/s of 1.00 Gbit/s: LS and system use 200.0 Mbit/s",
    (Input("ls_egress", 2e8, "bit/s"), Input("total_egress", 5e8, "bit/s")),
    threshold="egress_target_pct = 90",
)
MEMORY = MemoryView(
    be_allowed=3 << 30,
    be_text="BE may hold 3072 MiB",
    swappiness_key=True,
    trouble=Trouble(short=False, ls_stalled=True, available_pct=40.0, ls_full_pct=12.0),
    pgscan_kswapd=100,
    pgscan_direct=2,
    workloads=(
        WorkloadMemory(
            path="be.slice",
            workload="be",
            tier="be",
            page_cache=1 << 30,
            working_set=None,
            protection=None,
            limit="3072 MiB for be",
            phase="held",
            reclaim="1024 MiB of page cache, to go down to page_cache_low = 512 MiB; held: nothing was freed",
            asked=256 << 20,
            freed=128 << 20,
            refaulted=1 << 20,
            errors={"failed": 1},
        ),
        WorkloadMemory(
            path="ls.slice",
            workload="ls",
            tier="ls",
            page_cache=None,
            working_set=2 << 30,
            protection="keeps 2458 MiB from reclaim: 2048 MiB in use and a margin",
            limit=None,
            phase="off",
            reclaim="no page_cache_high is set, and the host is not short of memory",
            asked=0,
            freed=0,
            refaulted=0,
            errors={},
        ),
    ),
)
NET = NetView(
    uplinks=(
        UplinkView(
            "eth0", 2, "up", 10**9, shaped=True, be_ceiling_bps=7 * 10**8, total_bps=5e8, ls_bps=2e8,
            classes=(
                ClassStatus("a001:10", "ls", 99 * 10**7, 10**9, 5 << 20, 5000, 1, 0),
                ClassStatus("a001:2", "be-tier", 10**7, 7 * 10**8, 9 << 20, 9000, 7, 0),
                ClassStatus("a001:20", "be", 5 * 10**6, 10**9, 8 << 20, 8000, 5, 3000),
                ClassStatus("a001:30", "be:batch", 5 * 10**6, 2 * 10**8, 1 << 20, 1000, 2, 0),
            ),
            reason=_CEILING, classes_age_ms=4000, be_bps=3e8,
        ),
    ),
    refused={"eth1": "eth1 has a root qdisc of somebody else: tbf 1:"},
    degraded=("BE's packets cannot be told apart: no libbpf",),
    egress=(EgressStatus("be.slice", "batch", "be", "a001:30", 2 * 10**8, 9 << 20, 9000, 1.5e8),),
    netlink_requests=12,
    be_ingress=IngressStatus(10**8, 9e7, 3 << 20, 1 << 20, 700, 1e7),
)  # fmt: skip


VERDICT = Verdict(
    7,
    CgroupId(8),
    "ls.slice",
    "cpu.pressure",
    Kind.CPU,
    value=41.0,
    peak=60.0,
    threshold=30.0,
    baseline=5.0,
    cold=False,
    cause=Cause.BE,
    confidence=0.37,
    text="BE did 74% of what was done with the CPUs",
    culprits=(
        Culprit(CgroupId(7), "be.slice", Tier.BE, 0.74),
        Culprit(None, "system", None, 0.02),
    ),
    evidence=(Input("some stall", 41.0, "% of the time"),),
    began_usec=5,
)
VERDICTS = (
    VerdictRecord(msgspec.structs.replace(VERDICT, id=6, cause=Cause.SELF), NOW - 7200, NOW - 7100),
    VerdictRecord(VERDICT, NOW - 20),
)
VICTIMS = VictimsView(
    "kill",
    Left(0, 4, 19),
    (
        VictimView("be.slice/job.service", "batch", "be", 2, 300 << 20, 1, 1, "priority 2, then memory"),
        VictimView("ls.slice", "web", "ls", 0, 2 << 30, None, None, "never: it is latency-sensitive"),
    ),
)
CPU = CpuView(
    windows=(WindowView("night", "Europe/Berlin", 7 * 60 + 5, "target 100 %"),),
    pools=(
        PoolView("front", 0, "ls", ("ls.slice",), 3.0, 1.2, 30, 50, "load 40 % of 3.00 CPUs, band 30-50 %"),
        PoolView("batch", 2, "be", ("be.slice",), 1.0, 1.0, 50, 80, "load 100 % of 1.00 CPUs", ("be.slice",)),
        PoolView("empty", 2, None, (), None, None, 50, 80, "no workload of it is here"),
    ),
    bursts=(BurstView("web", "ls.slice", 1.0, 1.44, 62.0, "throttled in 30 % of its periods"),),
    ineffective=(OverrunView("batch", "be.slice", 0.2, 0.95),),
)


def records() -> tuple[DecisionRecord, ...]:
    return (
        DecisionRecord(1, NOW - 700, 3, "be.slice", "cpu.idle", "0", "1", "written", _IDLE),
        DecisionRecord(
            2, NOW - 5, 38, "be.slice", "cpu.max", "19000 10000", "21000 10000", "written", _ALLOWANCE
        ),
        DecisionRecord(3, NOW - 5, 38, "ls.slice", "cpu.weight", "500", "1000", "failed", _WEIGHT, "EBUSY"),
    )


RULES = {
    "workload": [
        {"name": "web", "tier": "ls", "match": ["ls.slice"]},
        {"name": "batch", "tier": "be", "match": ["be.slice"]},
    ]
}


def answers(**changes: Answer) -> dict[str, Answer]:
    whole: dict[str, Answer] = {
        "status": {"ok": msgspec.to_builtins(canned())},
        "decisions": {"ok": msgspec.to_builtins(records())},
        "config": {"ok": RULES},
        "verdicts": {"ok": msgspec.to_builtins(VERDICTS)},
        "victims": {"ok": msgspec.to_builtins(VICTIMS)},
    }
    return {**whole, **changes}


@contextmanager
def daemon(path: str, given: dict[str, Answer] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Serve on `path`; yields the requests as they arrive."""
    requests: list[dict[str, Any]] = []
    chosen = answers() if given is None else given

    def handle(request: dict[str, Any], uid: int) -> dict[str, Any]:
        requests.append({**request, "uid": uid})
        answer = chosen[request["command"]]
        return answer(request) if callable(answer) else answer

    stop = threading.Event()
    with select.epoll() as epoll:
        server = Server(epoll, path, "no-such-group", handle)
        thread = threading.Thread(target=_loop, args=(epoll, server, stop))
        thread.start()
        try:
            yield requests
        finally:
            stop.set()
            thread.join()
            server.close()


def _loop(epoll: select.epoll, server: Server, stop: threading.Event) -> None:
    while not stop.is_set():
        for fd, events in epoll.poll(0.02):
            if server.owns(fd):
                server.on_event(fd, events, int(time.monotonic() * 1e6))


EBPF = ProbesView(
    loader="libbpf",
    why=None,
    probes=(
        ProbeStatus("runq", "attached", None, 0.123),
        ProbeStatus("reclaim", "absent", "reclaim: this kernel has no mm_vmscan_direct_reclaim_begin"),
        ProbeStatus("blkio", "attached"),
    ),
    latencies=(
        Latency("be.slice", "batch", "be", "runq", 9, 500.0, 90_000.0),
        Latency("ls.slice", "web", "ls", "runq", 1200, 12.0, 7400.0, 5000.0, None, cold=True, breach=True),
        Latency("ls.slice", "web", "ls", "blkio", 3, 500.0, 900.0, 5000.0, 1600.0, cold=False),
        Latency("ls.slice", "web", "ls", "reclaim", 0, None, None, 10_000.0),
    ),
    breaches={"be": 3},
    lost_events=4,
    retransmits=(Retransmits("ls.slice", "web", "ls", 7),),
    rates=(Rate("ls.slice", "web", "ls", 1.25, 0.002),),
)


def qosctl(*words: str, sock: str = "/nonexistent/control.sock", columns: int = 120) -> Result:
    return CliRunner().invoke(
        cli, ["--socket", sock, *words], env={"COLUMNS": str(columns)}, prog_name="qosctl"
    )
