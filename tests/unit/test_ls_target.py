"""X that an LS workload asks for: it holds for all of BE, while that workload has tasks."""

from __future__ import annotations

import msgspec
import pytest

from qosd import governors
from qosd.config import Config, decode
from qosd.model import CgroupId, CgroupSample, CpuMax, CpuStat, HostSample, Snapshot, Tier, Workload

NR_CPUS = 10
FILES = {"cpu.max": "max 100000", "cpu.weight": "100", "cpu.idle": "0", "cpuset.cpus": ""}
EXACT = "[cpu.bandwidth]\nenforce = {enforce!r}\ndeadband_up_pct = 0\ndeadband_down_pct = 0\n"


def rules(web: str = "", db: str = "", etl: str = "", batch: str = "") -> str:
    return "".join(
        f'[[workload]]\nname = "{name}"\ntier = "{tier}"\nmatch = ["{name}"]\n{more}\n'
        for name, tier, more in (
            ("web", "ls", web),
            ("db", "ls", db),
            ("etl", "be", etl),
            ("batch", "be", batch),
        )
    )


def target(pct: float) -> str:
    return f"cpu_target_pct = {pct}"


def events(populated: bool | None) -> dict[str, int]:  # noqa: FBT001 - as in cgroup.events
    return {} if populated is None else {"populated": int(populated)}


def usage(seconds: float) -> CpuStat:
    return CpuStat(round(seconds * 1e6), 0, 0)


class Host:
    """Web uses 2 CPUs and db 1, if they have tasks; etl and batch want all."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.state = governors.State()
        self.prev: Snapshot | None = None
        self.ticks = 0
        self.decision = governors.Decision((), None)

    def tick(self, **populated: bool | None) -> governors.Decision:
        """With what cgroup.events says, None if it cannot be read. By default all have tasks."""
        self.ticks += 1
        used = {"web": 2.0, "db": 1.0, "etl": 3.0, "batch": 3.0}
        workloads = tuple(
            Workload(
                rule.name,
                rule.tier,
                0,
                CgroupSample(CgroupId(number), rule.name, usage(used[rule.name] * self.ticks)),
                FILES,
                events(populated.get(rule.name, True)),
            )
            for number, rule in enumerate(self.config.workload, 1)
        )
        host = HostSample(NR_CPUS, tuple(range(NR_CPUS)), round(9.0 * self.ticks * 1e6), 0)
        now = Snapshot(self.ticks, self.ticks * 1_000_000, self.ticks * 1_000_000, host, workloads=workloads)
        self.state, self.decision = governors.decide(self.config, self.prev, now, self.state)
        self.prev = now
        return self.decision

    def limits(self) -> dict[str, float]:
        return {
            wanted.path: wanted.setting.quota_usec / wanted.setting.period_usec
            for wanted in self.decision.desired
            if isinstance(wanted.setting, CpuMax) and isinstance(wanted.setting.quota_usec, int)
        }

    def total(self) -> float:
        return sum(self.limits().values())


def host(text: str, enforce: str = "max") -> Host:
    return Host(decode(f"[host]\ncpu_target_pct = 95\n{EXACT.format(enforce=enforce)}{text}"))


LS_USE = 3.0


def test_the_target_of_an_ls_workload_holds_for_all_of_be_while_it_has_tasks() -> None:
    tried = host(rules(web=target(60)))
    for _ in range(3):
        tried.tick()
    assert tried.total() == pytest.approx(6.0 - LS_USE)

    tried.tick(web=False)
    assert tried.total() == pytest.approx(9.5 - LS_USE), "the host's again"

    tried.tick()
    assert tried.total() == pytest.approx(6.0 - LS_USE), "down at once"


def test_of_several_the_lowest_holds_and_ls_without_one_goes_by_the_hosts() -> None:
    both = host(rules(web=target(80), db=target(50)))
    one = host(rules(web=target(98)))
    alone = host(rules(web=target(98)))
    for _ in range(3):
        both.tick()
        one.tick()
        alone.tick(db=False)

    assert both.total() == pytest.approx(5.0 - LS_USE)
    both.tick(db=False)
    assert both.total() == pytest.approx(8.0 - LS_USE)
    assert one.total() == pytest.approx(9.5 - LS_USE), "db has none, and the host's is lower"
    assert alone.total() == pytest.approx(9.8 - LS_USE), "the finest that is set holds, above the host's too"


def test_the_pool_of_an_ls_workload_may_have_the_target() -> None:
    pools = '[[pool]]\nname = "last"\nload_high_pct = 100\n[[pool]]\nname = "front"\npriority = 0\n' + target(
        60
    )
    tried = host(pools + "\n" + rules(web='pool = "front"', db='pool = "front"', etl='pool = "last"'))
    for _ in range(3):
        decision = tried.tick()

    assert decision.allowance is not None
    assert decision.allowance.cores == pytest.approx(6.0 - LS_USE)
    assert decision.cpu.target is not None
    assert decision.cpu.target.pool == "front"
    assert tried.total() <= 6.0 - LS_USE


@pytest.mark.parametrize(("own", "at_most"), [(40.0, 1.0), (90.0, 3.0)])
def test_a_target_of_be_holds_beside_it_where_it_is_lower(own: float, at_most: float) -> None:
    tried = host(rules(web=target(60), batch=target(own)))
    for _ in range(3):
        tried.tick()

    assert tried.limits()["batch"] <= at_most + 1e-6
    assert tried.total() <= 6.0 - LS_USE + 1e-6


def test_it_was_asked_for_by_name_so_it_holds_with_enforce_none() -> None:
    """As a target of BE does; the host's own, which binds nobody there, does not come with it."""
    tried = host(rules(web=target(98)), enforce="none")
    for _ in range(3):
        tried.tick()
    assert tried.total() == pytest.approx(9.8 - LS_USE)

    tried.tick(web=False)
    assert tried.limits() == {}


def test_what_is_not_known_is_held_for_a_tick_and_never_tightens() -> None:
    tried = host(rules(web=target(60)))
    tried.tick(web=None)
    tried.tick(web=None)
    assert tried.total() == pytest.approx(9.5 - LS_USE)

    tried.tick(web=True)
    tried.tick(web=None)
    assert tried.total() == pytest.approx(6.0 - LS_USE)


def test_a_pause_of_be_beats_it() -> None:
    tried = host(rules(web=target(60)) + '[[window]]\nname = "off"\nhours = "00:00-24:00"\npause_be = true\n')
    tried.tick()
    assert tried.prev is not None
    now = msgspec.structs.replace(tried.prev, local_minutes={"localtime": 0})

    _, decision = governors.decide(tried.config, tried.prev, now, tried.state)

    assert decision.cpu.target is None


def test_the_reason_names_the_workload_and_its_target() -> None:
    tried = host(rules(web=target(60)))
    for _ in range(3):
        decision = tried.tick()

    (wanted,) = [each for each in decision.desired if each.path == "etl" and isinstance(each.setting, CpuMax)]
    assert "10.00 x 60 %" in wanted.reason.text
    assert "the target of LS workload web, for as long as it has tasks" in wanted.reason.text
    assert wanted.reason.threshold == "cpu_target_pct of web = 60 %"
    assert decision.cpu.target is not None
    assert (decision.cpu.target.workload, decision.cpu.target.pct) == ("web", 60.0)


def test_nothing_is_ever_written_to_ls_for_it() -> None:
    tried = host(rules(web=target(60)))
    tried.tick()

    files = {wanted.setting.file for wanted in tried.tick().desired if wanted.tier is Tier.LS}

    assert files == {"cpu.weight"}
