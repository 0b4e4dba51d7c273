"""qosctl record, replay and simulate: every tick is in the file, whatever ends the recording."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backports import zstd
from ctl_daemon import daemon, qosctl

from qosd.compare import compare, outcome
from qosd.config import decode
from qosd.ctl import trace, tracefile
from qosd.replay import load, replay

ROOT = Path(__file__).resolve().parents[2]
TRACE = ROOT / "tests/data/steps.trace.jsonl"
SHIPPED = ROOT / "etc/qosd.toml"
SNAPSHOTS: list[dict[str, Any]] = [json.loads(line) for line in TRACE.read_bytes().splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration as root's own: the one in the tree may belong to anybody."""
    path = tmp_path / "qosd.toml"
    path.write_bytes(SHIPPED.read_bytes())
    path.chmod(0o644)
    return str(path)


class Ticking:
    """Answers `snapshots` as the daemon does, some ticks later each time it is asked."""

    def __init__(self, step: int, restart_at: int | None = None) -> None:
        self.now = 3
        self.step = step
        self.restart_at = restart_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        after, self.now = request["after"], self.now + self.step
        if self.restart_at is not None and self.now >= self.restart_at:
            self.now, self.restart_at = 2, None
        seen = after if after <= self.now else 0
        kept = [each for each in SNAPSHOTS if seen < each["tick"] <= self.now][-10:]
        return {"ok": kept}


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_ASK_SECONDS", 0.01)


def ticks(path: Path) -> list[int]:
    return [snapshot.tick for snapshot in load(tracefile.lines(str(path)))]


PACK = {"trace.jsonl": bytes, "trace.jsonl.gz": gzip.compress, "trace.jsonl.zst": zstd.compress}


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("step", [1, 4])
def test_every_tick_is_recorded_however_seldom_one_asks(
    sock: str, tmp_path: Path, name: str, step: int
) -> None:
    file = tmp_path / name
    with daemon(sock, {"snapshots": Ticking(step)}):
        result = qosctl("record", "--for", "300ms", str(file), sock=sock)

    assert result.exit_code == 0, result.output
    seen = ticks(file)
    assert len(seen) >= 3
    assert seen == list(range(seen[0], seen[-1] + 1))
    assert f"{len(seen)} ticks up to {seen[-1]}" in result.output


def test_ticks_that_were_missed_are_counted(sock: str, tmp_path: Path) -> None:
    with daemon(sock, {"snapshots": Ticking(15)}):
        result = qosctl("record", "--for", "50ms", "--json", str(tmp_path / "trace"), sock=sock)

    assert json.loads(result.output)["missed"] >= 5


def test_a_daemon_that_starts_anew_is_followed_on(sock: str, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    with daemon(sock, {"snapshots": Ticking(2, restart_at=12)}):
        qosctl("record", "--for", "300ms", str(file), sock=sock)

    seen = ticks(file)
    restarted = next(number for number in range(1, len(seen)) if seen[number] < seen[number - 1])
    assert seen[restarted:][:3] == [1, 2, 3]


@pytest.mark.parametrize("name", PACK)
def test_ctrl_c_ends_a_recording_and_the_file_is_whole(
    sock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = 0

    def interrupted(_seconds: float) -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(trace.time, "sleep", interrupted)
    file = tmp_path / name
    with daemon(sock, {"snapshots": Ticking(2)}):
        result = qosctl("record", "--for", "1h", str(file), sock=sock)

    assert result.exit_code == 0
    assert len(ticks(file)) == 5
    assert "5 ticks" in result.output


def test_an_existing_file_is_not_overwritten(sock: str, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("mine")

    assert qosctl("record", str(file), sock=sock).exit_code == 1
    assert file.read_text() == "mine"


def test_a_compressed_trace_replays_as_the_plain_one_does(tmp_path: Path, config: str) -> None:
    """Whatever its name: what is in it counts."""
    plain = qosctl("replay", "--config", config, str(TRACE)).output
    for name, pack in PACK.items():
        (tmp_path / name).write_bytes(pack(TRACE.read_bytes()))
        (tmp_path / f"{name}.renamed").write_bytes(pack(TRACE.read_bytes()))
        assert qosctl("replay", "--config", config, str(tmp_path / name)).output == plain
        assert qosctl("replay", "--config", config, str(tmp_path / f"{name}.renamed")).output == plain


def test_the_name_says_how_a_trace_is_compressed(
    sock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with daemon(sock, {"snapshots": Ticking(1)}):
        assert qosctl("record", "--for", "10ms", sock=sock).exit_code == 0
        qosctl("record", "--for", "10ms", "a.gz", sock=sock)
        qosctl("record", "--for", "10ms", "a.jsonl", sock=sock)

    assert zstd.decompress(Path("trace.jsonl.zst").read_bytes()).startswith(b"{")
    assert gzip.decompress(Path("a.gz").read_bytes()).startswith(b"{")
    assert Path("a.jsonl").read_bytes().startswith(b"{")


@pytest.mark.parametrize("name", ["trace.jsonl.gz", "trace.jsonl.zst"])
def test_a_compressed_trace_without_its_end_replays_up_to_where_it_goes(
    tmp_path: Path, config: str, name: str
) -> None:
    """What a recorder leaves that was killed; the line that it was in the middle of is none."""
    cut = tmp_path / f"cut.{name}"
    whole = tracefile.create(str(tmp_path / name))
    whole.write(TRACE.read_bytes())
    whole.write(b'{"tick":')
    whole.flush()
    cut.write_bytes((tmp_path / name).read_bytes())
    whole.close()

    result = qosctl("replay", "--config", config, str(cut))

    assert result.exit_code == 0, result.output
    assert f"{len(SNAPSHOTS)} ticks" in result.output


def test_without_the_library_for_zstd_it_is_said_and_gzip_still_works(
    sock: str, tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "old.zst"
    packed.write_bytes(zstd.compress(TRACE.read_bytes()))
    monkeypatch.setitem(sys.modules, "backports", None)

    for words in (["record", str(tmp_path / "new.zst")], ["replay", "--config", config, str(packed)]):
        result = qosctl(*words, sock=sock)
        assert result.exit_code == 1
        assert "backports.zstd" in result.stderr
        assert ".gz" in result.stderr
    assert not (tmp_path / "new.zst").exists()
    with daemon(sock, {"snapshots": Ticking(1)}):
        assert qosctl("record", "--for", "10ms", str(tmp_path / "new.gz"), sock=sock).exit_code == 0


@pytest.mark.parametrize("module", ["qosd.daemon", "qosd.ctl.trace"])
def test_the_library_for_zstd_is_loaded_for_such_a_file_alone(module: str) -> None:
    """The daemon's memory pays for nothing that one command of qosctl wants."""
    program = f"import sys, {module}; sys.exit('backports.zstd' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == 0


def test_a_file_that_is_no_trace_is_one_sentence(tmp_path: Path, config: str) -> None:
    file = tmp_path / "trace.gz"
    file.write_bytes(b"{}\n")

    result = qosctl("replay", "--config", config, str(file))

    assert result.exit_code == 1
    assert "trace.gz: " in result.stderr


QUOTA = '[cpu.bandwidth]\nenforce = "max"\n'


def steps(text: str = QUOTA) -> Any:
    return tuple(replay(decode(text), load(TRACE.read_bytes().splitlines())))


def test_a_configuration_compared_with_itself_differs_nowhere() -> None:
    difference = compare(steps(), steps())

    assert difference.first_tick is None
    assert difference.before == difference.after


def test_a_lower_target_holds_more_of_be_back() -> None:
    difference = compare(steps(), steps(QUOTA + "[host]\ncpu_target_pct = 40"))

    assert difference.first_tick is not None
    assert (difference.after.mean_allowance or 0) < (difference.before.mean_allowance or 0)
    assert difference.after.held_back["be.slice"] > difference.before.held_back.get("be.slice", 0.0)


def test_without_limits_nothing_is_held_back() -> None:
    result = outcome(steps('[cpu.bandwidth]\nenforce = "none"'))

    assert result.held_back == {}
    assert "cpu.max" not in result.writes


def test_what_is_held_back_is_use_above_the_limit_that_would_have_stood() -> None:
    """By hand: BE used 3 CPUs for a second beside a limit of 2."""
    first = msgspec.json.decode(msgspec.json.encode(SNAPSHOTS[0]))
    lines = []
    for tick in range(4):
        snapshot = msgspec.json.decode(msgspec.json.encode(first))
        snapshot["tick"] = tick
        snapshot["monotonic_usec"] = snapshot["boottime_usec"] = 10_000_000 + tick * 1_000_000
        snapshot["host"]["busy_usec"] = tick * 3_000_000
        for workload in snapshot["workloads"]:
            used = tick * 3_000_000 if workload["tier"] == "be" else 0
            workload["sample"]["cpu"] = {"usage_usec": used, "user_usec": used, "system_usec": 0}
        lines.append(msgspec.json.encode(snapshot))
    config = decode(QUOTA + "[host]\ncpu_target_pct = 50")

    replayed = tuple(replay(config, load(lines)))

    assert [step.held_back.get("be.slice", 0.0) for step in replayed] == pytest.approx([0, 0, 1, 1], abs=0.01)


def test_replay_against_another_configuration_shows_both_sides(tmp_path: Path, config: str) -> None:
    other = tmp_path / "new.toml"
    other.write_text(QUOTA + "[host]\ncpu_target_pct = 40\n")
    other.chmod(0o644)

    result = qosctl("replay", "--config", str(other), "--against", config, str(TRACE))

    assert result.exit_code == 0, result.output
    assert "CPU s held back of be.slice" in result.output
    assert "they first differ at tick" in result.output
    told = qosctl("replay", "--json", "--config", str(other), "--against", config, str(TRACE))
    assert json.loads(told.output)["after"]["ticks"] == len(SNAPSHOTS)


def test_simulate_lists_its_scenarios_and_runs_one(config: str) -> None:
    listed = qosctl("simulate")
    assert listed.exit_code == 0
    assert {line.split()[0] for line in listed.output.splitlines()} >= {"steady", "step", "bursty", "day"}

    result = qosctl("simulate", "--config", config, "--for", "90s", "step")
    assert result.exit_code == 0, result.output
    assert "BE used of all CPUs" in result.output
    figures = json.loads(qosctl("simulate", "--config", config, "--for", "90s", "--json", "step").output)
    assert figures["ticks"] == 90
    assert 0 < figures["be_pct"] < 100


def test_simulate_shows_static_modes_beside_qosd(config: str) -> None:
    words = ["simulate", "--config", config, "--for", "70s", "--static", "step"]
    rows = [line.split("  ")[0] for line in qosctl(*words).output.splitlines()[1:]]
    figures = json.loads(qosctl(*words, "--json").output)

    assert rows == list(figures)
    assert rows[:2] == ["qosd", "same weight"]
    assert figures["same weight"]["ls_delay_p99_ms"] > figures["qosd"]["ls_delay_p99_ms"]


def test_an_unknown_scenario_is_refused_with_those_there_are(config: str) -> None:
    result = qosctl("simulate", "--config", config, "stedy")

    assert result.exit_code == 1
    assert "steady" in result.stderr


def test_the_help_of_simulate_says_what_the_model_leaves_out() -> None:
    said = " ".join(qosctl("simulate", "--help").output.split())

    assert "lower bound" in said
    assert "without caches" in said
