"""Egress on a virtio NIC, by the installed daemon: BE is held, LS is not, and the device is given back as it was.

Rates are compared with the ceiling, not with absolute figures: under emulation the link is slow by choice.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vm.conftest import ROOT
from vm.guest import NEWER, Guest

pytestmark = pytest.mark.vm

MBIT = 10**6
LINK = 20 * MBIT
CEILING = 0.9 * LINK
CONFIG = '[net]\nuplinks = ["eth0"]\nlink_speed = { eth0 = "20Mbit" }\n'
LIMITED = CONFIG + '[[workload]]\nname = "jobs"\ntier = "be"\nmatch = ["be.slice"]\negress_max = "4Mbit"\n'
SHAPED = 'tc qdisc show dev eth0 | grep -q "^qdisc htb a001:"'
_WIRE = """
ip netns list | grep -qw far || {
    ip netns add far && ip link set eth1 netns far
    ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up
    ip -n far addr add 10.0.0.2/24 dev eth1 && ip -n far link set eth1 up
}
ping -q -c 1 -W 10 10.0.0.2
for port in 5201 5202 5203; do ip netns exec far iperf3 -s -D -p $port; done
"""


@pytest.fixture
def wired(idle: Guest) -> Iterator[Guest]:
    """eth0 leads to the namespace `far`, where two sinks listen; the daemon is stopped."""
    guest = idle
    guest.sh(_WIRE)
    yield guest
    guest.sh("systemctl stop 'test-*' 2>/dev/null; tc qdisc del dev eth0 root 2>/dev/null; true")
    guest.sh("ip netns pids far | xargs -r kill")


def shaped(guest: Guest, config: str = CONFIG) -> None:
    guest.configure(config)
    guest.sh("systemctl restart qosd")
    guest.until(SHAPED)


def dump(guest: Guest) -> str:
    # The kernel lists a flow of fq_codel as a class while it has lately sent (fq_codel_walk): no setting of anyone's.
    classes = "tc class show dev eth0 | sed '/^class fq_codel /d'"
    return guest.sh(f"tc qdisc show; {classes}; tc filter show dev eth0")


def flood(guest: Guest) -> None:
    guest.sh(
        "systemd-run -q --collect --unit=test-flood --slice=be.slice iperf3 -c 10.0.0.2 -p 5201 -t 300 -P 2"
    )
    guest.sh("sleep 3")


def class_bps(guest: Guest, class_id: str, seconds: int = 4) -> float:
    """Bits a second of a class by the kernel's own counter and clock."""
    count = f"tc -s class show dev eth0 | awk '/^class htb {class_id} /{{f=1}} f&&/Sent/{{print $2; exit}}'"
    out = guest.sh(
        f"A=$({count}); a=$(date +%s%N); sleep {seconds}; B=$({count}); b=$(date +%s%N); echo $((B - A)) $((b - a))"
    )
    sent, nanoseconds = map(int, out.split())
    return sent * 8 / nanoseconds * 1e9


def test_a_be_flood_is_held_at_the_ceiling_and_ls_gets_what_it_asks_for(wired: Guest) -> None:
    shaped(wired)
    flood(wired)
    alone = class_bps(wired, "a001:20")
    assert 0.5 * CEILING < alone < 1.05 * CEILING

    asked = 8 * MBIT
    report = json.loads(
        wired.sh(
            "systemd-run -q --collect --unit=test-ls --slice=ls.slice --wait --pipe"
            f" iperf3 -c 10.0.0.2 -p 5202 -t 10 -b {asked} --json & sleep 6;"
            " qosctl status --json >/var/tmp/during; wait",
            timeout=120,
        )
    )
    during = json.loads(wired.sh("cat /var/tmp/during"))["net"]["uplinks"][0]

    assert report["end"]["sum_received"]["bits_per_second"] > 0.9 * asked
    assert during["shaped"]
    assert during["be_ceiling_bps"] < CEILING - 0.7 * asked
    assert during["ls_bps"] > 0.5 * asked
    assert during["reason"]["rule"] == "net.shaping/ceiling"
    said = wired.sh("qosctl explain eth0")
    assert "eth0 is an uplink of 20 Mbit/s, up, shaped" in said
    assert "a001:20" in said
    assert "in class a001:20" in wired.sh("qosctl explain be.slice")
    assert "Traceback" not in wired.journal_text()


@NEWER
def test_a_workload_is_held_at_its_own_limit_and_the_metrics_say_so(wired: Guest) -> None:
    shaped(wired, LIMITED)
    flood(wired)

    assert 0.5 * 4 * MBIT < class_bps(wired, "a001:30") < 1.1 * 4 * MBIT
    metrics = wired.sh("curl -sf http://127.0.0.1:9753/metrics")
    assert 'qosd_net_uplinks{state="shaped"} 1.0' in metrics
    assert 'qosd_net_class_sent_bytes_total{class="be:jobs",uplink="eth0"}' in metrics
    assert "qosd_net_degraded 0.0" in metrics
    assert re.search(r"^jobs .* 4 Mbit/s .* a001:30 +be.slice$", wired.sh("qosctl status"), re.MULTILINE)


@pytest.mark.parametrize("how", ["systemctl stop qosd", "systemctl kill -s KILL --kill-who=main qosd"])
def test_after_its_end_the_device_is_byte_for_byte_what_it_was(wired: Guest, how: str) -> None:
    before = dump(wired)
    wired.drop_in("[Service]\nRestart=no")
    shaped(wired)
    flood(wired)

    wired.sh(how)
    wired.until("! systemctl is-active -q qosd && ! systemctl status qosd | grep -q deactivating")

    assert dump(wired) == before


@NEWER
def test_what_even_the_unit_could_not_undo_the_next_start_does(wired: Guest) -> None:
    before = dump(wired)
    wired.drop_in("[Service]\nRestart=no\nExecStopPost=")
    shaped(wired)
    wired.sh("systemctl kill -s KILL --kill-who=main qosd")
    wired.until("! systemctl is-active -q qosd")
    assert "htb a001:" in dump(wired)

    wired.configure("")
    wired.sh("systemctl start qosd")

    assert dump(wired) == before
    assert "eth0: our root qdisc is off; the kernel's default is back" in wired.journal_text()


@NEWER
def test_pause_and_a_reload_without_the_uplink_give_it_back_and_resume_shapes_again(wired: Guest) -> None:
    before = dump(wired)
    shaped(wired)
    wired.sh("qosctl pause")
    assert dump(wired) == before
    wired.sh("qosctl resume")
    wired.until(SHAPED)

    wired.configure("")
    assert "net.uplinks" in wired.sh("qosctl reload")

    assert dump(wired) == before
    assert wired.status_when(lambda status: status["mode"] == "enforce")["net"] is None


@NEWER
def test_a_root_qdisc_of_somebody_else_is_refused_in_clear_words_and_left_alone(wired: Guest) -> None:
    wired.sh("tc qdisc add dev eth0 root handle 1: tbf rate 50mbit burst 64kb latency 50ms")
    before = dump(wired)
    wired.configure(CONFIG)
    wired.sh("systemctl start qosd")
    wired.status_when(lambda status: status["mode"] == "enforce")

    why = "eth0 has a root qdisc of somebody else: tbf 1:"
    assert f"uplink eth0 is not shaped: {why}" in wired.sh("qosctl status")
    assert f"uplink eth0: not shaped: {why}" in " ".join(wired.sh("qosctl doctor").split())
    assert why in wired.status_of("qosctl explain eth0")[1]
    assert f"eth0: not shaped: {why}" in wired.journal_text()
    assert dump(wired) == before


def test_be_is_marked_on_the_wire_and_what_it_receives_is_limited(
    wired: Guest, share: Path, kernel: str
) -> None:
    """IPv4 and IPv6; the sniffer is the far end's. DSCP needs TCX (Linux 6.6), and 6.1 says so."""
    shutil.copy(ROOT / "tests/netns/sniff.py", share)
    wired.sh("ip addr add fd00::1/64 dev eth0 nodad; ip -n far addr add fd00::2/64 dev eth1 nodad")
    wired.sh(
        "systemd-run -q --collect --unit=test-sniff -p StandardOutput=file:/var/tmp/seen"
        " ip netns exec far python3 /mnt/share/sniff.py eth1"
    )
    shaped(wired, CONFIG + 'dscp_be = "CS1"\nbe_ingress_max = "4Mbit"\n')
    run = "systemd-run -q --collect --slice={}.slice --unit=test-{} iperf3 -t 300 {}"
    wired.sh(run.format("be", "six", "-c fd00::2 -p 5201 -l 16K"))
    wired.sh(run.format("be", "reverse", "-c 10.0.0.2 -p 5202 -R"))
    wired.sh(run.format("ls", "ls", "-c 10.0.0.2 -p 5203 -b 1M"))

    # Unlimited it would be many times that in each tick; the one in which drops begin has a full bucket on top.
    wired.status_when(lambda status: 0 < came(status) < 1.5 * 4 * MBIT, tries=60)
    assert "of its be_ingress_max 4 Mbit/s" in wired.sh("qosctl status")
    assert "qosd_net_be_ingress_max_bits_per_second 4e+06" in wired.sh(
        "curl -sf http://127.0.0.1:9753/metrics"
    )

    wired.until('grep -q "6, 5201" /var/tmp/seen && grep -q "4, 5203" /var/tmp/seen')
    seen = {tuple(json.loads(line)) for line in wired.sh("grep '^\\[' /var/tmp/seen").splitlines()}
    assert {dscp for _, port, dscp, _ in seen if port == 5203} == {0}
    of_be = {dscp for _, port, dscp, _ in seen if port in (5201, 5202)}
    if kernel == "6.1":
        assert of_be == {0}
        assert "no DSCP" in wired.sh("qosctl status")
    else:
        assert 8 in of_be
        assert all(checksum_right for *_, checksum_right in seen)


def came(status: dict[str, Any]) -> float:
    """What BE receives, once some of it was dropped."""
    ingress = (status["net"] or {}).get("be_ingress") or {}
    return ingress["bps"] or 0 if ingress.get("dropped_packets") else 0


@NEWER
def test_a_nic_that_is_taken_out_and_put_back_is_shaped_again_by_the_running_daemon(wired: Guest) -> None:
    shaped(wired)
    device = wired.sh("basename $(readlink /sys/class/net/eth0/device)").strip()
    wired.sh(f"echo {device} >/sys/bus/virtio/drivers/virtio_net/unbind")
    gone = wired.status_when(lambda status: bool(status["net"]["refused"]))
    assert gone["net"]["refused"] == {"eth0": "no such device"}
    assert "uplink eth0 is not shaped: no such device" in wired.sh("qosctl status")

    wired.sh(f"echo {device} >/sys/bus/virtio/drivers/virtio_net/bind")
    wired.until("test -e /sys/class/net/eth0")
    wired.sh("ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up")
    wired.until(SHAPED)
    flood(wired)

    assert 0.5 * CEILING < class_bps(wired, "a001:20") < 1.05 * CEILING
    assert "Traceback" not in wired.journal_text()


def read_classes(status: dict[str, Any]) -> bool:
    uplinks = status["net"]["uplinks"]
    return any(sample["id"] == "a001:20" and sample["packets"] > 0 for sample in uplinks[0]["classes"])


@NEWER
def test_a_slave_of_a_bond_is_refused_and_the_bond_itself_is_shaped(wired: Guest) -> None:
    wired.sh(
        "modprobe bonding max_bonds=0; ip link add bond0 type bond mode active-backup;"
        " ip link set eth0 down; ip link set eth0 master bond0;"
        " ip addr flush dev eth0; ip addr add 10.0.0.1/24 dev bond0; ip link set bond0 up"
    )
    wired.configure(
        '[net]\nuplinks = ["eth0", "bond0"]\nlink_speed = { eth0 = "20Mbit", bond0 = "20Mbit" }\n'
    )
    wired.sh("systemctl start qosd")
    wired.until('tc qdisc show dev bond0 | grep -q "^qdisc htb a001:"')
    refused = wired.status_when(lambda status: bool(status["net"]))["net"]["refused"]
    assert refused == {"eth0": "eth0 is enslaved to a bond: list the bond instead"}
    assert "a001:" not in wired.sh("tc qdisc show dev eth0")
    flood(wired)
    sent = {
        sample["id"]: sample for sample in wired.status_when(read_classes)["net"]["uplinks"][0]["classes"]
    }
    assert sent["a001:20"]["sent_bytes"] > 0

    wired.sh("systemctl stop qosd 'test-*'")
    assert "a001:" not in wired.sh("tc qdisc show")
    wired.sh("ip link del bond0; ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up")
