"""The manual pages and the shell completion: well formed, and in step with what they describe."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import click
import msgspec
import pytest

from qosd.__main__ import _parser
from qosd.config import Config
from qosd.ctl import exits
from qosd.ctl.main import cli

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

import manpage  # noqa: E402 - a script's module, beside the script

FRAME = (ROOT / "docs/man/qosd.toml.5.in").read_text()
PAGES = sorted((ROOT / "docs/man").glob("*.[1-8]"))


def keys(toml: str) -> list[tuple[str, str, list[str]]]:
    return [(entry.kind, entry.text, entry.prose) for entry in manpage.entries(toml)]


def test_a_comment_block_describes_the_key_or_table_that_follows_it() -> None:
    toml = '# About the file.\n\n# X.\n# Its range.\n[host]\n# Share.\ntarget = 95.0\nmode = "a" # or "b"\n'
    assert keys(toml) == [
        ("table", "[host]", ["X.", "Its range."]),
        ("key", "target = 95.0", ["Share."]),
        ("key", 'mode = "a"', ['or "b"']),
    ]


def test_a_comment_block_describes_all_keys_directly_below_it() -> None:
    page = manpage.render(FRAME, "# Bounds.\nlow = 1\nhigh = 2\n\nother = 3\n")
    assert '.It Li "low = 1"\n.It Li "high = 2"\nBounds.\n.It Li "other = 3"\n.El' in page


def test_a_key_that_is_commented_out_is_listed_too() -> None:
    page = manpage.render(FRAME, '[[workload]]\nmatch = ["a#b"]\n# cpu_max_pct = 50  # none by default\n')
    assert '.It Li "cpu_max_pct = 50"\nnone by default\n' in page
    assert '.It Li "match = [\\(dqa#b\\(dq]"\n' in page


def test_prose_cannot_become_a_control_line_or_an_escape() -> None:
    page = manpage.render(FRAME, "# .so /etc/passwd\n# 'br \\fB\nkey = 1\n")
    assert "\n\\&.so /etc/passwd\n\\&'br \\efB\n" in page


def test_a_line_that_is_neither_key_nor_table_nor_comment_is_an_error_with_its_number() -> None:
    with pytest.raises(ValueError, match=r"qosd\.toml:2: .*'match = \['"):
        manpage.entries("a = 1\nmatch = [\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_rendered_without_a_warning(page: Path) -> None:
    assert render_with_man(page) == ""


def test_the_page_of_the_shipped_configuration_is_rendered_without_a_warning(tmp_path: Path) -> None:
    page = tmp_path / "qosd.toml.5"
    page.write_text(manpage.render(FRAME, (ROOT / "etc/qosd.toml").read_text()))
    assert render_with_man(page) == ""


def test_the_page_of_the_daemon_names_every_command_and_option_that_it_has() -> None:
    page = (ROOT / "docs/man/qosd.8").read_text().replace("\\-", "-")
    subparsers = next(action for action in _parser()._actions if isinstance(action.choices, dict))
    parsers = [_parser(), *subparsers.choices.values()]
    options = {text for parser in parsers for action in parser._actions for text in action.option_strings}
    wanted = {f"Fl {option[1:]}" for option in options - {"-h", "--help"}}
    wanted |= {f".Cm {command}\n" for command in subparsers.choices}
    assert sorted(text for text in wanted if text not in page) == []


def test_the_page_of_the_configuration_has_every_key_of_the_schema() -> None:
    page = manpage.render(FRAME, (ROOT / "etc/qosd.toml").read_text())
    keys_in_page = set(re.findall(r'^\.It Li "([a-z_]+) = ', page, re.MULTILINE))
    assert keys_in_page == set(keys_of(Config))


def keys_of(schema: type[msgspec.Struct]) -> Iterator[str]:
    for name, hint in get_type_hints(schema).items():
        structs = [
            kind
            for kind in (hint, *get_args(hint))
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        ]
        if structs:
            yield from keys_of(structs[0])
        else:
            yield name


def render_with_man(page: Path) -> str:
    if shutil.which("man") is None:
        pytest.skip("man (package man-db) is not installed")
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    return answer.stderr


def complete(*words: str) -> list[str]:
    script = (
        f'source "{ROOT}/packaging/qosctl.bash"; COMP_WORDS=("$@"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); '
        'compopt() { :; }; _qosctl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    answer = subprocess.run(
        ["bash", "-c", script, "bash", "qosctl", *words], capture_output=True, text=True, check=True
    )
    return answer.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["st"], ["status"]),
        (["--socket", "/run/x", "st"], ["status"]),
        (["res"], ["restore", "resume"]),
        (["run", ""], ["--", "--help", "--user", "be", "ls"]),
        (["pause", "1"], ["10m", "1h"]),
    ],
)
def test_the_completion_offers_what_fits(words: list[str], expected: list[str]) -> None:
    assert sorted(complete(*words)) == expected


def test_the_completion_offers_exactly_the_commands_that_qosctl_has() -> None:
    assert {word for word in complete("") if not word.startswith("-")} == set(cli.commands)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_the_completion_and_the_page_have_exactly_the_options_of_a_command(command: str) -> None:
    options = options_of(cli.commands[command])
    assert set(complete(command, "--")) - {"--", "--help"} == options
    page = (ROOT / "docs/man/qosctl.1").read_text().replace("\\-", "-")
    (synopsis,) = re.findall(rf"^\.It Cm {command}\b(.*)", page, re.MULTILINE)
    assert {f"-{flag}" for flag in re.findall(r"Fl (-[a-z-]+)", synopsis)} == options


def options_of(command: click.Command) -> set[str]:
    shown = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    return {text for option in shown for text in option.opts}


def test_the_page_of_qosctl_explains_every_exit_status() -> None:
    page = (ROOT / "docs/man/qosctl.1").read_text()
    listed = {
        int(code) for line in re.findall(r"^\.It (\d+.*)", page, re.MULTILINE) for code in line.split(" , ")
    }
    assert listed == {0, *(value for value in vars(exits).values() if isinstance(value, int))}
