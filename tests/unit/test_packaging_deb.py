"""The .deb: one made with a stand-in for the libraries, and the real one where `make deb` has been run."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

import deb  # noqa: E402 - a script, imported for its parts

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def source_tree(path: Path) -> Path:
    """The project's own files, with a configuration that needs no other part of the project."""
    for name in ("systemd", "packaging", "docs/man"):
        shutil.copytree(ROOT / name, path / name)
    (path / "etc").mkdir()
    (path / "etc/qosd.toml").write_text('# About.\n\nmode = "observe"\n')
    return path


def stand_in_libraries(site: Path, builder: str) -> None:
    info = site / f"qosd-{VERSION}.dist-info"
    deb.put(info / "entry_points.txt", "[console_scripts]\nqosd = qosd.__main__:main\n")
    deb.put(info / "direct_url.json", f'{{"url": "file://{builder}"}}')
    deb.put(site / "qosd/__main__.py", "def main():\n    return 0\n", 0o600)
    deb.put(site / "bin/normalizer", f"#!{builder}/bin/python\n", 0o755)
    deb.put(site / "psutil/tests/test_all.py", "")


def make(path: Path, epoch: int) -> Path:
    root = path / "root"
    stand_in_libraries(root / deb.SITE, str(path))
    deb.prune(root / deb.SITE)
    deb.compile_bytecode(root, epoch)
    deb.stage_environment(root)
    deb.stage_files(root, source_tree(path / "source"))
    deb.stage_control(root, path / "source", VERSION, "all")
    deb.normalise(root)
    return deb.pack(root, path / "out", epoch)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package with stand-in libraries, and the directory it was built in."""
    path = tmp_path_factory.mktemp("small")
    return make(path, 1_700_000_000), path


@pytest.fixture(scope="module", params=["small", pytest.param("dist", marks=pytest.mark.vm)])
def package(request: pytest.FixtureRequest, small: tuple[Path, Path]) -> Path:
    if request.param == "small":
        return small[0]
    (built,) = (ROOT / "dist").glob(f"qosd_{VERSION}_*.deb")
    return built


@pytest.fixture(scope="module")
def members(package: Path) -> dict[str, tarfile.TarInfo]:
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name.removeprefix("./"): member for member in archive}


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", package, path], check=True)
    return path


def field(package: Path, name: str) -> str:
    command = ["dpkg-deb", "--field", package, name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_everything_belongs_to_root_and_only_root_may_write(members: dict[str, tarfile.TarInfo]) -> None:
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members.values()} == {
        (0, 0, "root", "root")
    }
    modes = {oct(member.mode) for member in members.values() if not member.issym()}
    assert modes == {"0o755", "0o644"}


def test_the_interpreter_is_debian_s_whatever_python_built_the_package(
    members: dict[str, tarfile.TarInfo], unpacked: Path
) -> None:
    link = members["usr/lib/qosd/bin/python3"]
    assert link.issym()
    assert link.linkname == "../../../bin/python3.11"
    assert "home = /usr/bin\n" in (unpacked / "usr/lib/qosd/pyvenv.cfg").read_text()
    assert (unpacked / "usr/lib/qosd/bin/qosd").read_text().startswith("#!/usr/lib/qosd/bin/python3 -I\n")
    assert members["usr/bin/qosd"].linkname == "../lib/qosd/bin/qosd"


def test_no_path_of_the_building_machine_is_in_any_file(unpacked: Path, small: tuple[Path, Path]) -> None:
    ours = {str(ROOT), str(small[1]), sys.prefix, sys.base_prefix, "/qosd-deb-"}
    needles = [path.encode() for path in ours - {"/usr"}]
    guilty = [
        (file.relative_to(unpacked), needle)
        for file in unpacked.rglob("*")
        if file.is_file() and not file.is_symlink()
        for needle in needles
        if needle in file.read_bytes()
    ]
    assert guilty == []


def test_every_module_comes_compiled_and_knows_its_own_path(unpacked: Path) -> None:
    site = unpacked / "usr/lib/qosd/lib/python3.11/site-packages"
    sources = list(site.rglob("*.py"))
    assert sources
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        data = compiled.read_bytes()
        assert data[4:8] == b"\x01\x00\x00\x00", f"{compiled}: not an unchecked hash"
        assert f"/{source.relative_to(unpacked)}".encode() in data


def test_tests_stubs_and_the_lab_are_left_out(members: dict[str, tarfile.TarInfo]) -> None:
    unwanted = re.compile(
        r"site-packages/(bin|qosd/lab|[^/]+/tests)/|\.pyi$|/(RECORD|INSTALLER|direct_url\.json)$"
    )
    assert [name for name in members if unwanted.search(name)] == []


def test_the_programs_for_the_kernel_come_compiled_with_their_btf_alone(unpacked: Path) -> None:
    probes = sorted((unpacked / "usr/lib/qosd/lib/python3.11/site-packages").glob("qosd/ebpf/probes/*.bpf.o"))
    stand_in = "Architecture: all" in (unpacked / "DEBIAN/control").read_text()
    sources = [] if stand_in else (ROOT / "qosd/ebpf/probes").glob("*.bpf.c")
    assert [probe.stem for probe in probes] == sorted(source.stem for source in sources)
    for probe in probes:
        data = probe.read_bytes()
        assert b".BTF.ext\0" in data
        assert b".debug_info" not in data


def test_the_configuration_is_the_one_conffile(package: Path, unpacked: Path) -> None:
    listed = (unpacked / "DEBIAN/conffiles").read_text().split()
    assert listed == ["/etc/qosd/qosd.toml"]
    in_etc = [f"/{path.relative_to(unpacked)}" for path in (unpacked / "etc").rglob("*") if path.is_file()]
    assert in_etc == listed, package


def test_units_pages_and_completion_are_where_debian_12_looks(members: dict[str, tarfile.TarInfo]) -> None:
    expected = {
        *(f"lib/systemd/system/{unit}" for unit in ("qosd.service", "qosd.slice", "ls.slice", "be.slice")),
        *(f"usr/share/man/{page}.gz" for page in ("man1/qosctl.1", "man5/qosd.toml.5", "man8/qosd.8")),
        "usr/share/bash-completion/completions/qosctl",
        "usr/share/doc/qosd/copyright",
        "usr/share/doc/qosd/changelog.gz",
    }
    assert expected - members.keys() == set()


def test_every_library_in_it_is_named_in_the_copyright_file(unpacked: Path) -> None:
    site = unpacked / "usr/lib/qosd/lib/python3.11/site-packages"
    copyright_text = (unpacked / "usr/share/doc/qosd/copyright").read_text()
    libraries = [path.name.split("-")[0] for path in site.glob("*.dist-info")]
    assert "qosd" in libraries
    assert [
        name for name in libraries if name != "qosd" and f"site-packages/{name}*" not in copyright_text
    ] == []


def test_md5sums_cover_every_file(unpacked: Path) -> None:
    command = ["md5sum", "--quiet", "--check", "DEBIAN/md5sums"]
    assert subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=True).stdout == ""
    sums = (unpacked / "DEBIAN/md5sums").read_text().splitlines()
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(sums) == len([path for path in files if path.parent.name != "DEBIAN"])


def test_the_same_source_gives_the_same_bytes(small: tuple[Path, Path], tmp_path: Path) -> None:
    again = make(tmp_path, 1_700_000_000)
    assert again.read_bytes() == small[0].read_bytes()


@pytest.mark.vm
def test_what_it_depends_on_is_in_debian(package: Path) -> None:
    wanted = [entry.split()[0] for entry in field(package, "Depends").split(", ")]
    if shutil.which("apt-cache") is None or not known_to_apt("adduser"):
        pytest.skip("apt has no package lists here")
    assert [name for name in wanted if not known_to_apt(name)] == []


def known_to_apt(name: str) -> bool:
    return subprocess.run(["apt-cache", "show", name], capture_output=True, check=False).returncode == 0


def test_python_is_held_to_the_minor_version_that_the_libraries_are_compiled_for(package: Path) -> None:
    assert field(package, "Depends").startswith("python3 (>= 3.11), python3 (<< 3.12), ")


@pytest.mark.parametrize("script", deb.MAINTAINER_SCRIPTS)
def test_a_maintainer_script_is_valid_and_stops_at_the_first_error(script: str) -> None:
    path = ROOT / "packaging/debian" / script
    assert path.read_text().startswith("#!/bin/sh\nset -e\n")
    subprocess.run(["sh", "-n", path], check=True)


def test_the_changelog_begins_with_the_version_of_the_project() -> None:
    first = (ROOT / "packaging/debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"qosd ({VERSION}) ")


def test_every_dependency_is_pinned_at_a_version_that_the_project_accepts() -> None:
    lines = (ROOT / "packaging/requirements.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lines, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pins[requirement.name]), f"{requirement}: run `make pins`"
