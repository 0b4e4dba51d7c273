"""The `[net]` section: schema, defaults, ranges.

Imports nothing of qosd, so that `qosd.config` can hold it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

_BITRATE_UNITS = {"kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9}
_BITRATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")

# RFC 2474, 2597, 3246, 8622; the names that ip-route(8) and nft(8) know too.
DSCP_NAMES = {
    **{f"CS{n}": 8 * n for n in range(8)},
    **{f"AF{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)},
    "EF": 46,
    "LE": 1,
}


class Bitrate(int):
    """Bits per second; written "200Mbit", "1Gbit", "2.5Gbit"."""

    __slots__ = ()


MIN_BITRATE, MAX_BITRATE = Bitrate(100_000), Bitrate(10**12)
"""Below, HTB's 32-bit bucket in 64 ns ticks overflows with a bucket of one largest packet."""


class Net(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is shaped and how. Without uplinks and limit the network is left alone: nothing is even read."""

    uplinks: tuple[str, ...] | Literal["auto"] = ()
    link_speed: dict[str, Bitrate] = {}
    """Per uplink, for drivers that do not know (virtio) or a provider's limit below the port's speed."""
    egress_target_pct: Annotated[float, Meta(gt=0, le=100)] = 90.0
    """Share of an uplink that LS, system and BE together may use."""
    be_floor_pct: Annotated[float, Meta(ge=0.1, le=50)] = 1.0
    """What BE keeps whatever LS does, so that its connections survive."""
    up_pct: Annotated[float, Meta(gt=0, le=100)] = 10.0
    """Share of the link that the BE ceiling may rise by in one second."""
    deadband_pct: Annotated[float, Meta(ge=0, le=20)] = 2.0
    """Changes of the ceiling below this share of the link are not made."""
    hold_sec: Annotated[float, Meta(ge=0, le=600)] = 15.0
    """LS egress counts as the most of any tick in this time: the ceiling falls at once, rises after it."""
    release_ticks: Annotated[int, Meta(ge=2)] = 30
    """Ticks without a reading until the ceiling goes back to its static value."""
    dscp_be: str | None = None
    dscp_ls: str | None = None
    be_ingress_max: Bitrate | None = None
    """What all BE sockets together may receive, other than by lo; dropped beyond. Needs no uplink."""
    forwarded_mark: Annotated[int, Meta(ge=1, lt=1 << 32)] | None = None
    """One bit of skb->mark by which containers' BE packets are known from their veth to the uplink."""

    @property
    def active(self) -> bool:
        return bool(self.uplinks) or self.be_ingress_max is not None


def parse_bitrate(text: str) -> Bitrate:
    """`200Mbit` to bits per second; raises ValueError with the units that are known."""
    match = _BITRATE.fullmatch(text)
    if match is None or match[2] not in _BITRATE_UNITS:
        raise ValueError(f"expected a rate with one of the units {', '.join(_BITRATE_UNITS)}, got {text!r}")
    rate = Bitrate(round(float(match[1]) * _BITRATE_UNITS[match[2]]))
    if not MIN_BITRATE <= rate <= MAX_BITRATE:
        raise ValueError(f"expected a rate from 100kbit to 1000Gbit, got {text!r}")
    return rate


def parse_dscp(text: str) -> int:
    """The code point of a name or of a number from 0 to 63; raises ValueError."""
    if text in DSCP_NAMES:
        return DSCP_NAMES[text]
    if text.isdecimal() and int(text) < 64:  # noqa: PLR2004 - six bits
        return int(text)
    raise ValueError(f"expected a DSCP name such as CS1, LE, AF41, EF or a number up to 63, got {text!r}")


def check(net: Net) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    for key, text in (("dscp_be", net.dscp_be), ("dscp_ls", net.dscp_ls)):
        try:
            parse_dscp("CS0" if text is None else text)
        except ValueError as error:
            return f"net.{key}: {error}"
    if net.forwarded_mark is not None and net.forwarded_mark.bit_count() != 1:
        return "net.forwarded_mark: must be a single bit that nobody else on this host uses"
    if net.be_floor_pct >= net.egress_target_pct:
        return "net.be_floor_pct: must be below net.egress_target_pct"
    if net.uplinks != "auto":
        stray = sorted(set(net.link_speed) - set(net.uplinks))
        if stray:
            return f"net.link_speed.{stray[0]}: not among net.uplinks"
    return None
