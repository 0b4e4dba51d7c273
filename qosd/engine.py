"""One tick: sense, decide, diff, apply, and the Status that says what happened. No sockets, no signals."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from qosd import __version__, governors, status
from qosd.act import Actuator, Backoff, Report, protects
from qosd.answering import Answering
from qosd.blocking import BlockingWriter
from qosd.config import Config, Mode
from qosd.counters import Counters
from qosd.cpu import predict, squeeze
from qosd.disks import Disks
from qosd.ebpf.pmu import Pmu
from qosd.egress import Change, Egress, network_records
from qosd.feeds import Feeds
from qosd.files import Key
from qosd.hearing import Hearing
from qosd.interference import baseline
from qosd.interference import governor as interference
from qosd.journal import Journal
from qosd.look import Look
from qosd.memory.reclaimer import Reclaimer
from qosd.model import Breach, CgroupId, CpuMax, Snapshot, Tier
from qosd.oomkillers import OomKillers
from qosd.plan import Desired, Ledger, Now, Plan, diff, narrow, originals
from qosd.policies import Policies
from qosd.probes import Probes
from qosd.reflex import Reflex
from qosd.schema.interference import MaxAnswer
from qosd.schema.io import wants_disks
from qosd.sense import PAGE_BYTES, HostFiles, Sensor
from qosd.sys import Sys

_SETTLE_TICKS = 2  # originals are looked at twice before the first write: leftovers must not become originals
_SUSPEND_USEC = 2_000_000  # CLOCK_BOOTTIME runs on in suspend, CLOCK_MONOTONIC does not
_RELOAD_USEC = 10_000_000  # systemd rewrites attributes only after its generators have run
_RELEASE_PASSES = 3  # a burst may wait for its limit, which may wait for nothing
_RECORDS = 512
_RECENT = 128  # 12 s at the shortest interval: who follows the ticks may be as late as that
NEVER_TOUCHED = (
    "init.scope",
    "system.slice/dbus.service",
    "system.slice/dbus-broker.service",
    "system.slice/ssh.service",
    "system.slice/sshd.service",
    "system.slice/systemd-journald.service",
    "system.slice/systemd-logind.service",
    "system.slice/systemd-udevd.service",
    "system.slice/containerd.service",
    "system.slice/crio.service",
    "system.slice/docker.service",
    "system.slice/kubelet.service",
)
"""No configuration may slow these: the host would be lost with them."""


class Engine:
    """The state between ticks. `config` is replaced as a whole between two of them."""

    def __init__(
        self,
        sys: Sys,
        root_fd: int,
        config: Config,
        journal: Journal,
        own_cgroup: str | None,
        host: HostFiles,
    ) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._host = host
        host.follow(config)
        self.config = config
        self._protected = (*NEVER_TOUCHED, *([own_cgroup] if own_cgroup else []))
        self._blocking = BlockingWriter(sys)
        self.reclaimer = Reclaimer(sys, root_fd, config.memory.reclaim, PAGE_BYTES)
        self.probes = Probes(config, pmu=Pmu(sys, root_fd))
        self._sensor = self._new_sensor(config)
        look = Look(sys, root_fd, lambda key: self._sensor.root(key))  # noqa: PLW0108 - a reload brings another
        self._actuator = Actuator(sys, root_fd, journal, self._protected, self._blocking, look)
        self.egress = Egress(sys, root_fd, config)
        self.reflex = Reflex(look)
        self.answering = Answering(sys, root_fd, journal.directory, self._protected)
        self.feeds = Feeds(sys, config.signal)
        self.policies = Policies()
        self.disks = Disks(sys, host.proc, host.sysfs)
        self.oom_killers = OomKillers(sys, root_fd)
        self._state = governors.State()
        self._ledger: Ledger = {}
        self._prev: Snapshot | None = None
        self._before: Snapshot | None = None
        """The snapshot that the last tick took its rates from."""
        self._lifted: CgroupId | None = None
        """A workload in which something is about to be killed: no limit is to hold that up."""
        self._tick = 0
        self._next_record = 1
        self._reloaded_usec: int | None = None
        self._hearing = Hearing()
        self._phases: dict[str, str] = {}
        """By path: what background reclaim did there in the last tick."""
        self.counters = Counters()
        self.recent: deque[Snapshot] = deque(maxlen=_RECENT)
        """The last snapshots without their descendants, for `qosctl record`."""
        self.records: deque[status.DecisionRecord] = deque(maxlen=_RECORDS)
        self.paused_until: float | None = None
        """Wall clock (only a person sets it): nothing is wanted until then."""
        self.failed = False
        self.journal_error: str | None = None

    def _new_sensor(self, config: Config) -> Sensor:
        sensor = Sensor(self._sys, self._root_fd, config, governors.WATCHED, self._protected, self._host)
        sensor.descendants.walks = self.probes.walks
        return sensor

    def reconfigure(self, config: Config) -> None:
        """Swap the configuration between two ticks; the next diff restores what only the old one wanted."""
        self.reclaimer.reconfigure(config.memory.reclaim)
        sensed = [(each.workload, each.sense, each.window, each.memory) for each in (config, self.config)]
        if sensed[0] != sensed[1]:
            self._sensor.close()
            self._sensor = self._new_sensor(config)
        self._host.follow(config)
        self.note_network(self.egress.reconfigure(config))
        self.probes.reconfigure(config)
        if config.signal != self.config.signal:
            self.feeds.reconfigure(config.signal)
        self.config = config

    @property
    def baselines(self) -> baseline.State:
        """What is normal for LS, as learned so far."""
        return self._state.baseline

    @baselines.setter
    def baselines(self, learned: baseline.State) -> None:
        self._state = msgspec.structs.replace(self._state, baseline=learned)

    @property
    def snapshot(self) -> Snapshot | None:
        """What the last tick saw."""
        return self._prev

    def recent_after(self, tick: object) -> list[Snapshot]:
        """What a follower who has seen that tick lacks; it is from another run if it is still to come."""
        seen = tick if isinstance(tick, int) and tick <= self._tick else 0
        return [snapshot for snapshot in self.recent if snapshot.tick > seen]

    @property
    def learned(self) -> predict.Learned:
        """The use that was seen so far, for the prediction."""
        return self._state.allowance.learned

    @learned.setter
    def learned(self, learned: predict.Learned) -> None:
        known = msgspec.structs.replace(self._state.allowance, learned=learned)
        self._state = msgspec.structs.replace(self._state, allowance=known)

    @property
    def mode(self) -> str:
        if self.failed:
            return "failed"
        if self.paused_until is not None:
            return "paused"
        if self._tick <= _SETTLE_TICKS and self.config.mode is Mode.ENFORCE:
            return "starting"
        return self.config.mode.value

    def tick(self) -> status.Status:
        started = self._sys.monotonic_ns()
        self._tick += 1
        if self.paused_until is not None and self._sys.time() >= self.paused_until:
            self.paused_until = None
        now = self.reflex.enter(self._sensor.snapshot(self._tick))
        now = msgspec.structs.replace(
            now,
            probed=self.probes.sample(now),
            reclaimed=self.reclaimer.collect(),
            originals=originals(self._ledger),
        )
        if wants_disks(self.config.io) or self.config.interference.answer is not MaxAnswer.REPORT:
            now = msgspec.structs.replace(now, disks=self.disks.sample(self._tick))
        if feeds := (*self.feeds.sample(now.monotonic_usec), *self.policies.sample(now)):
            now = msgspec.structs.replace(now, feeds=feeds)
        prev = self._continuous(self._prev, now)
        self.interference_state = self.answering.before(self._state.interference, now)
        self._state, decision = governors.decide(self.config, prev, now, self._state)
        files = {
            Key(workload.id, file): text
            for workload in now.workloads
            for file, text in workload.files.items()
        }
        plan, report = self._act(now, prev, decision, files)
        self._reclaim(decision)
        self._before, self._prev = prev, now
        self._lifted = decision.interference.answer.lift
        self.recent.append(msgspec.structs.replace(now, descendants=()))
        self.counters.ticks += 1
        self._note(report)
        self._answer(decision, now, enforce=self.mode == Mode.ENFORCE.value and report.journal_error is None)
        self.reflex.note(self.config, self.mode, now)
        changes, net = self.egress.tick(now, enforce=self.mode == Mode.ENFORCE.value)
        self.note_network(changes)
        self.probes.set_thresholds(baseline.runq_thresholds(decision.readings), now)
        built = msgspec.structs.replace(
            self._status(prev, now, decision, plan, report, files),
            net=net,
            ebpf=self.probes.view(now, decision.readings),
            memory=status.memory_view(decision, self.reclaimer.worker.stuck),
        )
        elapsed_ms = (self._sys.monotonic_ns() - started) / 1e6
        return msgspec.structs.replace(built, tick_ms=round(elapsed_ms, 3))

    @property
    def interference_state(self) -> interference.State:
        """Verdicts, rungs and kills as they stand."""
        return self._state.interference

    @interference_state.setter
    def interference_state(self, state: interference.State) -> None:
        self._state = msgspec.structs.replace(self._state, interference=state)

    def _answer(self, decision: governors.Decision, now: Snapshot, *, enforce: bool) -> None:
        """The one-shot effects, after the writes that make way for them."""
        state, records = self.answering.after(
            decision.interference, now, self._state.interference, enforce=enforce
        )
        self.interference_state = state
        self._record(
            tuple(
                msgspec.structs.replace(record, id=self._next_record + n) for n, record in enumerate(records)
            )
        )

    def _continuous(self, prev: Snapshot | None, now: Snapshot) -> Snapshot | None:
        """The snapshot to take rates from: none across a suspend, whose time no monotonic clock counted."""
        if prev is None:
            return None
        asleep = (now.boottime_usec - now.monotonic_usec) - (prev.boottime_usec - prev.monotonic_usec)
        if abs(asleep) <= _SUSPEND_USEC:
            return prev
        kept = msgspec.structs.replace(self._state.allowance, history=(), unknown_ticks=0)
        self._state = msgspec.structs.replace(self._state, allowance=kept)
        self.reflex.forget()
        return None

    def react(self, event: Breach) -> str:
        """Answer a breach now, with one tighter limit for BE at most; the next tick sees to the way back.

        Whatever wakes up between two ticks may call it. The outcome is `cut` or why there was none.
        """
        now = self._prev
        if now is None or not self.reflex.hear(event, cut_idle=self.config.fast.cut_idle):
            outcome = "unknown" if now is None else "too-many"
        else:
            wanted, outcome = governors.react(self.config, self._before, now, self._state, self.reflex.events)
            outcome = self._cut(wanted) if outcome == squeeze.CUT else outcome
        self.reflex.count(event.source, outcome)
        return outcome

    def _cut(self, wanted: tuple[Desired, ...]) -> str:
        """Write what is tighter than what stands there, as a tick would: journal first, nobody overruled."""
        if self.mode != Mode.ENFORCE.value:
            return "observed"
        wanted = tuple(each for each in wanted if each.cgroup_id != self._lifted)
        files = self._sensor.settings({Key(each.cgroup_id, each.setting.file) for each in wanted})
        now_usec = self._sys.monotonic_ns() // 1000
        self._ledger, plan = narrow(Now(now_usec, files), wanted, self._ledger, self.config.ownership)
        self._ledger, report = self._apply(plan, now_usec)
        self._note(report)
        results = {done.result for done in report.applied if done.write.key.file == CpuMax.file}
        return squeeze.CUT if "written" in results else min(results, default="left-alone")

    def _act(
        self, now: Snapshot, prev: Snapshot | None, decision: governors.Decision, files: dict[Key, str]
    ) -> tuple[Plan, Report]:
        """Enforce the decision, or only show it: in every mode but enforce what is ours is released."""
        if prev is not None and now.systemd_stamp != prev.systemd_stamp:
            self._reloaded_usec = now.monotonic_usec
        reloaded = self._reloaded_usec is not None and now.monotonic_usec - self._reloaded_usec < _RELOAD_USEC
        at = Now(now.monotonic_usec, files, reloaded)
        if self.mode == Mode.ENFORCE.value:
            self._ledger, plan = diff(at, decision.desired, self._ledger, self.config.ownership)
            self._ledger, report = self._apply(plan, now.monotonic_usec)
            return plan, report
        self._ledger, release = diff(at, (), self._ledger, self.config.ownership)
        self._ledger, report = self._apply(release, now.monotonic_usec)
        _, would = diff(at, decision.desired, {}, self.config.ownership)
        return would, report

    def _reclaim(self, decision: governors.Decision) -> None:
        """Hand the one-shot effects to their worker; outside enforce mode it is told and does nothing."""
        if decision.memory is None:
            return
        enforce = self.mode == Mode.ENFORCE.value
        self.reclaimer.start(decision.memory.reclaims, self._may_touch if enforce else None)
        seen, before = (decision.memory.view.workloads if enforce else ()), self._phases
        self._phases = {each.path: each.phase for each in seen}
        at = (self._next_record, self._sys.time(), self._tick)
        self._record(status.reclaim_records(seen, before, at))

    def _may_touch(self, path: str) -> bool:
        return not protects(self._protected, path)

    @property
    def workers_alive(self) -> bool:
        """Whether what may block can still be done: the watchdog is fed only then."""
        return self.reclaimer.worker.alive and self._blocking.worker.alive

    def _apply(self, plan: Plan, now_usec: int) -> tuple[Ledger, Report]:
        ownership = self.config.ownership
        backoff = Backoff(int(ownership.backoff_first), int(ownership.backoff_max))
        return self._actuator.apply(plan, self._ledger, now_usec, backoff)

    def release(self) -> Report:
        """Give everything back; used by stop, so what waits for another file is tried again at once."""
        self.note_network(self.egress.release())
        self._blocking.settle()
        reports: list[Report] = []
        for _ in range(_RELEASE_PASSES):
            now_usec = self._sys.monotonic_ns() // 1000
            ledger = {key: msgspec.structs.replace(held, retry_at=0) for key, held in self._ledger.items()}
            self._ledger, plan = diff(Now(now_usec, {}), (), ledger, self.config.ownership)
            self._ledger, report = self._apply(plan, now_usec)
            reports.append(report)
            if not any(outcome.result == "failed" for outcome in report.restored):
                break
        return Report(restored=tuple(outcome for report in reports for outcome in report.restored))

    def close(self) -> None:
        self.reflex.triggers.disarm()
        self.reflex.memory.disarm()
        self.note_network(self.egress.close())
        self.probes.close()
        self.feeds.close()
        self.policies.close()
        self.reclaimer.close()
        self._blocking.close()
        self._sensor.close()
        self.probes.walks.close()
        self._host.close()

    def hear(self, command: str, request: dict[str, Any], uid: int) -> dict[str, Any]:
        """`feed` and `policy` of the control socket: what operators say of their services."""
        if command == "feed":
            return self.feeds.answer(request, uid)
        ls_names = frozenset(rule.name for rule in self.config.workload if rule.tier is Tier.LS)
        return self.policies.answer(request, uid, ls_names)

    def _note(self, report: Report) -> None:
        self.counters.add(report)
        self.journal_error = report.journal_error
        self._record(status.decision_records(report, self._next_record, self._sys.time(), self._tick))

    def note_network(self, changes: tuple[Change, ...]) -> None:
        """What happened to the uplinks, among the decisions."""
        self._record(network_records(changes, self._next_record, self._sys.time(), self._tick))

    def _record(self, records: tuple[status.DecisionRecord, ...]) -> None:
        self._next_record += len(records)
        self.records.extend(records)

    def _status(
        self,
        prev: Snapshot | None,
        now: Snapshot,
        decision: governors.Decision,
        plan: Plan,
        report: Report,
        files: dict[Key, str],
    ) -> status.Status:
        usage = decision.allowance.usage if decision.allowance is not None else None
        return status.Status(
            version=__version__,
            mode=self.mode,
            tick=self._tick,
            time=self._sys.time(),
            interval_ms=int(self.config.interval) // 1000,
            late_ticks=self.counters.late_ticks,
            tick_ms=0.0,
            config="",
            config_error=None,
            host=status.host_status(now, usage),
            tiers=status.tier_status(prev, now, decision),
            workloads=tuple(status.workload_status(prev, now, workload) for workload in now.workloads),
            settings=status.setting_status(decision.desired, plan, self._ledger, files, report),
            sensors=self._hearing.sensors(now),
            refused=dict(self._sensor.refused),
            paused_until=self.paused_until,
            reflex=self.reflex.status(now, decision.squeeze),
            interference=self.answering.view(self.config, now, self._state.interference),
            cpu=decision.cpu,
            feeds=now.feeds,
            policies=self.policies.status(),
            oom_killers=self.oom_killers.sample(self._tick),
        )
