"""`qosctl policy`: operators' own BPF objects as sources of signals."""

from __future__ import annotations

import os

import click
import msgspec

from qosd.ctl import client
from qosd.ctl.options import Options, as_json, print_json, use


@click.command()
@click.argument("action", type=click.Choice(["load", "unload", "list"]))
@click.argument("what", required=False)
@as_json
@use
def policy(options: Options, action: str, what: str | None, json: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Load FILE.toml with the BPF object it declares, unload one by NAME, or list those that are loaded."""
    if (action == "list") != (what is None):
        raise click.UsageError({"load": "load FILE.toml", "unload": "unload NAME"}.get(action, "list alone"))
    given = os.path.abspath(what) if action == "load" and what is not None else what
    answer = client.ask(options.socket, "policy", action=action, what=given)
    if json:
        print_json(answer)
        return
    policies = msgspec.json.decode(answer, type=tuple[_Policy, ...])
    click.echo("\n".join(map(_line, policies)) or "No policy is loaded.")


class _Policy(msgspec.Struct):
    """The part of `qosd.policies.PolicyStatus` that is shown."""

    name: str
    workloads: tuple[str, ...]
    hooks: tuple[str, ...]
    loaded: bool
    cpu_pct: float | None
    error: str | None


def _line(policy: _Policy) -> str:
    if not policy.loaded:
        return f"{policy.name}: unloaded: {policy.error}"
    cost = "" if policy.cpu_pct is None else f", {policy.cpu_pct:.3f} % of the CPUs"
    return f"{policy.name}: on {', '.join(policy.hooks)} for {', '.join(policy.workloads)}{cost}"
