"""The eBPF probes in the engine's terms: opened once the daemon is ready, read once a tick, gone with it.

Nothing here raises into the tick. What the host lacks is a sentence in the status; the daemon goes without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, get_args

from qosd.config import Config
from qosd.ebpf.errors import BpfError, TooDearError
from qosd.ebpf.interval import with_counts
from qosd.ebpf.pmu import Pmu
from qosd.ebpf.samples import Counts
from qosd.ebpf.status import ProbeStatus, ProbesView, latencies, rates, retransmits
from qosd.model import Breach, CgroupId, Probed, Snapshot, Tier
from qosd.schema.ebpf import AUTO, Ebpf, Probe
from qosd.walks import Walks

if TYPE_CHECKING:
    from qosd.ebpf.session import Pending, Session, Wait
    from qosd.interference.baseline import Reading

ALL: tuple[Probe, ...] = get_args(Probe)
SIGNAL = "runq wait"
_AGAIN = "until [ebpf] is changed or qosd restarted"


class Probes:
    """Created closed. `open` is called between two ticks, since it takes some 50 ms."""

    def __init__(
        self,
        config: Config,
        opener: Callable[[Ebpf], Session | Pending] | None = None,
        pmu: Pmu | None = None,
    ) -> None:
        self._config = config.ebpf
        self._pmu = pmu
        self._opener = opener
        self._allowed = False
        self._session: Session | None = None
        self._pending: Pending | None = None
        self._why: str | None = "not opened yet"
        self.breaches: dict[str, int] = {}
        self.news: list[str] = []
        """What happened to the probes since it was last emptied, for the log."""
        self.walks = Walks(config, self.news)

    def fileno(self) -> int | None:
        """Readable when a wait above its threshold was sent."""
        return None if self._session is None else self._session.fd

    def open(self) -> None:
        """Attach what the configuration asks for and the host can run."""
        self._allowed = True
        self.walks.allow()
        if self._config.probes == "off":
            self._why = 'ebpf.probes is "off"'
            return
        if self._pmu is not None and "cpi" in self._config.probes:
            self._pmu.open()
        if self._config.probes == ("cpi",):
            self._why = "no probe of the kernel's is asked for"
            return
        from qosd.ebpf.session import Pending  # noqa: PLC0415 - megabytes, and only for those who have probes

        try:
            opened = (self._opener or _open_session)(self._config)
        except (BpfError, OSError) as error:
            self._go_without(str(error))
            return
        if not isinstance(opened, Pending):
            self._take(opened)
            return
        self._pending = opened
        self._why = f"bcc is compiling the runq probe, since {opened.reason}"
        self.news.append(self._why)

    def _look_at_pending(self) -> None:
        """Whether bcc is done."""
        pending = self._pending
        if pending is None:
            return
        try:
            session = pending.session()
        except (BpfError, OSError) as error:
            self.close()
            self._go_without(f"{pending.reason}; {error}")
            return
        if session is not None:
            self._pending = None
            self._take(session)

    def _take(self, session: Session) -> None:
        self._session, self._why = session, None
        attached = ", ".join(session.attached)
        because = f", since {session.reason}" if session.reason else ""
        self.news.append(f"probes attached by {session.loader}{because}: {attached}")
        self.news += [f"probe not attached: {why}, ignoring" for why in session.absent.values()]

    def _go_without(self, why: str) -> None:
        self._why = why
        self.news.append(f"no probes: {why}, ignoring")

    def reconfigure(self, config: Config) -> None:
        changed, self._config = config.ebpf != self._config, config.ebpf
        self.walks.reconfigure(config)
        if self._allowed and changed:
            self.close()
            self.open()

    def sample(self, now: Snapshot) -> tuple[Probed, ...]:
        """What was counted since the last call; empty without probes."""
        self._look_at_pending()
        return with_counts(self._sample(now), self._counts(now))

    def _counts(self, now: Snapshot) -> dict[CgroupId, Counts]:
        pmu = self._pmu
        if pmu is None or pmu.why is not None:
            return {}
        counts = pmu.sample(now)
        self._note(pmu.why)
        return counts

    def _note(self, why: str | None) -> None:
        if why is not None:
            self.news.append(f"probe not attached: {why}, ignoring")

    def _sample(self, now: Snapshot) -> tuple[Probed, ...]:
        session = self._session
        if session is None:
            return ()
        try:
            probed = session.sample(now)
            for error in session.detach_too_dear(now):
                self.news.append(f"{error}; detached {_AGAIN}")
        except (BpfError, OSError) as error:
            self._give_up(f"the probes cannot be read: {error}")
            return ()
        return probed

    def set_thresholds(self, thresholds: Mapping[CgroupId, int], now: Snapshot) -> None:
        """From which wait on word is sent, by LS workload, in nanoseconds."""
        if self._session is None:
            return
        try:
            self._session.set_thresholds(thresholds, now)
        except BpfError as error:
            self._give_up(f"the probes' thresholds cannot be set: {error}")

    def events(self) -> tuple[Wait, ...]:
        """The waits above their threshold that were sent since the last call, counted. Never blocks."""
        if self._session is None:
            return ()
        try:
            waits = self._session.events()
        except BpfError as error:
            self._give_up(f"the probes' events cannot be read: {error}")
            return ()
        for wait in waits:
            self.breaches[wait.culprit] = self.breaches.get(wait.culprit, 0) + 1
        return waits

    def hear(self) -> tuple[Breach, ...]:
        """Those of them in which a task of BE had most of the CPU, as breaches."""
        return tuple(_breach(wait) for wait in self.events() if wait.culprit == Tier.BE.value)

    def view(self, now: Snapshot, readings: tuple[Reading, ...]) -> ProbesView:
        session = self._session
        last = session.last if session is not None else None
        samples = (last.runq, last.reclaim, last.blkio, last.tcp) if last is not None else ()
        runq = last.runq if last is not None else None
        return ProbesView(
            session.loader if session is not None else None,
            self._why,
            (*(self._status(probe) for probe in ALL), self.walks.status()),
            latencies(now, readings),
            dict(self.breaches),
            runq.lost_events if runq is not None else 0,
            sum(sample.evicted for sample in samples if sample is not None),
            runq.unseen if runq is not None else 0,
            session.unwatched if session is not None else 0,
            retransmits(now, last.tcp) if last is not None else (),
            (session.reason or None) if session is not None else None,
            rates(now),
            self.walks.failures,
        )

    def close(self) -> None:
        if self._pmu is not None:
            self._pmu.close()
        session, self._session = self._session, None
        pending, self._pending = self._pending, None
        for each in (session, pending):
            if each is not None:
                each.close()
                self._why = "closed"

    def _give_up(self, why: str) -> None:
        self.close()
        self._why = why
        self.news.append(f"{why}; detached {_AGAIN}")

    def _status(self, probe: Probe) -> ProbeStatus:
        wanted, session = self._config.probes, self._session
        if wanted == "off" or probe not in (AUTO if wanted == "auto" else wanted):
            return ProbeStatus(probe, "off")
        if probe == "cpi":
            why = "it cannot be had here" if self._pmu is None else self._pmu.why
            return ProbeStatus(probe, "attached" if why is None else "absent", why)
        if session is None:
            return ProbeStatus(probe, "absent", self._why)
        overhead = session.overhead_pct.get(probe)
        if probe in session.attached:
            return ProbeStatus(probe, "attached", None, overhead)
        error = session.absent.get(probe)
        state = "detached" if isinstance(error, TooDearError) else "absent"
        return ProbeStatus(probe, state, str(error), overhead)


def _breach(wait: Wait) -> Breach:
    return Breach(
        wait.victim,
        SIGNAL,
        wait.wait_usec,
        wait.threshold_usec,
        wait.at_usec,
        source="ebpf",
        window_usec=round(wait.wait_usec),
    )


def _open_session(config: Ebpf) -> Session | Pending:
    from qosd.ebpf.session import open_session  # noqa: PLC0415 - megabytes, and only for those who have probes

    return open_session(config)
