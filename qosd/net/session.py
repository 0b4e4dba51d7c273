"""Network shaping as the daemon sees it: one object, created only if `[net] uplinks` lists something.

Per tick: find the uplinks, count, decide, and in enforce mode bring uplinks, classes and marks to what is
wanted. Outside enforce mode nothing of ours stays on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from qosd.net import shaping
from qosd.net.held import Event, Host, UplinkStatus
from qosd.net.ingress import Received
from qosd.net.programs import Programs, Wanted
from qosd.net.uplinks import Uplinks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qosd.config import Ownership
    from qosd.ebpf.samples import Traffic
    from qosd.model import CgroupId, Workload
    from qosd.net.config import Net
    from qosd.net.model import NetSample, Shape


class NetStatus(msgspec.Struct, frozen=True, gc=False):
    """What `qosctl status` and the metrics show."""

    uplinks: tuple[UplinkStatus, ...]
    refused: dict[str, str]
    degraded: tuple[str, ...]
    wanted: tuple[Shape, ...]
    """With the reasons, for `qosctl explain`; in observe mode what would be."""
    traffic: Mapping[CgroupId, Traffic]
    received: Received | None
    """By BE's sockets, while there is a limit on it."""
    netlink_requests: int
    """Through pyroute2: reading classes and shaping. Looking at devices after an event is not in it."""


class Network:
    """Wires the governor to the kernel; keeps the tick before and the governor's state."""

    def __init__(
        self, config: Net, ownership: Ownership, programs: Programs, host: Host | None = None
    ) -> None:
        self.uplinks = Uplinks(config, ownership, host)
        self._programs = programs
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
        self.uplinks.on_readable()
        events = self.uplinks.refresh(now_usec)
        now = self.uplinks.sample(now_usec, self._programs.be_sent(self.uplinks.carriers()))
        wanted = shaping.wants_classes(self.uplinks.config, self._prev, now, self._state)
        now = self.uplinks.read_classes(now, wanted | self.uplinks.unread())
        self._state, self._wanted = shaping.decide(self.uplinks.config, self._prev, now, self._state, limits)
        self._prev = now
        if open_dir is None:
            return events
        # Shaped first: a class id that no qdisc knows does no harm, but neither does it any good.
        events += self.uplinks.apply(self._wanted, now_usec)
        wants = Wanted(workloads, limits, frozenset(self.uplinks.held), self.uplinks.veths)
        self._programs.sync(self.uplinks.config, wants, open_dir)
        return events

    def release(self) -> tuple[Event, ...]:
        """Pause, observe, a failed tick: give everything back; the next tick that enforces starts anew."""
        self._programs.release()
        self._state = shaping.INITIAL
        return self.uplinks.release()

    def reload(self, config: Net) -> None:
        """At the next tick: new uplinks are shaped, those no longer listed released."""
        self.uplinks.reload(config)
        self._programs.retry()

    def status(self) -> NetStatus:
        degraded = (self.uplinks.degraded,) if self.uplinks.degraded is not None else ()
        return NetStatus(
            uplinks=self.uplinks.status(),
            refused=dict(self.uplinks.refused),
            degraded=(*degraded, *self._programs.errors),
            wanted=self._wanted,
            traffic=self._programs.traffic(),
            received=self._programs.received(),
            netlink_requests=self.uplinks.tc.requests,
        )

    def close(self) -> tuple[Event, ...]:
        """Stop: everything back, sockets and programs closed."""
        events = self.uplinks.close()
        self._programs.close()
        return events
