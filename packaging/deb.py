#!/usr/bin/env python3
"""Builds dist/qosd_VERSION_ARCH.deb from the wheel: a private virtual environment, units, config, man pages.

Needs Python 3.11 with pip, and dpkg-deb; no root. Nothing of the building machine is in the package: the
interpreter is Debian's, and the same commit gives the same bytes.
"""

from __future__ import annotations

import argparse
import configparser
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import manpage

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path("usr/lib/qosd")
SITE = PREFIX / "lib/python3.11/site-packages"
DOC = Path("usr/share/doc/qosd")
PYVENV = "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n"
LAUNCHER = (
    "#!/usr/lib/qosd/bin/python3 -I\nfrom {module} import {function}\n\nraise SystemExit({function}())\n"
)
MAINTAINER_SCRIPTS = ("postinst", "prerm", "postrm")
UNWANTED = (
    "bin",  # launchers with the building machine's interpreter
    "qosd/lab",  # the test machine's side of the project
    "psutil/tests",
    "backports/zstd/_cffi",  # for PyPy
    "backports/zstd/zipfile",  # copies of whole modules of Python that know zstd
    "backports/zstd/tarfile.py",
    "*.dist-info/RECORD",  # no longer true after this list
    "*.dist-info/direct_url.json",  # the wheel's path on the building machine
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
    "**/*.pyi",
    "**/__pycache__",
)


def run(*command: str | Path, epoch: int) -> None:
    subprocess.run(command, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)})


def last_commit_time() -> int:
    """What the package's timestamps are clamped to, in seconds since 1970, unless SOURCE_DATE_EPOCH says."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def install_libraries(site: Path, wheel: Path, epoch: int) -> None:
    """--no-deps on purpose: requirements.txt is the whole list, with a hash for each wheel."""
    pip = (
        sys.executable,
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-warn-conflicts",
    )
    target = ("--no-deps", "--no-compile", "--only-binary=:all:", "--target", site)
    pins = ROOT / "packaging/requirements.txt"
    run(*pip, *target, "--require-hashes", "-r", pins, epoch=epoch)
    run(*pip, *target, "--upgrade", wheel, epoch=epoch)


def prune(site: Path) -> None:
    for pattern in UNWANTED:
        for path in list(site.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def compile_bytecode(root: Path, epoch: int) -> None:
    """Unchecked hashes: no timestamp makes such a .pyc stale, so starting neither compiles nor writes."""
    strip = ("-s", root, "-p", "/")
    run(
        *(sys.executable, "-I", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"),
        *(*strip, root / SITE),
        epoch=epoch,
    )


def put(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def compressed(text: str) -> bytes:
    return gzip.compress(text.encode(), 9, mtime=0)


def console_scripts(site: Path) -> dict[str, tuple[str, str]]:
    """The commands of the wheel: name to module and function."""
    (entry_points,) = site.glob("qosd-*.dist-info/entry_points.txt")
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(entry_points.read_text())
    scripts = {}
    for name, target in parser["console_scripts"].items():
        module, _, function = target.partition(":")
        scripts[name] = (module, function)
    return scripts


def stage_environment(root: Path) -> None:
    """The virtual environment around the site-packages that are already in `root`."""
    put(root / PREFIX / "pyvenv.cfg", PYVENV)
    binaries = root / PREFIX / "bin"
    binaries.mkdir()
    (binaries / "python3").symlink_to("../../../bin/python3.11")
    (root / "usr/bin").mkdir()
    for name, (module, function) in console_scripts(root / SITE).items():
        put(binaries / name, LAUNCHER.format(module=module, function=function), 0o755)
        (root / "usr/bin" / name).symlink_to(f"../lib/qosd/bin/{name}")


def stage_files(root: Path, source: Path) -> None:
    """Units, config, man pages, completion and the papers, from the tree at `source`."""
    config = (source / "etc/qosd.toml").read_text()
    put(root / "etc/qosd/qosd.toml", config)
    for unit in sorted((source / "systemd").iterdir()):
        put(root / "lib/systemd/system" / unit.name, unit.read_bytes())
    for page in sorted((source / "docs/man").glob("*.[1-8]")):
        put(root / f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz", compressed(page.read_text()))
    frame = (source / "docs/man/qosd.toml.5.in").read_text()
    put(root / "usr/share/man/man5/qosd.toml.5.gz", compressed(manpage.render(frame, config)))
    put(
        root / "usr/share/bash-completion/completions/qosctl", (source / "packaging/qosctl.bash").read_bytes()
    )
    debian = source / "packaging/debian"
    put(root / DOC / "copyright", (debian / "copyright").read_bytes())
    for page in sorted((source / "docs").glob("*.md")):
        put(root / DOC / page.name, page.read_bytes())  # the configuration's comments name them
    put(root / DOC / "changelog.gz", compressed((debian / "changelog").read_text()))


def installed_size(root: Path) -> int:
    """In KiB as Debian policy counts: each file rounded up, one for each directory and link."""
    paths = [path for path in root.rglob("*") if "DEBIAN" not in path.relative_to(root).parts]
    return sum(
        -(-path.lstat().st_size // 1024) if path.is_file() and not path.is_symlink() else 1 for path in paths
    )


def stage_control(root: Path, source: Path, version: str, architecture: str) -> None:
    debian = source / "packaging/debian"
    control = (debian / "control").read_text()
    values = {"VERSION": version, "ARCHITECTURE": architecture, "INSTALLED_SIZE": str(installed_size(root))}
    for name, value in values.items():
        control = control.replace(f"@{name}@", value)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
    ]
    put(root / "DEBIAN/control", control)
    put(root / "DEBIAN/conffiles", (debian / "conffiles").read_bytes())
    put(root / "DEBIAN/md5sums", "".join(sums))
    for name in MAINTAINER_SCRIPTS:
        put(root / "DEBIAN" / name, (debian / name).read_bytes(), 0o755)


def normalise(root: Path) -> None:
    """Modes that do not depend on the umask of whoever builds."""
    for path in [root, *root.rglob("*")]:
        if path.is_symlink():
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable and path.suffix != ".so" else 0o644)


def pack(root: Path, out: Path, epoch: int) -> Path:
    """dpkg-deb clamps every timestamp to SOURCE_DATE_EPOCH."""
    fields = dict(
        line.split(": ", 1)
        for line in (root / "DEBIAN/control").read_text().splitlines()
        if line[:1].isalpha()
    )
    target = out / f"qosd_{fields['Version']}_{fields['Architecture']}.deb"
    out.mkdir(exist_ok=True)
    run("dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--build", root, target, epoch=epoch)
    return target


def build(wheel: Path, out: Path) -> Path:
    epoch = last_commit_time()
    version = wheel.name.split("-")[1]
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="qosd-deb-") as directory:
        root = Path(directory) / "root"
        install_libraries(root / SITE, wheel, epoch)
        prune(root / SITE)
        compile_bytecode(root, epoch)
        stage_environment(root)
        stage_files(root, ROOT)
        stage_control(root, ROOT, version, architecture)
        normalise(root)
        return pack(root, out, epoch)


def main() -> None:
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(f"deb.py: needs Python 3.11, as Debian 12 has it: this is {sys.version.split()[0]}")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    build(arguments.wheel, arguments.out)


if __name__ == "__main__":
    main()
