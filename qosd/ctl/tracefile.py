"""A trace as a file: JSON lines, compressed by zstd or gzip where the name says so, read by what is in it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import IO

from qosd.ctl import exits

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"


def create(file: str) -> IO[bytes] | gzip.GzipFile:
    """A new file to write lines to; what was flushed can be read, whatever happens next."""
    try:
        if file.endswith(".zst"):
            trace: IO[bytes] = _zstd(file).open(file, "xb")
            return trace
        return gzip.open(file, "xb") if file.endswith(".gz") else open(file, "xb")
    except OSError as error:
        raise exits.Failure(f"{file}: {error.strerror}", exits.NO) from None


def lines(file: str) -> Iterator[bytes]:
    """The whole lines of a trace. A recorder that was killed leaves a file without its end: see `_whole`."""
    with open(file, "rb") as raw:
        magic = raw.read(len(_ZSTD_MAGIC))
        raw.seek(0)
        if magic == _ZSTD_MAGIC:
            zstd = _zstd(file)
            with zstd.open(raw) as trace:
                yield from _whole(trace, zstd.ZstdError)
        elif magic.startswith(_GZIP_MAGIC):
            with gzip.open(raw) as trace:
                yield from _whole(trace, zlib.error)
        else:
            yield from raw


def _whole(trace: IO[bytes] | gzip.GzipFile, damaged: type[Exception]) -> Iterator[bytes]:
    """What comes before a torn end is good; a line that the end cut short is none."""
    try:
        for line in trace:
            if line.endswith(b"\n"):
                yield line
    except (EOFError, damaged):
        return


def _zstd(file: str) -> ModuleType:
    """Loaded for such a file alone. Python has it from 3.14 on, as compression.zstd; this is its backport."""
    try:
        from backports import zstd  # noqa: PLC0415 - as the docstring says
    except ImportError:
        text = f"{file}: zstd needs the Python library backports.zstd; a name in .gz or .jsonl does not"
        raise exits.Failure(text, exits.NO) from None
    return zstd
