"""Whatever a configuration holds, it decodes or it is refused with a ConfigError."""

from __future__ import annotations

import contextlib

import msgspec
from configkit import KEYS, set_key
from hypothesis import example, given
from hypothesis import strategies as st

from qosd.config import (
    decode,
)
from qosd.errors import ConfigError

TOML_VALUES = st.recursive(
    st.integers()
    | st.floats()
    | st.booleans()
    | st.text(max_size=8)
    | st.sampled_from(["1s", "be.slice", "be"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "tier", "match"]), inner)
    ),
    max_leaves=6,
)


def to_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    return str(value).lower()


@given(st.sampled_from([*KEYS, "host", "cpu", "cpu.weight", "sense", "workload"]), TOML_VALUES)
@example("interval", "9" * 400 + "h")
@example("cpu.bandwidth.mean", "9" * 5000 + "s")
@example("sense.max_cgroups", 1 << 70)
@example("host.cpu_target_pct", float("nan"))
def test_any_value_of_any_key_gives_a_config_or_a_config_error(key: str, value: object) -> None:
    with contextlib.suppress(ConfigError):
        decode(set_key(key, to_toml(value)))


@given(st.text(max_size=200) | st.text("[]{}=\"'\n.,#x1-", max_size=60))
@example("x = " + "[" * 5000)
@example("x = " + "{a=" * 5000)
@example("x = " + "9" * 5000)
@example("a." * 3000 + "a = 1")
@example("\ud800")
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        decode(text)
