from __future__ import annotations

import io

import msgspec
import pytest
from ctl_daemon import MEMORY, NET, NOW, canned
from rich.console import Console

from qosd.ctl import network, screen
from qosd.ctl.status import render
from qosd.reflex import ReflexStatus
from qosd.status import Status, TierStatus

SCREEN = """\
qosd 0.1.0 is enforcing; tick 42, every 1 s, 2 late

Host     4 CPUs; 2.0 GiB of 8.0 GiB memory used; tasks waited 12% of the last 10 s for cpu, 0% for
         memory, - for io
CPUs     [LLLLLLLLLLLLsssssBBBBBBBBBBBBBBBBBBBB...]  LS 1.20  system 0.50  BE 2.00  idle 0.30
Allowed  BE may use 2.10 CPUs: 4.00 x 95 % - 1.70 used by LS and system = 2.10
Sensors  cpu, memory read 1 s ago
         ! pressure cannot be read, last 10 s ago

WORKLOAD  TIER  CPUs   MEMORY  CPU WAIT  MEM WAIT  IO WAIT  CGROUP
web       LS    1.20  2.0 GiB        3%        0%       0%  ls.slice
batch     BE    2.00  300 MiB       80%        1%        -  be.slice

2 settings of qosd in force; what was before comes back when qosd stops
CGROUP    FILE        NOW          BEFORE      WHY
ls.slice  cpu.weight  500          -           ! wanted 1000; left alone: somebody else set it
be.slice  cpu.idle    1            0           BE runs only when no LS or system task wants the CPU
                                               (SCHED_IDLE group)
be.slice  cpu.max     21000 10000  max 100000  BE may use 2.10 CPUs

NOT TAKEN             ALTHOUGH A RULE MATCHES IT, BECAUSE
be.slice/inner.slice  it lies inside be.slice (workload 'batch')
"""


def shown(status: Status, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    console.print(render(status, NOW, width))
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def test_the_screen_says_what_stands_and_why() -> None:
    assert shown(canned()) == SCREEN


def test_without_a_limit_it_does_not_claim_one() -> None:
    free = tuple(each for each in canned().settings if each.file != "cpu.max")

    assert "Allowed  BE gets what nobody else wants; X leaves 2.10 CPUs: 4.00 x 95 % - 1.70 used" in shown(
        canned(settings=free)
    )


def test_a_limit_that_cannot_be_set_is_not_claimed_either() -> None:
    absent = tuple(
        msgspec.structs.replace(each, state="absent", value=None, original=None)
        if each.file == "cpu.max"
        else each
        for each in canned().settings
    )

    assert "Allowed  BE gets what nobody else wants" in shown(canned(settings=absent))


def test_where_all_is_as_it_was_before_nothing_is_said_to_come_back() -> None:
    same = tuple(msgspec.structs.replace(each, state="already", original=None) for each in canned().settings)

    assert "Nothing is changed by qosd now; what it wants:" in shown(canned(settings=same))


NETWORK = """\
UPLINK  LINK      LS+SYSTEM   BE          BE MAY      DROPS  WHY
eth0    1 Gbit/s  200 Mbit/s  300 Mbit/s  700 Mbit/s  8      the target less what LS and system use
! uplink eth1 is not shaped: eth1 has a root qdisc of somebody else: tbf 1:
! network: BE's packets cannot be told apart: no libbpf
BE receives 90 Mbit/s of its be_ingress_max 100 Mbit/s; 10 Mbit/s is dropped
WORKLOAD       SENDS     AT MOST   SENT  CLASS    CGROUP
batch     150 Mbit/s  200 Mbit/s  9 MiB  a001:30  be.slice
"""


def test_uplinks_have_a_section_with_what_is_refused_and_what_does_not_work() -> None:
    assert NETWORK in shown(canned(net=NET))
    assert "UPLINK" not in shown(canned())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "Breaches the kernel reports ls.slice waiting 50 ms in 100 ms; psi cut 2; psi dwell 1"),
        ({"squeeze": 0.25}, "BE is squeezed to 25% of its allowance"),
        ({"why_not": {"b.service": "no cpu.pressure"}}, "50 ms in 100 ms, not b.service: no cpu.pressure"),
        (
            {"detection": "poll", "armed": {}, "why_not": {"": "fast.max_triggers = 0"}, "reactions": {}},
            "only looked for at each tick, every 1 s (fast.max_triggers = 0)",
        ),
        ({"armed": {"a.slice": "1 ms in 10 ms", "b.slice": "1 ms in 10 ms"}}, "1 ms in 10 ms and 1 more"),
    ],
)
def test_how_breaches_are_found_and_what_came_of_them_is_one_row(
    changes: dict[str, object], says: str
) -> None:
    reflex = ReflexStatus(
        "trigger", {"ls.slice": "50 ms in 100 ms"}, {}, 1.0, {"psi": {"cut": 2, "dwell": 1}}
    )

    assert says in " ".join(shown(canned(reflex=msgspec.structs.replace(reflex, **changes))).split())
    assert "Breaches" not in shown(canned())


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_the_screen_keeps_to_the_terminals_width_in_plain_ascii(width: int) -> None:
    status = canned(workloads=tuple(_long(number) for number in range(3)))
    text = shown(status, width)
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= width


def _long(number: int) -> object:
    path = f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{number:064}.slice"
    return msgspec.structs.replace(canned().workloads[0], path=path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "observe"}, "observing: it writes nothing"),
        ({"mode": "paused", "paused_until": NOW + 120}, "everything is given back for 2 min more"),
        ({"mode": "paused", "paused_until": None}, "until `qosctl resume`"),
        ({"mode": "failed"}, "FAILED"),
        ({"time": NOW - 60}, "! the last tick was 1 min ago: the loop is stuck"),
        (
            {"config_error": "qosd.toml: mod: unknown key"},
            "! the last reload was refused, the old configuration stays",
        ),
        ({"oom_killers": ("earlyoom", "oomd")}, "! also here, killing by their own rules: earlyoom, oomd"),
        ({"workloads": ()}, "No cgroup matches a workload rule now"),
        ({"settings": ()}, "nothing on this host is changed"),
        ({"tiers": {"ls": TierStatus(None), "be": TierStatus(None)}}, "use is not known yet"),
    ],
)
def test_what_is_out_of_the_ordinary_is_said_in_words(changes: dict[str, object], says: str) -> None:
    assert says in " ".join(shown(canned(**changes)).split())


def test_outside_enforce_a_setting_is_shown_as_what_it_would_be() -> None:
    writing = msgspec.structs.replace(canned().settings[0], value="0", original=None, state="writing")
    assert "would be 1: BE runs only when" in shown(canned(mode="observe", settings=(writing,)), 120)


def test_a_file_qosd_was_refused_names_the_kernels_error() -> None:
    refused = msgspec.structs.replace(canned().settings[0], original=None, state="refused", error="EINVAL")
    assert "! wanted 1; the kernel refused it (EINVAL)" in shown(canned(settings=(refused,)))


def test_hundreds_of_workloads_stay_one_screen_with_the_busiest_first() -> None:
    first = canned().workloads[0]
    many = tuple(
        msgspec.structs.replace(first, path=f"be.slice/j{number}", cpu_cores=number / 100)
        for number in range(100)
    )
    lines = shown(canned(workloads=many)).splitlines()
    rows = [line for line in lines if line.startswith("batch ")]
    assert len(rows) == 20
    assert rows[0].endswith("be.slice/j99")
    assert "and 80 more workloads: qosctl status --json has them all" in lines


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "250 ms"), (5, "5 s"), (600, "10 min"), (7200, "2.0 h"), (200_000, "2.3 days")],
)
def test_durations_read_at_a_glance(seconds: float, words: str) -> None:
    assert screen.duration(seconds) == words


def test_a_long_path_keeps_its_end_where_siblings_differ() -> None:
    assert screen.tail("a" * 50 + "/job7.scope", 20) == "..." + "a" * 6 + "/job7.scope"
    assert screen.tail("be.slice", 5) == "be.slice"


def test_the_screen_shows_what_is_done_about_memory_and_what_stands_in_the_way() -> None:
    text = shown(canned(memory=MEMORY))

    assert "LS waited 12 % of the last tick for memory" in text
    assert "held" in text
    assert "128 MiB" in text or "128M" in text
    assert text.count("ls.slice") == shown(canned()).count("ls.slice"), "nothing is done about it: no row"


def test_a_link_that_is_down_is_said_to_be() -> None:
    down = msgspec.structs.replace(NET.uplinks[0], operstate="down")
    console = Console(width=160)
    with console.capture() as said:
        console.print(*network.section(msgspec.structs.replace(NET, uplinks=(down,))))
    assert "the link is down; it stays shaped" in said.get()
