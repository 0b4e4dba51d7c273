"""Boots the lab's Debian under QEMU and runs commands in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

from qosd.lab.accelerator import accelerator
from qosd.lab.channel import Channel, Done, Job, MachineLostError
from qosd.lab.hardware import SHARE_TAG, Hardware, Wiring, mebibytes, qemu_command
from qosd.lab.image import Image, cache_dir, ensure_image
from qosd.lab.taps import wired

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BOOT_TIMEOUT = 180.0
POWER_OFF_TIMEOUT = 30.0
CONSOLES_KEPT = 20
# Whatever ends us: the kernel signals it when the thread that started it is gone. A process that gains
# capabilities, as in a new user namespace, has to ask again.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Options(TypedDict, total=False):
    """Hardware's fields, what the machine shares with the host, and the image it boots."""

    kernel: str
    memory: str
    smp: str
    numa: int | None
    swap: str | None
    extra_disks: Sequence[Path | str]
    nics: int
    offloads: bool
    append: str
    icount: str | None


class Machine:
    """A booted guest. Leaving the `with` block powers it off; nothing of it stays behind."""

    def __init__(self, hardware: Hardware, share: Path | None, *, terminal: bool = False) -> None:
        self.hardware = hardware
        self.share = share and share.resolve(strict=True)
        self._terminal = terminal
        self._cleanup = contextlib.ExitStack()
        self.console = _console_file(hardware.kernel)
        self._wire_namespace: int | None = None

    @classmethod
    def boot(
        cls,
        *,
        share: Path | None = None,
        variant: str = "base",
        terminal: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Boot to a settled system, with the host's directory `share` at /mnt/share; options are Hardware's.

        Start it from a thread that lives as long as it: QEMU dies with that thread.
        """
        machine = cls(Hardware(**options), share, terminal=terminal)
        try:
            machine._start(ensure_image(variant))
        except BaseException:
            machine._cleanup.close()
            raise
        return machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 60,
        check: bool = True,
        input: bytes = b"",  # noqa: A002 - subprocess.run's word
    ) -> Done:
        """Run a command to its end: a string in bash, a list as it is. Seconds are the host's."""
        return self._channel.start(command, input).wait(timeout, check=check)

    def start(self, command: str | Sequence[str], *, input: bytes = b"") -> Job:  # noqa: A002 - same
        """Start a command and return at once."""
        return self._channel.start(command, input)

    @property
    def wire_namespace(self) -> int:
        """A descriptor of the network namespace in which the cards' wire is a bridge."""
        if self._wire_namespace is None:
            raise ValueError("a wire of QEMU's own is in no namespace: boot with nics and offloads")
        return self._wire_namespace

    @property
    def running(self) -> bool:
        return self._qemu.poll() is None

    @property
    def qemu_pid(self) -> int:
        return self._qemu.pid

    def power_off(self) -> None:
        """Shut the guest down, or after a bounded wait kill it. Harmless when it is off already."""
        with self._cleanup, contextlib.suppress(MachineLostError, subprocess.TimeoutExpired):
            if self.running:
                self._channel.start(["systemctl", "poweroff"])
                self._qemu.wait(POWER_OFF_TIMEOUT)

    def console_tail(self, lines: int = 30) -> str:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        tail = "\n".join(text.splitlines()[-lines:])
        return f"--- the end of {self.console}\n{tail}"

    def _last_words(self, directory: Path) -> str:
        logs = (directory / "virtiofsd.log", directory / "qemu.log")
        return "".join(log.read_text(errors="replace") for log in logs if log.exists()) + self.console_tail()

    def _start(self, image: Image) -> None:
        started = time.monotonic()
        directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="qosd-lab-")))
        ours, theirs = socket.socketpair()
        self._cleanup.enter_context(ours)
        taps: list[int] = []
        if self.hardware.offloads:
            taps, self._wire_namespace = wired(self.hardware.nics)
            for fd in (*taps, self._wire_namespace):
                self._cleanup.callback(os.close, fd)
        with theirs:
            self.accelerator = accelerator(image)
            wiring = Wiring(
                accelerator=self.accelerator,
                agent=theirs.fileno(),
                console=self.console,
                virtiofsd=self._virtiofsd(directory) if self.share else None,
                disks=list(_disks(self.hardware, directory)),
                terminal=self._terminal,
                taps=taps,
            )
            command = qemu_command(self.hardware, image, wiring)
            self._qemu = self._spawn(command, directory / "qemu.log", pass_fds=(theirs.fileno(), *taps))
        self._channel = Channel(ours, lambda: self._last_words(directory))
        self._channel.wait_for_agent(BOOT_TIMEOUT)
        self.seconds_to_agent = time.monotonic() - started
        self._settle()
        self.seconds_to_boot = time.monotonic() - started

    def _settle(self) -> None:
        """What must be there before anyone looks: the share, the swap, a system that has finished booting."""
        if self.share:
            self.run(f"mkdir -p /mnt/share && mount -t virtiofs {SHARE_TAG} /mnt/share")
        if self.hardware.swap:
            self.run("udevadm settle && swapon /dev/disk/by-id/virtio-swap")
        # "degraded" is for the caller to judge.
        self.run(["systemctl", "is-system-running", "--wait"], timeout=BOOT_TIMEOUT, check=False)

    def _spawn(self, command: Sequence[str], log: Path, pass_fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*DIES_WITH_US, *command],
                stdin=None if self._terminal else subprocess.DEVNULL,
                stdout=None if self._terminal else output,
                stderr=output,
                pass_fds=pass_fds,
            )
        self._cleanup.callback(_end, process)
        return process

    def _virtiofsd(self, directory: Path) -> Path:
        """Start the file server on a socket that listens already, so that nobody has to wait for it."""
        path = directory / "virtiofsd"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            fd = listener.fileno()
            # It wants to be root and to drop groups: so a namespace, of several users. Ours owns its files.
            as_root = () if os.geteuid() == 0 else ("unshare", "--map-root-user", "--map-auto", *DIES_WITH_US)
            options = ("-o", f"source={self.share}", "-o", "cache=auto", "-o", "sandbox=chroot")
            command = [*as_root, _virtiofsd_program(), f"--fd={fd}", *options]
            self._spawn(command, directory / "virtiofsd.log", pass_fds=(fd,))
        return path


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _virtiofsd_program() -> str:
    """Debian keeps it out of PATH: in 12 under qemu, later under libexec."""
    places = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
    found = next((place for place in places if os.access(place, os.X_OK)), shutil.which("virtiofsd"))
    if not found:
        raise FileNotFoundError(f"no virtiofsd in {' or '.join(places)}: run packaging/bootstrap lab")
    return found


def _disks(hardware: Hardware, directory: Path) -> Iterator[tuple[str, Path]]:
    """Each extra disk with its serial: the guest finds it as /dev/disk/by-id/virtio-SERIAL."""
    if hardware.swap:
        path = _empty_disk(directory / "swap", hardware.swap)
        subprocess.run(
            ["mkswap", "-q", path], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        yield "swap", path
    for index, disk in enumerate(hardware.extra_disks):
        serial = f"disk{index}"
        yield serial, disk if isinstance(disk, Path) else _empty_disk(directory / serial, disk)


def _empty_disk(path: Path, size: str) -> Path:
    with path.open("wb") as file:
        file.truncate(mebibytes(size) << 20)
    path.chmod(0o600)
    return path


def _console_file(kernel: str) -> Path:
    """A new file for this boot's console; the last few are kept for whoever asks what happened."""
    directory = cache_dir() / "consoles"
    directory.mkdir(exist_ok=True)
    for old in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime)[: 1 - CONSOLES_KEPT]:
        old.unlink(missing_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{kernel}-", suffix=".log", dir=directory)
    os.close(descriptor)
    return Path(name)
