"""A configuration in words, and the sentence it is refused with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from qosd.config import Config, decode
from qosd.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[1] / "etc/qosd.toml"
WINDOW = '[[window]]\nname = "w"\nhours = "22:00-06:00"\npause_be = true\n'


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(text)
    return str(caught.value)


def set_key(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"[{section}]\n{name} = {value}" if section else f"{name} = {value}"


def workload(name: str, tier: str, *match: str) -> str:
    return f'[[workload]]\nname = "{name}"\ntier = "{tier}"\nmatch = {list(match)}\n'.replace("'", '"')


DEFAULTS = msgspec.to_builtins(Config(), enc_hook=int)


def leaf_keys(value: dict[str, object], prefix: str = "") -> list[str]:
    keys = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            keys += leaf_keys(inner, f"{prefix}{key}.")
        else:
            keys.append(prefix + key)
    return keys


KEYS = leaf_keys(DEFAULTS)
