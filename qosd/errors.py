"""What can go wrong in words an operator can act on. Libraries raise; whoever handles an error logs it."""

from __future__ import annotations


class QosdError(Exception):
    """Any error of ours that has a sentence for a person and needs no traceback."""


class ConfigError(QosdError):
    """A configuration that must not be used; the message names the key or the file and what to do."""


class UnsupportedHost(QosdError):  # noqa: N818 - a fact about the host, not about a call
    """The host cannot run qosd at all; the message says what is missing and the remedy."""


class Malformed(QosdError):  # noqa: N818 - the adjective kernel people use
    """An interface file held text that its documentation does not allow."""

    def __init__(self, file: str, text: str) -> None:
        super().__init__(f"{file}: malformed content {text[:80]!r}")
        self.file = file


class CgroupGone(QosdError):  # noqa: N818 - what happened
    """The cgroup was removed, or its path now belongs to another one."""
