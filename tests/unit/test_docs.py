"""What the documents name exists: files, links, make targets, commands, options, keys, modules and tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qosd.config import decode
from qosd.ctl.main import cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PATH = re.compile(r"`((?:qosd|tests|docs|bench|packaging|systemd|etc)/[\w./-]*|[\w-]+\.(?:md|toml))`")
MADE = ("demo/", "dist/")
"""Built, not kept."""


def names(documents: list[Path]) -> list[str]:
    return [str(document.relative_to(ROOT)) for document in documents]


@pytest.fixture(params=DOCS, ids=names(DOCS))
def document(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def words(command: str, text: str) -> set[str]:
    """What follows `command` where code is shown: in a code span, or on an indented or fenced line."""
    shown = re.findall(rf"(?:`|^ *(?:[#$] )?(?:sudo )?){command} ([a-z][a-z-]*)", text, re.MULTILINE)
    return set(shown)


def fences(text: str, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]

    assert [link for link in local if not (document.parent / link).exists()] == []


def test_every_heading_linked_to_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    there = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }

    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= there


def test_every_path_named_is_in_the_tree(document: Path) -> None:
    """A path with a capital word, as probes/NAME.c, is a pattern for the reader."""
    paths = set(PATH.findall(document.read_text(encoding="utf-8")))
    real = [path for path in paths if not re.search(r"[A-Z]{3}", path) or path.endswith(".md")]
    bases = (ROOT, document.parent, ROOT / "etc", ROOT / "docs")

    assert [path for path in real if not any((base / path).exists() for base in bases)] == []


def test_every_make_target_named_exists(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))

    assert words("make", document.read_text(encoding="utf-8")) <= targets


def test_every_command_of_qosctl_named_exists(document: Path) -> None:
    assert words("qosctl", document.read_text(encoding="utf-8")) <= set(cli.commands)


def test_every_option_shown_with_a_command_of_qosctl_is_one_of_its_own(document: Path) -> None:
    for command, rest in re.findall(
        r"qosctl ([a-z]+)((?: [^`\n|;#]*)?)", document.read_text(encoding="utf-8")
    ):
        if command in cli.commands:
            own = rest.partition(" -- ")[0]
            assert set(re.findall(r"--[a-z][a-z-]*", own)) <= options(cli.commands[command]), command


def options(command: click.Command) -> set[str]:
    return {text for option in command.params for text in option.opts} | {"--help"}


def test_every_test_named_exists(document: Path) -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    there = set(re.findall(r"def (test_\w+)\(", tests))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}

    assert set(re.findall(r"\b(test_\w+)\b", document.read_text(encoding="utf-8"))) <= there | files


def test_every_test_named_with_its_file_is_in_that_file(document: Path) -> None:
    named = re.findall(r"\b(tests/[\w/]+\.py)::(\w+)", document.read_text(encoding="utf-8"))

    def is_there(file: str, test: str) -> bool:
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).exists() else ""
        return re.search(rf"(?:def |class |^){test}\b", text, re.MULTILINE) is not None

    assert [f"{file}::{test}" for file, test in named if not is_there(file, test)] == []


def test_every_case_of_a_fault_has_a_row() -> None:
    """Fifty cases, each with its tests or with what is not tried."""
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/faults.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == [str(number) for number in range(1, 51)]


def test_the_architecture_names_every_module_at_the_top_and_every_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    modules = [path.name for path in (ROOT / "qosd").glob("*.py") if path.name != "__init__.py"]
    packages = [f"{path.parent.name}/" for path in (ROOT / "qosd").glob("*/__init__.py")]

    assert [name for name in [*modules, *packages] if f"`qosd/{name}" not in text] == []


@pytest.mark.parametrize(
    ("name", "module"), [("docs/ebpf.md", "qosd.ebpf.session"), ("docs/network.md", "qosd.net.session")]
)
def test_a_part_is_called_unused_exactly_as_long_as_it_is(name: str, module: str) -> None:
    """Once it is wired, README.md ("State", "Limits") and docs/architecture.md must say so, too."""
    package, _, stem = module.rpartition(".")
    wired = [
        path.name
        for path in (ROOT / "qosd").glob("*.py")
        if re.search(
            rf"{re.escape(module)}\b|from {re.escape(package)} import .*\b{stem}\b", path.read_text("utf-8")
        )
    ]
    called_unused = "**Not used by the daemon yet" in (ROOT / name).read_text(encoding="utf-8")

    assert called_unused == (not wired), f"{name}: {module} is used by {wired or 'nobody'}"


def test_the_configuration_that_the_readme_shows_is_accepted() -> None:
    shown = list(fences((ROOT / "README.md").read_text(encoding="utf-8"), "toml"))

    assert shown
    for text in shown:
        decode(text)


def test_the_changelog_and_the_readme_know_this_version() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for name in ("README.md", "CHANGELOG.md"):
        assert version[1] in (ROOT / name).read_text(encoding="utf-8")
