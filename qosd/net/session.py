"""Network shaping as the daemon sees it: one object, created only if `[net] uplinks` lists something.

Per tick: find the uplinks, count, decide, and in enforce mode bring uplinks, classes and marks to what is
wanted. Outside enforce mode nothing of ours stays on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import SkbPrio
from qosd.errors import CgroupGone
from qosd.model import Tier
from qosd.net import shaping
from qosd.net.classify import Classifier, wanted_classes
from qosd.net.config import parse_dscp
from qosd.net.marking import Marking, Settings
from qosd.net.uplinks import Event, Host, Uplinks, UplinkStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qosd.config import Ownership
    from qosd.ebpf.samples import Traffic
    from qosd.model import CgroupId, Workload
    from qosd.net.config import Net
    from qosd.net.model import NetSample, Shape


class Programs(msgspec.Struct, frozen=True):
    """The BPF halves, None where this host cannot run them; `errors` says why, for the log and doctor."""

    classifier: Classifier | None = None
    marking: Marking | None = None
    errors: tuple[str, ...] = ()


class NetStatus(msgspec.Struct, frozen=True, gc=False):
    """What `qosctl status` and the metrics show."""

    uplinks: tuple[UplinkStatus, ...]
    refused: dict[str, str]
    degraded: tuple[str, ...]
    wanted: tuple[Shape, ...]
    """With the reasons, for `qosctl explain`; in observe mode what would be."""
    traffic: Mapping[CgroupId, Traffic]
    netlink_requests: int
    """Through pyroute2: reading classes and shaping. Looking at devices after an event is not in it."""


def open_programs(config: Net) -> Programs:
    """Load what the configuration asks for. Without a classifier all traffic is in LS's class."""
    errors: list[str] = []
    classifier: Classifier | None = None
    marking: Marking | None = None
    try:
        library = Library()
        classifier = Classifier(SkbPrio.open(library))
        if mark_settings(config).wanted:
            marking = Marking.open(library)
    except BpfError as error:
        what = "BE's packets cannot be told apart" if classifier is None else "no DSCP and no marks"
        errors.append(f"{what}: {error}")
    return Programs(classifier, marking, tuple(errors))


class Network:
    """Wires the governor to the kernel; keeps the tick before and the governor's state."""

    def __init__(
        self, config: Net, ownership: Ownership, programs: Programs, host: Host | None = None
    ) -> None:
        self.uplinks = Uplinks(config, ownership, host)
        self._programs = programs
        self._errors: tuple[str, ...] = programs.errors
        self._prev: NetSample | None = None
        self._state = shaping.INITIAL
        self._wanted: tuple[Shape, ...] = ()

    def fileno(self) -> int:
        """For the daemon's epoll (EPOLLIN): something about a device or a root qdisc changed."""
        return self.uplinks.fileno()

    def on_readable(self, now_usec: int) -> tuple[Event, ...]:
        """Between ticks: a device that came back is known at once, and shaped by the next tick."""
        return self.uplinks.refresh(now_usec) if self.uplinks.on_readable() else ()

    def tick(
        self,
        now_usec: int,
        workloads: tuple[Workload, ...],
        limits: tuple[tuple[str, int], ...],
        open_dir: Callable[[CgroupId], int] | None,
    ) -> tuple[Event, ...]:
        """One tick. `limits` are the (name, egress_max) of BE rules, in the order of the configuration.

        `open_dir` opens a workload's directory and raises CgroupGone; None means observe: nothing is changed.
        """
        events = self.on_readable(now_usec) + self.uplinks.refresh(now_usec)
        classifier = self._programs.classifier
        sent = classifier.be_sent_bytes() if classifier is not None else None
        now = self.uplinks.sample(now_usec, sent)
        wanted = shaping.wants_classes(self.uplinks.config, self._prev, now, self._state)
        now = self.uplinks.read_classes(now, wanted)
        self._state, self._wanted = shaping.decide(self.uplinks.config, self._prev, now, self._state, limits)
        self._prev = now
        if open_dir is None:
            return events
        # Shaped first: a class id that no qdisc knows does no harm, but neither does it any good.
        events += self.uplinks.apply(self._wanted, now_usec)
        self._classify(workloads, limits, open_dir)
        return events

    def release(self) -> tuple[Event, ...]:
        """Pause, observe, a failed tick: give everything back; the next tick that enforces starts anew."""
        if self._programs.classifier is not None:
            self._programs.classifier.sync({}, _never)
        if self._programs.marking is not None:
            self._programs.marking.sync((), ())
        self._state = shaping.INITIAL
        return self.uplinks.release()

    def reload(self, config: Net) -> None:
        """At the next tick: new uplinks are shaped, those no longer listed released."""
        self.uplinks.reload(config)

    def status(self) -> NetStatus:
        classifier = self._programs.classifier
        degraded = (self.uplinks.degraded,) if self.uplinks.degraded is not None else ()
        return NetStatus(
            uplinks=self.uplinks.status(),
            refused=dict(self.uplinks.refused),
            degraded=(*degraded, *self._errors),
            wanted=self._wanted,
            traffic=classifier.traffic() if classifier is not None else {},
            netlink_requests=self.uplinks.tc.requests,
        )

    def close(self) -> tuple[Event, ...]:
        """Stop: everything back, sockets and programs closed."""
        events = self.uplinks.close()
        if self._programs.classifier is not None:
            self._programs.classifier.close()
        if self._programs.marking is not None:
            self._programs.marking.close()
        return events

    def _classify(
        self,
        workloads: tuple[Workload, ...],
        limits: tuple[tuple[str, int], ...],
        open_dir: Callable[[CgroupId], int],
    ) -> None:
        settings = mark_settings(self.uplinks.config)
        classifier, marking = self._programs.classifier, self._programs.marking
        if classifier is not None:
            classes = wanted_classes(workloads, limits, mark_ls=settings.dscp_ls is not None)
            classifier.sync(classes, open_dir)
        if marking is None or not settings.wanted:
            return
        marking.configure(settings, [each.id for each in workloads if each.tier is Tier.BE])
        veths = self.uplinks.veths if settings.mark is not None else frozenset[int]()
        errors = marking.sync(self.uplinks.held, veths)
        self._errors = (*self._programs.errors, *errors)


def mark_settings(config: Net) -> Settings:
    return Settings(
        dscp_be=None if config.dscp_be is None else parse_dscp(config.dscp_be),
        dscp_ls=None if config.dscp_ls is None else parse_dscp(config.dscp_ls),
        mark=config.forwarded_mark,
    )


def _never(cgroup: CgroupId) -> int:
    raise CgroupGone(f"cgroup {cgroup}: nothing is attached any more")
