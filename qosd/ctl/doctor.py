"""`qosctl doctor`: what this host lacks and the remedy, with or without a daemon."""

from __future__ import annotations

import msgspec
from rich.table import Table
from rich.text import Text

from qosd.ctl import client, screen
from qosd.ctl.exits import NO, Failure
from qosd.ctl.options import print_json
from qosd.doctor import Finding, Severity, examine
from qosd.ebpf.status import ProbeStatus
from qosd.status import Status
from qosd.survey import survey

_STYLES = {Severity.OK: "green", Severity.WARN: "yellow", Severity.FAIL: "bold red"}


def render(findings: list[Finding]) -> Table:
    """What is wrong first, each with its remedy below; what is well on one line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for severity in (Severity.FAIL, Severity.WARN):
        for finding in findings:
            if finding.severity is severity:
                label = Text(severity.value.upper(), _STYLES[severity])
                grid.add_row(label, Text.assemble((f"{finding.check}: ", "bold"), finding.text))
                grid.add_row("", Text(f"-> {finding.remedy}"))
    well = [finding.check for finding in findings if finding.severity is Severity.OK]
    grid.add_row(Text("OK", _STYLES[Severity.OK]), ", ".join(well))
    return grid


def _probes(socket: str, running: bool | None) -> tuple[ProbeStatus, ...] | None:  # noqa: FBT001 - as asked
    """What the daemon says of its probes; None where there is none to ask."""
    if not running:
        return None
    try:
        status = client.ask_for(socket, "status", Status)
    except Failure:
        return None
    return status.ebpf.probes if status.ebpf is not None else None


def show(socket: str, config: str, *, json: bool) -> None:
    """Raises `Failure` when something keeps qosd from running at all."""
    try:
        running: bool | None = client.is_running(socket)
    except Failure:
        running = None
    facts = msgspec.structs.replace(survey(config, daemon_running=running), probes=_probes(socket, running))
    findings = examine(facts)
    if json:
        print_json(msgspec.json.encode(findings))
    else:
        screen.console().print(render(findings))
    failed = [finding.check for finding in findings if finding.severity is Severity.FAIL]
    if failed:
        raise Failure(f"qosd cannot work here: {', '.join(failed)}", NO)
