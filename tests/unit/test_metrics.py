from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from ctl_daemon import CPU, EBPF, MEMORY, NET, VERDICT
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from qosd import exposition, metrics
from qosd.answering import Totals
from qosd.engine import Counters
from qosd.interference.kills import Left
from qosd.interference.view import InterferenceView, RungView, VerdictRecord
from qosd.model import DiskIo, Feed, Pressure, Stall, Tier
from qosd.plan import Reason
from qosd.reflex import ReflexStatus
from qosd.stalls import Waits
from qosd.status import HostStatus, SensorStatus, SettingStatus, Status, TierStatus, WorkloadStatus

ROOT = Path(__file__).resolve().parents[2]
SOME = Pressure(Stall(1.0, 1.0, 1.0, 2_500_000), Stall(0.0, 0.0, 0.0, 500_000))
REASON = Reason("cpu.weight", "because")


REFLEX = ReflexStatus(
    "trigger",
    {"ls.slice": "50 ms in 100 ms"},
    {},
    0.5,
    {"psi": {"cut": 2, "self-throttled": 7}, "runq": {"dwell": 1}},
)
SUFFERING = InterferenceView(
    "kill",
    (RungView("cpu", "freeze", 3.0, 0.25, held=False),),
    (VerdictRecord(VERDICT, 990.0),),
    frozen=("be.slice",),
    kills_left=Left(0, 4, 19),
    alarm="x is not killed: because",
)


def workload(
    path: str, cores: float | None, *, tier: Tier = Tier.BE, pressure: Pressure | None = SOME
) -> WorkloadStatus:
    return WorkloadStatus("be", tier, 0, path, hash(path), cores, 1 << 20, pressure, pressure, pressure)


DOING_IO = msgspec.structs.replace(workload("be.slice", 0.5), io={"8:16": DiskIo(1, 2, 3, 4)})
FEEDS = (
    Feed("p99", "web", "ms", 250.0, 500_000, 20.0),
    Feed("queue", "web", "jobs", 7.0, 0),
    Feed("old", "web", "ms", None, 90_000_000, 20.0),
)


def status(**changes: Any) -> Status:
    whole = Status(
        version="1.2.3",
        mode="enforce",
        tick=7,
        time=1000.0,
        interval_ms=1000,
        late_ticks=0,
        tick_ms=1.0,
        config="",
        config_error=None,
        host=HostStatus(4, 3.9, 0.5, 1 << 30, 1 << 29, SOME, SOME, None),
        tiers={"ls": TierStatus(1.0, waits=Waits(0.25, 0.0, None)), "be": TierStatus(0.5, 2.0, REASON)},
        workloads=(workload("be.slice", 0.5), workload("ls.slice", 1.0, tier=Tier.LS)),
        settings=(SettingStatus("be.slice", "cpu.idle", 1, "0", "1", None, "contested", REASON),),
        sensors=(
            SensorStatus("cpu", ok=True, age_ms=0),
            SensorStatus("memory", ok=False, age_ms=None),
            SensorStatus("be.slice/cpu.stat", ok=False, age_ms=None, detail="malformed"),
        ),
        refused={"x.slice": "it is x"},
    )
    return msgspec.structs.replace(whole, **changes)


def source(last: Status | None) -> Any:
    counters = Counters()
    counters.ticks = 7
    counters.writes = {("cpu.max", "written"): 3}
    counters.errors = {"EINVAL": 1}
    totals = Totals()
    totals.verdicts = {("cpu.pressure", "be"): 2}
    totals.rung_usec = {("cpu", "freeze"): 1_500_000}
    totals.kills = {"killed": 1}
    answering = SimpleNamespace(totals=totals)
    engine = SimpleNamespace(counters=counters, journal_error=None, mode="enforce", answering=answering)
    times = SimpleNamespace(buckets={1.0: 2, 2.0: 3}, count=4, sum_ms=9.5)
    return SimpleNamespace(status=last, engine=engine, tick_times=times, pages_locked=True)


def samples(last: Status | None, now: float = 1001.5) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Through the text and a strict parser: what a scraper sees."""
    text = exposition.text(lambda: metrics.collect(source(last), now)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_is_documented_with_its_type_and_labels_and_nothing_else_is() -> None:
    documented = {
        (name, kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(
            r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
        )
    }
    served = set()
    suffixes = {"counter": "_total", "info": "_info"}
    everything = status(
        net=NET,
        cpu=CPU,
        ebpf=EBPF,
        feeds=FEEDS,
        memory=MEMORY,
        workloads=(DOING_IO,),
        interference=SUFFERING,
        reflex=REFLEX,
    )
    for family in metrics.collect(source(everything), 1001.0):
        assert family.samples, family.name
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        served.add((family.name + suffixes.get(family.type, ""), family.type, labels))
    assert served == documented


def test_what_came_of_breaches_is_counted_by_source_and_outcome() -> None:
    seen = samples(status(reflex=REFLEX))

    assert seen["qosd_reactions_total", (("outcome", "self-throttled"), ("source", "psi"))] == 7
    assert seen["qosd_reactions_total", (("outcome", "dwell"), ("source", "runq"))] == 1
    assert seen["qosd_be_squeeze_ratio", ()] == 0.5
    assert seen["qosd_psi_triggers", ()] == 1


def test_pressure_is_the_kernels_total_in_seconds() -> None:
    seen = samples(status())
    labels = (("resource", "cpu"), ("stalled", "full"))
    assert seen["qosd_host_pressure_seconds_total", labels] == 0.5
    by_workload = (
        ("cgroup", "be.slice"),
        ("resource", "io"),
        ("stalled", "some"),
        ("tier", "be"),
        ("workload", "be"),
    )
    assert seen["qosd_workload_pressure_seconds_total", by_workload] == 2.5


def test_a_tiers_pressure_is_a_share_and_what_is_not_known_of_it_has_no_sample() -> None:
    seen = {labels: value for (name, labels), value in samples(status()).items() if "tier_pressure" in name}
    assert seen == {
        (("resource", "cpu"), ("tier", "ls")): 0.25,
        (("resource", "memory"), ("tier", "ls")): 0.0,
    }


def test_without_uplinks_there_are_no_families_of_the_network() -> None:
    assert not {name for name, _ in samples(status()) if name.startswith("qosd_net")}
    assert (
        samples(status(net=NET))["qosd_net_egress_bits_per_second", (("tier", "be"), ("uplink", "eth0"))]
        == 3e8
    )


def test_what_is_not_known_has_no_sample() -> None:
    seen = samples(
        status(
            workloads=(workload("be.slice", None, pressure=None),),
            tiers={"ls": TierStatus(None), "be": TierStatus(None)},
        )
    )
    names = {name for name, _ in seen}
    assert "qosd_tier_cpu_cores" not in names
    assert "qosd_tier_cpu_allowance_cores" not in names
    assert "qosd_workload_cpu_cores" not in names
    assert "qosd_workload_pressure_seconds_total" not in names
    assert ("qosd_sensor_age_seconds", (("sensor", "memory"),)) not in seen


def test_verdicts_rungs_and_kills_are_counted_and_the_budget_is_shown() -> None:
    seen = samples(status(interference=SUFFERING))
    assert seen["qosd_verdicts_total", (("cause", "be"), ("signal", "cpu.pressure"))] == 2
    assert seen["qosd_open_verdicts", (("cause", "be"),)] == 1
    assert seen["qosd_rung_seconds_total", (("kind", "cpu"), ("rung", "freeze"))] == 1.5
    assert seen["qosd_kills_total", (("result", "killed"),)] == 1
    assert seen["qosd_kills_left", (("per", "window"),)] == 4
    assert seen["qosd_kills_left", (("per", "day"),)] == 19
    assert seen["qosd_kill_alarm", ()] == 1
    assert seen["qosd_frozen_cgroups", ()] == 1
    assert samples(status(interference=InterferenceView("report", (), ())))["qosd_kill_alarm", ()] == 0


def test_a_sensors_age_grows_with_the_time_since_the_tick() -> None:
    assert samples(status(), now=1004.0)["qosd_sensor_age_seconds", (("sensor", "cpu"),)] == 4.0


def test_a_file_that_cannot_be_read_is_counted_and_gets_no_series_of_its_own() -> None:
    seen = samples(status())
    assert seen["qosd_unreadable_files", ()] == 1
    assert ("qosd_sensor_ok", (("sensor", "be.slice/cpu.stat"),)) not in seen


def test_a_thousand_workloads_make_fifty_series_and_one_for_the_others() -> None:
    many = tuple(workload(f"be.slice/job{n}.scope", n / 1000) for n in range(1000))
    seen = samples(status(workloads=many))
    series = {labels: value for (name, labels), value in seen.items() if name == "qosd_workload_cpu_cores"}
    assert len(series) == 51
    other = series[("cgroup", ""), ("tier", "be"), ("workload", "other")]
    assert sum(series.values()) == pytest.approx(sum(n / 1000 for n in range(1000)))
    assert other == pytest.approx(sum(n / 1000 for n in range(950)))
    assert not any(
        dict(labels)["workload"] == "other"
        for name, labels in seen
        if name == "qosd_workload_pressure_seconds_total"
    )


def test_a_cgroup_that_went_away_leaves_no_series() -> None:
    gone = samples(status(workloads=()))
    assert not any("cgroup" in dict(labels) for _, labels in gone)


@pytest.mark.parametrize("path", ['be.slice/a"b', r"be.slice/\x0a", "be.slice/ü{}", "be.slice/a,b=c"])
def test_a_cgroups_name_comes_through_the_text_as_it_was(path: str) -> None:
    seen = samples(status(workloads=(workload(path, 0.1),)))
    assert ("qosd_workload_cpu_cores", (("cgroup", path), ("tier", "be"), ("workload", "be"))) in seen


def test_before_the_first_tick_only_the_daemons_own_numbers_are_there() -> None:
    seen = samples(None)
    assert seen["qosd_ticks_total", ()] == 7
    assert not any(name.startswith("qosd_host") for name, _ in seen)


def test_the_tick_histogram_is_cumulative_in_seconds() -> None:
    seen = samples(None)
    assert seen["qosd_tick_duration_seconds_bucket", (("le", "0.001"),)] == 2
    assert seen["qosd_tick_duration_seconds_bucket", (("le", "+Inf"),)] == 4
    assert seen["qosd_tick_duration_seconds_sum", ()] == pytest.approx(0.0095)


@pytest.fixture(scope="module")
def served() -> str:
    host, port = metrics.serve(source(status()), "127.0.0.1:0")
    return f"http://{host}:{port}"


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own server
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_scrape_gets_the_metrics_and_any_other_path_is_told_where_they_are(served: str) -> None:
    code, body = get(f"{served}/metrics")
    assert code == 200
    assert body.endswith(b"# EOF\n")
    assert get(f"{served}/") == (404, b"qosd: see /metrics\n")


def test_a_client_that_says_nothing_holds_the_next_one_up_for_two_seconds_at_most(served: str) -> None:
    host, _, port = served.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))):
        started = time.monotonic()
        assert get(f"{served}/metrics")[0] == 200
        assert time.monotonic() - started < 4


def test_a_bug_in_the_metrics_costs_a_scrape_and_not_the_server() -> None:
    broken = source(status())
    broken.tick_times = None
    host, port = metrics.serve(broken, "127.0.0.1:0")
    for _ in range(2):
        assert get(f"http://{host}:{port}/metrics")[0] == 500


@pytest.mark.parametrize("listen", ["9753", "localhost:http", "127.0.0.1:99999", "256.0.0.1:1"])
def test_an_address_that_cannot_be_listened_on_is_an_oserror(listen: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - whichever the resolver or the kernel gives
        metrics.serve(source(None), listen)


def test_the_metrics_bring_no_http_server_into_the_daemon_and_leave_the_library_importable() -> None:
    script = """
import sys, qosd.metrics
heavy = {'http.server', 'ssl', 'wsgiref', 'prometheus_client'} & set(sys.modules)
assert not heavy, heavy
import prometheus_client.core
assert prometheus_client.core.Metric is qosd.metrics.Metric
prometheus_client.generate_latest()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_dashboard_asks_only_for_metrics_that_are_documented() -> None:
    asked = set(re.findall(r"\b(?:qosd|process)_[a-z0-9_]+", (ROOT / "etc/grafana/qosd.json").read_text()))
    documented = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    histogram = {f"{name}_bucket" for name in documented}
    assert asked <= documented | histogram
    assert len(asked) >= 10


def test_a_signal_in_a_unit_of_time_is_in_seconds_and_an_unknown_one_has_no_value() -> None:
    seen = samples(status(feeds=FEEDS))

    def labels(name: str, unit: str) -> tuple[tuple[str, str], ...]:
        return (("signal", name), ("unit", unit), ("workload", "web"))

    assert seen["qosd_signal_value", labels("p99", "seconds")] == 0.25
    assert seen["qosd_signal_slo", labels("p99", "seconds")] == 0.02
    assert seen["qosd_signal_value", labels("queue", "jobs")] == 7.0
    assert ("qosd_signal_value", labels("old", "seconds")) not in seen
    assert seen["qosd_signal_age_seconds", (("signal", "old"),)] == 91.5
    assert not {name for name, _ in samples(status()) if name.startswith("qosd_signal")}


def test_io_is_counted_by_device_and_direction() -> None:
    seen = samples(status(workloads=(DOING_IO,)))
    labels = (
        ("cgroup", "be.slice"),
        ("device", "8:16"),
        ("direction", "write"),
        ("tier", "be"),
        ("workload", "be"),
    )
    assert seen["qosd_workload_io_bytes_total", labels] == 2
    assert seen["qosd_workload_io_requests_total", labels] == 4


def test_of_memory_what_is_not_known_has_no_sample() -> None:
    found = samples(status(memory=MEMORY))
    be = (("cgroup", "be.slice"), ("tier", "be"), ("workload", "be"))
    ls = (("cgroup", "ls.slice"), ("tier", "ls"), ("workload", "ls"))

    assert found["qosd_workload_page_cache_bytes", be] == 1 << 30
    assert ("qosd_workload_page_cache_bytes", ls) not in found
    assert found["qosd_reclaim_freed_bytes_total", be] == 128 << 20
    assert found["qosd_reclaim_errors_total", (*be[:1], ("result", "failed"), *be[1:])] == 1
    assert found["qosd_memory_trouble", (("condition", "ls_stalled"),)] == 1
    assert found["qosd_reclaim_workloads", (("phase", "held"),)] == 1
