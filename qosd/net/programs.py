"""The BPF half of shaping: loaded when something is first enforced, synced every tick, gone with the process.

A host that cannot run a program goes without it and says so; nothing here raises into the tick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qosd.ebpf.errors import BpfError
from qosd.ebpf.skbprio import SkbPrio
from qosd.errors import CgroupGone
from qosd.model import CgroupId, Tier, Workload
from qosd.net.classify import Classifier, wanted_classes
from qosd.net.config import Net, parse_dscp
from qosd.net.ingress import Ingress, Received
from qosd.net.marking import Marking, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qosd.ebpf.libbpf import Library
    from qosd.ebpf.samples import Traffic


class Wanted(NamedTuple):
    """What the programs are to do in this tick."""

    workloads: tuple[Workload, ...]
    limits: tuple[tuple[str, int], ...]
    """(name, egress_max in bit/s) of BE rules, in the order of the configuration."""
    uplinks: frozenset[int]
    veths: frozenset[int]


class Programs:
    """`library` is the process's one; a str says why there is none."""

    def __init__(self, library: Library | str) -> None:
        self._library = library
        self._classifier: Classifier | None = None
        self._marking: Marking | None = None
        self._ingress: Ingress | None = None
        self._unloadable: dict[str, str] = {}
        self._refused: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[str, ...]:
        """For the log, `qosctl status` and doctor; empty while all that is configured works."""
        return (*(f"{what}: {why}" for what, why in self._unloadable.items()), *self._refused)

    def sync(self, config: Net, wanted: Wanted, open_dir: Callable[[CgroupId], int]) -> None:
        """Bring classes and marks to what is wanted; `open_dir` raises CgroupGone."""
        settings = mark_settings(config)
        self._load(config, settings)
        refused: list[str] = []
        if self._classifier is not None:
            shaped = wanted.workloads if config.uplinks else ()
            classes = wanted_classes(shaped, wanted.limits, mark_ls=settings.dscp_ls is not None)
            refused += self._classifier.sync(classes, open_dir)
        if self._marking is not None:
            refused += _sync_marks(self._marking, settings, wanted)
        if self._ingress is not None:
            refused += _sync_ingress(self._ingress, config, wanted, open_dir)
        self._refused = tuple(refused)

    def release(self) -> None:
        """Off every hook, but still loaded."""
        if self._classifier is not None:
            self._classifier.sync({}, _nothing_to_open)
        if self._marking is not None:
            self._marking.sync((), ())
        if self._ingress is not None:
            self._ingress.detach()

    def retry(self) -> None:
        """After a reload: what could not be loaded is tried once more."""
        self._unloadable = {}

    def traffic(self) -> Mapping[CgroupId, Traffic]:
        """What each workload sent over all devices since it was attached."""
        return {} if self._classifier is None else self._classifier.traffic()

    def received(self) -> Received | None:
        """By BE, since its limit was set; None while there is none in force."""
        return None if self._ingress is None or not self._ingress.attached else self._ingress.read()

    def be_sent(self, uplinks: Mapping[int, frozenset[int]]) -> Mapping[int, int]:
        """Bytes that BE handed to each uplink, or to a device that sends through it; empty if unknown."""
        if self._classifier is None:
            return {}
        try:
            sent = self._classifier.be_sent_to(frozenset().union(*uplinks.values()))
            forwarded = {} if self._marking is None else self._marking.forwarded_to(frozenset(uplinks))
        except BpfError:  # out of kernel memory, say
            return {}
        return {
            uplink: forwarded.get(uplink, 0) + sum(sent.get(device, 0) for device in devices)
            for uplink, devices in uplinks.items()
        }

    def close(self) -> None:
        for program in (self._classifier, self._marking, self._ingress):
            if program is not None:
                program.close()
        self._classifier = self._marking = self._ingress = None

    def _load(self, config: Net, settings: Settings) -> None:
        if config.uplinks:
            self._load_egress(settings)
        what = "what BE receives is not limited"
        if config.be_ingress_max is None and self._ingress is not None:
            self._ingress.close()
            self._ingress = None
        if config.be_ingress_max is not None and self._ingress is None and what not in self._unloadable:
            try:
                self._ingress = Ingress.open(self._opened())
            except BpfError as error:
                self._unloadable[what] = str(error)

    def _load_egress(self, settings: Settings) -> None:
        what = "BE's packets cannot be told apart"
        if self._classifier is None and what not in self._unloadable:
            try:
                self._classifier = Classifier(SkbPrio.open(self._opened()))
            except BpfError as error:
                self._unloadable[what] = str(error)
        what = "no DSCP and no marks"
        if settings.wanted and self._marking is None and what not in self._unloadable:
            try:
                self._marking = Marking.open(self._opened())
            except BpfError as error:
                self._unloadable[what] = str(error)

    def _opened(self) -> Library:
        if isinstance(self._library, str):
            raise BpfError(self._library)
        return self._library


def _sync_marks(marking: Marking, settings: Settings, wanted: Wanted) -> tuple[str, ...]:
    if not settings.wanted:
        return marking.sync((), ())
    try:
        marking.configure(settings, [each.id for each in wanted.workloads if each.tier is Tier.BE])
    except BpfError as error:
        return (str(error),)
    return marking.sync(wanted.uplinks, wanted.veths if settings.mark is not None else ())


def _sync_ingress(
    ingress: Ingress, config: Net, wanted: Wanted, open_dir: Callable[[CgroupId], int]
) -> tuple[str, ...]:
    if config.be_ingress_max is None:
        return ()
    roots = (each.id for each in wanted.workloads if each.tier is Tier.BE)
    return ingress.sync(config.be_ingress_max, roots, open_dir)


def mark_settings(config: Net) -> Settings:
    return Settings(
        dscp_be=None if config.dscp_be is None else parse_dscp(config.dscp_be),
        dscp_ls=None if config.dscp_ls is None else parse_dscp(config.dscp_ls),
        mark=config.forwarded_mark,
    )


def _nothing_to_open(cgroup: CgroupId) -> int:
    raise CgroupGone(f"cgroup {cgroup}: nothing is attached any more")
