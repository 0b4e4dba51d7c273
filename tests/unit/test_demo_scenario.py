"""The half of the demo that runs inside the target, as far as it needs no systemd."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qosd.config import decode
from qosd.control import frames
from qosd.lab.demo import target
from qosd.lab.scenario import control, rounds, service
from qosd.lab.scenario.planned import Plan
from qosd.lab.scenario.sampler import Sampler

SCENARIO = Path(target.__file__).parents[1] / "scenario"


def test_the_scenario_needs_the_standard_library_only(tmp_path: Path) -> None:
    """Copied alone into a directory, under an interpreter that sees no site-packages, it imports whole."""
    (tmp_path / "scenario").symlink_to(SCENARIO)
    code = "import scenario.__main__, sys; print([m for m in sys.modules if m.split('.')[0] == 'qosd'])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert done.stdout.strip() == "[]"


def test_a_request_is_what_redis_clients_send() -> None:
    assert service.command_bytes("PING", "ü") == b"*2\r\n$4\r\nPING\r\n$2\r\n\xc3\xbc\r\n"
    assert service.request(900).endswith(b"$1\r\n0\r\n$3\r\n900\r\n")


def test_the_load_bursts_and_comes_back() -> None:
    stage = rounds.Stage(Plan(rounds=(), daemon=None), {"rate": 400.0, "burst_rate": 700.0}, "/nowhere")

    assert stage.rates() == {0.0: 400.0, 5.5: 700.0, 8.0: 400.0}


def test_without_qosd_neither_ls_nor_be_is_in_a_slice_of_its_own() -> None:
    plan = Plan(rounds=(), daemon=None)

    assert rounds.slices("uncontrolled", plan) == ("system.slice", "system.slice")
    assert rounds.slices("frozen", plan) == rounds.slices("qosd", plan) == ("ls.slice", "be.slice")


def test_what_a_job_has_used_stays_counted_when_its_cgroup_is_gone(tmp_path: Path) -> None:
    for name, usage in (("first", 100), ("second", 40)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu.stat").write_text(f"usage_usec {usage}\nuser_usec 1\n")
    sampler = Sampler("be.slice", [])
    sampler.be_cgroups = [str(tmp_path / "first"), str(tmp_path / "second"), str(tmp_path / "never")]
    before = sampler.sample()["be_usec"]
    (tmp_path / "second" / "cpu.stat").unlink()
    (tmp_path / "first" / "cpu.stat").write_text("usage_usec 130\n")

    assert (before, sampler.sample()["be_usec"]) == (140, 170)


def test_work_that_one_job_could_not_report_is_unknown_and_not_0(tmp_path: Path) -> None:
    yaml = (
        "metrics:\n    - stressor: cpu\n      bogo-ops: 11228\n      bogo-ops-per-second-real-time: 3785.5\n"
    )
    (tmp_path / "be-first.yaml").write_text(yaml)

    assert rounds.bogo_ops(str(tmp_path)) is None
    (tmp_path / "be-first.yaml").write_text(yaml)
    (tmp_path / "be-second.yaml").write_text(yaml)
    assert rounds.bogo_ops(str(tmp_path)) == 22456


def answer_once(path: Path, reply: bytes) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            (length,) = struct.unpack(">I", client.recv(4))
            assert json.loads(client.recv(length)) == {"command": "decisions"}
            client.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_daemon_is_asked_in_its_own_frames(tmp_path: Path) -> None:
    """A reply of several frames comes back whole."""
    records = [{"id": number, "text": "x" * 1000} for number in range(200)]
    thread = answer_once(tmp_path / "whole", frames(json.dumps({"ok": records}).encode()))

    assert control.ask(str(tmp_path / "whole"), "decisions") == records
    thread.join()


def test_a_daemon_that_hangs_up_or_is_not_there_has_said_nothing(tmp_path: Path) -> None:
    thread = answer_once(tmp_path / "torn", frames(b'{"ok": [1, 2]}')[:9])

    assert control.ask(str(tmp_path / "torn"), "decisions") is None
    assert control.ask(str(tmp_path / "nobody"), "decisions") is None
    thread.join()


def test_a_host_gets_a_configuration_and_slices_of_its_own(tmp_path: Path) -> None:
    """The shipped slices' text under other names, and a qosd that manages just those two."""
    daemon = target.host_daemon(tmp_path)
    config = decode((tmp_path / "qosd.toml").read_text())

    assert [rule.match for rule in config.workload] == [(target.LS_SLICE,), (target.BE_SLICE,)]
    assert config.control.socket == daemon.socket
    assert "CPUWeight=idle" in target.host_slices()[target.BE_SLICE]


def host(root: Path, *, v2: bool, systemd: bool) -> str:
    (root / "sys/fs/cgroup").mkdir(parents=True)
    if v2:
        (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory\n")
    if systemd:
        (root / "run/systemd/system").mkdir(parents=True)
    return str(root)


def test_a_host_that_cannot_run_the_demo_is_told_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "stress-ng" else f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = "\n".join(target.host_refusals(host(tmp_path, v2=False, systemd=False)))

    for words in (
        "sudo make demo HOST=1",
        "systemd.unified_cgroup_hierarchy=1",
        "systemd",
        "apt install stress-ng",
    ):
        assert words in said


def test_a_host_with_all_the_demo_needs_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    assert target.host_refusals(host(tmp_path, v2=True, systemd=True)) == []
