"""The manual page qosd.toml(5): its frame, and the keys from the comments of etc/qosd.toml, in step.

Read there: a comment block above a table header or above keys describes them, and so does a comment behind a
value. A key that is commented out (`# key = value`) has no default: its comment says so. A block with a blank
line after it is about the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MARK = '.\\" @KEYS@\n'
_TABLE = re.compile(r"(?:# ?)?(\[\[?[A-Za-z_.]+\]\]?)\s*(?:#\s*(.*))?")
_KEY = re.compile(r"(# ?)?([a-z_]+ = (?:\"[^\"]*\"|\[[^\]]*\]|[^\s#\[\"][^\s#]*))\s*(?:#\s*(.*))?")

_SENTENCE_END = re.compile(r"([.!?]) +(?=[A-Z])")


@dataclass
class Entry:
    """A table header or a key with its value, and what the comments say of it."""

    kind: str
    text: str
    prose: list[str] = field(default_factory=list)
    shares: bool = False
    """Directly below a key that a comment block describes, with nothing said of it alone: it is meant too."""


def entries(toml: str) -> list[Entry]:
    """Tables and keys in the order of the file. Raises ValueError at a line that is none of these."""
    found: list[Entry] = []
    prose: list[str] = []
    described = False
    for number, line in enumerate(toml.splitlines(), 1):
        entry = _entry(line.strip())
        if entry is not None:
            entry.shares = described and not prose and not entry.prose and entry.kind == "key"
            described = bool(prose) or entry.shares
            entry.prose[:0] = prose
            found.append(entry)
            prose = []
        elif line.startswith("#"):
            prose.append(line.removeprefix("#").strip())
        elif not line.strip():
            prose, described = [], False
        elif found and line.startswith((" ", "\t")) and line.strip().startswith("#"):
            found[-1].prose.append(line.strip().removeprefix("#").strip())
        else:
            raise ValueError(
                f"qosd.toml:{number}: neither a table, a key on one line, nor a comment: {line!r}"
            )
    return found


def _entry(line: str) -> Entry | None:
    if table := _TABLE.fullmatch(line):
        return Entry("table", table[1], prose=[table[2]] if table[2] else [])
    if key := _KEY.fullmatch(line):
        return Entry("key", key[2], prose=[key[3]] if key[3] else [])
    return None


def escape(text: str) -> str:
    """Plain text as mdoc takes it: backslashes, hyphens, and no control line by accident."""
    text = text.replace("\\", "\\e").replace("`", "").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text


def render(frame: str, toml: str) -> str:
    """The page: `frame` with the keys in place of its mark."""
    if frame.count(MARK) != 1:
        raise ValueError(f"the frame must have the line {MARK.strip()} once")
    out: list[str] = [".Bl -tag -width Ds"]
    body: list[str] = []
    for entry in entries(toml):
        if not entry.shares:
            out += body
            body = _sentences(entry.prose)
        if entry.kind == "table":
            out += [".El", f".Ss {escape(entry.text)}", *body, ".Bl -tag -width Ds"]
            body = []
        else:
            out.append(f'.It Li "{escape(entry.text).replace(chr(34), chr(92) + "(dq")}"')
    out += body
    out.append(".El")
    return frame.replace(MARK, _without_empty_lists("\n".join(out) + "\n"))


def _sentences(prose: list[str]) -> list[str]:
    """Each on a line of its own: that is how roff knows the end of one."""
    text = "\n".join(escape(line) if line else ".Pp" for line in prose)
    return _SENTENCE_END.sub(r"\1\n", text).splitlines()


def _without_empty_lists(text: str) -> str:
    return text.replace(".Bl -tag -width Ds\n.El\n", "")
