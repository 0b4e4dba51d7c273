"""The `[net]` section: rates with their units, DSCP names, and what contradicts itself."""

from __future__ import annotations

import pytest

from qosd.net.config import Net, check, parse_bitrate, parse_dscp

GBIT = 10**9
MBIT = 10**6


@pytest.mark.parametrize(
    ("text", "bps"),
    [("200Mbit", 200 * MBIT), ("1Gbit", GBIT), ("2.5Gbit", 2_500 * MBIT), ("500 kbit", 500_000)],
)
def test_rates_are_written_with_their_unit(text: str, bps: int) -> None:
    assert parse_bitrate(text) == bps


@pytest.mark.parametrize("text", ["200", "200MB", "-1Mbit", "1kbit", "2000Gbit", "Mbit"])
def test_rates_without_a_unit_or_out_of_range_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        parse_bitrate(text)


@pytest.mark.parametrize(
    ("text", "dscp"), [("CS1", 8), ("LE", 1), ("EF", 46), ("AF41", 34), ("AF13", 14), ("63", 63)]
)
def test_dscp_names_are_those_of_the_rfcs(text: str, dscp: int) -> None:
    assert parse_dscp(text) == dscp


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Net(dscp_be="CS9"), "net.dscp_be"),
        (Net(dscp_ls="64"), "net.dscp_ls"),
        (Net(forwarded_mark=0x300), "net.forwarded_mark"),
        (Net(be_floor_pct=50, egress_target_pct=50), "net.be_floor_pct"),
        (Net(uplinks=("eth0",), link_speed={"eth1": parse_bitrate("1Gbit")}), "net.link_speed.eth1"),
    ],
)
def test_a_bad_section_names_its_key(net: Net, words: str) -> None:
    assert words in (check(net) or "")
    assert check(Net()) is None
