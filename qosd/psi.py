"""Pressure files (Documentation/accounting/psi.rst). Use deltas of `total`: the averages lag by up to 2 s."""

from __future__ import annotations

import re

from qosd.errors import Malformed
from qosd.model import Pressure, Stall

_STALL = rb"avg10=([0-9.]+) avg60=([0-9.]+) avg300=([0-9.]+) total=([0-9]+)"
_FILE = re.compile(rb"some " + _STALL + rb"(?:\nfull " + _STALL + rb")?\n?")
"""One look for the whole file, as it is read often. float() alone would take "nan" and "-1"."""


def parse_pressure(raw: bytes, file: str = "pressure") -> Pressure:
    found = _FILE.fullmatch(raw)
    if found is None:
        raise Malformed(file, raw.decode("latin-1"))
    fields = found.groups()
    try:
        return Pressure(_stall(fields[:4]), _stall(fields[4:]) if fields[4] is not None else None)
    except ValueError:
        raise Malformed(file, raw.decode("latin-1")) from None


def _stall(fields: tuple[bytes, ...]) -> Stall:
    return Stall(float(fields[0]), float(fields[1]), float(fields[2]), int(fields[3]))
