"""Recorded scenes of interference through the laws as they are: the verdicts are still those that were true.

tests/data/scenes.trace.jsonl.gz is what the daemon saw while `bench.scenes` ran some of its events in the
guest; scenes.json has when each began and ended, and whether it harmed the service by the service's own
latency. So a change of a law that blames somebody else, or misses what was felt, fails here without a guest.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.scenes import again
from bench.scenes.labels import Harm
from bench.scenes.score import Scored, belonging
from qosd.config import decode

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
LABELLED = msgspec.json.decode((DATA / "scenes.json").read_bytes(), type=list[Scored])
CLEAR = [each.done.event.id for each in LABELLED if each.label.harm is not Harm.EDGE]


@pytest.fixture(scope="module")
def judged() -> dict[str, Scored]:
    config = decode((ROOT / "bench/scenes/qosd.toml").read_text(encoding="utf-8"))
    verdicts = again.verdicts(config, DATA / "scenes.trace.jsonl.gz", [each.done for each in LABELLED])
    said = belonging([each.done for each in LABELLED], verdicts)
    return {
        each.done.event.id: msgspec.structs.replace(each, said=mine)
        for each, mine in zip(LABELLED, said, strict=True)
    }


@pytest.mark.parametrize("name", CLEAR)
def test_a_recorded_scene_gets_the_verdict_that_was_true(name: str, judged: dict[str, Scored]) -> None:
    scene = judged[name]

    if scene.expected == "be":
        assert scene.is_hit
        assert scene.names_the_culprit
    else:
        assert scene.found != "be", [each.text for each in scene.said]
        assert scene.expected in {"none", scene.found}


def test_the_recorded_scenes_have_harm_through_be_and_through_others_and_none() -> None:
    assert {each.expected for each in LABELLED} == {"be", "self", "ls", "system", "none"}
    assert len(CLEAR) >= 12
