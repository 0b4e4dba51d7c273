"""Network shaping in the engine's terms. While `[net]` asks for nothing, nothing of it is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qosd.audit import NETWORK
from qosd.config import Config
from qosd.errors import CgroupGone
from qosd.model import CgroupId, Snapshot, Tier, Workload, printable
from qosd.net.device import BE_CLASS, workload_class
from qosd.net.status import (
    ClassStatus,
    EgressStatus,
    IngressStatus,
    NetView,
    UplinkView,
    bit_rate,
    class_id,
    class_name,
)
from qosd.plan import Reason
from qosd.status import DecisionRecord
from qosd.sys import Sys, open_same_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qosd.ebpf.libbpf import Library
    from qosd.ebpf.samples import Traffic
    from qosd.net.held import Event, Host, UplinkStatus
    from qosd.net.ingress import Received
    from qosd.net.model import Shape
    from qosd.net.session import NetStatus, Network

Limits = tuple[tuple[str, int], ...]
"""(workload, egress_max in bit/s), in the order of the configuration: the order gives the class ids."""


class Change(NamedTuple):
    """Something that was done to an uplink or happened to it: a line of the log and an audit record."""

    uplink: str
    old: str
    new: str
    result: str
    """event, failed, or for a moved BE ceiling: written."""
    reason: Reason


def network_records(
    changes: tuple[Change, ...], first_id: int, at: float, tick: int
) -> tuple[DecisionRecord, ...]:
    """What happened to the uplinks, as audit records."""
    return tuple(
        DecisionRecord(
            first_id + n,
            at,
            tick,
            change.uplink,
            NETWORK,
            change.old,
            change.new,
            change.result,
            change.reason,
        )
        for n, change in enumerate(changes)
    )


class Egress:
    """Opens and closes `Network` as the configuration says, and speaks to it once a tick."""

    def __init__(self, sys: Sys, root_fd: int, config: Config, host: Host | None = None) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._host = host
        self._network: Network | None = None
        self._library: Library | str | None = None
        self._enforced = False
        self._ceilings: dict[int, int] = {}
        self._sent: tuple[int, Mapping[CgroupId, Traffic]] = (0, {})
        self._came: Received | None = None
        self._why_closed: str | None = None
        self._config = config

    def fileno(self) -> int | None:
        """Readable when something about a device changed; another one after uplinks came or went."""
        return None if self._network is None else self._network.fileno()

    def on_readable(self, now_usec: int) -> tuple[Change, ...]:
        return () if self._network is None else _changes(self._network.on_readable(now_usec))

    def reconfigure(self, config: Config) -> tuple[Change, ...]:
        self._config = config
        if not config.net.active:
            return self.close()
        if self._network is not None:  # unchanged too: what the kernel lacked before it may have now
            self._network.reload(config.net)
        return ()

    def tick(self, now: Snapshot, *, enforce: bool) -> tuple[tuple[Change, ...], NetView | None]:
        """Shape, or outside enforce mode only look: what was shaped is given back."""
        if not self._config.net.active:
            return (), None
        network, limits = self._network or self._open(), egress_limits(self._config)
        if isinstance(network, str):
            return self._cannot_open(network), NetView((), {}, (network,), (), 0)
        released = () if enforce or not self._enforced else self.release()
        self._enforced = enforce
        paths = {workload.id: workload.path for workload in now.workloads}
        events = network.tick(
            now.monotonic_usec, now.workloads, limits, self._opener(paths) if enforce else None
        )
        status = network.status()
        changes = (*released, *_changes(events), *self._moved(status.uplinks))
        return changes, self._view(status, now, limits)

    def release(self) -> tuple[Change, ...]:
        """Give everything back; the next tick that enforces begins anew."""
        self._ceilings, self._enforced = {}, False
        return () if self._network is None else _changes(self._network.release())

    def close(self) -> tuple[Change, ...]:
        network, self._network = self._network, None
        self._ceilings, self._enforced, self._why_closed = {}, False, None
        return () if network is None else _changes(network.close())

    def _open(self) -> Network | str:
        from qosd.net.programs import Programs  # noqa: PLC0415 - megabytes, and only for those who shape
        from qosd.net.session import Network  # noqa: PLC0415 - same

        try:
            programs = Programs(self._the_library())
            self._network = Network(self._config.net, self._config.ownership, programs, self._host)
        except OSError as error:
            return f"netlink cannot be used: {error.strerror or error}"
        self._why_closed = None
        return self._network

    def _cannot_open(self, why: str) -> tuple[Change, ...]:
        """Tried again every tick, said once."""
        known, self._why_closed = self._why_closed, why
        return () if known == why else (Change("network", "", "", "failed", Reason("net.uplinks", why)),)

    def _the_library(self) -> Library | str:
        from qosd.ebpf.errors import BpfError  # noqa: PLC0415 - as above
        from qosd.ebpf.libbpf import Library  # noqa: PLC0415 - same

        if self._library is None or isinstance(self._library, str):
            try:
                self._library = Library()
            except BpfError as error:
                self._library = str(error)
        return self._library

    def _opener(self, paths: Mapping[CgroupId, str]) -> Callable[[CgroupId], int]:
        def open_dir(cgroup: CgroupId) -> int:
            try:
                return open_same_cgroup(self._sys, self._root_fd, paths[cgroup], cgroup)
            except OSError as error:  # out of fds, say: tried again in the next tick, as one that is gone
                raise CgroupGone(f"{paths[cgroup]}: {error.strerror}") from None

        return open_dir

    def _moved(self, uplinks: tuple[UplinkStatus, ...]) -> tuple[Change, ...]:
        """The ceilings that this tick moved; the first one is in the uplink's own event."""
        before = self._ceilings
        shaped = [uplink.shape for uplink in uplinks if uplink.shape is not None]
        self._ceilings = {shape.ifindex: shape.ceil_bps for shape in shaped}
        return tuple(
            Change(shape.name, bit_rate(old), bit_rate(shape.ceil_bps), "written", shape.reason)
            for shape in shaped
            if (old := before.get(shape.ifindex, shape.ceil_bps)) != shape.ceil_bps
        )

    def _view(self, status: NetStatus, now: Snapshot, limits: Limits) -> NetView:
        wanted = {shape.ifindex: shape for shape in status.wanted}
        earlier_usec, earlier = self._sent
        self._sent = (now.monotonic_usec, status.traffic)
        span = (now.monotonic_usec - earlier_usec) / 1e6
        return NetView(
            tuple(_uplink(uplink, wanted.get(uplink.ifindex), limits, now) for uplink in status.uplinks),
            status.refused,
            status.degraded,
            tuple(
                _egress(workload, sent, _rate(earlier.get(workload.id), sent, span), limits)
                for workload in now.workloads
                if (sent := status.traffic.get(workload.id)) is not None
            ),
            status.netlink_requests,
            self._received(status.received, span),
        )

    def _received(self, now: Received | None, span: float) -> IngressStatus | None:
        earlier, self._came = self._came, now
        limit = self._config.net.be_ingress_max
        if now is None or limit is None:
            return None
        rates: tuple[float | None, float | None] = (None, None)
        if earlier is not None and now.bytes >= earlier.bytes and span > 0:
            gained, lost = now.bytes - earlier.bytes, now.dropped_bytes - earlier.dropped_bytes
            rates = gained * 8 / span, lost * 8 / span
        counts = (now.bytes, now.dropped_bytes, now.dropped_packets)
        return IngressStatus(int(limit), rates[0], *counts, rates[1])


def egress_limits(config: Config) -> Limits:
    return tuple((rule.name, int(rule.egress_max)) for rule in config.workload if rule.egress_max is not None)


def _changes(events: tuple[Event, ...]) -> tuple[Change, ...]:
    return tuple(
        Change(event.uplink, "", "", "failed" if event.failed else "event", Reason("net.uplinks", event.text))
        for event in events
    )


def _rate(before: Traffic | None, now: Traffic, span: float) -> float | None:
    gained = None if before is None else now.since(before)
    return None if gained is None or span <= 0 else gained.bytes * 8 / span


def _egress(workload: Workload, sent: Traffic, bps: float | None, limits: Limits) -> EgressStatus:
    names = [name for name, _rate in limits]
    own = names.index(workload.name) if workload.name in names else None
    number = BE_CLASS if own is None else workload_class(own)
    return EgressStatus(
        printable(workload.path),
        workload.name,
        workload.tier.value,
        class_id(number) if workload.tier is Tier.BE else None,
        None if own is None else limits[own][1],
        sent.bytes,
        sent.packets,
        bps,
    )


def _uplink(uplink: UplinkStatus, wanted: Shape | None, limits: Limits, now: Snapshot) -> UplinkView:
    shape, decided = uplink.shape or wanted, wanted or uplink.shape
    reason = decided.reason if decided is not None else None
    inputs = {each.name: each.value for each in reason.inputs} if reason is not None else {}
    total, ls = inputs.get("total_egress"), inputs.get("ls_egress")
    return UplinkView(
        uplink.name,
        uplink.ifindex,
        uplink.operstate,
        int(uplink.speed_bps),
        uplink.shape is not None,
        shape.ceil_bps if shape is not None else None,
        total,
        ls,
        tuple(
            ClassStatus(
                class_id(sample.classid),
                class_name(sample.classid, limits),
                sample.rate_bps,
                sample.ceil_bps,
                sample.bytes,
                sample.packets,
                sample.drops,
                sample.backlog,
            )
            for sample in uplink.classes or ()
        ),
        reason,
        uplink.error,
        None if uplink.read_usec is None else (now.monotonic_usec - uplink.read_usec) // 1000,
        None if total is None or ls is None else max(total - ls, 0.0),
        uplink.formerly,
    )
