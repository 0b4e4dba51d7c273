"""The configuration: schema, defaults, units, `decode`. Pure: reading and guarding the file is the daemon's.

Every constant that shapes behaviour is a field here, with its range and, where it has one, its source.
"""

from __future__ import annotations

import difflib
import enum
import fnmatch
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
import tomli
from msgspec import Meta

from qosd.errors import ConfigError
from qosd.model import Tier
from qosd.net.config import Bitrate, Net, parse_bitrate
from qosd.net.config import check as check_net
from qosd.net.device import MAX_WORKLOAD_CLASSES
from qosd.schema.cpu import Cpu, CpusetMode
from qosd.schema.cpu import check as check_cpu
from qosd.schema.ebpf import Ebpf
from qosd.schema.ebpf import check as check_ebpf
from qosd.schema.fast import Fast
from qosd.schema.fast import check as check_fast
from qosd.schema.interference import Interference
from qosd.schema.interference import check as check_interference
from qosd.schema.io import Io
from qosd.schema.io import check as check_io
from qosd.schema.memory import Memory
from qosd.schema.memory import check as check_memory
from qosd.schema.pools import Pool
from qosd.schema.pools import check as check_pools
from qosd.schema.prediction import Prediction
from qosd.schema.prediction import check as check_prediction
from qosd.schema.signal import SignalRule
from qosd.schema.signal import check as check_signals
from qosd.schema.units import ByteSize, Duration, Section, parse_duration, parse_size, within
from qosd.schema.windows import Window
from qosd.schema.windows import check as check_windows


class Mode(enum.StrEnum):
    ENFORCE = "enforce"
    OBSERVE = "observe"


class OnForeignWrite(enum.StrEnum):
    YIELD = "yield"
    REASSERT = "reassert"


class Host(Section, frozen=True):
    cpu_target_pct: Annotated[float, Meta(gt=0, le=100)] = 95.0
    memory_target_pct: Annotated[float, Meta(gt=0, le=100)] = 80.0


class Ownership(Section, frozen=True):
    on_foreign_write: OnForeignWrite = OnForeignWrite.YIELD
    contested_after: Annotated[int, Meta(ge=1)] = 3
    contested_window: Duration = Duration(60_000_000)
    contested_hold: Duration = Duration(300_000_000)
    backoff_first: Duration = Duration(2_000_000)
    backoff_max: Duration = Duration(300_000_000)


class Sense(Section, frozen=True):
    fd_budget: Annotated[int, Meta(ge=64, le=100_000)] = 2500
    max_cgroups: Annotated[int, Meta(ge=1)] = 20_000
    max_depth: Annotated[int, Meta(ge=1, le=500)] = 64
    cold_ticks: Annotated[int, Meta(ge=1)] = 10
    walk_from: Annotated[int, Meta(ge=1, le=1_000_000)] = 250


class Metrics(Section, frozen=True):
    listen: str = "127.0.0.1:9753"


class Control(Section, frozen=True):
    socket: str = "/run/qosd/control.sock"
    group: str = "qosd"


class WorkloadRule(Section, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    tier: Tier
    match: Annotated[tuple[str, ...], Meta(min_length=1)]
    priority: Annotated[int, Meta(ge=0, le=100)] = 0
    cpu_max_pct: Annotated[float, Meta(gt=0, le=100)] | None = None
    egress_max: Bitrate | None = None
    kill: bool = False
    pool: str | None = None
    cpu_target_pct: Annotated[float, Meta(gt=0, le=100)] | None = None
    cpus: Annotated[int, Meta(ge=1, le=8192)] | None = None
    oom_group: bool = False
    page_cache_reclaim: bool = True
    page_cache_high: ByteSize | None = None
    page_cache_low: ByteSize | None = None


DEFAULT_WORKLOADS = (
    WorkloadRule(name="ls", tier=Tier.LS, match=("ls.slice",)),
    WorkloadRule(name="be", tier=Tier.BE, match=("be.slice",)),
)


class Config(Section, frozen=True):
    mode: Mode = Mode.ENFORCE
    interval: Duration = Duration(1_000_000)
    host: Host = Host()
    cpu: Cpu = Cpu()
    prediction: Prediction = Prediction()
    fast: Fast = Fast()
    io: Io = Io()
    memory: Memory = Memory()
    ownership: Ownership = Ownership()
    sense: Sense = Sense()
    net: Net = Net()
    interference: Interference = Interference()
    ebpf: Ebpf = Ebpf()
    metrics: Metrics = Metrics()
    control: Control = Control()
    workload: tuple[WorkloadRule, ...] = DEFAULT_WORKLOADS
    pool: tuple[Pool, ...] = ()
    window: tuple[Window, ...] = ()
    signal: tuple[SignalRule, ...] = ()


def decode(text: str) -> Config:
    """Parse and validate a whole configuration; raises `ConfigError` naming the key by its path."""
    try:
        document = tomli.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: int() refuses 5000 digits, tomli itself deep nesting.
        raise ConfigError(f"not TOML: {error}") from None
    _refuse_unknown_keys(document, Config, "")
    try:
        config = msgspec.convert(document, Config, dec_hook=_decode_quantity)
    except msgspec.ValidationError as error:
        raise ConfigError(_readable(str(error))) from None
    _check_together(config)
    return config


def _decode_quantity(kind: type, value: object) -> object:
    if kind is Duration and isinstance(value, str):
        return parse_duration(value)
    if kind is ByteSize and isinstance(value, str):
        return parse_size(value)
    if kind is ByteSize and type(value) is int and value >= 0:
        return ByteSize(value)
    if kind is Bitrate and isinstance(value, str):
        return parse_bitrate(value)
    example = {Duration: '"500ms"', Bitrate: '"200Mbit"'}.get(kind, '"2GiB"')
    raise ValueError(f"expected a quantity with its unit such as {example}, got {value!r}")


def _readable(message: str) -> str:
    """An operator looks for `cpu.weight.ls_weight`; msgspec says "... - at `$.cpu.weight.ls_weight`"."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if what.startswith("Invalid enum value"):
        what = f"must be one of {', '.join(_choices(key))}, not {what.removeprefix('Invalid enum value ')}"
    return f"{key}: {what}" if key else what


def _choices(key: str) -> Iterator[str]:
    """The words that a key takes, which msgspec does not name."""
    schema: type[msgspec.Struct] = Config
    hint: Any = None
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        hint = get_type_hints(schema)[part]
        schema = _struct_of(hint) or schema
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
            yield from (f"'{member.value}'" for member in kind)


def _refuse_unknown_keys(document: dict[str, Any], schema: type[msgspec.Struct], prefix: str) -> None:
    hints = get_type_hints(schema)
    for key, value in document.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(hints)}"
            raise ConfigError(f"{prefix}{key}: unknown key; {hint}")
        inner = _struct_of(hints[key])
        if inner is None:
            continue
        if isinstance(value, dict):
            _refuse_unknown_keys(value, inner, f"{prefix}{key}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    _refuse_unknown_keys(item, inner, f"{prefix}{key}[{index}].")


def _struct_of(hint: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - a type hint is any object
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _check_together(config: Config) -> None:
    """What no single field can say: ranges of quantities, names used twice, tiers that overlap."""
    _refuse(
        within("interval", config.interval, 100_000, 10_000_000, "100ms to 10s")
        or check_cpu(config.cpu)
        or check_prediction(config.prediction)
        or check_fast(config.fast)
        or check_io(config.io)
        or check_memory(config.memory)
        or check_net(config.net)
        or check_interference(config.interference)
        or check_ebpf(config.ebpf)
        or check_pools(config.pool)
        or check_windows(config.window)
        or _check_cpu_of_workloads(config)
    )
    names: set[str] = set()
    for index, rule in enumerate(config.workload):
        if rule.name in names:
            raise ConfigError(
                f"workload[{index}].name: {rule.name!r} is used twice; give each rule its own name"
            )
        names.add(rule.name)
        if rule.kill and rule.tier is not Tier.BE:
            raise ConfigError(f"workload[{index}].kill: only BE is killed; {rule.name!r} is {rule.tier}")
        for pattern in rule.match:
            _check_pattern(pattern, f"workload[{index}].match")
        if rule.oom_group and rule.tier is not Tier.BE:
            raise ConfigError(
                f"workload[{index}].oom_group: only BE is killed as a whole; {rule.name!r} is LS"
            )
    _check_overlap(config.workload)
    _check_egress(config)
    ls_names = frozenset(rule.name for rule in config.workload if rule.tier is Tier.LS)
    _refuse(check_signals(config.signal, ls_names))
    for index, rule in enumerate(config.workload):
        _refuse(_page_cache(rule, f"workload[{index}]"))


def _page_cache(rule: WorkloadRule, key: str) -> str | None:
    if rule.page_cache_low is None:
        return None
    if rule.page_cache_high is None:
        return f"{key}.page_cache_low: means nothing without page_cache_high"
    if rule.page_cache_low > rule.page_cache_high:
        return f"{key}.page_cache_low: must not be above page_cache_high"
    return None


def _check_egress(config: Config) -> None:
    limited = 0
    for index, rule in enumerate(config.workload):
        if rule.egress_max is None:
            continue
        limited += 1
        if rule.tier is not Tier.BE:
            raise ConfigError(
                f"workload[{index}].egress_max: only BE is limited; {rule.name!r} is {rule.tier}"
            )
        if limited > MAX_WORKLOAD_CLASSES:
            raise ConfigError(
                f"workload[{index}].egress_max: at most {MAX_WORKLOAD_CLASSES} rules can have one"
            )


def _check_cpu_of_workloads(config: Config) -> str | None:
    pools = {pool.name for pool in config.pool}
    tiers: dict[str, Tier] = {}
    for index, rule in enumerate(config.workload):
        key = f"workload[{index}]"
        if rule.cpus is not None and rule.tier is not Tier.LS:
            return f"{key}.cpus: only LS can have CPUs of its own; {rule.name!r} is {rule.tier}"
        if rule.cpus is not None and config.cpu.cpuset.mode is CpusetMode.NEVER:
            return f'{key}.cpus: cpu.cpuset.mode = "never" keeps qosd from giving {rule.name!r} its CPUs'
        if rule.pool is None:
            continue
        if rule.pool not in pools:
            return f"{key}.pool: there is no [[pool]] named {rule.pool!r}"
        if tiers.setdefault(rule.pool, rule.tier) is not rule.tier:
            return f"{key}.pool: {rule.pool!r} holds {tiers[rule.pool]} already; a pool is of one tier"
    return None


def _refuse(why: str | None) -> None:
    if why is not None:
        raise ConfigError(why)


def _check_pattern(pattern: str, key: str) -> None:
    parts = pattern.split("/")
    if not pattern or pattern.startswith("/") or any(part in ("", ".", "..", "**") for part in parts):
        raise ConfigError(
            f"{key}: {pattern!r} must be a path below the cgroup2 mount without a leading slash,"
            ' as "be.slice" or "system.slice/*.service"'
        )


def _check_overlap(rules: tuple[WorkloadRule, ...]) -> None:
    claims = [
        (rule, pattern, f"workload[{index}].match")
        for index, rule in enumerate(rules)
        for pattern in rule.match
    ]
    for position, (rule, pattern, key) in enumerate(claims):
        for other, other_pattern, _ in claims[:position]:
            if rule.tier is not other.tier and patterns_overlap(pattern, other_pattern):
                raise ConfigError(
                    f"{key}: {pattern!r} ({rule.tier} {rule.name!r}) overlaps {other_pattern!r}"
                    f" ({other.tier} {other.name!r}); a cgroup can be in one tier only"
                )


def patterns_overlap(one: str, two: str) -> bool:
    """Whether a cgroup matched by one may be, or contain, a cgroup matched by the other.

    Exact for a literal against a glob; two globs in one component are taken to overlap when either
    matches the other's text, and `match` at run time refuses what slips through.
    """
    return all(
        fnmatch.fnmatchcase(a, b) or fnmatch.fnmatchcase(b, a)
        for a, b in zip(one.split("/"), two.split("/"), strict=False)
    )
