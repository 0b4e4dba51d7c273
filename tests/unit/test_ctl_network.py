"""What `qosctl explain` says of uplinks, and of what workloads send."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ctl_daemon import NET, NOW, answers, canned, daemon, qosctl

from qosd.audit import NETWORK
from qosd.plan import Reason
from qosd.status import DecisionRecord


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


def with_net() -> dict[str, Any]:
    return answers(status={"ok": msgspec.to_builtins(canned(net=NET))})


def test_explain_takes_an_uplink_and_shows_its_classes_and_the_reason(sock: str) -> None:
    with daemon(sock, with_net()):
        text = qosctl("explain", "eth0", sock=sock).stdout
    assert "eth0 is an uplink of 1 Gbit/s, up, shaped; LS and system send 200 Mbit/s, BE 300 Mbit/s" in text
    assert "BE may send 700.0 Mbit/s of 1.00 Gbit/s" in text
    assert re.search(r"a001:30 +be:batch +5 Mbit/s +200 Mbit/s +1 MiB +2 ", text)


def test_explain_says_why_an_uplink_is_refused_and_exits_1(sock: str) -> None:
    with daemon(sock, with_net()):
        result = qosctl("explain", "eth1", sock=sock)
    assert result.exit_code == 1
    assert "eth1 is not shaped: eth1 has a root qdisc of somebody else: tbf 1:" in result.stderr


def renamed(refused: dict[str, str]) -> dict[str, Any]:
    uplink = msgspec.structs.replace(NET.uplinks[0], name="wan0", formerly=("lan0", "eth0"))
    net = msgspec.structs.replace(NET, uplinks=(uplink,), refused=refused)
    events = (
        DecisionRecord(9, NOW, 1, path, NETWORK, "", "", "event", Reason("net.uplinks", text))
        for path, text in (("eth0", "shaped"), ("wan0", "renamed"), ("eth1", "somebody else's"))
    )
    return {
        "status": {"ok": msgspec.to_builtins(canned(net=net))},
        "decisions": {"ok": msgspec.to_builtins(tuple(events))},
    }


def test_explain_of_an_uplinks_earlier_name_says_the_new_one_and_tells_of_both(sock: str) -> None:
    with daemon(sock, answers(**renamed({}))):
        old = qosctl("explain", "eth0", sock=sock)
        assert (old.exit_code, old.stdout.splitlines()[0]) == (
            0,
            "The uplink that was eth0 is called wan0 now.",
        )
        assert "wan0 is an uplink of 1 Gbit/s" in old.stdout
        assert "called" not in qosctl("explain", "wan0", sock=sock).stdout
        explained = json.loads(qosctl("explain", "lan0", "--json", sock=sock).stdout)
    assert explained["uplink"]["name"] == "wan0"
    assert [record["path"] for record in explained["decisions"]] == ["wan0", "eth0"]


def test_a_name_that_is_refused_now_is_not_taken_for_the_uplink_that_had_it_once(sock: str) -> None:
    with daemon(sock, answers(**renamed({"eth0": "no counters of eth0"}))):
        result = qosctl("explain", "eth0", sock=sock)
    assert (result.exit_code, "eth0 is not shaped: no counters of eth0" in result.stderr) == (1, True)


def test_explain_of_what_is_neither_a_cgroup_nor_an_uplink_names_the_uplinks(sock: str) -> None:
    with daemon(sock, with_net()):
        result = qosctl("explain", "eth7", sock=sock)
    assert result.exit_code == 1
    assert "eth7: no such cgroup; uplinks: eth0, eth1 (not shaped)" in result.stderr


def test_explain_of_a_be_cgroup_says_what_it_sends_and_may_send(sock: str) -> None:
    with daemon(sock, with_net()):
        text = qosctl("explain", "be.slice", sock=sock).stdout
        (explained,) = json.loads(qosctl("explain", "be.slice", "--json", sock=sock).stdout)
    assert "It sends 150 Mbit/s now, 9 MiB in all; in class a001:30, at most 200 Mbit/s (egress_max)." in text
    assert explained["egress"]["sent_bytes"] == 9 << 20
