"""Windows, pools and bursts as an operator sees them."""

from __future__ import annotations

import io

from ctl_daemon import CPU, NOW, canned
from rich.console import Console

from qosd import cpumetrics
from qosd.cpu.lstarget import TargetView
from qosd.cpu.view import CpuView
from qosd.cpu.windows import duration
from qosd.ctl import cpu
from qosd.ctl.explain import explain
from qosd.ctl.explain import render as render_explanation
from qosd.ctl.status import render

SECTION = """\
Window night is open for 7 h 05 min more (Europe/Berlin): target 100 %
POOL   TIER  PRIO  WORKLOADS  SIZE   USE    BAND  WHY
front  LS       0          1  3.00  1.20  30-50%  load 40 % of 3.00 CPUs, band 30-50 %
batch  BE       2          1  1.00  1.00  50-80%  load 100 % of 1.00 CPUs; held: be.slice
empty  -        2          0     -     -  50-80%  no workload of it is here
ls.slice: its own limit of 1.00 CPUs is raised to 1.44 for now (throttled in 30 % of its periods);
62 % of its burst budget is left
! be.slice: cpu.max ineffective: it used 0.95 CPUs under a limit of 0.20, as real-time tasks can; it
is kept to few CPUs instead
"""


def text_of(renderable: object) -> str:
    out = io.StringIO()
    Console(file=out, width=100, highlight=False, markup=False, emoji=False).print(renderable)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def test_the_screen_has_windows_pools_bursts_and_limits_that_do_not_hold() -> None:
    assert SECTION in text_of(render(canned(cpu=CPU), NOW, 100))


def test_the_target_of_an_ls_workload_is_said_on_the_screen_and_to_who_asks_of_it() -> None:
    target = TargetView(60.0, "web", "ls.slice", None, whole=True)
    status = canned(cpu=CpuView(target=target))

    held = "LS, system and BE together are held to 60 %: the target of LS workload web, for as long as it has"
    assert held in " ".join(text_of(render(status, NOW, 100)).split())
    explained = explain("ls.slice", status, (), (), there=True)
    assert "BE is held to what LS and system leave of 60 %" in text_of(render_explanation(explained, NOW))
    assert explain("be.slice", status, (), (), there=True).cpu == ()


def test_where_there_is_none_of_it_the_screen_says_nothing_of_it() -> None:
    assert list(cpu.section(CpuView())) == []


def test_an_explanation_says_the_pool_and_the_budget() -> None:
    explained = explain("ls.slice", canned(cpu=CPU), (), (), there=True)

    said = text_of(render_explanation(explained, NOW))
    assert "It is in pool front, priority 0: load 40 % of 3.00 CPUs, band 30-50 %." in said
    assert "62 % of its burst budget is left." in said
    assert explain("be.slice", canned(cpu=CpuView()), (), (), there=True).cpu == ()


def test_a_duration_is_said_in_two_units_at_most() -> None:
    assert [duration(minutes) for minutes in (1, 59, 60, 605, 1440, 10_079)] == [
        "1 min",
        "59 min",
        "1 h 00 min",
        "10 h 05 min",
        "1 d 0 h",
        "6 d 23 h",
    ]


def test_what_is_not_known_has_no_sample() -> None:
    families = {family.name: family for family in cpumetrics.collect(CPU)}

    def samples(name: str) -> dict[str, float]:
        return {next(iter(sample.labels.values()), ""): sample.value for sample in families[name].samples}

    assert samples("qosd_pool_size_cores") == {"front": 3.0, "batch": 1.0}
    assert samples("qosd_pool_degraded_workloads") == {"front": 0.0, "batch": 1.0, "empty": 0.0}
    assert samples("qosd_burst_budget_ratio") == {"web": 0.62}
    assert samples("qosd_ineffective_limits") == {"": 1.0}
    assert samples("qosd_window_open") == {"night": 1.0}
