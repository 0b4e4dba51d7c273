"""The lab without its machine: what it asks of QEMU, and the agent and the channel over a socket."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qosd.lab.channel import Channel, CommandError, MachineLostError
from qosd.lab.hardware import Hardware, Wiring, mebibytes, qemu_command
from qosd.lab.image import Image

SERVE = "import sys; from qosd.lab.agent import Agent; Agent(int(sys.argv[1])).serve()"


@pytest.fixture
def channel() -> Iterator[Channel]:
    ours, theirs = socket.socketpair()
    fd = str(theirs.fileno())
    with (
        ours,
        subprocess.Popen([sys.executable, "-c", SERVE, fd], pass_fds=[theirs.fileno()]) as agent,
    ):
        theirs.close()
        channel = Channel(ours, lambda: "last words")
        channel.wait_for_agent(10)
        yield channel
        agent.kill()


def _command(taps: tuple[int, ...] = (), **options: object) -> str:
    wiring = Wiring(accelerator="tcg", agent=7, console=Path("/c"), virtiofsd=None, disks=[], taps=taps)
    return " ".join(qemu_command(Hardware(**options), Image(Path("/image")), wiring))  # type: ignore[arg-type]


def test_numa_nodes_share_memory_and_cpus_equally() -> None:
    command = _command(numa=2, smp="4,sockets=2,cores=1,threads=2", memory="2G")
    assert "-m 2048M -smp 4,sockets=2,cores=1,threads=2" in command
    assert "id=mem1,size=1024M" in command
    assert "node,nodeid=1,cpus=2-3,memdev=mem1" in command


def test_what_does_not_divide_into_numa_nodes_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not divide into 2 NUMA nodes"):
        _command(numa=2, smp="3")


def test_the_cards_of_a_guest_are_on_one_wire() -> None:
    assert "hubport,id=net1,hubid=0" in _command(nics=2)
    assert "tap,id=net1,fd=9 -device virtio-net-pci,netdev=net1" in _command((8, 9), nics=2)


@pytest.mark.parametrize("size", ["", "3", "0G", "1.5G", "3g", "-1M"])
def test_a_size_without_a_unit_is_an_error(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        mebibytes(size)


def test_the_kernel_asked_for_and_more_command_line_reach_qemu() -> None:
    command = _command(kernel="6.1", append="psi=0")
    assert "-kernel /image/vmlinuz-6.1 -initrd /image/initrd-6.1" in command
    assert "panic=-1 mitigations=off" in command
    assert " psi=0 -drive" in command


def test_a_guest_with_a_clock_of_its_own_has_one_thread_and_is_never_on_kvm() -> None:
    assert "-icount" not in _command()
    command = _command(icount="shift=1")
    assert "-accel tcg,thread=single -cpu max,erms=off," in command
    assert " -icount shift=1 " in command


def test_status_output_and_input_pass_the_line(channel: Channel) -> None:
    done = channel.start("cat; echo err >&2; exit 3", b"in").wait(10, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "err\n")


def test_all_output_is_there_when_the_end_is_reported(channel: Channel) -> None:
    for _ in range(20):
        assert channel.start("head -c 300000 /dev/zero | tr '\\0' x").wait(10).stdout == "x" * 300_000


def test_what_stays_behind_neither_holds_up_the_end_nor_is_killed_by_writing(channel: Channel) -> None:
    pid = channel.start("(sleep 0.2; echo late; echo later; sleep 60) >&1 & echo $!").wait(10).stdout.strip()
    assert channel.start(f"sleep 0.5; kill {pid}").wait(10).returncode == 0


def test_a_command_over_its_time_is_killed_and_its_output_kept(channel: Channel) -> None:
    with pytest.raises(CommandError, match="killed, not done") as caught:
        channel.start("echo begun; sleep 60").wait(0.5)
    assert caught.value.done == type(caught.value.done)(-signal.SIGKILL, "begun\n", "")


def test_lines_are_given_as_they_come_and_at_most_so_long(channel: Channel) -> None:
    job = channel.start("echo one; printf 'two\nthr'; read -rt 60 <> <(:); echo ee")
    lines = job.lines(1)

    assert (next(lines), next(lines)) == ("one", "two")
    assert list(lines) == []
    job.kill()
    assert list(channel.start("printf 'one\\n'; sleep 0.2; printf '\\ntwo\\nthree'").lines(10)) == [
        "one",
        "",
        "two",
    ]


def test_the_end_of_the_line_is_an_error_with_the_last_words(channel: Channel) -> None:
    with pytest.raises(MachineLostError, match="last words"):
        channel.start("kill -9 $PPID; sleep 60").wait(10)
