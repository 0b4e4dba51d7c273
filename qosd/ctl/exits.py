"""What qosctl's exit status means, the same in every command."""

from __future__ import annotations

import click

NO = 1
"""The answer is no, or what was asked for failed."""
USAGE = 2
UNREACHABLE = 3
NOT_PERMITTED = 4
REFUSED_CONFIG = 78
CANNOT_START = 125
"""`run` only, as in env(1) and timeout(1): the rest of the range belongs to the command that runs."""
NOT_FOUND = 127

TEXT = """\
\b
Exit status:
  0    done; the answer is yes
  1    the answer is no, or what was asked for failed
  2    the command line is wrong
  3    qosd is not running, or does not answer
  4    not permitted: reading is for root and the group qosd, changing for root
  78   the configuration was refused
  run passes on its command's own status; 125 if it could not start it, 127 if there is no such command.
"""


class Failure(click.ClickException):
    """A sentence for stderr and the exit status that goes with it."""

    def __init__(self, message: str, code: int = NO) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        click.echo(f"qosctl: {self.message}", err=True)
