"""decode: a configuration or a ConfigError that names the key, and never anything else."""

from __future__ import annotations

import re

import pytest
from configkit import KEYS, SHIPPED, refusal, set_key
from hypothesis import given
from hypothesis import strategies as st

from qosd.config import (
    Config,
    Mode,
    OnForeignWrite,
    WorkloadRule,
    decode,
)
from qosd.schema.burst import BurstPolicy
from qosd.schema.cpu import CpusetMode, Enforce, IdlePolicy
from qosd.schema.pools import Pool
from qosd.schema.signal import SignalRule
from qosd.schema.units import parse_duration
from qosd.schema.windows import Window


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
    ("memory.protection.room_pct", ["0", "100"], ["-1", "101"]),
    ("memory.protection.min_spare_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.protection.half_life", ['"10s"', '"24h"'], ['"9s"', '"25h"']),
    ("memory.protection.max_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.protection.deadband_pct", ["0", "50"], ["-1", "51"]),
    ("memory.limits.floor_pct", ["1", "100"], ["0.9", "101"]),
    ("memory.limits.last_pct", ["0", "50"], ["-1", "51"]),
    ("memory.limits.down_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.limits.up_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.limits.deadband_pct", ["0", "20"], ["-1", "21"]),
    ("memory.limits.stall_pct", ["0.1", "100"], ["0", "101"]),
    ("memory.limits.lift_after", ['"2s"', '"10s"'], ['"1s"', '"11s"']),
    ("memory.limits.lift_after_swap", ['"2s"', '"10min"'], ['"1s"', '"11min"']),
    ("memory.limits.lift_hold", ['"1s"', '"1h"'], ['"0s"', '"2h"']),
    ("memory.reclaim.chunk", ['"1MiB"', '"128MiB"'], ['"512KiB"', '"257MiB"', '"1"']),
    ("memory.reclaim.rate", ['"16MiB"', '"1TiB"'], ['"15MiB"', '"2TiB"']),
    ("memory.reclaim.probe", ['"1MiB"', '"16MiB"'], ['"512KiB"', '"17MiB"']),
    ("memory.reclaim.settle", ['"1s"', '"1h"'], ['"999ms"', '"2h"']),
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
    ("memory.trouble.wake_pct", ["0.1", "100"], ["0", "101"]),
    ("ownership.contested_after", ["1", "100"], ["0", "-1"]),
    ("sense.fd_budget", ["64", "100000"], ["63", "100001"]),
    ("sense.max_cgroups", ["1", "1000000"], ["0"]),
    ("sense.max_depth", ["1", "500"], ["0", "501"]),
    ("sense.cold_ticks", ["1", "100"], ["0"]),
    ("sense.walk_from", ["1", "1000000"], ["0", "1000001"]),
    ("interference.answer", ['"report"', '"kill"'], ['"oom"', "1"]),
    ("interference.cpu_some_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.memory_some_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.io_some_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.leave_pct", ["0", "100"], ["-1", "101"]),
    ("interference.enter_ticks", ["1", "1000"], ["0", "1001"]),
    ("interference.leave_ticks", ["1", "1000"], ["0", "1001"]),
    ("interference.be_share_pct", ["0.1", "100"], ["0", "101"]),
    ("interference.be_seen_pct", ["0.1", "100"], ["0", "101"]),
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
            '["tcp", "cpi"]',
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
    ("ebpf.baseline.breach_weight", ["0", "1"], ["-0.1", "1.1"]),
    *(
        (f"ebpf.baseline.{name}", ['"1us"', '"1min"'], ['"0us"', '"2min"'])
        for name in (
            "runq_floor",
            "runq_cold",
            "reclaim_floor",
            "reclaim_cold",
            "blkio_floor",
            "blkio_cold",
            "tcp_rtt_floor",
            "tcp_rtt_cold",
        )
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
