"""Which CPUs: whole cores, few nodes, the quiet ones; and the masks that come of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd import governors
from qosd.config import Config, decode
from qosd.cpu import overrun
from qosd.cpu.placement import Layout, choose, choose_cores
from qosd.model import CgroupId, CgroupSample, CpusetCpus, CpuStat, HostSample, Snapshot, Topology, Workload
from qosd.topology import parse_cpulist, parse_topology

# Two nodes of two cores of two threads, numbered as most firmware does: 0-3 and their siblings 4-7.
SMT = Topology(((0, 4), (1, 5), (2, 6), (3, 7)), ((0, 1, 4, 5), (2, 3, 6, 7)))
ALL = tuple(range(8))


def lay(busy: dict[int, float] | None = None, online: tuple[int, ...] = ALL) -> Layout:
    return Layout(online, SMT, busy or {})


@pytest.mark.parametrize(
    ("count", "busy", "chosen"),
    [
        (1, {}, (7,)),
        (2, {}, (3, 7)),
        (3, {}, (3, 6, 7)),
        (4, {}, (2, 3, 6, 7)),
        (5, {}, (2, 3, 5, 6, 7)),
        (8, {}, ALL),
        (2, {3: 0.9}, (2, 6)),
        (2, {3: 0.9, 7: 0.1, 2: 0.5, 6: 0.5}, (1, 5)),
        (4, {2: 0.9, 3: 0.9, 6: 0.9, 7: 0.9}, (0, 1, 4, 5)),
        (1, {cpu: 0.9 for cpu in ALL if cpu != 4}, (4,)),
    ],
)
def test_whole_cores_of_one_node_that_are_quiet(
    count: int, busy: dict[int, float], chosen: tuple[int, ...]
) -> None:
    assert choose(count, lay(busy)) == chosen


def test_a_core_of_which_a_thread_is_offline_or_taken_comes_last() -> None:
    assert choose(2, lay(online=(0, 1, 2, 3, 4, 5, 6))) == (2, 6)


@given(
    st.integers(1, 10),
    st.sets(st.sampled_from(ALL), min_size=1),
    st.dictionaries(st.sampled_from(ALL), st.floats(0, 1)),
    st.sets(st.sampled_from(ALL)),
)
def test_a_choice_is_as_many_of_the_online_cpus_as_there_are(
    count: int, online: set[int], busy: dict[int, float], prefer: set[int]
) -> None:
    of = lay(busy, tuple(sorted(online)))
    chosen = choose(count, of, tuple(prefer), 0.2)

    assert len(chosen) == len(set(chosen)) == min(count, len(online))
    assert set(chosen) <= online
    assert choose(count, of, tuple(prefer), 0.2) == chosen


@given(st.integers(1, 4), st.dictionaries(st.sampled_from(ALL), st.floats(0, 1)))
def test_what_fits_one_node_stays_in_one_and_cuts_at_most_one_core(
    count: int, busy: dict[int, float]
) -> None:
    chosen = set(choose(count, lay(busy)))

    assert any(chosen <= set(node) for node in SMT.nodes)
    assert sum(0 < len(chosen & set(core)) < len(core) for core in SMT.cores) == count % 2


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, (3, 7)), (2, (3, 7)), (3, (2, 3, 6, 7)), (4, (2, 3, 6, 7)), (5, (1, 2, 3, 5, 6, 7))],
)
def test_cpus_of_its_own_are_whole_cores(count: int, chosen: tuple[int, ...]) -> None:
    assert choose_cores(count, lay()) == chosen


def test_topology_is_put_together_from_what_there_is() -> None:
    online = (0, 1, 2, 3)
    siblings = {0: "0,2", 2: "0,2", 1: "1"}

    assert parse_topology(online, siblings, {0: "0,2", 1: "1"}) == Topology(
        ((0, 2), (1,), (3,)), ((0, 2), (1,), (3,))
    )
    assert parse_topology(online, {}, {}) == Topology(((0,), (1,), (2,), (3,)), (online,))
    assert parse_topology((0,), {0: "0-1"}, {0: "0-1", 1: ""}) == Topology(((0,),), ((0,),))


class Plant:
    """Eight CPUs of the topology above; masks are taken over as if written."""

    def __init__(self, text: str, **files: dict[str, str]) -> None:
        self.config: Config = decode(text)
        self.files = {
            rule.name: {"cpuset.cpus": "", "cpu.max": "max 100000"} for rule in self.config.workload
        }
        for name, given_ in files.items():
            self.files[name] |= given_
        self.first = {name: held["cpuset.cpus"] for name, held in self.files.items()}
        self.used = dict.fromkeys(self.files, 0.0)
        self.per_cpu = dict.fromkeys(ALL, 0.0)
        self.online = ALL
        self.usec = 0
        self.prev: Snapshot | None = None
        self.state = governors.State()
        self.history: list[dict[str, str]] = []

    def tick(
        self, busy: dict[int, float] | None = None, *, ticks: int = 1, apply: bool = True, **cores: float
    ) -> dict[str, str]:
        """The masks wanted, by workload."""
        for _ in range(ticks):
            self.usec += 1_000_000
            for name, used in cores.items():
                self.used[name] += used * 1e6
            for cpu, share in (busy or {}).items():
                self.per_cpu[cpu] += share * 1e6
            host = HostSample(
                len(self.online) or len(ALL),
                self.online,
                busy_usec=round(sum(self.used.values())),
                steal_usec=0,
                cpus_busy_usec={cpu: round(self.per_cpu[cpu]) for cpu in self.online},
                topology=SMT,
            )
            now = Snapshot(self.usec, self.usec, self.usec, host, workloads=tuple(self._workloads()))
            self.state, decision = governors.decide(self.config, self.prev, now, self.state)
            self.prev = now
            self.decision = decision
            masks = {}
            for wanted in decision.desired:
                text = governors_text(wanted.setting)
                name = self.config.workload[wanted.cgroup_id - 1].name
                if isinstance(wanted.setting, CpusetCpus):
                    masks[name] = text
                if apply and wanted.setting.file in self.files[name]:
                    self.files[name][wanted.setting.file] = text
            for name in self.files.keys() - masks.keys():
                self.files[name]["cpuset.cpus"] = self.first[name]  # as diff restores it
            self.history.append(masks)
        return masks

    def _workloads(self) -> Any:
        for number, rule in enumerate(self.config.workload, 1):
            used = round(self.used[rule.name])
            sample = CgroupSample(CgroupId(number), rule.match[0], CpuStat(used, used, 0))
            yield Workload(rule.name, rule.tier, rule.priority, sample, dict(self.files[rule.name]))


def governors_text(setting: Any) -> str:
    from qosd.cgroupfs import format_setting  # noqa: PLC0415 - a test's own shorthand

    return format_setting(setting)


QUOTA = '[cpu.bandwidth]\nenforce = "max"\n[host]\ncpu_target_pct = 100\n'
BY_MASK = '[cpu.bandwidth]\nenforce = "cpuset"\n[host]\ncpu_target_pct = 100\n'
TIERS = (
    '[[workload]]\nname = "web"\ntier = "ls"\nmatch = ["web"]\n'
    '[[workload]]\nname = "batch"\ntier = "be"\nmatch = ["batch"]\n'
)
OWN = TIERS.replace('match = ["web"]', 'match = ["web"]\ncpus = 3')


def test_be_is_put_on_ceil_allowance_cpus_away_from_the_busy_ones() -> None:
    plant = Plant(BY_MASK + TIERS)
    busy = {2: 0.9, 3: 0.9, 6: 0.8, 7: 0.8}
    masks = plant.tick(busy, ticks=4, web=4.5)

    assert masks == {"batch": "0-1,4-5"}


def test_a_mask_that_need_not_change_is_not_changed() -> None:
    plant = Plant(BY_MASK + TIERS)
    plant.tick(ticks=4, web=4.5)
    first = plant.history[-1]
    for load in (4.1, 4.9, 4.3, 4.6) * 5:
        assert plant.tick(dict.fromkeys(ALL, load / 8), web=load) == first


def test_a_mask_moves_for_a_gain_only_and_not_before_its_time() -> None:
    plant = Plant(BY_MASK + TIERS)
    plant.tick(ticks=3, web=4.5)
    assert plant.history[-1] == {"batch": "2-3,6-7"}
    ls_there = dict.fromkeys((2, 3, 6, 7), 0.6) | dict.fromkeys((0, 1, 4, 5), 0.5)
    assert plant.tick(ls_there, ticks=80, web=4.5) == {"batch": "2-3,6-7"}, "a tenth of a CPU is no gain"
    crowded = dict.fromkeys((2, 3, 6, 7), 1.0)
    moved = plant.tick(crowded, ticks=70, web=4.5)

    assert moved == {"batch": "0-1,4-5"}
    masks = [masks["batch"] for masks in plant.history if masks]
    assert sum(a != b for a, b in pairwise(masks)) <= 2


def test_an_offline_cpu_leaves_the_mask_and_another_takes_its_place() -> None:
    plant = Plant(BY_MASK + TIERS)
    plant.tick(ticks=4, web=5.5)
    assert plant.history[-1] == {"batch": "3,6-7"}
    plant.online = (0, 1, 2, 3, 4, 5, 6)
    masks = plant.tick(web=4.0)

    assert masks == {"batch": "2-3,6"}


def test_a_mask_that_an_administrator_set_is_narrowed_and_never_widened() -> None:
    plant = Plant(BY_MASK + TIERS, batch={"cpuset.cpus": "0-2"})
    for load in (7.5, 0.0, 4.0):
        for masks in [plant.tick(web=load) for _ in range(15)]:
            if masks:
                cpus = {int(part) for part in masks["batch"].replace("-", ",").split(",")}
                assert cpus <= {0, 1, 2}


def test_without_topology_every_cpu_is_a_core_of_one_node() -> None:
    plant = Plant(BY_MASK + TIERS)
    plant.tick(ticks=3, web=4.5)
    assert plant.prev is not None
    bare = msgspec.structs.replace(plant.prev.host, topology=None, cpus_busy_usec=None)
    now = msgspec.structs.replace(plant.prev, host=bare, monotonic_usec=plant.usec + 1_000_000)
    _, decision = governors.decide(plant.config, None, now, governors.State())

    assert [w for w in decision.desired if w.setting.file == "cpuset.cpus"] == []


def test_while_it_is_unknown_what_is_online_no_mask_is_wanted() -> None:
    plant = Plant(BY_MASK + TIERS)
    plant.online = ()
    assert plant.tick(ticks=3, web=1.0) == {}


def test_ls_with_cpus_of_its_own_has_whole_cores_of_a_node_and_be_the_rest() -> None:
    masks = Plant(OWN).tick(ticks=3, web=1.0)

    assert masks == {"web": "2-3,6-7", "batch": "0-1,4-5"}


def test_its_cpus_stay_its_own_over_hotplug_and_be_never_runs_out() -> None:
    plant = Plant(OWN)
    plant.tick(ticks=3, web=1.0)
    plant.online = (0, 1, 2, 4, 5, 6, 7)
    assert plant.tick(web=1.0) == {"web": "0-1,4-5", "batch": "2,6-7"}
    plant.online = (0, 4)
    assert plant.tick(web=1.0) == {"web": "4", "batch": "0"}
    plant.online = (0,)
    assert plant.tick(web=1.0) == {}
    plant.online = ALL
    assert plant.tick(web=1.0) == {"web": "2-3,6-7", "batch": "0-1,4-5"}


def test_a_wish_for_cpus_without_the_controller_is_shown_and_costs_be_nothing() -> None:
    plant = Plant(OWN)
    del plant.files["web"]["cpuset.cpus"]
    masks = plant.tick(ticks=3, web=1.0)

    assert masks == {"web": "0-7"}
    wish = next(wanted for wanted in plant.decision.desired if wanted.setting.file == "cpuset.cpus")
    assert "controller is not on" in wish.reason.text


def test_be_that_cannot_be_kept_off_the_cpus_of_ls_is_said_to_be_on_them() -> None:
    plant = Plant(OWN)
    del plant.files["batch"]["cpuset.cpus"]
    masks = plant.tick(ticks=3, web=1.0)

    assert masks == {"web": "2-3,6-7", "batch": "0-1,4-5"}
    reasons = [
        wanted.reason.text for wanted in plant.decision.desired if wanted.setting.file == "cpuset.cpus"
    ]
    assert any("BE cannot be kept off CPUs 2-3,6-7:" in text for text in reasons)


def reason_of(plant: Plant, file: str) -> str:
    return next(wanted.reason.text for wanted in plant.decision.desired if wanted.setting.file == file)


def test_a_wish_for_a_limit_without_the_controller_is_shown() -> None:
    plant = Plant(TIERS.replace('match = ["batch"]', 'match = ["batch"]\ncpu_max_pct = 10'))
    del plant.files["batch"]["cpu.max"]
    plant.tick(ticks=3, web=1.0)

    wish = next(wanted for wanted in plant.decision.desired if wanted.setting.file == "cpu.max")
    assert governors_text(wish.setting) == "8000 10000"
    assert "controller is not on" in wish.reason.text


def test_where_nobody_asked_for_a_limit_none_is_missed() -> None:
    plant = Plant(TIERS)
    del plant.files["batch"]["cpu.max"]
    plant.tick(ticks=3, web=1.0)

    assert "cpu.max" not in {wanted.setting.file for wanted in plant.decision.desired}


def test_a_wish_for_more_cpus_than_there_are_is_said_not_to_fit() -> None:
    plant = Plant(OWN.replace("cpus = 3", "cpus = 64"))
    masks = plant.tick(ticks=3, web=1.0)

    assert len(parse_cpulist(masks["web"], "web")) == 7
    assert "(64 do not fit here)" in reason_of(plant, "cpuset.cpus")


def test_a_mask_smaller_than_the_allowance_says_what_it_waits_for() -> None:
    plant = Plant(BY_MASK + TIERS)
    plant.tick(ticks=3, web=5.5)
    few = plant.tick(web=5.5)["batch"]
    assert "dwell" not in reason_of(plant, "cpuset.cpus")

    assert plant.tick(web=1.5)["batch"] == few
    assert "worth 7 CPUs, but it keeps 3 until the dwell is over" in reason_of(plant, "cpuset.cpus")
    plant.tick(ticks=6, web=1.5)
    assert "dwell" not in reason_of(plant, "cpuset.cpus")


def test_be_by_mask_keeps_off_cpus_of_ls_too() -> None:
    masks = Plant(BY_MASK + OWN).tick(ticks=3, web=0.5)

    assert masks == {"web": "2-3,6-7", "batch": "0-1,4-5"}


def test_only_a_wish_of_the_operator_gives_ls_a_mask() -> None:
    for text in (BY_MASK + TIERS, TIERS, TIERS + '[cpu.cpuset]\nmode = "always"'):
        plant = Plant(text)
        plant.tick(ticks=5, web=3.0)
        assert all("web" not in masks for masks in plant.history)


def test_a_mask_beside_the_limit_where_always_is_asked_for() -> None:
    plant = Plant('[cpu.cpuset]\nmode = "always"\n' + QUOTA + TIERS)
    masks = plant.tick(ticks=3, web=5.5)

    assert masks == {"batch": "3,6-7"}
    assert plant.files["batch"]["cpu.max"] == "25000 10000"


def test_each_pool_has_cpus_of_its_own_while_there_are_enough() -> None:
    pools = (
        '[[pool]]\nname = "high"\npriority = 1\n[[pool]]\nname = "low"\npriority = 2\nload_high_pct = 100\n'
    )
    plant = Plant(
        BY_MASK
        + pools
        + TIERS.replace('match = ["batch"]', 'match = ["batch"]\npool = "low"')
        + '[[workload]]\nname = "etl"\ntier = "be"\nmatch = ["etl"]\npool = "high"\n'
    )
    masks = plant.tick(ticks=20, web=2.0, etl=1.0, batch=3.0)

    cpus = {name: set(parse_cpulist(mask)) for name, mask in masks.items()}
    assert cpus["etl"]
    assert cpus["batch"]
    assert not cpus["etl"] & cpus["batch"]
    assert len(cpus["etl"] | cpus["batch"]) <= 7


def test_real_time_be_that_its_limit_does_not_hold_is_kept_to_few_cpus_and_said() -> None:
    plant = Plant(QUOTA + TIERS)
    plant.tick(ticks=3, web=7.9, batch=0.1)
    assert plant.tick(ticks=2, web=5.0, batch=3.0) == {}
    masks = plant.tick(ticks=30, web=7.5, batch=4.0)

    assert len(masks["batch"].split(",")) == 1
    view = plant.decision.cpu.ineffective[0]
    assert (view.workload, view.use_cores) == ("batch", 4.0)
    reason = next(w.reason for w in plant.decision.desired if w.setting.file == "cpuset.cpus")
    assert reason.text.startswith(
        "kept to few CPUs, cpu.max ineffective: batch used 4.00 CPUs under a limit of 0.5"
    )
    assert plant.tick(ticks=overrun._FORGET_TICKS + 3, web=7.5, batch=0.1) == {}


def test_a_limit_that_is_not_ours_is_not_ours_to_make_good() -> None:
    plant = Plant(TIERS, batch={"cpu.max": "50000 100000"})

    assert plant.tick(ticks=20, web=1.0, batch=4.0) == {}


@pytest.mark.parametrize("batch", [0.5, 0.7, 0.74])
def test_be_that_is_held_by_its_limit_is_not_taken_for_real_time(batch: float) -> None:
    plant = Plant(QUOTA + TIERS)
    plant.tick(ticks=3, web=7.5)

    assert plant.tick(ticks=20, web=7.5, batch=batch) == {}
