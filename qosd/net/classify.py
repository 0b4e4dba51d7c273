"""Which class a workload's packets go to, and the BPF program that sends them there.

HTB takes a class id in skb->priority without any filter (htb_classify), so that a cgroup_skb/egress program
on a workload's root is all there is to classification: by cgroup, whatever the address family, protocol or
port.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qosd.ebpf.errors import BpfError
from qosd.ebpf.skbprio import ClassId, SkbPrio
from qosd.errors import CgroupGone
from qosd.model import CgroupId, Tier, Workload
from qosd.net.device import BE_CLASS, LS_CLASS, workload_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qosd.ebpf.samples import Traffic


def wanted_classes(
    workloads: tuple[Workload, ...], limits: tuple[tuple[str, int], ...], *, mark_ls: bool = False
) -> dict[CgroupId, int | None]:
    """The class of every workload; None is "only counted".

    Unclassified traffic has LS's class anyway. LS is named only if its packets are to get a DSCP that the
    system's do not get (`mark_ls`), since it takes away a priority that LS may have set by itself.
    """
    ls = LS_CLASS if mark_ls else None
    own = {name: workload_class(index) for index, (name, _rate) in enumerate(limits)}
    return {
        workload.id: own.get(workload.name, BE_CLASS) if workload.tier is Tier.BE else ls
        for workload in workloads
    }


class Classifier:
    """Keeps the program attached to what is wanted; all of it goes with the process."""

    def __init__(self, skbprio: SkbPrio) -> None:
        self._skbprio = skbprio
        self._held: dict[CgroupId, int | None] = {}

    def sync(
        self, wanted: Mapping[CgroupId, int | None], open_dir: Callable[[CgroupId], int]
    ) -> tuple[str, ...]:
        """Attach, change and detach; returns what was refused. `open_dir` raises CgroupGone."""
        errors: list[str] = []
        for cgroup in self._held.keys() - wanted.keys():
            self._skbprio.detach(cgroup)
            del self._held[cgroup]
        for cgroup, class_id in wanted.items():
            if cgroup in self._held and self._held[cgroup] == class_id:
                continue
            try:
                fd = open_dir(cgroup)
            except CgroupGone:
                continue
            try:
                self._skbprio.attach(cgroup, fd, _words(class_id))
                self._held[cgroup] = class_id
            except BpfError as error:
                errors.append(str(error))
            finally:
                os.close(fd)
        return tuple(errors)

    def traffic(self) -> Mapping[CgroupId, Traffic]:
        """What each workload sent over all devices, as IP packets, since it was attached."""
        return self._skbprio.read()

    def be_sent_to(self, devices: frozenset[int]) -> Mapping[int, int]:
        """What BE handed to each device, for `Uplinks.sample`."""
        return self._skbprio.sent_to(devices)

    def close(self) -> None:
        self._skbprio.close()


def _words(class_id: int | None) -> ClassId | None:
    return None if class_id is None else ClassId(class_id >> 16, class_id & 0xFFFF)
