"""The `[prediction]` section: the expected peak of LS and system, for `cpu.bandwidth.estimate`. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from qosd.schema.units import Duration, Section, within


class Prediction(Section, frozen=True):
    half_life: Duration = Duration(600_000_000)
    percentile: Annotated[float, Meta(gt=0, le=100)] = 95.0
    margin_pct: Annotated[float, Meta(ge=0, le=200)] = 10.0
    cold: Duration = Duration(120_000_000)
    checkpoint: Duration = Duration(600_000_000)


def check(prediction: Prediction) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    # In the long run a histogram holds half_life / ln 2 of weight: with more than that it were cold for ever.
    return (
        within("prediction.half_life", prediction.half_life, 10_000_000, 604_800_000_000, "10s to 168h")
        or within("prediction.cold", prediction.cold, 0, prediction.half_life, "0s to prediction.half_life")
        or within("prediction.checkpoint", prediction.checkpoint, 10_000_000, 86_400_000_000, "10s to 24h")
    )
