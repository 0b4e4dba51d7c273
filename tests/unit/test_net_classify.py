"""Which class each workload's packets go to."""

from __future__ import annotations

import pytest

from qosd.model import CgroupId, CgroupSample, Tier, Workload
from qosd.net.classify import wanted_classes
from qosd.net.config import Net
from qosd.net.device import (
    BE_CLASS,
    BE_TIER,
    LINK_CLASS,
    LS_CLASS,
    MAX_WORKLOAD_CLASSES,
    workload_class,
)
from qosd.net.marking import Settings
from qosd.net.programs import mark_settings
from qosd.net.status import class_name


def workload(number: int, name: str, tier: Tier) -> Workload:
    return Workload(name, tier, 0, CgroupSample(CgroupId(number), f"{name}.slice"), {})


WORKLOADS = (
    workload(1, "web", Tier.LS),
    workload(2, "batch", Tier.BE),
    workload(3, "backup", Tier.BE),
    workload(4, "backup", Tier.BE),
)


@pytest.mark.parametrize(("mark_ls", "ls"), [(False, None), (True, LS_CLASS)])
def test_be_has_its_class_a_limit_has_one_of_its_own_and_ls_is_named_only_to_be_marked(
    *, mark_ls: bool, ls: int | None
) -> None:
    wanted = wanted_classes(WORKLOADS, (("backup", 10**7),), mark_ls=mark_ls)
    assert wanted == {1: ls, 2: BE_CLASS, 3: workload_class(0), 4: workload_class(0)}


def test_no_class_id_means_anything_to_a_device_that_is_not_shaped() -> None:
    """pfifo_fast and mqprio look at the low four bits of skb->priority, where 0 is ordinary traffic."""
    ids = {LS_CLASS, BE_CLASS, *(workload_class(index) for index in range(MAX_WORKLOAD_CLASSES))}
    assert len(ids) == MAX_WORKLOAD_CLASSES + 2
    assert {class_id & 0xF for class_id in ids} == {0}
    assert {class_id >> 16 for class_id in ids} == {0xA001}


@pytest.mark.parametrize(
    ("net", "settings"),
    [
        (Net(), Settings()),
        (Net(dscp_be="LE", forwarded_mark=1 << 20), Settings(dscp_be=1, mark=1 << 20)),
        (Net(dscp_ls="0"), Settings(dscp_ls=0)),
    ],
)
def test_marks_are_wanted_only_if_configured(net: Net, settings: Settings) -> None:
    assert mark_settings(net) == settings
    assert settings.wanted is (net != Net())


@pytest.mark.parametrize("name", ["be", "ls", "link", "be-tier"])
def test_a_workload_named_as_a_class_has_a_name_of_its_own_beside_it(name: str) -> None:
    """Two series of a metric with the same labels are refused by whoever scrapes them."""
    classes = (LINK_CLASS, BE_TIER, LS_CLASS, BE_CLASS, workload_class(0))
    assert len({class_name(number, ((name, 10**6),)) for number in classes}) == len(classes)
