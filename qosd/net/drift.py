"""Whether the classes in the kernel are still those of the shape that was applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qosd.net.device import ClassNews
from qosd.net.status import class_id
from qosd.net.tc import class_requests, leaf_requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qosd.net.model import ClassSample, Shape


def of_reading(shape: Shape, classes: Iterable[ClassSample]) -> str | None:
    """What differs in a reading of all classes, in words."""
    found = {sample.classid: (sample.rate_bps, sample.ceil_bps) for sample in classes}
    return _differs(shape, {number: found.get(number) for number in _wanted(shape)})


def of_news(shape: Shape, news: Iterable[ClassNews]) -> str | None:
    """The same from the kernel's notifications; of each class the last one holds, as ours are among them."""
    return _differs(shape, {each.classid: each.rates_bps for each in news})


def _wanted(shape: Shape) -> dict[int, tuple[int, int]]:
    requests = (*class_requests("change-class", shape), *leaf_requests("change-class", shape))
    options = {request.handle: dict(request.options) for request in requests}
    return {number: (8 * each["rate"], 8 * each["ceil"]) for number, each in options.items()}


def _differs(shape: Shape, found: Mapping[int, tuple[int, int] | None]) -> str | None:
    wanted = _wanted(shape)
    for number, rates in sorted(found.items()):
        if number not in wanted or rates == wanted[number]:
            continue
        return f"somebody {'deleted' if rates is None else 'changed'} our class {class_id(number)}"
    return None
