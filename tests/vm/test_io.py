"""IO on a real kernel: its own text of a limit, its refusals, and a disk given back as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from vm.guest import CGROUP, NEWER, Guest

pytestmark = [pytest.mark.vm, NEWER]

IO_MAX = f"{CGROUP}/be.slice/io.max"
THEIRS = "rbps=max wbps=1048576 riops=max wiops=max"
ENFORCE = '[io.limits]\nenforce = true\nfloor = "256KiB"\nfloor_iops = 20\n'


@pytest.fixture
def reading(idle: Guest) -> Iterator[Guest]:
    """LS and BE read the disk under the root filesystem past any cache, and the operator limits another one."""
    guest = idle
    guest.sh("modprobe loop; truncate -s 8M /var/tmp/theirs; losetup /dev/loop0 /var/tmp/theirs")
    # Slices that nobody needs go; this one stays, so that its files are the same ones afterwards.
    guest.sh("systemd-run -q --collect --unit=test-ls --slice=ls.slice sleep 10000")
    for tier, block in (("ls", "4k"), ("be", "256k")):
        guest.sh(
            f"systemd-run -q --collect --unit=test-{tier}-reader --slice={tier}.slice bash -c "
            f"'while :; do dd if=/dev/vda of=/dev/null bs={block} count=256 iflag=direct status=none; done'"
        )
    guest.sh(f"echo '7:0 {THEIRS}' >{IO_MAX}")
    yield guest
    guest.sh("losetup -d /dev/loop0")


def test_be_is_limited_at_the_disk_that_ls_waits_for_and_all_is_given_back(reading: Guest) -> None:
    """A reader past the cache waits for nearly all of its time, so LS does, and BE is the most of the load."""
    guest = reading
    disk = guest.sh("cat /sys/block/vda/dev").strip()
    before = guest.values()
    guest.configure(ENFORCE)
    guest.sh("systemctl start qosd")

    guest.until(f'grep -q "^{disk} rbps=[0-9]" {IO_MAX}', seconds=120)
    status = guest.status_when(
        lambda status: any(
            each["file"] == f"io.max {disk}" and each["state"] == "in-force" for each in status["settings"]
        )
    )
    (limit,) = [each for each in status["settings"] if each["file"] == f"io.max {disk}"]
    assert limit["original"] == "rbps=max wbps=max riops=max wiops=max"
    assert "waited for IO" in limit["reason"]["text"]
    assert f"7:0 {THEIRS}" in guest.read("be.slice/io.max")
    # What the kernel shows is what was written: else each tick would write it again.
    assert limit["error"] is None
    said = guest.sh("qosctl explain be.slice --file io.max --json")
    assert json.loads(said)[0]["settings"][0]["file"] == f"io.max {disk}"

    guest.sh("systemctl stop test-ls-reader")
    guest.until(f'! grep -q "^{disk} " {IO_MAX}', seconds=240)
    assert f"7:0 {THEIRS}" in guest.read("be.slice/io.max")
    guest.sh("systemctl stop qosd")
    after = guest.values()
    assert {name: after.get(name) for name in before if "/be.slice/" in name} == {
        name: value for name, value in before.items() if "/be.slice/" in name
    }


def test_after_sigkill_the_line_of_ours_goes_and_that_of_the_operator_stays(reading: Guest) -> None:
    guest = reading
    disk = guest.sh("cat /sys/block/vda/dev").strip()
    guest.configure(ENFORCE)
    guest.drop_in("[Service]\nRestart=no\n")
    guest.sh("systemctl start qosd")
    guest.until(f'grep -q "^{disk} rbps=[0-9]" {IO_MAX}', seconds=120)

    guest.sh("systemctl kill -s KILL --kill-whom=main qosd")
    guest.until("systemctl is-failed -q qosd")

    assert guest.read("be.slice/io.max") == f"7:0 {THEIRS}"
    assert guest.read("be.slice/io.weight").splitlines()[0] == "default 10"
