"""Which cgroups the `[[workload]]` rules mean right now, and what lies below them. Reads directories only."""

from __future__ import annotations

import fnmatch
import stat
from typing import NamedTuple

from qosd.config import WorkloadRule
from qosd.model import CgroupId, Tier
from qosd.sys import DIRECTORY, Sys, open_cgroup

_GLOB = frozenset("*?[")


class Match(NamedTuple):
    rule: WorkloadRule
    path: str
    id: CgroupId


class Below(NamedTuple):
    """A cgroup somewhere below a workload."""

    path: str
    id: CgroupId


def resolve(
    sys: Sys, root_fd: int, rules: tuple[WorkloadRule, ...], protected: tuple[str, ...]
) -> tuple[list[Match], dict[str, str]]:
    """Every cgroup that a rule matches, and why some matches are not taken (path: reason)."""
    return choose(find(sys, root_fd, rules), protected)


def find(sys: Sys, root_fd: int, rules: tuple[WorkloadRule, ...]) -> list[Match]:
    """Every cgroup that there is of every pattern, in the order of the rules."""
    return [
        Match(rule, path, cgroup_id)
        for rule in rules
        for pattern in rule.match
        for path, cgroup_id in _expand(sys, root_fd, pattern)
    ]


def choose(found: list[Match], protected: tuple[str, ...]) -> tuple[list[Match], dict[str, str]]:
    """The first rule that matches a cgroup has it. What is not taken: path to reason."""
    of: dict[CgroupId, Match] = {}
    refused: dict[str, str] = {}
    for match in found:
        first = of.setdefault(match.id, match)
        if first.rule is not match.rule:
            refused[match.path] = (
                f"rule {match.rule.name!r} matches it too; the first one, {first.rule.name!r}, holds"
            )
    matches = sorted(of.values(), key=lambda match: match.path)
    taken = []
    for match in matches:
        why = _refusal(match, matches, protected)
        if why is None:
            taken.append(match)
        else:
            refused[match.path] = why
    return taken, refused


def _refusal(match: Match, matches: list[Match], protected: tuple[str, ...]) -> str | None:
    for path in protected:
        if match.rule.tier is Tier.BE and is_within(path, match.path):
            return f"it is or contains {path}, which must never be slowed"
    for other in matches:
        if other is match:
            continue
        if is_within(match.path, other.path):
            return f"it lies inside {other.path} (workload {other.rule.name!r})"
        if match.rule.tier is Tier.BE and other.rule.tier is Tier.LS and is_within(other.path, match.path):
            return f"it contains {other.path}, which is latency-sensitive"
    return None


def is_within(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor + "/")


def _expand(sys: Sys, root_fd: int, pattern: str) -> list[tuple[str, CgroupId]]:
    """The (path, inode) of every cgroup that the pattern names; none where it does not exist (yet)."""
    parts = pattern.split("/")
    literal = 0
    while literal < len(parts) and not _GLOB & set(parts[literal]):
        literal += 1
    prefix = "/".join(parts[:literal])
    try:
        if literal == len(parts):
            return [(prefix, _id_of(sys, root_fd, parts))]
        fd = open_cgroup(sys, root_fd, prefix)
    except OSError:
        return []
    try:
        return _expand_globs(sys, fd, prefix, parts[literal:])
    finally:
        sys.close(fd)


def _id_of(sys: Sys, root_fd: int, parts: list[str]) -> CgroupId:
    """Of a cgroup named without a wildcard. Most are, and lie right below the root: one call a tick."""
    *above, name = parts
    if not above:
        return _id_in(sys, root_fd, name)
    fd = open_cgroup(sys, root_fd, "/".join(above))
    try:
        return _id_in(sys, fd, name)
    finally:
        sys.close(fd)


def _id_in(sys: Sys, dir_fd: int, name: str) -> CgroupId:
    found = sys.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(name)
    return CgroupId(found.st_ino)


def _expand_globs(sys: Sys, dir_fd: int, prefix: str, parts: list[str]) -> list[tuple[str, CgroupId]]:
    results: list[tuple[str, CgroupId]] = []
    with sys.scandir(dir_fd) as entries:
        children = [
            (entry.name, entry.inode())
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and fnmatch.fnmatchcase(entry.name, parts[0])
        ]
    for name, inode in children:
        path = f"{prefix}/{name}" if prefix else name
        if len(parts) == 1:
            results.append((path, CgroupId(inode)))
            continue
        try:
            fd = sys.open(name, DIRECTORY, dir_fd=dir_fd)
        except OSError:
            continue
        try:
            results += _expand_globs(sys, fd, path, parts[1:])
        finally:
            sys.close(fd)
    return results


class Caps(NamedTuple):
    cgroups: int
    depth: int


class Tree(NamedTuple):
    """What a walk found: the cgroups, parents before children, and whether a cap cut it short."""

    below: list[Below]
    cut: str | None


def walk(sys: Sys, dir_fd: int, path: str, caps: Caps) -> Tree:
    """Every cgroup below `path`, within the caps. Siblings that vanish meanwhile are no error."""
    below: list[Below] = []
    return Tree(below, _walk(sys, dir_fd, path, caps, below))


def right_below(sys: Sys, root_fd: int, path: str) -> list[Below]:
    """The children of one cgroup; none where it is gone."""
    try:
        fd = open_cgroup(sys, root_fd, path)
    except OSError:
        return []
    try:
        return [Below(f"{path}/{name}", CgroupId(inode)) for name, inode in _children(sys, fd)]
    finally:
        sys.close(fd)


def _walk(sys: Sys, dir_fd: int, path: str, caps: Caps, below: list[Below]) -> str | None:
    children = _children(sys, dir_fd)
    if children and caps.depth == 0:
        return f"cgroups nested too deep below {path[:80]}"
    cut: str | None = None
    for name, inode in children:
        if len(below) >= caps.cgroups:
            return f"more than {caps.cgroups} cgroups"
        child = f"{path}/{name}"
        try:
            # One fd a level, whatever the width.
            fd = sys.open(name, DIRECTORY, dir_fd=dir_fd)
        except OSError:
            continue
        below.append(Below(child, CgroupId(inode)))
        try:
            cut = _walk(sys, fd, child, caps._replace(depth=caps.depth - 1), below) or cut
        finally:
            sys.close(fd)
    return cut


def _children(sys: Sys, dir_fd: int) -> list[tuple[str, int]]:
    try:
        with sys.scandir(dir_fd) as entries:
            return [(entry.name, entry.inode()) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
