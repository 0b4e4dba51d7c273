"""The lab from a shell: build its image, look around in it, run one command in a fresh machine."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from qosd.lab.channel import CommandError, MachineLostError
from qosd.lab.image import KERNELS, VARIANTS, BuildError, ensure_image
from qosd.lab.machine import Machine


def main() -> int:
    arguments = _parser().parse_args()
    try:
        if arguments.what == "build":
            print(ensure_image(arguments.variant, fresh=arguments.fresh).directory)
            return 0
        return _shell(arguments) if arguments.what == "shell" else _run(arguments)
    except (BuildError, CommandError, MachineLostError, FileNotFoundError, ValueError) as error:
        print(f"qosd.lab: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--kernel", choices=KERNELS, default="6.12")
    machine.add_argument("--share", type=Path, help="a directory of this host, seen as /mnt/share")
    machine.add_argument("--memory", default="3G", help="such as 512M or 3G")
    machine.add_argument("--smp", default="2", help='QEMU\'s -smp: "2" or "4,sockets=2,cores=1,threads=2"')
    machine.add_argument("--append", default="", help="more kernel command line")
    machine.add_argument("--variant", choices=VARIANTS, default="base", help="which packages the image has")
    parser = argparse.ArgumentParser(prog="python -m qosd.lab", description=__doc__)
    whats = parser.add_subparsers(dest="what", required=True)
    build = whats.add_parser("build", help="build the image unless it is in the cache, and print where it is")
    build.add_argument("--variant", choices=VARIANTS, default="base")
    build.add_argument("--fresh", action="store_true", help="fetch everything again")
    whats.add_parser("shell", parents=[machine], help="boot and open a shell; its end is the machine's")
    run = whats.add_parser(
        "run", parents=[machine], help="boot, run a command, power off; its status is ours"
    )
    run.add_argument("--timeout", type=float, default=600)
    run.add_argument("command", nargs="+", help="argv after --; one word alone is given to bash")
    return parser


def _boot(arguments: argparse.Namespace, *, terminal: bool = False) -> Machine:
    ensure_image(arguments.variant)
    _say(f"booting Debian 12 on Linux {arguments.kernel}")
    machine = Machine.boot(
        kernel=arguments.kernel,
        share=arguments.share,
        memory=arguments.memory,
        smp=arguments.smp,
        append=arguments.append,
        variant=arguments.variant,
        terminal=terminal,
    )
    _say(f"up after {machine.seconds_to_boot:.0f} s ({machine.accelerator}); console: {machine.console}")
    return machine


def _run(arguments: argparse.Namespace) -> int:
    command = arguments.command if len(arguments.command) > 1 else arguments.command[0]
    with _boot(arguments) as machine:
        started = time.monotonic()
        done = machine.run(command, timeout=arguments.timeout, check=False)
        _say(f"ended with {done.returncode} after {time.monotonic() - started:.1f} s")
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    status = done.returncode or 0
    return status if status >= 0 else 128 - status


def _shell(arguments: argparse.Namespace) -> int:
    with _boot(arguments, terminal=True) as machine:
        _say("leave it with exit or Ctrl-D")
        shell = "setsid --ctty bash -lc 'stty sane; cd; export TERM=vt220; exec bash -i' <>/dev/hvc0 >&0 2>&0"
        machine.start(shell).wait(check=False)
    return 0


def _say(what: str) -> None:
    print(f"==> {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
