"""decode: a configuration or a ConfigError that names the key, and never anything else."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qosd.config import (
    Config,
    Mode,
    OnForeignWrite,
    WorkloadRule,
    decode,
    patterns_overlap,
)
from qosd.configfile import read_config
from qosd.errors import ConfigError
from qosd.model import Tier
from qosd.net.device import MAX_WORKLOAD_CLASSES
from qosd.schema.burst import BurstPolicy
from qosd.schema.cpu import CpusetMode, Enforce, IdlePolicy
from qosd.schema.pools import Pool
from qosd.schema.signal import SignalRule
from qosd.schema.units import parse_duration
from qosd.schema.windows import Window

DEFAULTS = msgspec.to_builtins(Config(), enc_hook=int)
SHIPPED = Path(__file__).resolve().parents[2] / "etc/qosd.toml"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(text)
    return str(caught.value)


def set_key(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"[{section}]\n{name} = {value}" if section else f"{name} = {value}"


def test_the_shipped_file_shows_the_defaults() -> None:
    assert decode(SHIPPED.read_text(encoding="utf-8")) == Config()


def test_the_shipped_file_shows_every_key() -> None:
    """A key that an operator cannot see there does not exist for them."""
    text = SHIPPED.read_text(encoding="utf-8")
    lists = {"workload": WorkloadRule, "pool": Pool, "window": Window, "signal": SignalRule}
    keys = [key for key in KEYS if key not in lists]
    keys += [field for kind in lists.values() for field in kind.__struct_fields__]

    shown = set(re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE))
    missing = [key for key in keys if key.rpartition(".")[2] not in shown]
    assert missing == []
    assert all(f"[[{name}]]" in text for name in lists)


def leaf_keys(value: dict[str, object], prefix: str = "") -> list[str]:
    keys = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            keys += leaf_keys(inner, f"{prefix}{key}.")
        else:
            keys.append(prefix + key)
    return keys


def test_an_empty_file_means_the_defaults() -> None:
    assert decode("") == Config()


RANGES = [
    # key, within (both ends), outside
    ("interval", ['"100ms"', '"5s"'], ['"99ms"', '"11s"', '"0s"']),
    ("host.cpu_target_pct", ["0.1", "100"], ["0", "-1", "100.1", "nan"]),
    ("cpu.weight.be_weight", ["1", "10000"], ["0", "10001", "-1"]),
    ("cpu.weight.ls_weight", ["1", "10000"], ["0", "10001"]),
    ("cpu.bandwidth.period", ['"1ms"', '"1s"'], ['"999us"', '"1.1s"']),
    ("cpu.bandwidth.mean", ['"0s"', '"10min"'], ['"-1s"', '"11min"']),
    ("cpu.bandwidth.up_pct", ["0.5", "100"], ["0", "101"]),
    ("cpu.bandwidth.deadband_up_pct", ["0", "100"], ["-0.1", "100.5"]),
    ("cpu.bandwidth.deadband_down_pct", ["0", "100"], ["-0.1", "100.5"]),
    ("cpu.bandwidth.floor_pct", ["1", "100"], ["0", "0.9", "101"]),
    ("cpu.bandwidth.release_ticks", ["2", "1000"], ["1", "0", "-3"]),
    ("prediction.half_life", ['"2min"', '"168h"'], ['"9s"', '"169h"']),
    ("prediction.percentile", ["0.1", "100"], ["0", "101"]),
    ("prediction.margin_pct", ["0", "200"], ["-1", "201"]),
    ("prediction.cold", ['"0s"', '"10min"'], ['"11min"']),
    ("prediction.checkpoint", ['"10s"', '"24h"'], ['"9s"', '"25h"']),
    ("fast.max_triggers", ["0", "1024"], ["-1", "1025"]),
    ("fast.window", ['"10ms"', '"10s"'], ['"9ms"', '"11s"']),
    ("fast.threshold_pct", ["0.1", "100"], ["0", "101"]),
    ("fast.self_throttled", ['"0s"', '"10s"'], ['"11s"']),
    ("fast.be_ran_pct", ["0", "100"], ["-1", "101"]),
    ("fast.keep_pct", ["1", "95"], ["0", "96"]),
    ("fast.dwell", ['"0s"', '"1min"'], ['"61s"']),
    ("fast.hold", ['"0s"', '"10s"'], ['"11min"']),
    ("fast.hold_max", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("fast.up_pct", ["0.1", "1000"], ["0", "1001"]),
    ("cpu.cpuset.dwell", ['"0s"', '"1h"'], ['"2h"']),
    ("cpu.cpuset.move_dwell", ['"0s"', '"1h"'], ['"2h"']),
    ("cpu.cpuset.move_gain_pct", ["0", "100"], ["-1", "101"]),
    ("cpu.burst.burst_pct", ["0.1", "100"], ["0", "101"]),
    ("cpu.burst.max_pct", ["100", "1000"], ["99", "1001"]),
    ("cpu.burst.throttled_pct", ["0", "100"], ["-1", "101"]),
    ("cpu.burst.up_pct", ["0.1", "100"], ["0", "101"]),
    ("cpu.burst.down_pct", ["0.1", "100"], ["0", "101"]),
    ("cpu.burst.hold_pct", ["0.1", "50"], ["0", "51"]),
    ("cpu.burst.save_below_pct", ["0.1", "100"], ["0", "101"]),
    ("cpu.burst.quiet", ['"1s"', '"1h"'], ['"0s"', '"2h"']),
    ("cpu.burst.budget", ['"1s"', '"24h"'], ['"0s"', '"25h"']),
    ("cpu.pools.hold", ['"0s"', '"1h"'], ['"2h"']),
    ("cpu.pools.check", ['"1s"', '"1h"'], ['"0s"', '"2h"']),
    ("io.weight.be_weight", ["1", "10000"], ["0", "10001"]),
    ("io.weight.ls_weight", ["1", "10000"], ["0", "10001"]),
    ("io.latency.target", ['"0s"', '"10s"'], ['"-1s"', '"11s"']),
    ("io.limits.pressure_high_pct", ["2.1", "100"], ["0", "2", "101"]),
    ("io.limits.pressure_low_pct", ["0", "9.9"], ["-1", "101"]),
    ("io.limits.blame_pct", ["0", "100"], ["-1", "101"]),
    ("io.limits.down_pct", ["1", "90"], ["0", "91"]),
    ("io.limits.up_pct", ["0.1", "100"], ["0", "101"]),
    ("io.limits.floor", ['"64KiB"', '"1TiB"'], ['"63KiB"', '"2TiB"']),
    ("io.limits.floor_iops", ["10", "1000000"], ["9", "1000001"]),
    ("io.limits.release_ticks", ["2", "1000"], ["1", "0"]),
    ("host.memory_target_pct", ["0.1", "100"], ["0", "100.1"]),
    ("memory.stat_interval", ['"1s"', '"1min"'], ['"999ms"', '"61s"']),
    ("memory.release_ticks", ["2", "1000"], ["1"]),
    ("memory.protection.margin_pct", ["0", "100"], ["-1", "101"]),
    ("memory.protection.half_life", ['"10s"', '"24h"'], ['"9s"', '"25h"']),
    ("memory.protection.max_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.protection.deadband_pct", ["0", "50"], ["-1", "51"]),
    ("memory.limits.floor_pct", ["1", "100"], ["0.9", "101"]),
    ("memory.limits.down_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.limits.up_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.limits.deadband_pct", ["0", "20"], ["-1", "21"]),
    ("memory.limits.stall_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.limits.lift_after", ['"2s"', '"10s"'], ['"1s"', '"11s"']),
    ("memory.limits.lift_after_swap", ['"2s"', '"10min"'], ['"1s"', '"11min"']),
    ("memory.limits.lift_hold", ['"1s"', '"1h"'], ['"0s"', '"2h"']),
    ("memory.reclaim.chunk", ['"1MiB"', '"128MiB"'], ['"512KiB"', '"257MiB"', '"1"']),
    ("memory.reclaim.rate", ['"16MiB"', '"1TiB"'], ['"15MiB"', '"2TiB"']),
    ("memory.reclaim.slice", ['"10ms"', '"5s"'], ['"9ms"', '"6s"']),
    ("memory.reclaim.deadline", ['"1s"', '"10min"'], ['"999ms"', '"11min"']),
    ("memory.reclaim.available_low_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.reclaim.free_low_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.reclaim.refault_pct", ["0", "100"], ["-1", "101"]),
    ("memory.reclaim.io_pressure_pct", ["0", "100"], ["-1", "101"]),
    ("memory.reclaim.ls_pressure_pct", ["0", "100"], ["-1", "101"]),
    ("memory.reclaim.watch", ['"1s"', '"1h"'], ['"0s"', '"2h"']),
    ("memory.reclaim.hold", ['"1s"', '"10min"'], ['"0s"', '"2h"']),
    ("memory.reclaim.hold_max", ['"30s"', '"24h"'], ['"29s"', '"25h"']),
    ("memory.trouble.available_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.trouble.ls_full_pct", ["0.1", "100"], ["0", "101"]),
    ("ownership.contested_after", ["1", "100"], ["0", "-1"]),
    ("sense.fd_budget", ["64", "100000"], ["63", "100001"]),
    ("sense.max_cgroups", ["1", "1000000"], ["0"]),
    ("sense.max_depth", ["1", "500"], ["0", "501"]),
    ("sense.cold_ticks", ["1", "100"], ["0"]),
    ("interference.answer", ['"report"', '"kill"'], ['"oom"', "1"]),
    ("interference.cpu_some_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.memory_some_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.io_some_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.leave_pct", ["0", "100"], ["-1", "101"]),
    ("interference.enter_ticks", ["1", "1000"], ["0", "1001"]),
    ("interference.leave_ticks", ["1", "1000"], ["0", "1001"]),
    ("interference.be_share_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.quiet_pct", ["0", "100"], ["-1", "101"]),
    ("interference.baseline_ticks", ["1", "1000"], ["0", "1001"]),
    ("interference.dwell_up", ['"0s"', '"1h"'], ['"-1s"', '"2h"']),
    ("interference.dwell_down", ['"0s"', '"1h"'], ['"-1s"', '"2h"']),
    ("interference.squeeze_down_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.squeeze_up_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.squeeze_floor_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.freeze_lease", ['"1s"', '"1min"'], ['"999ms"', '"61s"']),
    ("interference.freeze_rest", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("interference.flap_max", ["1", "100"], ["0", "101"]),
    ("interference.flap_window", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("interference.flap_hold", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("interference.release_ticks", ["2", "1000"], ["1", "1001"]),
    ("interference.kill.after", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("interference.kill.mem_available_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.kill.victim_min_pct", ["0", "100"], ["-0.1", "101"]),
    ("interference.kill.term_grace", ['"0s"', '"1min"'], ['"-1s"', '"61s"']),
    ("interference.kill.settle", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("interference.kill.cooldown", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("interference.kill.window", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
    ("interference.kill.per_window", ["0", "100"], ["-1", "101"]),
    ("interference.kill.per_day", ["0", "1000"], ["-1", "1001"]),
    ("net.uplinks", ['"auto"', '["eth0", "eth1"]'], ['"eth0"', "3"]),
    ("net.egress_target_pct", ["2", "100"], ["0", "101"]),
    ("net.be_floor_pct", ["0.1", "50"], ["0", "51"]),
    ("net.up_pct", ["0.1", "100"], ["0", "101"]),
    ("net.deadband_pct", ["0", "20"], ["-1", "21"]),
    ("net.hold_sec", ["0", "600"], ["-1", "601"]),
    ("net.release_ticks", ["2", "1000"], ["1"]),
    ("net.dscp_be", ['"CS1"', '"63"'], ['"CS9"', '"64"']),
    ("net.dscp_ls", ['"EF"'], ['""', '"af41"']),
    (
        "ebpf.probes",
        [
            '"auto"',
            '"off"',
            '["runq", "blkio"]',
        ],
        ['"all"', "[]"],
    ),
    ("ebpf.loader", ['"auto"', '"libbpf"', '"bcc"'], ['"bpftrace"']),
    ("ebpf.max_overhead_pct", ["0.01", "100"], ["0", "-1", "101"]),
    ("ebpf.overhead_window", ['"1s"', '"10min"'], ['"999ms"', '"11min"']),
    ("ebpf.blame_floor", ['"0us"', '"1s"'], ['"2s"']),
    ("ebpf.event_gap", ['"0us"', '"1min"'], ['"61s"']),
    ("ebpf.max_pairs", ["256", "1000000"], ["255", "1000001"]),
    ("ebpf.baseline.quiet_pct", ["0", "100"], ["-1", "101"]),
    ("ebpf.baseline.quantile", ["0.5", "0.999"], ["0", "1"]),
    ("ebpf.baseline.factor", ["1", "1000"], ["0.9", "1001"]),
    ("ebpf.baseline.half_life", ['"1min"', '"720h"'], ['"59s"', '"721h"']),
    ("ebpf.baseline.checkpoint", ['"10s"', '"24h"'], ['"9s"', '"25h"']),
    ("ebpf.baseline.min_learned", ["1", "1000000"], ["0"]),
    ("ebpf.baseline.min_evidence", ["1", "1000"], ["0"]),
    *(
        (f"ebpf.baseline.{name}", ['"1us"', '"1min"'], ['"0us"', '"2min"'])
        for name in ("runq_floor", "runq_cold", "reclaim_floor", "reclaim_cold", "blkio_floor", "blkio_cold")
    ),
    ("net.forwarded_mark", ["0x1", "0x80000000"], ["0", "0x3", "0x100000000"]),
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, within, _ in RANGES for value in within])
def test_both_ends_of_a_range_are_taken(key: str, value: str) -> None:
    decode(set_key(key, value))


def test_the_longest_interval_needs_no_other_key() -> None:
    assert decode('interval = "10s"').interval == 10_000_000


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, _, outside in RANGES for value in outside])
def test_a_value_outside_its_range_is_refused_by_the_keys_path(key: str, value: str) -> None:
    assert refusal(set_key(key, value)).startswith(f"{key}: ")


WRONG_TYPES = {"int": "3", "str": '"x"', "float": "1.5", "bool": "true", "list": "[1]", "table": "{a = 1}"}
KEYS = leaf_keys(DEFAULTS)
SWITCHES = {"io.limits.enforce", "fast.cut_idle", "fast.probe_waits"}
NUMBERS = {
    key
    for key, _, _ in RANGES
    if key.endswith(("_pct", "weight", "_ticks", "budget", "cgroups", "depth", "after"))
}


@pytest.mark.parametrize("kind", ["bool", "list", "table"])
@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("workload", *SWITCHES)])
def test_a_value_of_the_wrong_type_is_refused_by_the_keys_path(key: str, kind: str) -> None:
    assert refusal(set_key(key, WRONG_TYPES[kind])).startswith(f"{key}")


@pytest.mark.parametrize("kind", ["int", "str", "list", "table"])
@pytest.mark.parametrize("key", sorted(SWITCHES))
def test_a_switch_is_on_or_off_and_nothing_else(key: str, kind: str) -> None:
    assert refusal(set_key(key, WRONG_TYPES[kind])).startswith(f"{key}")


@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_a_number_in_quotes_is_no_number(key: str) -> None:
    assert refusal(set_key(key, '"3"')).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("text", "usec"),
    [
        ("250us", 250),
        ("500ms", 500_000),
        ("2s", 2_000_000),
        ("1.5s", 1_500_000),
        ("10min", 600_000_000),
        ("1h", 3_600_000_000),
        (" 2 s ", 2_000_000),
    ],
)
def test_every_unit_of_time_is_understood(text: str, usec: int) -> None:
    assert parse_duration(text) == usec
    assert decode(f'[ownership]\nbackoff_max = "{text}"\nbackoff_first = "1us"').ownership.backoff_max == usec


@pytest.mark.parametrize(
    "text", ["", "2", "s", "2 sec", "-2s", "1e3s", "2s3", "2S", "0x2s", "1.s", "\u0661s"]
)
def test_a_time_without_a_known_unit_is_refused_with_the_units(text: str) -> None:
    assert "us, ms, s, min, h" in refusal(f'interval = "{text}"')


@pytest.mark.parametrize("value", ["1000", "1.5"])
def test_a_bare_number_is_no_time(value: str) -> None:
    message = refusal(f"interval = {value}")

    assert message.startswith("interval: ")
    assert '"500ms"' in message


@pytest.mark.parametrize(
    ("text", "path", "meant"),
    [
        ("intervall = '1s'", "intervall", "`interval`"),
        ("[hosts]\n", "hosts", "`host`"),
        ("[host]\ncpu_target = 3", "host.cpu_target", "`host.cpu_target_pct`"),
        ("[cpu.bandwith]\nfloor_pct = 3", "cpu.bandwith", "`cpu.bandwidth`"),
        ("[cpu.bandwidth]\nflor_pct = 3", "cpu.bandwidth.flor_pct", "`cpu.bandwidth.floor_pct`"),
        ("[[workload]]\nname = 'a'\nteir = 'be'", "workload[0].teir", "`workload[0].tier`"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(text: str, path: str, meant: str) -> None:
    assert refusal(text) == f"{path}: unknown key; did you mean {meant}?"


def test_an_unknown_key_like_no_other_is_refused_with_those_that_exist() -> None:
    assert (
        refusal("[cpu.cpuset]\nzzz = 1")
        == "cpu.cpuset.zzz: unknown key; known here: mode, dwell, move_dwell, move_gain_pct"
    )


@given(st.sampled_from(KEYS), st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12))
def test_a_key_nobody_knows_is_refused_at_every_depth(beside: str, name: str) -> None:
    section = beside.rpartition(".")[0]
    known = {key for key in KEYS if key.rpartition(".")[0] == section}
    sections = {key[len(section) :].lstrip(".").split(".")[0] for key in KEYS if key.startswith(section)}
    path = f"{section}.{name}" if section else name
    if path in known or name in sections:
        return

    assert refusal(set_key(path, "1")).startswith(f"{path}: unknown key; ")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("mode", Mode),
        ("cpu.weight.be_idle", IdlePolicy),
        ("cpu.bandwidth.enforce", Enforce),
        ("cpu.cpuset.mode", CpusetMode),
        ("cpu.burst.enforce", BurstPolicy),
        ("ownership.on_foreign_write", OnForeignWrite),
    ],
)
def test_every_choice_is_taken_and_no_other(key: str, kind: type[Mode]) -> None:
    for choice in kind:
        decode(set_key(key, f'"{choice}"'))

    assert refusal(set_key(key, '"sometimes"')).startswith(f"{key}: ")


def workload(name: str, tier: str, *match: str) -> str:
    return f'[[workload]]\nname = "{name}"\ntier = "{tier}"\nmatch = {list(match)}\n'.replace("'", '"')


def test_a_workload_needs_its_name_its_tier_and_its_match() -> None:
    for missing, text in {
        "name": 'tier = "be"\nmatch = ["x"]',
        "tier": 'name = "x"\nmatch = ["x"]',
        "match": 'name = "x"\ntier = "be"',
    }.items():
        message = refusal(f"[[workload]]\n{text}")
        assert message.startswith("workload[0]: ")
        assert f"`{missing}`" in message


@pytest.mark.parametrize(
    "text",
    [
        workload("", "be", "x"),
        workload("a b", "be", "x"),
        workload("x" * 65, "be", "x"),
        workload("x", "mid", "x"),
    ]
    + ['[[workload]]\nname = "x"\ntier = "be"\nmatch = []\n']
    + [workload("x", "be", "x") + f"priority = {priority}" for priority in (-1, 101)]
    + [workload("x", "be", "x") + f"cpu_max_pct = {share}" for share in (0, 101)],
)
def test_a_workload_out_of_bounds_is_refused_by_its_index(text: str) -> None:
    assert refusal(text).startswith("workload[0]")


def test_a_link_speed_is_a_bit_rate_of_a_listed_uplink() -> None:
    net = decode('[net]\nuplinks = ["eth0"]\nlink_speed = { eth0 = "2.5Gbit" }').net
    assert net.link_speed == {"eth0": 2_500_000_000}
    assert refusal('[net]\nlink_speed = { eth0 = "1Gbit" }').startswith("net.link_speed.eth0: ")
    assert "kbit, Mbit, Gbit" in refusal('[net]\nuplinks = ["eth0"]\nlink_speed = { eth0 = "1GiB" }')


def test_only_be_can_have_an_egress_max_and_as_many_as_there_are_classes() -> None:
    limited = 'egress_max = "200Mbit"\n'
    assert decode(workload("x", "be", "x") + limited).workload[0].egress_max == 200_000_000
    assert refusal(workload("x", "ls", "x") + limited).startswith("workload[0].egress_max: only BE")
    many = [workload(f"x{n}", "be", f"x{n}") + limited for n in range(MAX_WORKLOAD_CLASSES + 1)]
    decode("".join(many[1:]))
    assert refusal("".join(many)).startswith(f"workload[{MAX_WORKLOAD_CLASSES}].egress_max: at most")
    assert "200Mbit" in refusal(workload("x", "be", "x") + "egress_max = 200")


POOL = '[[pool]]\nname = "p"\n'
WINDOW = '[[window]]\nname = "w"\nhours = "22:00-06:00"\npause_be = true\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (POOL + POOL, "pool[1].name: 'p' is used twice"),
        (POOL + "load_low_pct = 80", "pool[0].load_low_pct: must be below load_high_pct"),
        (POOL + "priority = 101", "pool[0].priority: "),
        (POOL + "weight = 0", "pool[0].weight: "),
        (POOL + "wait = 1", "pool[0].wait: unknown key"),
        (workload("x", "be", "x") + 'pool = "q"', "workload[0].pool: there is no [[pool]] named 'q'"),
        (
            POOL + workload("x", "be", "x") + 'pool = "p"\n' + workload("y", "ls", "y") + 'pool = "p"',
            "workload[1].pool: 'p' holds be already; a pool is of one tier",
        ),
        (workload("x", "be", "x") + "cpus = 2", "workload[0].cpus: only LS can have CPUs of its own"),
        (workload("x", "ls", "x") + "cpus = 0", "workload[0].cpus: "),
        (workload("x", "ls", "x") + 'cpus = 1\n[cpu.cpuset]\nmode = "never"', "workload[0].cpus: "),
        (workload("x", "ls", "x") + "cpu_target_pct = 101", "workload[0].cpu_target_pct: "),
        (workload("x", "be", "x") + "cpu_target_pct = 0", "workload[0].cpu_target_pct: "),
        ('[cpu.cpuset]\nmode = "never"\n[cpu.bandwidth]\nenforce = "cpuset"', "cpu.cpuset.mode: "),
        ("[cpu.burst]\nhold_pct = 60", "cpu.burst.hold_pct: must not be above room_pct (50)"),
        (WINDOW + WINDOW, "window[1].name: 'w' is used twice"),
        (WINDOW.replace("pause_be = true", ""), "window[0]: 'w' changes nothing"),
        (WINDOW + 'days = ["monday"]', "window[0].days"),
        (WINDOW + "days = []", "window[0].days"),
        (WINDOW + "floor_pct = 0", "window[0].floor_pct"),
    ]
    + [
        (WINDOW.replace("22:00-06:00", hours), "window[0].hours: ")
        for hours in ("", "22-06", "22:00-22:00", "24:00-06:00", "22:60-06:00", "22:00-24:01", "-1:00-06:00")
    ],
)
def test_a_pool_or_a_window_that_cannot_be_is_refused_by_its_key(text: str, says: str) -> None:
    assert refusal(text).startswith(says)


def test_the_load_bands_follow_the_priority_unless_they_are_set() -> None:
    pools = decode("".join(f'[[pool]]\nname = "p{n}"\npriority = {n}\n' for n in range(4))).pool
    assert [pool.band for pool in pools] == [(30, 50), (45, 60), (50, 80), (50, 80)]
    assert decode(POOL + "load_high_pct = 100").pool[0].band == (50, 100)


def test_a_time_zone_that_this_host_does_not_know_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "qosd.toml"
    path.write_text(WINDOW + 'zone = "Europe/Pari"')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"window\[0\]\.zone: this host knows no time zone 'Europe/Pari'"):
        read_config(str(path))
    path.write_text(WINDOW + 'zone = "Europe/Paris"')
    assert read_config(str(path)).window[0].zone == "Europe/Paris"


def test_a_name_used_twice_is_refused() -> None:
    message = refusal(workload("x", "be", "a") + workload("x", "be", "b"))

    assert message == "workload[1].name: 'x' is used twice; give each rule its own name"


@pytest.mark.parametrize("pattern", ["", "/", "/be.slice", "be.slice/", "a//b", ".", "a/..", "../a", "a/**"])
def test_a_pattern_that_is_no_path_below_the_mount_is_refused(pattern: str) -> None:
    assert refusal(workload("x", "be", pattern)).startswith("workload[0].match: ")


OVERLAPS = [
    ("ls.slice", "ls.slice"),
    ("ls.slice", "ls.slice/job"),
    ("system.slice/*.service", "system.slice/nginx.service"),
    ("system.slice/*.service", "system.slice"),
    ("system.slice/*.service", "*/nginx.service/deep"),
    ("*", "anything.slice"),
    ("?s.slice", "ls.slice"),
    ("[lb]s.slice/x", "ls.slice"),
]
APART = [
    ("ls.slice", "be.slice"),
    ("ls.slice/a", "ls.slice/b"),
    ("ls.slice", "ls.slice2"),
    ("system.slice/*.service", "system.slice/a.scope"),
    ("a*", "b*"),
    ("[ab].slice", "c.slice"),
]


@pytest.mark.parametrize(("one", "two"), OVERLAPS)
def test_a_cgroup_that_could_be_in_both_tiers_is_refused(one: str, two: str) -> None:
    """Either way round: BE inside LS and LS inside BE are as bad as the same cgroup."""
    for ls, be in ((one, two), (two, one)):
        message = refusal(workload("web", "ls", ls) + workload("batch", "be", be))
        assert message.startswith("workload[1].match: ")
        assert "overlaps" in message


@pytest.mark.parametrize(("one", "two"), APART)
def test_tiers_that_cannot_meet_are_taken(one: str, two: str) -> None:
    assert len(decode(workload("web", "ls", one) + workload("batch", "be", two)).workload) == 2


def test_two_rules_of_one_tier_may_overlap() -> None:
    assert (
        decode(workload("a", "be", "be.slice") + workload("b", "be", "be.slice/*")).workload[1].tier
        is Tier.BE
    )


@given(*[st.lists(st.text("ab*?", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)] * 2)
def test_overlap_has_no_direction(one: str, two: str) -> None:
    assert patterns_overlap(one, two) == patterns_overlap(two, one)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_a_glob_overlaps_every_path_it_matches_and_all_below_and_above(
    path: list[str], data: st.DataObject
) -> None:
    glob = [data.draw(st.sampled_from([part, "*", part[:1] + "*", "?" * len(part)])) for part in path]
    cut = data.draw(st.integers(1, len(path)))

    assert patterns_overlap("/".join(glob), "/".join(path))
    assert patterns_overlap("/".join(glob), "/".join(path[:cut]))
    assert patterns_overlap("/".join(glob[:cut]), "/".join(path))


TOML_VALUES = st.recursive(
    st.integers()
    | st.floats()
    | st.booleans()
    | st.text(max_size=8)
    | st.sampled_from(["1s", "be.slice", "be"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "tier", "match"]), inner)
    ),
    max_leaves=6,
)


def to_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    return str(value).lower()


@given(st.sampled_from([*KEYS, "host", "cpu", "cpu.weight", "sense", "workload"]), TOML_VALUES)
@example("interval", "9" * 400 + "h")
@example("cpu.bandwidth.mean", "9" * 5000 + "s")
@example("sense.max_cgroups", 1 << 70)
@example("host.cpu_target_pct", float("nan"))
def test_any_value_of_any_key_gives_a_config_or_a_config_error(key: str, value: object) -> None:
    with contextlib.suppress(ConfigError):
        decode(set_key(key, to_toml(value)))


@given(st.text(max_size=200) | st.text("[]{}=\"'\n.,#x1-", max_size=60))
@example("x = " + "[" * 5000)
@example("x = " + "{a=" * 5000)
@example("x = " + "9" * 5000)
@example("a." * 3000 + "a = 1")
@example("\ud800")
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        decode(text)


class TestFile:
    def test_a_file_only_root_can_write_is_read(self, tmp_path: Path) -> None:
        assert read_config(str(shipped_copy(tmp_path))) == Config()

    @pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
    def test_a_file_others_can_write_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = shipped_copy(tmp_path)
        path.chmod(mode)

        with pytest.raises(ConfigError, match=r"chmod go-w"):
            read_config(str(path))

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_a_file_of_somebody_else_is_refused(self, tmp_path: Path) -> None:
        path = shipped_copy(tmp_path)
        os.chown(path, 65534, 65534)

        with pytest.raises(ConfigError, match=r"chown root"):
            read_config(str(path))

    def test_a_fifo_in_its_place_is_refused_and_does_not_hang(self, tmp_path: Path) -> None:
        path = tmp_path / "qosd.toml"
        os.mkfifo(path)

        with pytest.raises(ConfigError, match=r"not a regular file"):
            read_config(str(path))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
            read_config(str(tmp_path / "nowhere.toml"))

    def test_a_directory_in_its_place_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"not a regular file"):
            read_config(str(tmp_path))

    def test_bytes_that_are_no_text_are_refused_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "qosd.toml"
        path.write_bytes(b"mode = '\xff'")

        with pytest.raises(ConfigError, match=r"qosd\.toml: not UTF-8"):
            read_config(str(path))

    def test_a_half_written_file_is_refused_or_means_something_valid(self, tmp_path: Path) -> None:
        """An editor that is not done yet: whatever prefix is there, never a traceback."""
        whole = SHIPPED.read_bytes()
        path = tmp_path / "qosd.toml"
        for length in range(0, len(whole), 37):
            path.write_bytes(whole[:length])
            with contextlib.suppress(ConfigError):
                read_config(str(path))


def shipped_copy(directory: Path) -> Path:
    path = directory / "qosd.toml"
    path.write_bytes(SHIPPED.read_bytes())
    path.chmod(0o644)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[memory.reclaim]\navailable_high_pct = 10",
            "memory.reclaim.available_high_pct: means nothing without",
        ),
        (
            "[memory.reclaim]\nfree_low_pct = 10\nfree_high_pct = 5",
            "memory.reclaim.free_high_pct: must not be",
        ),
        ("{rule}page_cache_low = '1GiB'", "workload[0].page_cache_low: means nothing without"),
        (
            "{rule}page_cache_high = '1GiB'\npage_cache_low = '2GiB'",
            "workload[0].page_cache_low: must not be above",
        ),
    ],
)
def test_watermarks_that_contradict_each_other_are_refused(text: str, words: str) -> None:
    rule = "[[workload]]\nname = 'be'\ntier = 'be'\nmatch = ['be.slice']\n"

    assert refusal(text.format(rule=rule)).startswith(words)
