"""What becomes of one wanted value: every state of its file against everything that may stand in it."""

from __future__ import annotations

import pytest

from qosd.config import OnForeignWrite, Ownership
from qosd.files import Key
from qosd.model import CgroupId, CpuMax, Tier
from qosd.plan import Desired, FileState, Now, Reason, diff

NOW = 1_000_000_000
VALUES = {"orig": "max 100000", "old": "5000 10000", "want": "7000 10000", "third": "44444 100000"}
HELD = {
    "nothing": FileState(),
    "ours-old": FileState(original=VALUES["orig"], ours=VALUES["old"]),
    "ours": FileState(original=VALUES["orig"], ours=VALUES["want"]),
    "ours-2-fights": FileState(original=VALUES["orig"], ours=VALUES["want"], fights=(NOW - 2, NOW - 1)),
    "ours-2-old-fights": FileState(original=VALUES["orig"], ours=VALUES["want"], fights=(1, 2)),
    "truce": FileState(original=VALUES["orig"], ours=VALUES["want"], contested_until=NOW + 1),
    "truce-over": FileState(original=VALUES["orig"], ours=VALUES["want"], contested_until=NOW),
    "yielded": FileState(yielded_to=VALUES["third"], yielded_original=VALUES["orig"]),
    "refused": FileState(failures=1, retry_at=NOW + 1),
    "refused-long-ago": FileState(failures=1, retry_at=NOW),
}
# held              holds  systemd   on_foreign_write -> standing
MATRIX = """
nothing             orig   quiet     yield            writing
nothing             want   quiet     yield            already
ours-old            old    quiet     yield            writing
ours                want   quiet     yield            in-force
ours                orig   quiet     yield            writing
ours                orig   reloaded  yield            writing
ours                third  quiet     yield            yielded
ours                third  quiet     reassert         writing
ours-2-fights       orig   quiet     yield            contested
ours-2-fights       orig   reloaded  yield            writing
ours-2-fights       third  quiet     reassert         contested
ours-2-fights       want   quiet     yield            in-force
ours-2-old-fights   orig   quiet     yield            writing
truce               orig   quiet     yield            contested
truce               want   quiet     yield            in-force
truce-over          orig   quiet     yield            writing
yielded             third  quiet     yield            yielded
yielded             old    quiet     yield            yielded
yielded             orig   quiet     yield            writing
yielded             want   quiet     yield            already
refused             orig   quiet     yield            backoff
refused-long-ago    orig   quiet     yield            writing
"""


@pytest.mark.parametrize("row", MATRIX.strip().splitlines(), ids=lambda row: "-".join(row.split()))
def test_a_wanted_value_stands_as_the_matrix_says(row: str) -> None:
    held, holds, systemd, policy, standing = row.split()
    key = Key(7, "cpu.max")
    wanted = Desired(CgroupId(7), "be.slice", Tier.BE, CpuMax(7000, 10_000), Reason("test", "test"))
    now = Now(NOW, {key: VALUES[holds]}, systemd == "reloaded")

    _, plan = diff(now, (wanted,), {key: HELD[held]}, Ownership(on_foreign_write=OnForeignWrite(policy)))

    assert plan.states[key].value == standing
    assert bool(plan.writes) == (standing == "writing")
