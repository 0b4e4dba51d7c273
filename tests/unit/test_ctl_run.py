"""`qosctl run`: the command in its tier's slice, and what keeps it from starting."""

from __future__ import annotations

from typing import Any

import pytest
from ctl_daemon import qosctl

from qosd.ctl import run


def test_run_makes_the_command_a_scope_in_the_tiers_slice() -> None:
    assert run.systemd_run("be", ("make", "-j8"), "ann") == [
        *(
            "systemd-run",
            "--scope",
            "--quiet",
            "--collect",
            "--slice=be.slice",
            "--uid=ann",
            "--",
            "make",
            "-j8",
        )
    ]


@pytest.fixture
def exec_(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A host on which everything is there and nothing is really run."""
    calls: list[list[str]] = []
    monkeypatch.setattr(run.os.path, "isdir", lambda _: True)
    monkeypatch.setattr(run.os, "geteuid", lambda: 0)
    monkeypatch.setattr(run.shutil, "which", lambda name: None if name == "no-such-program" else name)
    monkeypatch.setattr(run, "_has_unit_file", lambda _: True)
    monkeypatch.setattr(run.os, "execvp", lambda _, argv: calls.append(argv))
    return calls


def test_run_leaves_the_commands_own_options_alone(exec_: list[list[str]]) -> None:
    assert qosctl("run", "be", "--", "make", "--json", "-j8", "--", "x").exit_code == 0
    assert exec_ == [run.systemd_run("be", ("make", "--json", "-j8", "--", "x"), None)]


def test_run_without_a_command_is_a_usage_error(exec_: list[list[str]]) -> None:
    assert (qosctl("run", "be", "--").exit_code, qosctl("run", "be").exit_code, exec_) == (2, 2, [])


@pytest.mark.parametrize(
    ("attribute", "value", "says", "code"),
    [
        ("os.path.isdir", lambda _: False, "systemd does not run this host", 125),
        ("os.geteuid", lambda: 1000, "sudo qosctl run", 125),
        ("_has_unit_file", lambda _: False, "be.slice has no unit file", 125),
        (
            "shutil.which",
            lambda name: "/x" if name == "systemd-run" else None,
            "true: command not found",
            127,
        ),
    ],
)
def test_run_says_what_keeps_it_from_starting(
    exec_: list[list[str]], monkeypatch: pytest.MonkeyPatch, attribute: str, value: Any, says: str, code: int
) -> None:
    monkeypatch.setattr(f"qosd.ctl.run.{attribute}", value)
    result = qosctl("run", "be", "--", "true")
    assert (result.exit_code, exec_) == (code, [])
    assert says in result.stderr
