"""Builds the Debian disk the lab boots, and keeps it in a cache outside the checkout.

Two layers, each named by a hash of all that goes into it: the packages (a minute, from the network) and the
disk made of them with our own few files (seconds). Both appear under their name only once they are whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KERNELS = {"6.1": "linux-image-cloud-amd64", "6.12": "linux-image-6.12-cloud-amd64"}
PACKAGES = (
    *(
        "systemd",
        "systemd-sysv",
        "systemd-oomd",
        "udev",
        "dbus",
        "kmod",
        "procps",
        "psmisc",
        "util-linux-extra",
    ),
    *("iproute2", "iputils-ping", "curl", "ca-certificates", "less", "zstd", "initramfs-tools", "busybox"),
    # What the .deb depends on: the guest has no network, so apt must find everything installed.
    *("python3", "adduser", "libbpf1", "libelf1", "zlib1g", "bash-completion", "man-db"),
    # Loads to mix.
    *("redis-server", "redis-tools", "nginx-light", "stress-ng", "fio", "iperf3"),
)
VARIANTS = {"base": (), "bcc": ("python3-bpfcc", "bpfcc-tools", "linux-headers-cloud-amd64")}
DISK_SIZE = "6G"  # sparse
KEPT = 3  # images, most recently used first: several checkouts may each have their recipe

# Started by who wants them, never by the boot.
DISABLED = (
    *(
        "redis-server.service",
        "nginx.service",
        "systemd-oomd.service",
        "systemd-oomd.socket",
        "e2scrub_reap.service",
    ),
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ),
    *("man-db.timer", "getty@tty1.service", "remote-fs.target", "systemd-pstore.service"),
)
# A getty would swallow the console; the rest takes seconds of an emulated CPU, and nobody here uses it.
MASKED = (
    *("serial-getty@ttyS0.service", "serial-getty@hvc0.service", "systemd-networkd-wait-online.service"),
    *(
        "systemd-binfmt.service",
        "proc-sys-fs-binfmt_misc.automount",
        "dev-hugepages.mount",
        "dev-mqueue.mount",
    ),
    *("sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "systemd-update-utmp.service"),
    "systemd-update-utmp-runlevel.service",
    *(f"modprobe@{module}.service" for module in ("configfs", "dm_mod", "drm", "fuse", "loop")),
)
# Generators run at every boot and reload. Those of use are left: fstab's, and debug's for the command line.
GENERATORS = tuple(
    f"systemd-{name}-generator"
    for name in (
        *("bless-boot", "cryptsetup", "getty", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local"),
        *("system-update", "sysv", "veritysetup"),
    )
)


class BuildError(Exception):
    """The image could not be built; the message ends with the tool's last words."""


@dataclasses.dataclass(frozen=True)
class Image:
    """A disk and its kernels, whole and in the cache."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.ext4"

    def kernel(self, version: str) -> Path:
        return self.directory / f"vmlinuz-{version}"

    def initrd(self, version: str) -> Path:
        return self.directory / f"initrd-{version}"


def cache_dir() -> Path:
    """The lab's cache, made if need be: $QOSD_LAB_CACHE or ~/.cache/qosd-lab."""
    path = Path(os.environ.get("QOSD_LAB_CACHE") or Path.home() / ".cache/qosd-lab")
    path.mkdir(parents=True, exist_ok=True)
    return path


def ensure_image(variant: str = "base", *, fresh: bool = False) -> Image:
    """The image of the present recipe, built if it is not cached or is wanted `fresh` (newest packages)."""
    cache = cache_dir()
    packages = _hash(SUITE, *KERNELS.values(), *PACKAGES, *VARIANTS[variant], *_tree(HERE / "initramfs"))
    recipe = _hash(
        packages, DISK_SIZE, *DISABLED, *MASKED, *GENERATORS, _DISK_SCRIPT, *_tree(HERE / "overlay"), _agent()
    )
    rootfs, image = cache / f"rootfs-{packages}.tar", Image(cache / f"image-{recipe}")
    if not image.directory.exists() or fresh:
        with _locked(cache):
            if fresh:
                _remove(rootfs, image.directory)
            if not rootfs.exists():
                _build_rootfs(rootfs, variant)
            if not image.directory.exists():
                _build_disk(rootfs, image)
            os.utime(rootfs)
            _prune(cache)
    os.utime(image.directory)
    return image


def _agent() -> str:
    return (HERE / "agent.py").read_text()


def _tree(directory: Path) -> list[str]:
    """Every file's place, mode and content, in a fixed order."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [
        f"{path.relative_to(directory)} {path.stat().st_mode & 0o111}\n{path.read_text()}" for path in files
    ]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("==> waiting for another build of the image", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prune(cache: Path) -> None:
    for pattern in ("image-*", "rootfs-*.tar"):
        newest_first = sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
        _remove(*newest_first[KEPT:])
    # We hold the lock: what a killed build left is nobody's.
    _remove(*cache.glob("building-*"))


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"==> {what}", file=sys.stderr, flush=True)
    start = time.monotonic()
    yield
    print(f"    done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _build_rootfs(rootfs: Path, variant: str) -> None:
    with (
        _step("fetching Debian and two kernels for the lab (about a minute and a half)"),
        _scratch(rootfs) as scratch,
    ):
        tar = scratch / "rootfs.tar"
        packages = ",".join((*KERNELS.values(), *PACKAGES, *VARIANTS[variant]))
        _run(
            *(
                "mmdebstrap",
                "--variant=apt",
                "--architectures=amd64",
                f"--include={packages}",
                *_apt_options(),
            ),
            # The guest is for trying software, not for reading about the system it came with.
            *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
            f'--essential-hook=cp -rT {shlex.quote(str(HERE / "initramfs"))} "$1/etc/initramfs-tools"',
            *(SUITE, str(tar), *_debian_sources()),
            log=rootfs.parent / "build.log",
        )
        tar.rename(rootfs)


def _build_disk(rootfs: Path, image: Image) -> None:
    with _step("making the lab's disk (about 5 seconds)"), _scratch(image.directory) as scratch:
        made = scratch / "image"
        made.mkdir()
        # As root when we are, else as root of fakeroot's making: the owners in the tar end up on the disk.
        fakeroot = () if os.geteuid() == 0 else ("fakeroot",)
        _run(
            *(*fakeroot, "sh", "-euc", _DISK_SCRIPT, "sh"),
            *(str(scratch / "root"), str(rootfs), str(HERE), str(made), DISK_SIZE),
            *(" ".join(DISABLED), " ".join(MASKED), " ".join(GENERATORS), *KERNELS),
            log=rootfs.parent / "build.log",
        )
        made.rename(image.directory)


_DISK_SCRIPT = """
root=$1 rootfs=$2 here=$3 made=$4 size=$5 disabled=$6 masked=$7 generators=$8
shift 8
mkdir "$root"
# fakeroot loses the mode of a file whose attributes it sets. There is one, ping, and root needs none.
attributes='--xattrs --xattrs-include=*'
[ -z "${FAKEROOTKEY-}" ] || attributes=
tar -C "$root" --numeric-owner $attributes -xpf "$rootfs"
cp -rT "$here/overlay" "$root"
install -m 755 "$here/agent.py" "$root/usr/local/lib/lab-agent.py"
# A constant identity, or the first boot would apply the presets and enable everything again.
echo 716f73646c616200716f73646c616200 >"$root/etc/machine-id"
# The packages' files were thinned; what is installed into the guest later is to be whole.
rm -f "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$root"/etc/apt/apt.conf.d/99mmdebstrap
rm -f "$root"/var/lib/man-db/auto-update
for unit in $disabled; do
    find "$root/etc/systemd/system" -path "*.wants/$unit" -delete
done
for unit in $masked; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir -p "$root/etc/systemd/system-generators"
for generator in $generators; do
    ln -s /dev/null "$root/etc/systemd/system-generators/$generator"
done
for version in "$@"; do
    cp "$root"/boot/vmlinuz-"$version".* "$made/vmlinuz-$version"
    cp "$root"/boot/initrd.img-"$version".* "$made/initrd-$version"
done
rm -f "$root"/boot/initrd.img-*
mkfs.ext4 -q -L lab -m 0 -d "$root" "$made/disk.ext4" "$size"
"""


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A directory beside the target, so that the finished thing can be renamed into its place."""
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as directory:
        yield Path(directory)


def _run(*argv: str, log: Path) -> None:
    """Run a builder that ends when we do."""
    with log.open("ab") as output:
        status = subprocess.run(
            ("setpriv", "--pdeathsig", "TERM", *argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        ).returncode
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BuildError(f"{argv[0]} ended with {status}; the end of {log}:\n{tail}")


def _debian_sources() -> list[str]:
    """The machine's own way to this Debian, else the public one, as lines of a sources.list."""
    wanted = "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)"
    listed = _output("apt-get", "indextargets", "--format", wanted, "Created-By: Packages")
    suites = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    found = {}
    for line in listed.splitlines():
        origin, suite, component, uri = line.split(" ", 3)
        # The origin is only known once the lists were fetched.
        if origin in {"Debian", "$(ORIGIN)"} and suite in suites and component == "main":
            found[suite] = f"deb {signed}{uri} {suite} main"
    public = {suite: f"deb {signed}http://deb.debian.org/debian {suite} main" for suite in suites}
    public[f"{SUITE}-security"] = f"deb {signed}http://deb.debian.org/debian-security {SUITE}-security main"
    return list(found.values()) if SUITE in found else list(public.values())


def _apt_options() -> list[str]:
    """The machine's proxies and clock leniency: mmdebstrap starts from an empty apt configuration."""
    kept = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-")
    lines = _output("apt-config", "dump").splitlines()
    options = [f"--aptopt={line}" for line in lines if line.startswith(kept) and not line.endswith(' "";')]
    credentials = "/etc/apt/auth.conf.d"
    return (
        [*options, f'--setup-hook=cp -r {credentials} "$1/etc/apt/"']
        if any(os.scandir(credentials))
        else options
    )


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""  # not a Debian: the public archive is asked, without options
