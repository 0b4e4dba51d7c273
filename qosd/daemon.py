"""The loop: one thread, one epoll, absolute deadlines. Wiring, signals, sd_notify, logging."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
from collections.abc import Iterable
from typing import Any

import msgspec

from qosd import journal as journal_module
from qosd import pages
from qosd.audit import log_record, log_restored, log_sensors
from qosd.changes import changed_keys
from qosd.configfile import read_config
from qosd.control import Server, share_with_group
from qosd.engine import Engine
from qosd.errors import ConfigError, QosdError
from qosd.host import own_pid_cgroup, probe_host, require
from qosd.learned import PARTS, Learned
from qosd.model import Breach
from qosd.net import undo
from qosd.net.config import Bitrate
from qosd.procfs import parse_self_cgroup
from qosd.replay import plain
from qosd.schema.units import Duration, parse_duration
from qosd.sense import HostFiles
from qosd.status import DecisionRecord, Status
from qosd.sys import DIRECTORY, Sys
from qosd.ticktimes import TickTimes

log = logging.getLogger("qosd")

_HURRY = 4  # a tick that is called for comes a quarter of the interval after the last one at the soonest


class Paths(msgspec.Struct, frozen=True):
    """Where things are; tests and containers put them elsewhere."""

    config: str
    runtime: str = "/run/qosd"
    cgroup_root: str | None = None
    proc: str = "/proc"
    sysfs: str = "/sys"
    state: str | None = None
    """Where what was learned outlives a restart; None: nowhere."""


class Daemon:
    def __init__(self, sys: Sys, paths: Paths) -> None:
        self._sys = sys
        self._paths = paths
        config = read_config(paths.config)
        root = paths.cgroup_root or require(probe_host(paths.proc))
        os.makedirs(paths.runtime, mode=0o750, exist_ok=True)
        share_with_group(paths.runtime, config.control.group)
        boot_id = journal_module.read_boot_id()
        log_restored(journal_module.restore_from(sys, paths.runtime, root, boot_id))
        for line in undo.remove_all_said().lines:
            log.warning("restore %s", line)
        self._engine = Engine(
            sys,
            sys.open(root, DIRECTORY),
            config,
            journal_module.Journal(sys, paths.runtime, boot_id),
            parse_self_cgroup(own_pid_cgroup(paths.proc)),
            HostFiles(sys, paths.proc, paths.sysfs),
        )
        self._learned = tuple(Learned(sys, paths.state, self._engine, part) for part in PARTS)
        for part in self._learned:
            part.recall()
        self._config_error: str | None = None
        self._logged = 0
        self._silent: frozenset[str] = frozenset()
        self._stopping = False
        self._reload_asked = False
        self._hurry = False
        """An LS workload waits for memory: the next tick is called for."""
        self._watchdog = os.environ.get("WATCHDOG_USEC") is not None
        self.pages_locked = False
        self.tick_times = TickTimes()
        self.status: Status | None = None
        """The last tick, replaced by reference: other threads read it without a lock."""

    @property
    def engine(self) -> Engine:
        return self._engine

    def run(self) -> int:
        """Run until SIGTERM; returns the exit status."""
        epoll = select.epoll()
        wakeup = _signal_socket()
        epoll.register(wakeup.fileno(), select.EPOLLIN)
        self._engine.reflex.triggers.epoll = self._engine.reflex.memory.epoll = epoll
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)
        control = self._engine.config.control
        server = Server(epoll, self._socket_path(), control.group, self._handle)
        try:
            self._tick()
            notify("READY=1")
            self._serve_metrics()
            if self._on_cgroups():
                self._open_probes()
                self._lock_pages()
            self._loop(epoll, wakeup, server)
        finally:
            notify("STOPPING=1")
            server.close()
            for part in self._learned:
                part.save()
            log_restored(self._engine.release().restored)
            self._engine.close()
            self._log()
        return 0

    def _socket_path(self) -> str:
        configured = self._engine.config.control.socket
        return os.path.join(self._paths.runtime, os.path.basename(configured))

    def _loop(self, epoll: select.epoll, wakeup: socket.socket, server: Server) -> None:
        interval = int(self._engine.config.interval)
        ticked = self._now_usec()
        deadline = ticked + interval
        while not self._stopping:
            deadline = self._sooner(deadline, ticked, interval)
            self._watch(epoll, self._engine.egress.fileno())
            self._watch(epoll, self._engine.probes.fileno())
            wait = max(deadline - self._now_usec(), 0) / 1e6
            for fd, events in epoll.poll(wait):
                if fd == wakeup.fileno():
                    self._on_signals(wakeup.recv(64))
                elif server.owns(fd):
                    server.on_event(fd, events, self._now_usec())
                else:
                    self._on_kernel(fd, events)
            now = self._now_usec()
            server.expire(now)
            if now >= deadline and not self._stopping:
                if self._reload_asked:
                    self._reload_asked = False
                    with contextlib.suppress(ConfigError):
                        self.reload()
                self._hurry = False
                ticked = self._now_usec()
                self._tick()
                interval = int(self._engine.config.interval)
                deadline = self._next_deadline(deadline, interval)

    def _on_kernel(self, fd: int, events: int) -> None:
        """News from the kernel between two ticks."""
        engine = self._engine
        if engine.reflex.triggers.owns(fd):
            event = engine.reflex.triggers.on_event(fd, events, self._now_usec())
            self._react(() if event is None else (event,))
        elif engine.reflex.memory.owns(fd):
            self._hurry |= engine.reflex.memory.on_event(fd, events, self._now_usec()) is not None
        elif fd == engine.egress.fileno():
            engine.note_network(engine.egress.on_readable(self._now_usec()))
        elif fd == engine.probes.fileno():
            waits = engine.probes.hear()
            self._react(waits if engine.config.fast.probe_waits else ())

    def _react(self, breaches: tuple[Breach, ...]) -> None:
        try:
            for breach in breaches:
                self._engine.react(breach)
        except Exception:
            log.exception("reaction failed; giving everything back and only observing from now on")
            self._give_up()
        else:
            self._log()

    def _on_cgroups(self) -> bool:
        """Not on a tree of mere files, whose ids the kernel does not know."""
        return self._paths.cgroup_root is None

    def _open_probes(self) -> None:
        """After READY, since it takes a moment."""
        self._engine.probes.open()
        self._log()

    def _lock_pages(self) -> None:
        why_not = pages.lock()
        self.pages_locked = why_not is None
        if why_not is not None:
            log.warning("where memory is short qosd may come late, as its pages can be evicted: %s", why_not)

    def _watch(self, epoll: select.epoll, fd: int | None) -> None:
        """They open and close with the configuration; the kernel forgets a closed one by itself."""
        if fd is not None:
            with contextlib.suppress(FileExistsError):
                epoll.register(fd, select.EPOLLIN)

    def _sooner(self, deadline: int, ticked: int, interval: int) -> int:
        """The deadline, or if a tick is called for, as soon as one makes sense: rates want an interval."""
        if not self._hurry:
            return deadline
        return min(deadline, max(ticked + interval // _HURRY, self._now_usec()))

    def _next_deadline(self, deadline: int, interval: int) -> int:
        """The next multiple of the interval that is still to come; missed ones are counted, not caught up."""
        missed = max((self._now_usec() - deadline) // interval, 0)
        self._engine.counters.late_ticks += missed
        return deadline + (missed + 1) * interval

    def _tick(self) -> None:
        try:
            status = self._engine.tick()
        except Exception:
            log.exception("tick failed; giving everything back and only observing from now on")
            self._give_up()
            return
        self._log()
        self._silent = log_sensors(self._silent, status.sensors)
        for part in self._learned:
            part.save_if_due()
        self.tick_times.add(status.tick_ms)
        self.status = msgspec.structs.replace(
            status, config=self._paths.config, config_error=self._config_error
        )
        fed = self._watchdog and self._engine.workers_alive
        notify(f"STATUS={_one_line(status)}" + ("\nWATCHDOG=1" if fed else ""))

    def _give_up(self) -> None:
        """A bug must not leave limits behind that nobody decides about any more."""
        self._engine.failed = True
        self._engine.counters.failures += 1
        self._engine.release()
        self._log()

    def _log(self) -> None:
        for record in self._engine.records:
            if record.id > self._logged:
                self._logged = record.id
                log_record(record)
        for line in self._engine.probes.news:
            log.info("%s", line)
        self._engine.probes.news.clear()
        if self._engine.journal_error is not None:
            log.error("nothing is written: %s", self._engine.journal_error)

    def _serve_metrics(self) -> None:
        listen = self._engine.config.metrics.listen
        if not listen:
            return
        from qosd.metrics import serve  # noqa: PLC0415 - prometheus-client is half our start-up time

        try:
            serve(self, listen)
        except OSError as error:
            log.warning("no metrics: cannot listen on %s: %s, ignoring", listen, error)

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload_asked = True
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True

    def reload(self) -> list[str]:
        """Read the configuration again and swap it in; on any error the old one stays. Raises ConfigError."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={self._now_usec()}")
        before = self._engine.config
        try:
            config = read_config(self._paths.config)
        except ConfigError as error:
            self._config_error = str(error)
            if self.status is not None:  # whoever asked looks at the status next, not a tick later
                self.status = msgspec.structs.replace(self.status, config_error=self._config_error)
            self._engine.counters.reloads["refused"] += 1
            log.error("reload refused, the old configuration stays: %s", error)  # noqa: TRY400 - no traceback
            raise
        finally:
            notify("READY=1")
        self._config_error = None
        self._engine.counters.reloads["ok"] += 1
        self._engine.reconfigure(config)
        changes = changed_keys(*(msgspec.to_builtins(each, enc_hook=_plain) for each in (before, config)))
        log.info("reloaded %s: %s", self._paths.config, "; ".join(changes) or "nothing changed")
        return changes

    def _handle(self, request: dict[str, Any], uid: int) -> dict[str, Any]:
        command = str(request.get("command"))
        engine = self._engine
        views: dict[str, object] = {
            "status": self.status,
            "decisions": _newest(engine.records, request.get("last")),
            "config": engine.config,
            "verdicts": engine.answering.verdicts(),
        }
        if command == "snapshots":
            views["snapshots"] = [plain(each) for each in engine.recent_after(request.get("after"))]
        if command == "victims" and engine.snapshot is not None:
            views["victims"] = engine.answering.victims(
                engine.config, engine.snapshot, engine.interference_state
            )
        if command in views:
            return {"ok": msgspec.to_builtins(views[command], enc_hook=_plain)}
        if command in ("feed", "policy"):
            return engine.hear(command, request, uid)
        return self._change_for(uid, command, request)

    def _change_for(self, uid: int, command: str, request: dict[str, Any]) -> dict[str, Any]:
        if command not in ("reload", "pause", "resume"):
            return {"error": f"unknown command {command!r}"}
        if uid != 0:
            return {"error": f"{command} changes the host and needs root", "kind": "not-permitted"}
        try:
            return {"ok": self._change(command, request)}
        except ConfigError as error:
            return {"error": str(error), "kind": "config"}
        except (QosdError, ValueError) as error:
            return {"error": str(error)}

    def _change(self, command: str, request: dict[str, Any]) -> dict[str, Any]:
        if command == "reload":
            return {"changes": self.reload()}
        if command == "resume":
            self._engine.paused_until = None
        else:
            duration = request.get("duration")
            seconds = parse_duration(str(duration)) / 1e6 if duration is not None else float("inf")
            self._engine.paused_until = self._sys.time() + seconds
        self._tick()
        assert self.status is not None  # noqa: S101 - a tick made it
        return {"mode": self.status.mode, "paused_until": self.status.paused_until}

    def _now_usec(self) -> int:
        return self._sys.monotonic_ns() // 1000


def _newest(records: Iterable[DecisionRecord], last: object) -> tuple[DecisionRecord, ...]:
    everything = tuple(records)
    return everything[-last:] if isinstance(last, int) and last > 0 else everything


def _plain(quantity: object) -> object:
    """A configured quantity as the file could say it; msgspec encodes no subclass of int by itself."""
    if isinstance(quantity, Bitrate):
        return f"{quantity / 1000:.15g}kbit"
    return f"{quantity}us" if isinstance(quantity, Duration) else int(str(quantity))


def notify(state: str) -> None:
    """sd_notify(3); nothing to do outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            # A PID 1 that does not read must not hold up the loop once the socket's queue is full.
            where = "\0" + address[1:] if address.startswith("@") else address
            sock.sendto(state.encode(), socket.MSG_DONTWAIT, where)
        except OSError as error:
            log.debug("sd_notify: %s, ignoring", error)


def _signal_socket() -> socket.socket:
    """A socket that becomes readable with the numbers of arrived signals (signalfd has no Python API)."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    signal.set_wakeup_fd(os.dup(writer.fileno()), warn_on_full_buffer=False)
    writer.close()
    return reader


def _one_line(status: Status) -> str:
    be = status.tiers["be"].cpu_allowance_cores
    allowance = (
        f"BE may use {be:.2f} of {status.host.nr_cpus} CPUs" if be is not None else "BE is not limited"
    )
    return f"{status.mode}: {len(status.workloads)} workloads, {allowance}"
