"""The probes in the engine's terms: nothing that a host lacks, or a probe costs, raises into the tick."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from ctl_daemon import EBPF
from probekit import FakeTracing
from rich.console import Console

from qosd.config import Config, decode
from qosd.ctl import probes as screen
from qosd.ebpf.errors import BccMissingError, BpfCallError, BtfMissingError
from qosd.ebpf.samples import RunqBreach
from qosd.ebpf.session import Pending, Session
from qosd.model import CgroupId, CgroupSample, HostSample, Snapshot, Tier, Workload
from qosd.probes import Probes
from qosd.schema.ebpf import AUTO

LS, BE, JOB = CgroupId(1), CgroupId(2), CgroupId(30)
SECOND = 1_000_000


def workload(cgroup: CgroupId, tier: Tier) -> Workload:
    return Workload(tier.value, tier, 0, CgroupSample(cgroup, f"{tier.value}.slice"), {})


def at(second: int) -> Snapshot:
    return Snapshot(
        second,
        second * SECOND,
        second * SECOND,
        HostSample(nr_cpus=2),
        workloads=(workload(LS, Tier.LS), workload(BE, Tier.BE)),
    )


def opened(tracing: FakeTracing, text: str = "") -> Probes:
    probes = Probes(decode(text), lambda config: Session(tracing, "libbpf", config))  # type: ignore[arg-type]
    probes.open()
    return probes


def breach(culprit: CgroupId | None, root: CgroupId | None) -> RunqBreach:
    return RunqBreach(
        monotonic_ns=5_000_000,
        wait_ns=8_000_000,
        victim=LS,
        victim_cgroup=LS,
        culprit=culprit,
        culprit_root=root,
        culprit_ns=1,
        cpu=0,
        pid=1,
    )


def test_the_workloads_are_followed_and_only_ls_sends_word() -> None:
    tracing = FakeTracing()
    probes = opened(tracing)
    probes.sample(at(1))
    assert {cgroup: root.threshold_ns for cgroup, root in tracing.roots.items()} == {LS: 5_000_000, BE: None}
    probes.set_thresholds({LS: 3_000_000}, at(1))
    assert tracing.roots[LS].threshold_ns == 3_000_000
    probes.sample(msgspec.structs.replace(at(2), workloads=(workload(BE, Tier.BE),)))
    assert set(tracing.roots) == {BE}


def test_a_tick_tells_what_was_added_since_the_last() -> None:
    tracing = FakeTracing()
    probes = opened(tracing)
    counts = []
    for second, waits in ((1, 5), (2, 12)):
        tracing.waits = waits
        counts.append([each.runq.count for each in probes.sample(at(second)) if each.runq is not None])
    assert counts == [[5], [7]]


@pytest.mark.parametrize(
    ("culprit", "root", "says"),
    [
        (JOB, BE, "be"),
        (JOB, LS, "self"),
        (JOB, None, "system"),
        (JOB, CgroupId(99), "system"),
        (None, None, "idle"),
    ],
)
def test_a_breach_is_counted_by_who_had_the_cpu(
    culprit: CgroupId | None, root: CgroupId | None, says: str
) -> None:
    tracing = FakeTracing()
    probes = opened(tracing)
    probes.sample(at(1))
    tracing.breaches = [breach(culprit, root)]
    (wait,) = probes.events()
    assert probes.breaches == {says: 1}
    assert (wait.culprit, wait.wait_usec, wait.threshold_usec, wait.at_usec) == (says, 8000, 5000, 5000)


def test_a_probe_above_its_limit_for_the_whole_window_is_detached_and_says_so() -> None:
    """2 % of both CPUs: 40 ms a second."""
    tracing = FakeTracing()
    probes = opened(tracing)
    for second in range(1, 13):
        tracing.cost_ns += 40_000_000
        probes.sample(at(second))
        state = probes.view(at(second), ()).probes[0].state
        assert state == ("attached" if second <= 10 else "detached")
    runq = probes.view(at(12), ()).probes[0]
    assert runq.overhead_pct == pytest.approx(2.0)
    assert runq.why == (
        "runq: it took 2.00 % of the CPUs' time over 10 s, more than ebpf.max_overhead_pct (1 %)"
    )
    assert [line for line in probes.news if "detached until" in line] == [
        f"{runq.why}; detached until [ebpf] is changed or qosd restarted"
    ]


def test_a_burst_shorter_than_the_window_costs_no_probe() -> None:
    tracing = FakeTracing()
    probes = opened(tracing)
    for second in range(1, 40):
        tracing.cost_ns += 150_000_000 if second % 20 == 0 else 1_000_000
        probes.sample(at(second))
    assert probes.view(at(40), ()).probes[0].state == "attached"


@pytest.mark.parametrize("error", [BtfMissingError("no BTF here"), OSError(12, "Cannot allocate memory")])
def test_a_host_that_cannot_run_them_goes_without_and_says_why(error: Exception) -> None:
    def fail(_config: Any) -> Session:
        raise error

    probes = Probes(Config(), fail)
    probes.open()
    assert probes.fileno() is None
    assert probes.sample(at(1)) == ()
    assert probes.events() == ()
    view = probes.view(at(1), ())
    states = {probe.name: probe.state for probe in view.probes}
    assert states == dict.fromkeys(AUTO, "absent") | {"tcp": "off", "cpi": "off", "tree": "off"}
    assert view.why == str(error)
    assert probes.news == [f"no probes: {error}, ignoring"]


class FakeCompiling:
    """bcc at work: `outcome` is what becomes of it."""

    def __init__(self) -> None:
        self.outcome: Any = None
        self.closed = False

    def result(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self) -> None:
        self.closed = True


def compiling() -> tuple[FakeCompiling, Probes]:
    fake = FakeCompiling()
    probes = Probes(Config(), lambda config: Pending(fake, config, "no BTF"))  # type: ignore[arg-type]
    probes.open()
    return fake, probes


def test_while_bcc_compiles_ticks_go_on_and_then_its_probe_counts() -> None:
    fake, probes = compiling()
    assert probes.sample(at(1)) == ()
    assert probes.fileno() is None
    assert "bcc is compiling" in str(probes.view(at(1), ()).why)
    fake.outcome = FakeTracing()
    assert probes.sample(at(2)) != ()
    view = probes.view(at(2), ())
    assert (view.loader, view.loader_why, view.why) == ("bcc", "no BTF", None)
    assert fake.closed
    assert probes.news[-2].startswith("probes attached by bcc, since no BTF: runq")


def test_a_compiler_that_fails_says_why_it_was_asked_and_why_it_did_not_do() -> None:
    fake, probes = compiling()
    fake.outcome = BccMissingError("install python3-bpfcc")
    assert probes.sample(at(1)) == ()
    assert probes.view(at(1), ()).why == "no BTF; install python3-bpfcc"
    assert fake.closed


def test_closing_the_probes_ends_a_compiler_at_work() -> None:
    fake, probes = compiling()
    probes.close()
    assert fake.closed
    assert probes.sample(at(1)) == ()


def test_probes_that_cannot_be_read_any_more_are_given_up_without_a_traceback() -> None:
    tracing = FakeTracing()
    probes = opened(tracing)
    tracing.error = BpfCallError("runq_blames: lookup_batch", 12, "Cannot allocate memory")
    assert probes.events() == ()
    assert tracing.closed
    assert probes.sample(at(1)) == ()
    assert probes.fileno() is None
    assert "cannot be read" in str(probes.view(at(1), ()).why)


def test_off_opens_nothing_and_a_list_leaves_the_rest_off() -> None:
    tracing = FakeTracing()
    off = opened(tracing, '[ebpf]\nprobes = "off"')
    assert off.fileno() is None
    assert {probe.state for probe in off.view(at(1), ()).probes} == {"off"}
    some = opened(tracing, '[ebpf]\nprobes = ["runq"]')
    assert [probe.state for probe in some.view(at(1), ()).probes] == ["attached", *["off"] * 5]


def test_a_changed_section_opens_them_anew_and_another_one_does_not() -> None:
    tracing = FakeTracing()
    probes = opened(tracing)
    probes.reconfigure(decode('interval = "2s"'))
    assert not tracing.closed
    probes.reconfigure(decode("[ebpf]\nmax_overhead_pct = 2.0"))
    assert tracing.closed
    assert probes.fileno() == 7
    probes.reconfigure(decode('[ebpf]\nprobes = "off"'))
    assert probes.fileno() is None


def test_before_the_daemon_is_ready_no_configuration_opens_them() -> None:
    probes = Probes(Config(), lambda config: Session(FakeTracing(), "libbpf", config))  # type: ignore[arg-type]
    probes.reconfigure(decode("[ebpf]\nmax_overhead_pct = 2.0"))
    assert probes.fileno() is None


def shown(*parts: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def test_the_screen_names_what_is_attached_what_is_not_and_what_was_lost() -> None:
    assert shown(screen.detection(EBPF)) == (
        "eBPF by libbpf: runq (0.12 % of the CPUs), blkio\n"
        "! reclaim is absent: reclaim: this kernel has no mm_vmscan_direct_reclaim_begin\n"
        "! 4 events lost since they were attached\n"
    )
    nothing = msgspec.structs.replace(EBPF, loader=None, why="no BTF", probes=(), lost_events=0)
    assert shown(screen.detection(nothing)) == "no eBPF probe: no BTF\n"


def test_the_screen_shows_what_ls_waited_for_first() -> None:
    assert shown(*screen.section(EBPF)) == (
        "WORKLOAD  WAITED FOR      COUNT       P50     P99  BREACH FROM  CGROUP\n"
        "web       wait for a CPU   1200  0.012 ms  7.4 ms  5 ms (cold)  ls.slice\n"
        "web       block request       3    0.5 ms  0.9 ms         5 ms  ls.slice\n"
        "batch     wait for a CPU      9    0.5 ms   90 ms            -  be.slice\n"
    )
    assert list(screen.section(msgspec.structs.replace(EBPF, latencies=()))) == []
