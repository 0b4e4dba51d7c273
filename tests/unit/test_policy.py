"""Policies without a kernel: what a declaration may say, what its numbers come to, and who may ask."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from ctl_daemon import answers, daemon

from qosd.ctl.main import cli
from qosd.errors import ConfigError
from qosd.model import CgroupId, CgroupSample, HostSample, Snapshot, Tier, Workload
from qosd.policies import Loaded, Policies, PolicyStatus
from qosd.schema.policy import HOOKS, decode

EXAMPLE = (Path(__file__).parents[2] / "docs/examples/preempted.toml").read_text()
LS = CgroupId(7)


def snapshot(second: int) -> Snapshot:
    workload = Workload("ls", Tier.LS, 0, CgroupSample(LS, "ls.slice"), {})
    return Snapshot(second, second * 1_000_000, second * 1_000_000, HostSample(4), workloads=(workload,))


class Probe:
    """What a loaded object says, without one."""

    def __init__(self, text: str = EXAMPLE) -> None:
        self.policy = decode(text)
        self.counts: dict[CgroupId, int] = {}
        self.run_ns = 0
        self.watched: frozenset[CgroupId] = frozenset()
        self.closed = False

    def watch(self, workloads: frozenset[CgroupId]) -> None:
        self.watched = workloads

    def read(self) -> dict[str, dict[CgroupId, int]]:
        return {"rate": dict(self.counts)}

    def run_time_ns(self) -> int:
        return self.run_ns

    def close(self) -> None:
        self.closed = True


def loaded(probe: Probe) -> Loaded:
    return Loaded(probe, "/etc/qosd/policies/x.toml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tp_btf/sched_switch", "kprobe/do_exit", "hooks: "),
        ("tp_btf/sched_switch", "lsm/file_open", "hooks: "),
        ("tp_btf/sched_switch", "cgroup_skb/egress", "hooks: "),
        ("tp_btf/sched_switch", "tp_btf/", "hooks: "),
        ("tp_btf/sched_switch", "tp_btf/a b", "hooks: "),
        ('name = "preempted"', 'name = "a/b"', "name: "),
        ("overhead_pct = 1.0", "overhead_pct = 5.1", "overhead_pct: "),
        ("overhead_pct = 1.0", "overhead_pct = 0", "overhead_pct: "),
        ('kind = "rate"', 'kind = "sum"', "signal[0].kind: "),
        ('map = "preempted"', 'map = "other"', "maps: "),
        ('workloads_map = "workloads"', 'workloads_map = "other"', "maps: "),
        ("slo = 500.0", "slo = 0", "signal[0].slo: "),
        ("overhead_pct", "overhead", "Object contains unknown field"),
        ("[[signal]]", "[[signal", "not TOML"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_by_its_key(old: str, new: str, said: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(ConfigError) as caught:
        decode(EXAMPLE.replace(old, new))
    assert str(caught.value).startswith(said)


def test_two_signals_of_one_name_are_refused() -> None:
    signal = EXAMPLE[EXAMPLE.index("[[signal]]") :]
    with pytest.raises(ConfigError, match="used twice"):
        decode(EXAMPLE + signal)


def test_no_hook_that_is_taken_can_change_what_it_looks_at() -> None:
    assert not {
        hook for hook in HOOKS if hook.startswith(("lsm", "kprobe", "fmod_ret", "xdp", "tc", "cgroup"))
    }


def test_a_rate_is_growth_in_a_second_and_needs_two_readings() -> None:
    probe = Probe(EXAMPLE.replace('unit = "1/s"', 'unit = "1/s"\nscale = 0.5'))
    policy = loaded(probe)
    probe.counts = {LS: 1000}
    assert [feed.value for feed in policy.sample(snapshot(1))] == [None]
    probe.counts = {LS: 1300, CgroupId(99): 5}
    (feed,) = policy.sample(snapshot(3))

    assert (feed.name, feed.workload, feed.value, feed.age_usec) == ("preempted.rate", "ls", 75.0, 0)
    assert probe.watched == {LS}
    probe.counts = {LS: 10}
    assert policy.sample(snapshot(4))[0].value is None, "a counter that goes back was another one"


def test_a_value_is_what_the_map_holds_and_a_cgroup_that_is_not_there_has_none() -> None:
    probe = Probe(EXAMPLE.replace('kind = "rate"', 'kind = "value"\nscale = 0.001'))
    policy = loaded(probe)
    assert policy.sample(snapshot(1))[0].value is None
    probe.counts = {LS: 2500}

    assert policy.sample(snapshot(2))[0].value == 2.5


def test_one_that_takes_too_much_of_the_cpus_is_unloaded() -> None:
    probe = Probe()
    policy = loaded(probe)
    policy.sample(snapshot(1))
    probe.run_ns = 39_000_000  # of 4 CPUs for a second: 0.975 %
    assert len(policy.sample(snapshot(2))) == 1
    assert policy.status().cpu_pct == 0.975
    probe.run_ns += 41_000_000
    assert policy.sample(snapshot(3)) == []

    assert probe.closed
    assert policy.status().error == "it took 1.02 % of the CPUs, more than its overhead_pct of 1"
    assert policy.sample(snapshot(4)) == []


@pytest.mark.parametrize(
    ("name", "text", "mode", "said"),
    [
        ("p.toml", None, 0o644, "No such file"),
        ("p.toml", EXAMPLE, 0o664, "writable by root alone"),
        ("p.toml", "x" * 70_000, 0o644, "bytes at most"),
        ("p.toml", EXAMPLE.replace('["ls"]', '["web"]'), 0o644, "no [[workload]] of tier ls"),
        ("p.toml", EXAMPLE, 0o644, "preempted.bpf.o: No such file"),
    ],
)
def test_a_file_that_cannot_be_trusted_or_used_is_refused(
    tmp_path: Path, name: str, text: str | None, mode: int, said: str
) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
        file.chmod(mode)

    answer = Policies().answer({"action": "load", "what": str(file)}, 0, frozenset({"ls"}))
    assert said in answer["error"]
    assert answer["kind"] == "config"


def test_qosctl_says_what_is_loaded_and_why_one_is_not(tmp_path: Path) -> None:
    held = (
        PolicyStatus("a", "/x/a.toml", ("ls",), ("tp_btf/sched_switch",), loaded=True, cpu_pct=0.25),
        PolicyStatus("b", "/x/b.toml", ("ls",), ("fentry/x",), loaded=False, error="it took 9 %"),
    )
    socket = str(tmp_path / "s")
    asked: list[dict]
    with daemon(socket, answers(policy={"ok": msgspec.to_builtins(held)})) as asked:
        listed = CliRunner().invoke(cli, ["--socket", socket, "policy", "list"])
        CliRunner().invoke(cli, ["--socket", socket, "policy", "load", "x.toml"])

    assert (
        listed.stdout == "a: on tp_btf/sched_switch for ls, 0.250 % of the CPUs\nb: unloaded: it took 9 %\n"
    )
    assert asked[1]["what"] == str(Path.cwd() / "x.toml")


@pytest.mark.parametrize("arguments", [["load"], ["unload"], ["list", "x"], ["show"]])
def test_a_policy_command_without_its_object_is_a_wrong_command_line(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["policy", *arguments]).exit_code == 2


def test_qosctl_feeds_a_negative_number_as_a_value_and_not_as_an_option(tmp_path: Path) -> None:
    socket = str(tmp_path / "s")
    taken = {"ok": {"name": "p99", "value": 12.5, "unit": "ms", "slo": 20.0}}
    with daemon(socket, answers(feed=taken)) as asked:
        done = CliRunner().invoke(cli, ["--socket", socket, "feed", "p99", "0.0125", "--unit", "s"])
        CliRunner().invoke(cli, ["--socket", socket, "feed", "p99", "-1"])

    assert done.stdout == "p99: 12.5 ms; slo 20 ms\n"
    assert [(each["value"], each["unit"]) for each in asked] == [("0.0125", "s"), ("-1", None)]
