"""io.stat, io.max, io.latency and the io weights, text to value and back. Pure.

Of the files that hold a line for each device, a setting is one line (`qosd.files`): `8:16 rbps=...` is the
setting of `io.max 8:16` with the text `rbps=...`. An absent line has the text of "no limit".
"""

from __future__ import annotations

import re
from typing import TypeAlias, assert_never

from qosd.errors import Malformed
from qosd.files import interface_file
from qosd.model import MAX, DiskIo, IoBfqWeight, IoLatency, IoMax, IoWeight, Max

IoSetting: TypeAlias = IoWeight | IoBfqWeight | IoMax | IoLatency

IO_FILES = frozenset({"io.max", "io.latency", "io.weight", "io.bfq.weight"})
LIMITS = ("rbps", "wbps", "riops", "wiops")
_COUNTED = ("rbytes", "wbytes", "rios", "wios")
_DEVICE = re.compile(r"\d{1,4}:\d{1,7}", re.ASCII)
_U64_DIGITS = 20


def is_device(text: str) -> bool:
    """Whether it is a MAJ:MIN; the kernel also names a device as `unknown` while it goes."""
    return _DEVICE.fullmatch(text) is not None


def parse_io_stat(raw: bytes) -> dict[str, DiskIo]:
    """By MAJ:MIN. Some kernels leave a device's name without numbers, or without its newline: no news."""
    text = raw.decode("latin-1")
    found: dict[str, dict[str, str]] = {}
    counts: dict[str, str] = {}
    for field in text.split():
        key, equals, value = field.partition("=")
        if equals:
            counts[key] = value
        elif is_device(field):
            counts = found[field] = {}
        else:
            raise Malformed("io.stat", text)
    return {device: _disk_io(each, text) for device, each in found.items() if each}


def _disk_io(counts: dict[str, str], text: str) -> DiskIo:
    try:
        return DiskIo(*(_number(counts[name], "io.stat", text) for name in _COUNTED))
    except KeyError:
        raise Malformed("io.stat", text) from None


def _number(digits: str, file: str, text: str) -> int:
    if not (digits.isascii() and digits.isdigit()) or len(digits) > _U64_DIGITS:
        raise Malformed(file, text)
    return int(digits)


def parse_io_setting(file: str, text: str) -> IoSetting:
    """The value of one line, as `io.max 8:16` with `rbps=max ...`; raises `Malformed`."""
    line = file.partition(" ")[2]
    match interface_file(file):
        case "io.weight" if line == "default":
            return IoWeight(_number(text, file, text))
        case "io.bfq.weight" if line == "default":
            return IoBfqWeight(_number(text, file, text))
        case "io.max" if is_device(line):
            return IoMax(line, *_limits(file, text))
        case "io.latency" if is_device(line) and text.startswith("target="):
            return IoLatency(line, _number(text.removeprefix("target="), file, text))
        case _:
            raise Malformed(file, text)


def _limits(file: str, text: str) -> list[int | Max]:
    fields = [field.partition("=") for field in text.split()]
    if tuple(name for name, _, _ in fields) != LIMITS:
        raise Malformed(file, text)
    return [MAX if value == MAX.value else _number(value, file, text) for _, _, value in fields]


def format_io_setting(setting: IoSetting) -> str:
    """What the kernel shows after the device's name."""
    match setting:
        case IoWeight() | IoBfqWeight():
            return str(setting.weight)
        case IoMax():
            values = (setting.rbps, setting.wbps, setting.riops, setting.wiops)
            return " ".join(
                f"{name}={limit.value if isinstance(limit, Max) else limit}"
                for name, limit in zip(LIMITS, values, strict=True)
            )
        case IoLatency():
            return f"target={setting.target_usec}"
        case _:
            assert_never(setting)
