"""The machine one asks for, and QEMU's command line for it."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from qosd.lab.image import Image

PORT = "org.qosd.lab"
SHARE_TAG = "share"
_UNITS = {"M": 1, "G": 1024}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What may differ from one machine to the next; sizes as QEMU writes them, "512M" or "3G"."""

    kernel: str = "6.12"
    memory: str = "3G"
    smp: str = "2"  # QEMU's -smp: "2", or "4,sockets=2,cores=1,threads=2"
    numa: int | None = None  # nodes, sharing memory and CPUs equally
    swap: str | None = None  # size of a swap disk, on from the start
    extra_disks: Sequence[Path | str] = ()  # images, kept as the guest leaves them, or sizes of empty ones
    nics: int = 0  # on one wire with each other and with nothing else
    offloads: bool = False  # the wire takes packets of 64 KiB and unsummed ones; needs root
    append: str = ""  # more kernel command line
    icount: str | None = None  # QEMU's -icount, emulated only: time goes by the instructions executed


@dataclasses.dataclass(frozen=True)
class Wiring:
    """The host's ends of what the guest sees: made by the machine before QEMU starts."""

    accelerator: str
    agent: int  # a connected socket's descriptor
    console: Path
    virtiofsd: Path | None
    disks: Sequence[tuple[str, Path]]  # serial and image, in the order of vdb, vdc...
    terminal: bool = False
    taps: Sequence[int] = ()  # the wire's ends, for a guest with offloads


def mebibytes(size: str) -> int:
    """Parse "512M" or "3G"."""
    found = re.fullmatch(r"([1-9][0-9]*)([MG])", size)
    if not found:
        raise ValueError(f'{size!r} is not a size such as "512M" or "3G"')
    return int(found[1]) * _UNITS[found[2]]


def qemu_command(hardware: Hardware, image: Image, wiring: Wiring) -> list[str]:
    """QEMU's whole command line."""
    emulated = _emulated(hardware, wiring)
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *_clock(hardware, wiring),
        *_topology(hardware),
        *("-kernel", str(image.kernel(hardware.kernel)), "-initrd", str(image.initrd(hardware.kernel))),
        *("-append", " ".join((_KERNEL_COMMAND_LINE, *_EMULATED_KERNEL * emulated, hardware.append)).strip()),
        *("-drive", f"file={image.disk},if=none,id=root,format=raw,snapshot=on,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=root,serial=root"),
        *_disks(wiring.disks),
        *("-device", "virtio-rng-pci", "-serial", f"file:{wiring.console}"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={wiring.agent}"),
        *("-device", f"virtserialport,chardev=agent,name={PORT}"),
        *_share(wiring.virtiofsd),
        *_nics(hardware.nics, wiring.taps),
        *(
            ("-chardev", "stdio,id=term,signal=off", "-device", "virtconsole,chardev=term")
            if wiring.terminal
            else ()
        ),
    ]


def _clock(hardware: Hardware, wiring: Wiring) -> tuple[str, ...]:
    """The guest's time is the host's, or with icount its own while it works, whatever else the host does."""
    if hardware.icount is not None:
        return ("-accel", "tcg,thread=single", "-cpu", _EMULATED_CPU, "-icount", hardware.icount)
    if _emulated(hardware, wiring):
        return ("-accel", f"tcg,thread={_threads()}", "-cpu", _EMULATED_CPU)
    return ("-accel", "kvm", "-cpu", "max")


def _emulated(hardware: Hardware, wiring: Wiring) -> bool:
    return hardware.icount is not None or wiring.accelerator != "kvm"


def _threads() -> str:
    """One host thread a guest CPU, or one for them all: `multi`, or `single` where $QOSD_LAB_TCG says so.

    With several, an emulated CPU now and then executes the breakpoint of a patch of the kernel's own code
    that is already done (static keys, tracepoints), and the guest dies of "Oops: int3". One thread cannot.
    """
    return os.environ.get("QOSD_LAB_TCG", "multi")


# net.ifnames=0: eth0 wherever it is plugged; panic=-1 with -no-reboot: a panic ends QEMU at once.
_KERNEL_COMMAND_LINE = "root=/dev/vda rw console=ttyS0 quiet psi=1 net.ifnames=0 panic=-1"


# What costs an emulated CPU most, and shows a test nothing. QEMU does `rep movsb` and its like element by
# element, so neither the C library nor the kernel may prefer them (ERMS; 112 is X86_FEATURE_REP_GOOD): new
# memory takes it a third of the time. SMAP ends a block of translated code at each access to user memory,
# mitigations make each indirect call three, a fifth level of page tables is one more to walk.
_EMULATED_CPU = "max,erms=off,smap=off,smep=off,pku=off,umip=off,la57=off"
_EMULATED_KERNEL = ("mitigations=off", "clearcpuid=112", "audit=0", "nowatchdog")


# Every device left out is a driver the emulated guest need not load: SATA alone cost it 4 s.
_MACHINE = "q35,sata=off,smbus=off,vmport=off"


def _topology(hardware: Hardware) -> Iterator[str]:
    """Shared memory, which virtio-fs needs, and NUMA nodes if wanted."""
    total = mebibytes(hardware.memory)
    nodes = hardware.numa or 1
    cpus = int(hardware.smp.split(",", 1)[0])
    if total % nodes or cpus % nodes:
        raise ValueError(f"{hardware.memory} and {cpus} CPUs do not divide into {nodes} NUMA nodes")
    yield from ("-m", f"{total}M", "-smp", hardware.smp)
    for node in range(nodes):
        yield from ("-object", f"memory-backend-memfd,id=mem{node},size={total // nodes}M,share=on")
    if hardware.numa is None:
        yield from ("-machine", f"{_MACHINE},memory-backend=mem0")
        return
    yield from ("-machine", _MACHINE)
    each = cpus // nodes
    for node in range(nodes):
        yield from (
            "-numa",
            f"node,nodeid={node},cpus={node * each}-{(node + 1) * each - 1},memdev=mem{node}",
        )


def _disks(disks: Sequence[tuple[str, Path]]) -> Iterator[str]:
    for serial, path in disks:
        yield from ("-drive", f"file={path},if=none,id={serial},format=raw,cache=unsafe")
        yield from ("-device", f"virtio-blk-pci,drive={serial},serial={serial}")


def _share(virtiofsd: Path | None) -> Iterator[str]:
    if virtiofsd:
        yield from ("-chardev", f"socket,id=share,path={virtiofsd}")
        yield from ("-device", f"vhost-user-fs-pci,chardev=share,tag={SHARE_TAG}")


def _nics(count: int, taps: Sequence[int]) -> Iterator[str]:
    for index in range(count):
        end = f"tap,id=net{index},fd={taps[index]}" if taps else f"hubport,id=net{index},hubid=0"
        yield from ("-netdev", end)
        yield from ("-device", f"virtio-net-pci,netdev=net{index},mac=52:54:00:71:6f:{index:02x}")
