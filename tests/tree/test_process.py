"""The real program as a process on a fake cgroup tree: signals, SIGKILL, and the restore that follows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from treekit import Box, text_of

CONFIG = (
    'interval = "100ms"\n[metrics]\nlisten = ""\n[control]\ngroup = "no-such-group"\n'
    '[cpu.bandwidth]\nenforce = "max"\n'
    "deadband_up_pct = 0\ndeadband_down_pct = 0\n"
)
ROOT = Path(__file__).resolve().parents[2]


class Program:
    def __init__(self, directory: Path) -> None:
        box = Box(directory)
        box.close()
        self.root, self.run, self.contents = box.root, box.run, box.contents
        self.config = directory / "qosd.toml"
        self.write_config(95)
        self.errors = directory / "stderr"
        self.process: subprocess.Popen[bytes] | None = None

    def write_config(self, target: float) -> None:
        new = self.config.with_suffix(".new")
        new.write_text(f"{CONFIG}[host]\ncpu_target_pct = {target}\n")
        new.chmod(0o644)
        new.rename(self.config)

    def command(self, name: str, *arguments: str) -> list[str]:
        where = ["--runtime", str(self.run), "--cgroup-root", str(self.root)]
        return [sys.executable, "-m", "qosd", name, *where, *arguments]

    def start(self) -> None:
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self.command("run", "--config", str(self.config)), cwd=ROOT, stderr=errors
            )
        self.until(lambda: not self.limit().startswith("max"))

    def limit(self) -> str:
        return text_of(self.root / "be.slice/cpu.max") or "max"

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process is None or self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=10)

    def restore(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command("restore"), cwd=ROOT, text=True, capture_output=True, check=False, timeout=20
        )


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    if program.process is not None and program.process.poll() is None:
        program.end(signal.SIGKILL)


def test_sigterm_gives_everything_back_and_ends_well(program: Program) -> None:
    before = program.contents()
    program.start()

    assert program.end(signal.SIGTERM) == 0
    assert program.contents() == before
    assert "Traceback" not in program.errors.read_text()


def test_with_nobody_to_hear_what_it_says_it_works_on_and_gives_everything_back(program: Program) -> None:
    """Standard output and error are pipes that their reader closed: each line it logs is an EPIPE."""
    before = program.contents()
    reader, writer = os.pipe()
    command = program.command("run", "--config", str(program.config))
    program.process = subprocess.Popen(command, cwd=ROOT, stdout=writer, stderr=writer)
    os.close(writer)
    program.until(lambda: not program.limit().startswith("max"))
    os.close(reader)
    program.config.write_text(CONFIG.replace('"max"', '"max"\nperiod = "20ms"'))
    program.process.send_signal(signal.SIGHUP)
    program.until(lambda: program.limit().endswith(" 20000"))

    assert program.end(signal.SIGTERM) == 0
    assert program.contents() == before


def test_after_sigkill_the_restore_gives_everything_back(program: Program) -> None:
    before = program.contents()
    program.start()
    assert program.end(signal.SIGKILL) == -signal.SIGKILL
    assert program.contents() != before

    done = program.restore()

    assert done.returncode == 0, done.stderr
    assert program.contents() == before
    assert program.restore().stderr == ""


def test_after_sigkill_the_next_start_begins_with_the_hosts_own_values(program: Program) -> None:
    before = program.contents()
    program.start()
    program.end(signal.SIGKILL)
    program.errors.write_text("")
    program.start()
    program.until(lambda: "be.slice cpu.max: max 100000 -> " in program.errors.read_text())

    assert "restore be.slice cpu.max: done" in program.errors.read_text()
    assert program.end(signal.SIGTERM) == 0
    assert program.contents() == before


def test_the_last_of_a_storm_of_reloads_is_in_force_and_there_were_few_of_them(program: Program) -> None:
    """A hundred SIGHUPs as fast as can be: at most one reload a tick, and the last text wins."""
    program.start()
    assert program.process is not None
    started = time.monotonic()
    for sent in range(100):
        program.write_config(50 + sent % 40)
        program.process.send_signal(signal.SIGHUP)
        time.sleep(0.005)
    program.write_config(20)
    program.process.send_signal(signal.SIGHUP)

    nr_cpus = os.cpu_count() or 1
    program.until(lambda: _cores(program.limit()) <= nr_cpus * 0.20 + 0.01)
    ticks = (time.monotonic() - started) / 0.1
    reloads = program.errors.read_text().count("reloaded ")
    assert 1 <= reloads <= ticks + 2


def _cores(limit: str) -> float:
    quota, period = limit.split()
    return float("inf") if quota == "max" else int(quota) / int(period)


def test_a_host_that_cannot_be_used_is_refused_with_a_sentence_and_its_own_exit_status(
    program: Program,
) -> None:
    program.config.write_text("kaputt")
    done = subprocess.run(
        program.command("run", "--config", str(program.config)),
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=20,
    )

    assert done.returncode == 78, "EX_CONFIG: systemd must not restart it for ever"
    assert done.stderr.startswith("qosd: ")
    assert "Traceback" not in done.stderr


def test_restore_needs_the_standard_library_alone(program: Program) -> None:
    """After a crash, or an upgrade gone wrong, nothing else may be there."""
    program.start()
    program.end(signal.SIGKILL)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from qosd.__main__ import main;"
        " sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code, str(ROOT), *program.command("restore")[3:]],
        text=True,
        capture_output=True,
        check=False,
        timeout=20,
    )

    assert done.returncode == 0, done.stderr
    assert program.limit() == "max 100000"
