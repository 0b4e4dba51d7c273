"""`qosctl victims`: who would be frozen and killed first, who never, and why."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qosd.ctl import client, screen
from qosd.ctl.options import print_json
from qosd.interference.view import VictimsView

_ANSWERS = {
    "report": "Nothing is frozen or killed: interference.answer is report.",
    "throttle": "Nothing is frozen or killed: interference.answer is throttle.",
    "freeze": "Nothing is killed: interference.answer is freeze.",
    "kill": "Killing is allowed: interference.answer is kill.",
}


def render(view: VictimsView) -> Group:
    left = view.kills_left
    budget = (
        f"The budget leaves {left.window} now and {left.day} today"
        + ("" if left.now else ", the next one later")
        + "."
    )
    return Group(Text(f"{_ANSWERS[view.answer]} {budget}"), Text(), _table(view))


def _table(view: VictimsView) -> Table:
    columns = ("FREEZE", "KILL", "WORKLOAD", "TIER", "PRIORITY", "MEMORY", "CGROUP", "WHY")
    built = screen.table(*columns, right=("FREEZE", "KILL", "PRIORITY", "MEMORY"))
    for each in view.victims:
        built.add_row(
            "never" if each.freeze_rank is None else str(each.freeze_rank),
            "never" if each.kill_rank is None else str(each.kill_rank),
            each.workload,
            each.tier.upper(),
            str(each.priority),
            screen.size(each.memory_bytes),
            each.path,
            each.why,
        )
    return built


def show(socket: str, *, json: bool) -> None:
    if json:
        print_json(client.ask(socket, "victims"))
    else:
        screen.console().print(render(client.ask_for(socket, "victims", VictimsView)))
