"""The daemon around the ticks, in this process: start after a crash, reload, a tick that fails, the end."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import signal
import socket
from pathlib import Path

import pytest
from treekit import Box, cgroup_id, text_of

from qosd import engine as engine_module
from qosd import journal as journal_module
from qosd.changes import changed_keys
from qosd.daemon import Daemon, Paths
from qosd.errors import ConfigError
from qosd.journal import FILE, read_boot_id
from qosd.trigger import Armed

CONFIG = (
    'interval = "1s"\n[metrics]\nlisten = ""\n[control]\ngroup = "no-such-group"\n'
    '[cpu.bandwidth]\nenforce = "max"\n'
)


class Host(Box):
    """A box whose engine is a daemon's."""

    def __init__(self, directory: Path, config: str = CONFIG) -> None:
        super().__init__(directory)
        (self.proc / "self").mkdir()
        (self.proc / "self/cgroup").write_text("0::/system.slice/qosd.service\n")
        self.config = directory / "qosd.toml"
        self.config.write_text(config)
        self.config.chmod(0o644)
        self.start()

    def start(self) -> None:
        paths = Paths(
            str(self.config), str(self.run), str(self.root), proc=str(self.proc), sysfs=str(self.sysfs)
        )
        self.daemon = Daemon(self.sys, paths)
        self.engine = self.daemon.engine

    def daemon_ticks(self, count: int = 6, **cores: float) -> None:
        for _ in range(count):
            self.pass_time(1, **cores)
            self.daemon._tick()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_start_after_a_crash_begins_with_the_hosts_own_values(host: Host) -> None:
    """What a dead daemon left is undone before anything is read as an original."""
    before = host.contents()
    host.daemon_ticks(be=2.0)
    assert host.contents() != before

    host.close()
    host.start()

    assert host.contents() == before
    host.daemon_ticks(be=2.0)
    host.engine.release()
    assert host.contents() == before


def test_a_tick_that_fails_gives_everything_back_and_only_observes_from_then_on(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = host.contents()
    host.daemon_ticks(be=2.0)

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine_module.governors, "decide", broken)
    host.daemon_ticks(1, be=2.0)
    assert host.contents() == before
    assert "tick failed" in caplog.text

    monkeypatch.undo()
    written = len(host.sys.writes())
    host.daemon_ticks(3, be=2.0)
    assert host.engine.mode == "failed"
    assert len(host.sys.writes()) == written


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("mode = ", 0o644),
        ("modee = 'observe'", 0o644),
        ("interval = '1ms'", 0o644),
        (CONFIG.replace("1s", "2s"), 0o666),
        ("", 0o000),
    ],
    ids=["half-written", "unknown key", "out of range", "writable by others", "vanished"],
)
def test_a_bad_configuration_never_replaces_a_good_one(
    host: Host, text: str, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    host.daemon_ticks(be=2.0)
    held, limit = host.engine.config, text_of(host.root / "be.slice/cpu.max")
    host.config.write_text(text)
    host.config.chmod(mode)
    if mode == 0:
        host.config.unlink()

    with pytest.raises(ConfigError):
        host.daemon.reload()
    host.daemon_ticks(2, be=2.0)

    assert host.engine.config == held
    assert text_of(host.root / "be.slice/cpu.max") == limit
    assert host.engine.counters.reloads == {"ok": 0, "refused": 1}
    assert host.daemon.status is not None
    assert "qosd.toml" in (host.daemon.status.config_error or "")
    assert "the old configuration stays" in caplog.text


def test_a_good_configuration_replaces_the_bad_news_of_the_last_one(host: Host) -> None:
    host.config.write_text("kaputt")
    with pytest.raises(ConfigError):
        host.daemon.reload()
    host.config.write_text(CONFIG + "[host]\ncpu_target_pct = 50\n")

    changes = host.daemon.reload()
    host.daemon_ticks(1)

    assert changes == ["host.cpu_target_pct: 95.0 -> 50.0"]
    assert host.daemon.status is not None
    assert host.daemon.status.config_error is None


def test_a_storm_of_hups_is_one_reload_with_the_last_text(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloads: list[str] = []
    monkeypatch.setattr(host.daemon, "reload", lambda: reloads.append(host.config.read_text()))
    for number in range(100):
        host.config.write_text(CONFIG + f"[host]\ncpu_target_pct = {number + 1}\n")
        host.daemon._on_signals(bytes([signal.SIGHUP]) * 3)
    assert reloads == []
    assert host.daemon._reload_asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_end_ends_the_loop(host: Host, number: signal.Signals) -> None:
    host.daemon._on_signals(bytes([signal.SIGHUP, number]))

    assert host.daemon._stopping


def test_deadlines_that_were_missed_are_counted_and_not_caught_up(host: Host) -> None:
    deadline = host.daemon._now_usec()
    host.sys.advance(5.5)

    following = host.daemon._next_deadline(deadline, 1_000_000)

    assert following == deadline + 6_000_000
    assert host.engine.counters.late_ticks == 5


def test_every_write_is_logged_with_its_reason(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="qosd"):
        host.daemon_ticks(be=2.0, ls=1.0)

    assert re.search(r"be\.slice cpu\.max: max 100000 -> \d+ 10000 \(written\): BE may use", caplog.text)


def test_pressure_that_is_off_is_one_warning_and_the_daemon_works(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """EOPNOTSUPP from every pressure file, as with psi=0: said once, and once more when it is over."""
    for file in ("cpu.pressure", "memory.pressure", "io.pressure", "cpu", "memory", "io"):
        host.sys.fail(errno.EOPNOTSUPP, name="pread", file=file)

    with caplog.at_level(logging.INFO, logger="qosd"):
        host.daemon_ticks(10, be=2.0, ls=1.0)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["sensor pressure: nothing to read; qosctl doctor says what is missing"]
    assert text_of(host.root / "be.slice/cpu.max") != "max 100000"

    host.sys.heal()
    with caplog.at_level(logging.INFO, logger="qosd"):
        host.daemon_ticks(2, be=2.0, ls=1.0)
    assert "sensor pressure: speaks again" in caplog.text


def test_an_unwritable_journal_is_said_and_nothing_is_written(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    before = host.contents()
    host.sys.fail(30, name="create")

    host.daemon_ticks(be=2.0)

    assert host.contents() == before
    assert "nothing is written: journal:" in caplog.text


def test_a_restore_while_the_journal_lives_on_leaves_the_host_whole(host: Host) -> None:
    """As by hand beside a daemon that hangs: its next writes are on file again."""
    before = host.contents()
    host.daemon_ticks(be=2.0)
    journal_module.restore_from(host.sys, str(host.run), str(host.root), read_boot_id())
    assert host.contents() == before
    host.daemon_ticks(3, be=2.0, ls=2.0)

    host.close()
    assert (host.run / FILE).exists() or host.contents() == before
    host.start()
    assert host.contents() == before


def test_changed_keys_name_every_leaf_that_differs() -> None:
    before = {"a": 1, "b": {"c": 2, "d": [1]}, "e": {"f": 1}}
    after = {"a": 1, "b": {"c": 3, "d": [2]}, "e": {"f": 1}}

    assert sorted(changed_keys(before, after)) == ["b.c: 2 -> 3", "b.d: [1] -> [2]"]


def test_tables_with_names_are_compared_by_these() -> None:
    before = {"workload": ({"name": "ls", "priority": 0}, {"name": "be", "priority": 0, "pool": None})}
    after = {
        "workload": ({"name": "be", "priority": 2, "pool": None}, {"name": "new", "tier": "be", "pool": None})
    }

    assert changed_keys(before, after) == [
        "workload.ls: gone",
        "workload.be.priority: 0 -> 2",
        "workload.new: new, tier be",
    ]
    assert changed_keys({"window": ()}, {"window": ({"name": "night", "floor": 5.0},)}) == [
        "window.night: new, floor 5.0"
    ]
    assert changed_keys({"uplinks": ()}, {"uplinks": ("eth0",)}) == ["uplinks: () -> ('eth0',)"]


class Reported:
    """A trigger's fd as the loop sees it, without a kernel behind it."""

    def __init__(self, host: Host) -> None:
        self.fd = os.open(host.root / "ls.slice/cpu.pressure", os.O_RDONLY)
        victim = cgroup_id(host.root / "ls.slice")
        triggers = host.engine.reflex.triggers
        triggers._armed[self.fd] = Armed(victim, "ls.slice", self.fd, 50_000, 100_000)
        host.sys.fds.add(self.fd)


REACTING = CONFIG.replace('enforce = "max"', 'enforce = "none"') + "[fast]\ncut_idle = true\n"


def test_an_event_of_a_trigger_cuts_be_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path, REACTING)
    host.daemon_ticks(be=3.0)
    trigger = Reported(host)
    host.pass_time(0.05, be=3.0)

    with caplog.at_level(logging.INFO):
        host.daemon._on_kernel(trigger.fd, select.EPOLLPRI)

    assert text_of(host.root / "be.slice/cpu.max") == "15000 10000"
    assert "cpu.pressure some" in caplog.text
    host.close()


def test_ls_that_waits_for_memory_calls_for_a_tick_and_for_nothing_else(tmp_path: Path) -> None:
    """At the soonest a quarter of the interval after the last, and never later than it was due."""
    host = Host(tmp_path, REACTING + '[interference]\nanswer = "freeze"\n')
    host.daemon_ticks(be=3.0)
    written, now = len(host.sys.writes()), host.daemon._now_usec()
    assert host.daemon._sooner(now + 900_000, now - 100_000, 1_000_000) == now + 900_000

    reader, writer = os.pipe()
    memory = host.engine.reflex.memory
    memory._armed[reader] = Armed(cgroup_id(host.root / "ls.slice"), "ls.slice", reader, 20_000, 100_000)
    host.sys.fds.add(reader)
    host.daemon._on_kernel(reader, select.EPOLLPRI)

    assert host.daemon._sooner(now + 900_000, now - 100_000, 1_000_000) == now + 150_000
    assert host.daemon._sooner(now + 200_000, now - 800_000, 1_000_000) == now
    assert host.daemon._sooner(now - 1, now - 1_000_001, 1_000_000) == now - 1
    assert len(host.sys.writes()) == written
    os.close(writer)
    host.close()


def test_the_end_of_a_triggers_cgroup_closes_it_and_cuts_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, REACTING)
    host.daemon_ticks(be=3.0)
    trigger = Reported(host)

    host.daemon._on_kernel(trigger.fd, select.EPOLLPRI | select.EPOLLERR)

    assert not host.engine.reflex.triggers.owns(trigger.fd)
    assert trigger.fd not in host.sys.fds
    assert host.engine.reflex.reactions == {}
    host.daemon._on_kernel(trigger.fd, select.EPOLLERR)  # one that is left in the same batch is nobody's
    host.close()


def test_a_reaction_that_fails_gives_everything_back_and_only_observes_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path, REACTING)
    before = host.contents()
    host.daemon_ticks(be=3.0)
    trigger = Reported(host)

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine_module.governors, "react", broken)
    host.daemon._on_kernel(trigger.fd, select.EPOLLPRI)

    assert host.engine.mode == "failed"
    assert host.contents() == before
    assert "reaction failed" in caplog.text
    host.close()


SIGNAL = '[[signal]]\nname = "p99"\nworkload = "ls"\nslo = 20.0\n'


def test_a_fed_value_is_in_the_next_status_and_survives_a_reload(tmp_path: Path) -> None:
    host = Host(tmp_path, CONFIG + SIGNAL)
    host.daemon_ticks(3)
    request = {"command": "feed", "name": "p99", "value": "0.03", "unit": "s"}

    assert host.daemon._handle(request, 1000)["kind"] == "not-permitted"
    assert host.daemon._handle(request, 0) == {
        "ok": {"name": "p99", "value": 30.0, "unit": "ms", "slo": 20.0}
    }
    host.daemon_ticks(1)
    answer = host.daemon._handle({"command": "status"}, 1000)["ok"]
    assert list(answer["feeds"]) == [
        {
            "name": "p99",
            "workload": "ls",
            "unit": "ms",
            "value": 30.0,
            "age_usec": 1_000_000,
            "slo": 20.0,
            "error": None,
            "news": True,
        }
    ]
    host.config.write_text(CONFIG.replace("1s", "2s") + SIGNAL)
    host.daemon.reload()
    host.daemon_ticks(1)
    assert host.daemon.status is not None
    assert host.daemon.status.feeds[0].value == 30.0
    host.close()


def test_the_newest_decisions_alone_can_be_asked_for(host: Host) -> None:
    host.daemon_ticks(be=2.0)
    everything = host.daemon._handle({"command": "decisions"}, 0)["ok"]

    assert len(everything) > 2
    assert host.daemon._handle({"command": "decisions", "last": 2}, 0)["ok"] == everything[-2:]
    assert host.daemon._handle({"command": "decisions", "last": "x"}, 0)["ok"] == everything


def fill(sender: socket.socket) -> None:
    while True:
        sender.send(b"STATUS=")


def test_a_systemd_that_reads_nothing_holds_up_no_tick(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PID 1 may be stopped, or busy for minutes: its socket's queue fills, and a blocking send would wait."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind("notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("notify")
            sender.setblocking(False)
            with pytest.raises(BlockingIOError):
                fill(sender)
        before = host.daemon.engine.counters.ticks
        host.daemon._tick()
    assert host.daemon.engine.counters.ticks == before + 1
