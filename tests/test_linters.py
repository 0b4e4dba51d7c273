"""The project's rules that a machine can check. None of these skips: a missing tool is a failure."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE = 400

PURE_DIRECTORIES = ("qosd/schema", "qosd/cpu", "qosd/io", "qosd/interference", "qosd/memory")
PURE_FILES = (
    *(f"qosd/{name}.py" for name in ("errors", "files", "model", "config", "plan", "governors", "decay")),
    *(f"qosd/{name}.py" for name in ("cgroupfs", "psi", "procfs", "topology")),
    "qosd/net/shaping.py",
    "qosd/ebpf/samples.py",
)
WORKERS = tuple(f"qosd/memory/{name}.py" for name in ("__init__", "look", "reclaimer", "metrics"))
"""Write, or serve, what their neighbours decide; or are empty beside them."""


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def python_files(under: str) -> list[Path]:
    return sorted((ROOT / under).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_would_format_nothing() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy_strict_finds_nothing() -> None:
    run(sys.executable, "-m", "mypy", "--strict")


def test_import_contracts_are_kept() -> None:
    run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo")


def test_every_pure_module_is_inside_the_contract_that_keeps_it_pure() -> None:
    """A new governor that nobody added to "Decisions are pure" could read the clock unnoticed."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["name"]: contract for contract in config["tool"]["importlinter"]["contracts"]}
    covered = contracts["Decisions are pure"]["source_modules"]

    pure = [path for directory in PURE_DIRECTORIES for path in python_files(directory)]
    pure += [ROOT / file for file in PURE_FILES if (ROOT / file).exists()]
    modules = {module_name(path) for path in pure if str(path.relative_to(ROOT)) not in WORKERS}

    uncovered = {m for m in modules if not any(m == c or m.startswith(c + ".") for c in covered)}
    assert uncovered == set()
    assert len(modules) >= 10, "the list of pure modules no longer matches the tree"


@pytest.mark.parametrize("path", python_files("qosd"), ids=module_name)
def test_a_file_stays_short_enough_to_be_read_at_once(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")

    assert lines <= LONGEST_FILE
