"""Walks by BPF over the trees of large workloads, for the sensor: opened when the first one needs it.

Nothing here raises into the tick. Where there is no walk the cgroups are read by their files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qosd.config import Config
from qosd.ebpf.errors import BpfError, NotByBccError
from qosd.ebpf.status import ProbeStatus
from qosd.schema.ebpf import Loader

if TYPE_CHECKING:
    from qosd.ebpf.tree import Tree

NAME = "tree"


class Walks:
    """Created closed: `allow` is called once the daemon is ready, since opening takes some 30 ms."""

    def __init__(self, config: Config, news: list[str], opener: Callable[[int], Tree] | None = None) -> None:
        self._config = config
        self._news = news
        """For the log."""
        self._opener = opener or _open_tree
        self._allowed = False
        self._tree: Tree | None = None
        self._why: str | None = None
        """Why there is none, until the configuration is changed."""
        self._links: dict[int, int] = {}
        """By the number of a subtree, which is never given again: a link's address may be."""
        self._attached = 0
        self.failures = 0

    def allow(self) -> None:
        self._allowed = True

    def worth(self, cgroups: int) -> bool:
        """Whether a workload with so many cgroups below it should be walked, and can be for all we know."""
        off = self._config.ebpf.probes == "off" or not self._allowed or self._why is not None
        return not off and cgroups >= self._config.sense.walk_from

    def attach(self, dir_fd: int) -> int | None:
        """The subtree of a cgroup directory; None: it cannot be walked."""
        try:
            if self._tree is None:
                self._tree = self._open()
            link = self._tree.attach(dir_fd)
        except (BpfError, OSError) as error:
            self._go_without(error)
            return None
        self._attached += 1
        self._links[self._attached] = link
        return self._attached

    def read(self, subtree: int) -> bytes | None:
        """The records of one walk; None: nothing is walked any more, and every subtree is gone."""
        link = self._links.get(subtree)
        if self._tree is None or link is None:
            return None
        try:
            return self._tree.walk(link)
        except (BpfError, OSError) as error:
            self._go_without(error)
            return None

    def detach(self, subtree: int) -> None:
        link = self._links.pop(subtree, None)
        if self._tree is not None and link is not None:
            self._tree.detach(link)

    def reconfigure(self, config: Config) -> None:
        """Where that asks for something else it is tried anew."""
        before, self._config = self._config, config
        if _asked(before) != _asked(config):
            self.close()
            self._why = None

    def status(self) -> ProbeStatus:
        if self._config.ebpf.probes == "off":
            return ProbeStatus(NAME, "off")
        if self._why is not None:
            return ProbeStatus(NAME, "absent", self._why)
        if self._links:
            return ProbeStatus(NAME, "attached")
        least = self._config.sense.walk_from
        return ProbeStatus(NAME, "off", f"no workload has {least} cgroups below it (sense.walk_from)")

    def close(self) -> None:
        tree, self._tree = self._tree, None
        self._links.clear()
        if tree is not None:
            tree.close()

    def _open(self) -> Tree:
        if self._config.ebpf.loader is Loader.BCC:
            raise NotByBccError(NAME)
        tree = self._opener(self._config.sense.max_cgroups + 1)
        self._news.append("large workloads are walked by BPF")
        return tree

    def _go_without(self, error: Exception) -> None:
        self.close()
        self.failures += 1
        self._why = str(error)
        self._news.append(f"large workloads are read by their files, not walked: {error}, ignoring")


def _asked(config: Config) -> tuple[object, ...]:
    return config.ebpf.probes == "off", config.ebpf.loader, config.sense


def _open_tree(max_cgroups: int) -> Tree:
    from qosd.ebpf.libbpf import Library  # noqa: PLC0415 - megabytes, and only for those who need it
    from qosd.ebpf.tree import Tree  # noqa: PLC0415 - same

    return Tree.open(Library(), max_cgroups)
