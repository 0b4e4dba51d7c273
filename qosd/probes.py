"""The eBPF probes in the engine's terms: opened once the daemon is ready, read once a tick, gone with it.

Nothing here raises into the tick. What the host lacks is a sentence in the status; the daemon goes without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, get_args

from qosd.config import Config
from qosd.ebpf.errors import BpfError, TooDearError
from qosd.ebpf.status import ProbeStatus, ProbesView, latencies
from qosd.model import Breach, CgroupId, Probed, Snapshot, Tier
from qosd.schema.ebpf import Ebpf, Probe

if TYPE_CHECKING:
    from qosd.ebpf.session import Session, Wait
    from qosd.interference.baseline import Reading

ALL: tuple[Probe, ...] = get_args(Probe)
SIGNAL = "runq wait"
_AGAIN = "until [ebpf] is changed or qosd restarted"


class Probes:
    """Created closed. `open` is called between two ticks, since it takes some 50 ms."""

    def __init__(self, config: Config, opener: Callable[[Ebpf], Session] | None = None) -> None:
        self._config = config.ebpf
        self._opener = opener
        self._allowed = False
        self._session: Session | None = None
        self._why: str | None = "not opened yet"
        self.breaches: dict[str, int] = {}
        self.news: list[str] = []
        """What happened to the probes since it was last emptied, for the log."""

    def fileno(self) -> int | None:
        """Readable when a wait above its threshold was sent."""
        return None if self._session is None else self._session.fd

    def open(self) -> None:
        """Attach what the configuration asks for and the host can run."""
        self._allowed = True
        if self._config.probes == "off":
            self._why = 'ebpf.probes is "off"'
            return
        try:
            self._session = (self._opener or _open_session)(self._config)
        except (BpfError, OSError) as error:
            self._why = str(error)
            self.news.append(f"no probes: {error}, ignoring")
            return
        self._why = None
        self.news.append(f"probes attached by {self._session.loader}: {', '.join(self._session.attached)}")
        self.news += [f"probe not attached: {why}, ignoring" for why in self._session.absent.values()]

    def reconfigure(self, config: Config) -> None:
        changed, self._config = config.ebpf != self._config, config.ebpf
        if self._allowed and changed:
            self.close()
            self.open()

    def sample(self, now: Snapshot) -> tuple[Probed, ...]:
        """What was counted since the last call; empty without probes."""
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
        samples = (last.runq, last.reclaim, last.blkio) if last is not None else ()
        runq = last.runq if last is not None else None
        return ProbesView(
            session.loader if session is not None else None,
            self._why,
            tuple(self._status(probe) for probe in ALL),
            latencies(now, readings),
            dict(self.breaches),
            runq.lost_events if runq is not None else 0,
            sum(sample.evicted for sample in samples if sample is not None),
            runq.unseen if runq is not None else 0,
            session.unwatched if session is not None else 0,
        )

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
            self._why = "closed"

    def _give_up(self, why: str) -> None:
        self.close()
        self._why = why
        self.news.append(f"{why}; detached {_AGAIN}")

    def _status(self, probe: Probe) -> ProbeStatus:
        wanted, session = self._config.probes, self._session
        if wanted == "off" or (wanted != "auto" and probe not in wanted):
            return ProbeStatus(probe, "off")
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


def _open_session(config: Ebpf) -> Session:
    from qosd.ebpf.session import open_session  # noqa: PLC0415 - megabytes, and only for those who have probes

    return open_session(config)
