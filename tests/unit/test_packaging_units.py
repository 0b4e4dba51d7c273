"""The unit files: what systemd says of them, and where they must agree with the code."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from qosd.__main__ import DEFAULT_CONFIG, DEFAULT_RUNTIME, _parser
from qosd.config import Config
from qosd.ctl.main import cli

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(path.name for path in (ROOT / "systemd").iterdir())
needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze (package systemd) is not installed"
)


def read_unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(ROOT / "systemd" / name)
    return parser


def executable(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A root directory in which the units lie where the package puts them."""
    shutil.copytree(ROOT / "systemd", tmp_path / "lib/systemd/system")
    executable(tmp_path / "usr/lib/qosd/bin/qosd")
    executable(tmp_path / "usr/lib/qosd/bin/qosctl")
    return tmp_path


@needs_systemd_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_to_say_about_a_unit(unit: str, installed: Path) -> None:
    command = ["systemd-analyze", f"--root={installed}", "--man=no", "--recursive-errors=no", "verify", unit]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


@needs_systemd_analyze
def test_systemd_rates_the_daemon_s_exposure_at_3_0_or_better() -> None:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=30"]
    answer = subprocess.run(
        [*command, ROOT / "systemd/qosd.service"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout[-400:] + answer.stderr


@pytest.mark.parametrize(
    "key",
    ["ProtectControlGroups", "ProcSubset", "ProtectProc", "PrivateNetwork", "PrivateUsers", "MemoryHigh"],
)
def test_the_service_leaves_out_the_settings_that_break_or_stall_qosd(key: str) -> None:
    assert key not in read_unit("qosd.service")["Service"]


def test_originals_survive_the_daemon_so_that_restore_finds_them() -> None:
    service = read_unit("qosd.service")["Service"]
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["ExecStopPost"] == "/usr/lib/qosd/bin/qosd restore"


@pytest.mark.parametrize("key", ["ExecStart", "ExecStopPost"])
def test_the_service_starts_only_commands_that_qosd_has(key: str) -> None:
    program, *arguments = shlex.split(read_unit("qosd.service")["Service"][key])
    assert program == "/usr/lib/qosd/bin/qosd"
    parsed = _parser().parse_args(arguments)
    assert parsed.command == {"ExecStart": "run", "ExecStopPost": "restore"}[key]
    assert getattr(parsed, "config", DEFAULT_CONFIG) == "/etc/qosd/qosd.toml"
    assert parsed.runtime == DEFAULT_RUNTIME == "/run/qosd"


def test_the_service_reloads_by_a_command_that_fails_when_the_file_is_refused() -> None:
    program, command = shlex.split(read_unit("qosd.service")["Service"]["ExecReload"])
    assert program == "/usr/lib/qosd/bin/qosctl"
    assert command in cli.commands


def test_the_weight_of_ls_slice_is_the_one_that_the_configuration_defaults_to() -> None:
    assert int(read_unit("ls.slice")["Slice"]["CPUWeight"]) == Config().cpu.weight.ls_weight


def test_the_socket_s_directory_is_the_runtime_directory_and_open_to_the_socket_s_group() -> None:
    service = read_unit("qosd.service")["Service"]
    control = Config().control
    assert Path(control.socket).parent == Path("/run") / service["RuntimeDirectory"]
    assert service["Group"] == control.group
    assert service["RuntimeDirectoryMode"] == "0750"


@pytest.mark.parametrize("key", ["MemoryHigh", "MemoryMax", "CPUQuota", "AllowedCPUs"])
def test_be_slice_sets_no_limit_that_is_right_for_one_load_only(key: str) -> None:
    assert key not in read_unit("be.slice")["Slice"]
