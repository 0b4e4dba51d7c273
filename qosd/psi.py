"""Pressure files (Documentation/accounting/psi.rst). Use deltas of `total`: the averages lag by up to 2 s."""

from __future__ import annotations

from qosd.errors import Malformed
from qosd.model import Pressure, Stall

_KEYS = (b"avg10=", b"avg60=", b"avg300=", b"total=")


def parse_pressure(raw: bytes, file: str = "pressure") -> Pressure:
    fields = raw.split()
    try:
        if fields[0] != b"some":
            raise ValueError  # noqa: TRY301 - one exit for every malformation
        some = _stall(fields[1:5])
        full = None
        if len(fields) > 5:  # noqa: PLR2004 - a second line
            if fields[5] != b"full":
                raise ValueError  # noqa: TRY301 - same
            full = _stall(fields[6:10])
    except (ValueError, IndexError):
        raise Malformed(file, raw.decode("latin-1")) from None
    return Pressure(some, full)


def _stall(fields: list[bytes]) -> Stall:
    avg10, avg60, avg300, total = (
        field[len(key) :] if field.startswith(key) else b"" for field, key in zip(fields, _KEYS, strict=True)
    )
    # float() would take "nan", "inf" and "-1".
    if not (total.isdigit() and all(avg.replace(b".", b"", 1).isdigit() for avg in (avg10, avg60, avg300))):
        raise ValueError
    return Stall(float(avg10), float(avg60), float(avg300), int(total))
