"""The uplinks of a run: found, refused, shaped, watched and given back. The impure half of shaping.

Identity is the ifindex, as it is the inode for a cgroup: a rename keeps the shape, a device that came back
under its old name is a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from qosd.net import links, rtnl, undo
from qosd.net.drift import of_news, of_reading
from qosd.net.held import Event, Held, Host, UplinkStatus
from qosd.net.model import ClassSample, NetSample, Shape, UplinkSample
from qosd.net.monitor import Monitor
from qosd.net.status import bit_rate
from qosd.net.tc import Fault, Tc, TcError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qosd.config import Ownership
    from qosd.net.config import Net
    from qosd.net.device import LinkSample, QdiscSample
    from qosd.net.monitor import LinkEvent

NO_HTB = "the kernel has no HTB (module sch_htb): BE egress is not shaped"


class Uplinks:
    """Owns the netlink sockets and what is shaped. One thread: that of the daemon's loop."""

    def __init__(self, config: Net, ownership: Ownership, host: Host | None = None) -> None:
        self.config = config
        self.host = Host() if host is None else host
        self.tc = Tc()
        self.monitor = Monitor()
        self.held: dict[int, Held] = {}
        self.refused: dict[str, str] = {}
        """Configured name → why it is not shaped."""
        self._refused_devices: set[int] = set()
        """Looked at again when their root qdisc changes: it may be why."""
        self.degraded: str | None = None
        self.veths: frozenset[int] = frozenset()
        """The host's ends of containers' veth pairs, for `marking`."""
        self.classes: dict[int, tuple[ClassSample, ...]] = {}
        """As last read, for the status."""
        self._ownership = ownership
        self._dirty = True
        self.monitor.follow_routes(wanted=config.uplinks == "auto")

    def fileno(self) -> int:
        return self.monitor.fileno()

    def on_readable(self) -> bool:
        """Drain the notifications; True if one concerns us, and `refresh` should run now."""
        events = self.monitor.read()
        if events is None:
            self._dirty = True
            return True
        self._note_classes(events)
        names = self.config.uplinks
        any_link = names == "auto" or self.config.forwarded_mark is not None
        for event in (each for each in events if each.news is None):
            ours = event.ifindex in self.held or event.ifindex in self._refused_devices
            ours |= event.name is not None and event.name in names
            self._dirty |= ours or event.vlan or event.default_route or (any_link and event.name is not None)
        return self._dirty

    def _note_classes(self, events: tuple[LinkEvent, ...]) -> None:
        for ifindex, held in self.held.items():
            news = [event.news for event in events if event.ifindex == ifindex and event.news is not None]
            if held.applied is not None:
                self._found(held, of_news(held.applied, news))

    def _found(self, held: Held, drift: str | None) -> None:
        if drift is not None and not held.reassert:
            held.drift, self._dirty = drift, True

    def carriers(self) -> dict[int, frozenset[int]]:
        """Each uplink with the devices that send through it: what BPF is to count."""
        return {ifindex: held.carriers for ifindex, held in self.held.items()}

    def refresh(self, now_usec: int) -> tuple[Event, ...]:
        """Match the configuration with the devices there are; free if nothing happened since last time."""
        if not self._dirty:
            return ()
        try:
            with rtnl.RtnlSocket() as sock:
                present = {link.ifindex: link for link in rtnl.links(sock)}
                roots = {qdisc.ifindex: qdisc for qdisc in rtnl.root_qdiscs(sock)}
        except OSError as error:  # tried again in the next tick; what is shaped stays shaped
            return (Event("network", f"cannot look at the devices: {error.strerror}", failed=True),)
        self._dirty = False
        auto = self.config.uplinks == "auto"
        names = self._names()
        wanted = links.resolve(names, present, {i: held.configured for i, held in self.held.items()})
        events = [self._forget(ifindex, present) for ifindex in self.held.keys() - wanted.values()]
        uplinks = frozenset(wanted.values())
        self.veths = frozenset(i for i, link in present.items() if link.kind == "veth") - uplinks
        known, self.refused = self.refused, {name: "no such device" for name in names if name not in wanted}
        self._refused_devices.clear()
        if auto and not names:
            self.refused["auto"] = "there is no default route"
        for name, ifindex in wanted.items():
            events.extend(
                self._judge(name, present[ifindex], roots.get(ifindex), auto=auto, now_usec=now_usec)
            )
        for ifindex, held in self.held.items():
            held.carriers = links.carried_by(ifindex, present)
        said = [(name, why) for name, why in self.refused.items() if known.get(name) != why]
        return (*events, *(Event(name, f"not shaped: {why}", failed=True) for name, why in said))

    def _names(self) -> tuple[str, ...]:
        listed = self.config.uplinks
        return links.read_default_uplinks(self.host.proc_net) if listed == "auto" else listed

    def sample(self, now_usec: int, be_counted: Mapping[int, int] | None = None) -> NetSample:
        """What sysfs counts on each uplink, beside what BPF counted of BE: no netlink."""
        return NetSample(
            now_usec,
            tuple(
                UplinkSample(
                    held.link,
                    held.speed_bps,
                    held.counter.read(),
                    be_counted_bytes=(be_counted or {}).get(ifindex),
                )
                for ifindex, held in self.held.items()
            ),
        )

    def unread(self) -> frozenset[int]:
        """Shaped, and the classes not looked at since: the governor knows one that is back at once."""
        return frozenset(i for i, held in self.held.items() if held.applied is not None) - self.classes.keys()

    def read_classes(self, sample: NetSample, wanted: frozenset[int]) -> NetSample:
        """The same sample with the classes of the wanted uplinks; those that fail stay unknown."""
        uplinks = []
        for uplink in sample.uplinks:
            ifindex = uplink.link.ifindex
            held = self.held.get(ifindex)
            if ifindex not in wanted or held is None or held.applied is None:
                uplinks.append(uplink)
                continue
            try:
                self.classes[ifindex] = self.tc.classes(ifindex)
            except TcError as error:
                held.error = str(error)
                uplinks.append(uplink)
            else:
                uplinks.append(msgspec.structs.replace(uplink, classes=self.classes[ifindex]))
                held.read_usec = sample.monotonic_usec
                self._found(held, of_reading(held.applied, self.classes[ifindex]))
        return msgspec.structs.replace(sample, uplinks=tuple(uplinks))

    def apply(self, shapes: tuple[Shape, ...], now_usec: int) -> tuple[Event, ...]:
        """Bring each uplink to its shape; the caller passes nothing in observe mode."""
        events: list[Event] = []
        for shape in shapes:
            held = self.held.get(shape.ifindex)
            if held is None or self.degraded is not None or now_usec < held.retry_at:
                continue
            first = held.applied is None
            try:
                self._bring(held, shape)
            except TcError as error:
                events.append(self._failed(held, error, now_usec))
            else:
                held.error, held.failures = None, 0
                if first:
                    events.append(
                        Event(shape.name, f"shaped: link {bit_rate(shape.speed_bps)}, {shape.reason.text}")
                    )
        return tuple(events)

    def status(self) -> tuple[UplinkStatus, ...]:
        return tuple(
            UplinkStatus(
                held.link.name,
                ifindex,
                held.link.operstate,
                held.speed_bps,
                held.applied,
                self.classes.get(ifindex),
                self.degraded or held.error,
                held.read_usec,
                held.formerly,
            )
            for ifindex, held in self.held.items()
        )

    def reload(self, config: Net) -> None:
        """Take a new configuration: the next `refresh` releases what it lists no more. HTB is tried again."""
        self.config, self.degraded = config, None
        self.monitor.follow_routes(wanted=config.uplinks == "auto")
        self._dirty = True

    def release(self) -> tuple[Event, ...]:
        """Give every uplink back; those that are still wanted are found again by the next `refresh`."""
        self._dirty = True
        return tuple(
            self._forget(ifindex, {ifindex: self.held[ifindex].link}) for ifindex in tuple(self.held)
        )

    def close(self) -> tuple[Event, ...]:
        """Give every uplink back and close the sockets."""
        events = self.release()
        self.tc.close()
        self.monitor.close()
        return events

    def _bring(self, held: Held, shape: Shape) -> None:
        if held.applied is None:
            self.tc.build(shape)
        else:
            self.tc.change(held.applied, shape)
            if held.reassert:
                self.tc.reassert(shape)
        held.applied, held.reassert = shape, False

    def _judge(
        self, name: str, link: LinkSample, root: QdiscSample | None, *, auto: bool, now_usec: int
    ) -> tuple[Event, ...]:
        link = links.with_speed(link, self.host.sysfs_net)
        held = self.held.get(link.ifindex)
        why = links.refusal(
            link,
            root,
            bandwidth_manager=links.read_bandwidth_manager(self.host.cilium_map),
            allow_kinds=self.host.allow_kinds,
        )
        if why is None and auto:
            why = links.reservation(link)
        speed = self._speed(name, link, held)
        if why is None and speed is None:
            why = f"{links.unknown_speed(link)}: set net.link_speed.{name}"
        if why is not None or speed is None:
            self._refuse(name, link, why or "")
            return ()
        if held is None:
            self._hold(name, link, speed)
            return ()
        renamed = held.now_is(link)
        held.configured, held.speed_bps = name, speed
        now = "again" if name == link.name else "now"
        said = f"uplink {name} is called {link.name} {now}; it stays shaped"
        events = [Event(link.name, said)] if renamed else []
        if held.applied is not None and (root is None or not root.is_ours):
            held.applied, held.drift, held.reassert = None, None, False
            events.append(self._fight(held, "somebody deleted our root qdisc", now_usec))
        elif held.drift is not None:
            drift, held.drift, held.reassert = held.drift, None, True
            events.append(self._fight(held, drift, now_usec))
        return tuple(events)

    def _hold(self, name: str, link: LinkSample, speed_bps: int) -> None:
        try:
            counter = links.TxCounter(link.name, self.host.sysfs_net)
        except OSError as error:
            self._refuse(name, link, f"no counters of {link.name}: {error.strerror}")
        else:
            self.held[link.ifindex] = Held(name, link, speed_bps, counter)

    def _speed(self, name: str, link: LinkSample, held: Held | None) -> int | None:
        """Bit/s: the operator's word, else the driver's, else (the link is down now) what it was."""
        configured = self.config.link_speed.get(name)
        if configured is not None:
            return int(
                configured
            )  # a plain number: it ends up in the Status, where no Bitrate can be encoded
        if link.speed_mbit is not None:
            return link.speed_mbit * 1_000_000
        return None if held is None else held.speed_bps

    def _refuse(self, name: str, link: LinkSample, why: str) -> None:
        self.refused[name] = why
        self._refused_devices.add(link.ifindex)
        held = self.held.pop(link.ifindex, None)
        if held is not None:
            held.counter.close()
            self._undo(held)  # leaves a root that somebody put in place of ours

    def _fight(self, held: Held, what: str, now_usec: int) -> Event:
        """What we put there is gone although the device is the same: put it back, unless it becomes a war."""
        since = now_usec - self._ownership.contested_window
        held.fights = (*(at for at in held.fights if at > since), now_usec)
        if len(held.fights) < self._ownership.contested_after:
            return Event(held.link.name, f"{what}; shaping again", failed=True)
        held.fights, held.retry_at = (), now_usec + self._ownership.contested_hold
        held.error = f"contested, and left alone for a while: {what} again and again"
        return Event(held.link.name, held.error, failed=True)

    def _failed(self, held: Held, error: TcError, now_usec: int) -> Event:
        held.error = str(error)
        held.failures += 1
        wait = self._ownership.backoff_first << min(held.failures - 1, 20)
        held.retry_at = now_usec + min(wait, self._ownership.backoff_max)
        if error.fault is Fault.MISSING:
            self.degraded = NO_HTB
            return Event(held.link.name, NO_HTB, failed=True)
        if error.fault is Fault.GONE and held.applied is not None:
            self._undo(held)  # somebody deleted a class of ours: build anew
        self._dirty = True  # the device may be gone, or the root somebody else's
        return Event(held.link.name, held.error, failed=True)

    def _undo(self, held: Held) -> str | None:
        """Take our qdisc off, if this run put one there and it is still ours; says why not."""
        if held.applied is None:
            return None
        held.applied, held.drift, held.reassert = None, None, False
        try:
            undo.remove(held.link.ifindex)
        except OSError as error:
            return f"our qdisc could not be taken off: {error.strerror}"
        return None

    def _forget(self, ifindex: int, present: dict[int, LinkSample]) -> Event:
        held = self.held.pop(ifindex)
        self.classes.pop(ifindex, None)
        held.counter.close()
        if ifindex not in present:
            return Event(held.link.name, "the device is gone")
        if held.applied is None:
            return Event(held.link.name, "let go; it was not shaped")
        failure = self._undo(held)
        if failure is not None:
            return Event(held.link.name, failure, failed=True)
        return Event(held.link.name, "released; the kernel's default qdisc is back")
