"""A host and a peer in network namespaces joined by veth pairs, with cgroups; nothing is left after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from netns.traffic import CONTROL, Counted, FarSink, Sink, finish, sender

from qosd.net import rtnl
from qosd.net.held import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qosd.net.device import LinkSample, QdiscSample

CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def missing() -> str | None:
    """Why none of this can run here, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for tool in ("ip", "tc", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    return None


def cgroup2_mount() -> Path | None:
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _device, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


@contextlib.contextmanager
def far_end(namespace: int, device: str) -> Iterator[None]:
    """What a lab with a card of its own expects at its other end, in a network namespace (a descriptor)."""
    enter = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}"]
    for command in (
        f"ip addr add 10.9.0.2/24 dev {device}",
        f"ip addr add fd09:0::2/64 dev {device} nodad",
        "ip link set lo up",
    ):
        subprocess.run([*enter, *command.split()], check=True)
    with contextlib.closing(Sink(enter, control=CONTROL)):
        yield


class Lab:
    """Enters a new network namespace with the calling thread; `close` goes back and removes everything.

    `nic` is a card in place of a veth pair: another machine is its far end, with `far_end` of this module.
    """

    def __init__(self, uplinks: int = 1, nic: str | None = None) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _checked(_libc.unshare(CLONE_NEWNET))
        self._undo: list[Callable[[], object]] = []
        self._cgroups: list[Path] = []
        self.run("ip link set lo up")
        self.peer = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, text=True)
        self._undo.append(lambda: finish(self.peer))
        self.enter = ["nsenter", f"--net=/proc/{self.peer.pid}/ns/net"]
        self._await_peer()
        self._far_away = nic is not None
        if nic is None:
            for index in range(uplinks):
                self.add_uplink(index)
        else:
            self._borrow(nic)
        self.host = Host(
            sysfs_net=str(self._mount_sysfs() / "class/net"),
            proc_net="/proc/thread-self/net",
            cilium_map="/nonexistent",
            allow_kinds=frozenset({"veth"}),
        )
        self._sink: Sink | FarSink | None = None

    def add_uplink(self, index: int) -> None:
        self.run(f"ip link add u{index} type veth peer name p{index} netns {self.peer.pid}")
        self.far(f"ip addr add 10.9.{index}.2/24 dev p{index}")
        self.far(f"ip addr add fd09:{index}::2/64 dev p{index} nodad")
        self.far(f"ip link set p{index} up")
        self.far("ip link set lo up")
        self._address(index)

    def _borrow(self, nic: str) -> None:
        """`close` gives it back under its own name."""
        home = f"/proc/{os.getpid()}/fd/{self._home}"
        self.run(f"nsenter --net={home} ip link set {nic} netns {os.getpid()}")
        self.run(f"ip link set {nic} name u0")
        back = ("ip link set u0 down", f"ip link set u0 name {nic}", f"ip link set {nic} netns {home}")
        self._undo.extend(partial(self.run, step) for step in reversed(back))
        self._address(0)

    def _address(self, index: int) -> None:
        self.run(f"ip addr add 10.9.{index}.1/24 dev u{index}")
        self.run(f"ip addr add fd09:{index}::1/64 dev u{index} nodad")
        self.run(f"ip link set u{index} up")
        # An IPv6 address is usable only once the link has carrier on both ends.
        self.until(lambda: "LOWER_UP" in self.run(f"ip link show u{index}"))

    def run(self, command: str) -> str:
        return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout

    def far(self, command: str) -> str:
        return self.run(" ".join((*self.enter, command)))

    def until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.01)

    def link(self, name: str) -> LinkSample:
        with rtnl.RtnlSocket() as sock:
            return next(link for link in rtnl.links(sock) if link.name == name)

    def root(self, name: str) -> QdiscSample | None:
        ifindex = self.link(name).ifindex
        with rtnl.RtnlSocket() as sock:
            return next((qdisc for qdisc in rtnl.root_qdiscs(sock) if qdisc.ifindex == ifindex), None)

    def dump(self) -> str:
        """All of tc's view of this namespace, without the one counter that it shows unasked."""
        names = [line.split(":")[1].split("@")[0].strip() for line in self.run("ip -o link").splitlines()]
        shown = [self.run("tc -d qdisc show")]
        shown += [self.run(f"tc -d {what} show dev {name}") for name in names for what in ("class", "filter")]
        return re.sub(r"direct_packets_stat \d+", "direct_packets_stat", "".join(shown))

    def sink(self) -> Counted:
        if self._sink is None:
            self._sink = FarSink("10.9.0.2") if self._far_away else Sink(self.enter)
            self._undo.append(self._sink.close)
        return self._sink

    def send(
        self, port: int, *arguments: str, cgroup: Path | None = None, to: str = "10.9.0.2"
    ) -> subprocess.Popen[str]:
        self.sink()
        process = sender(cgroup, "--to", to, "--port", str(port), *arguments)
        self._undo.append(lambda: finish(process))
        return process

    def at_close(self, step: Callable[[], object]) -> None:
        self._undo.append(step)

    def cgroup(self, name: str) -> Path:
        mount = cgroup2_mount()
        assert mount is not None
        base = mount / f"qosd-netns-{os.getpid()}"
        path = base / name
        if not base.exists():
            base.mkdir()
            self._undo.insert(0, base.rmdir)
        path.mkdir()
        # Undone in reverse: after the senders (appended later), the deepest first, the base last.
        self._undo.insert(1 + len(self._cgroups), lambda: self._rmdir(path))
        self._cgroups.append(path)
        return path

    def close(self) -> None:
        with contextlib.ExitStack() as left:  # all of it, whatever of it fails: other tests follow
            left.callback(os.close, self._home)
            left.callback(lambda: _checked(_libc.setns(self._home, CLONE_NEWNET)))
            for step in self._undo:
                left.callback(step)

    def _rmdir(self, path: Path) -> None:
        if not path.exists():
            return
        self.until(lambda: "populated 0" in (path / "cgroup.events").read_text(encoding="ascii"))
        path.rmdir()

    def _await_peer(self) -> None:
        ours = os.stat("/proc/thread-self/ns/net").st_ino
        self.until(lambda: os.stat(f"/proc/{self.peer.pid}/ns/net").st_ino != ours)

    def _mount_sysfs(self) -> Path:
        where = Path(tempfile.mkdtemp(prefix="qosd-netns-"))
        self._undo.append(where.rmdir)
        self.run(f"mount -t sysfs -o ro none {where}")
        self._undo.append(lambda: self.run(f"umount {where}"))
        return where


if __name__ == "__main__":
    sys.exit("a module of the tests and the benchmark")
