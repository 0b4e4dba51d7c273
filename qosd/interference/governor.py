"""Interference in one function: signals, verdicts, ladders, and what they ask of everybody else. Pure."""

from __future__ import annotations

import msgspec

from qosd.ask import Apart, Tighten
from qosd.config import Config
from qosd.interference import asks, kills, ladder, victims
from qosd.interference.activity import Frame, be_share_of_capacity
from qosd.interference.blame import Blame, Cause, Shares, judge
from qosd.interference.kills import Effect, Means
from qosd.interference.ladder import Ladder, May, Rung
from qosd.interference.recall import Remembered, adopt
from qosd.interference.signals import BaselineKey, Baselines, Kind, Signal, from_pressure, learn
from qosd.interference.verdict import Docket, Evidence, Hearing, Verdict, evidence, forget, hear
from qosd.model import CgroupFreeze, CgroupId, Snapshot, Tier, Workload, printable
from qosd.plan import Desired, Reason
from qosd.schema.interference import MaxAnswer

RULE = asks.RULE
_NOT_ASKED = Blame(Cause.UNKNOWN, 0.0, "")
_LATE = 3  # intervals: what a tick saw that came so late is no ground for going further


class State(msgspec.Struct, frozen=True, gc=False):
    baselines: Baselines = {}
    docket: Docket = Docket()
    ladders: dict[Kind, Ladder] = {}
    kill: kills.State = kills.State()
    tighten: dict[Kind, Tighten] = {}
    """What the standing ladders for memory and IO ask."""
    apart: Apart | None = None
    remembered: Remembered = {}
    """Baselines of an earlier run, for workloads of which nothing is learned yet."""


class _Tick(msgspec.Struct, frozen=True, gc=False):
    config: Config
    prev: Snapshot | None
    """None where a tick came so late that its rates prove nothing."""
    now: Snapshot
    in_trouble: bool


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the rungs ask of the governors; neutral by default."""

    squeeze: float = 1.0
    """A factor on BE's allowance."""
    avoid_cpus: Apart | None = None
    memory_tighten: Tighten | None = None
    io_tighten: Tighten | None = None
    freeze: tuple[CgroupId, ...] = ()
    lift: CgroupId | None = None
    """A workload without limits now, so that what is killed in it can end: a group at 1 % takes long."""


class Move(msgspec.Struct, frozen=True, gc=False):
    """A ladder went from one rung to another."""

    kind: Kind
    old: Rung
    new: Rung
    path: str
    """Of the victim that matters most; empty where there is none any more."""
    reason: Reason


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """Everything a tick found and wants."""

    answer: Answer = Answer()
    desired: tuple[Desired, ...] = ()
    effects: tuple[Effect, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    began: tuple[Verdict, ...] = ()
    ended: tuple[Verdict, ...] = ()
    moves: tuple[Move, ...] = ()
    ladders: dict[Kind, Ladder] = {}
    exhausted: bool = False
    """A kill would be due, and the budget does not allow it."""


def decide(
    config: Config,
    prev: Snapshot | None,
    now: Snapshot,
    state: State,
    given: tuple[Signal, ...] = (),
    *,
    in_trouble: bool = False,
) -> tuple[State, Outcome]:
    """`given` are signals of others: probes, fed latencies. `in_trouble`: `memory.trouble` holds in full."""
    if prev is not None and now.monotonic_usec - prev.monotonic_usec > _LATE * int(config.interval):
        prev = None
    docket, gone = forget(
        state.docket, frozenset(workload.id for workload in now.tier(Tier.LS)), now.monotonic_usec
    )
    state = msgspec.structs.replace(state, docket=docket)
    tick = _Tick(config, prev, now, in_trouble)
    heard, state, ended, began = _listen(tick, state, given)
    verdicts = tuple(watch.verdict for watch in state.docket.watches.values() if watch.verdict is not None)
    grounds = {kind: Evidence.UNKNOWN if prev is None else evidence(kind, verdicts, heard) for kind in Kind}
    state, effects = _kill(config, now, state, grounds[Kind.MEMORY])
    state, moves, begun = _climb(tick, state, grounds, verdicts)
    answer = _answer(now, state)
    return state, Outcome(
        answer,
        _freezes(config, now, answer, verdicts),
        (*effects, *begun),
        verdicts,
        began,
        (*gone, *ended),
        moves,
        state.ladders,
        kills.exhausted(config.interference.kill, config.interference.answer, state.kill, now),
    )


def _listen(
    tick: _Tick, state: State, given: tuple[Signal, ...]
) -> tuple[frozenset[BaselineKey], State, tuple[Verdict, ...], tuple[Verdict, ...]]:
    """Hear this tick's signals: which they were, the next state, the verdicts that ended and that began."""
    config, prev, now = tick.config, tick.prev, tick.now
    if prev is None:
        return frozenset(), state, (), ()
    section = config.interference
    baselines = adopt(state.baselines, state.remembered, now)
    signals = (*from_pressure(section, prev, now, baselines), *given)
    seen = {signal.victim: signal.culprits for signal in given if signal.kind is Kind.CPU}
    frame = Frame(prev, now, _tightened(state), kills.scarce(section.kill, now) is True, seen)
    paths = {workload.id: printable(workload.path) for workload in now.tier(Tier.LS)}
    hearings = tuple(
        Hearing(
            signal,
            _blame(config, signal, frame, state.docket),
            paths[signal.victim],
            urgent=tick.in_trouble and signal.kind is Kind.MEMORY,
        )
        for signal in signals
        if signal.victim in paths
    )
    result = hear(section, hearings, state.docket, now.monotonic_usec)
    be = be_share_of_capacity(prev, now)
    quiet = be is not None and be * 100 <= section.quiet_pct
    weight = config.ebpf.baseline.breach_weight
    following = msgspec.structs.replace(
        state,
        docket=result.docket,
        baselines=learn(baselines, signals, now, quiet=quiet, breach_weight=weight),
    )
    heard = frozenset(BaselineKey(signal.victim, signal.name) for signal in signals)
    return heard, following, result.ended, result.began


def _blame(config: Config, signal: Signal, frame: Frame, docket: Docket) -> Blame:
    """Asked only where there is something to answer for: it looks at every cgroup."""
    if signal.value < signal.threshold:
        return _NOT_ASKED
    section = config.interference
    return judge(signal, frame, Shares(section.be_share_pct, section.be_seen_pct), docket.seen(signal))


def _tightened(state: State) -> frozenset[Kind]:
    return frozenset(kind for kind, each in state.ladders.items() if each.rung is not Rung.IDLE)


def _kill(config: Config, now: Snapshot, state: State, memory: Evidence) -> tuple[State, tuple[Effect, ...]]:
    """Go on with the kill under way, and keep count of how long LS has waited."""
    kill = state.kill
    if memory is Evidence.QUIET:
        kill = msgspec.structs.replace(kill, hot_since=None)
    elif memory is Evidence.HOT and kill.hot_since is None:
        kill = msgspec.structs.replace(kill, hot_since=now.monotonic_usec)
    kill = msgspec.structs.replace(kill, tried=_tried(now, state))
    following, effect = kills.proceed(config.interference.kill, kill, now)
    ladders = dict(state.ladders)
    under_way = ladders.get(Kind.MEMORY, Ladder())
    if following.pending is None and under_way.rung in (Rung.TERM, Rung.KILL):
        ladders[Kind.MEMORY] = ladder.after_kill(config.interference, now.monotonic_usec, under_way)
    elif effect is not None:
        ladders[Kind.MEMORY] = msgspec.structs.replace(
            under_way, rung=Rung.KILL, since_usec=now.monotonic_usec
        )
    return msgspec.structs.replace(state, kill=following, ladders=ladders), (effect,) if effect else ()


def _tried(now: Snapshot, state: State) -> frozenset[CgroupId]:
    rung = state.ladders.get(Kind.MEMORY, Ladder()).rung
    if rung is Rung.IDLE:
        return frozenset()
    frozen = {each.id for each in now.tier(Tier.BE) if each.setting("cgroup.freeze") == "1"}
    return state.kill.tried | frozen if rung is Rung.FREEZE else state.kill.tried


def _climb(
    tick: _Tick, state: State, grounds: dict[Kind, Evidence], verdicts: tuple[Verdict, ...]
) -> tuple[State, tuple[Move, ...], tuple[Effect, ...]]:
    config, now, section = tick.config, tick.now, tick.config.interference
    ranked = _ranked(config, now, state)
    chosen = kills.choose(section.kill, section.answer, state.kill, now, ranked)
    of_be = [verdict for verdict in verdicts if verdict.cause is Cause.BE]
    blamed = {kind: [verdict for verdict in of_be if verdict.kind is kind] for kind in Kind}
    doomed = _is_doomed(config, now, ranked)
    apart = asks.apart(config, tick.prev, now, [*blamed[Kind.CPU], *blamed[Kind.LATENCY]], state.apart)
    ladders = dict(state.ladders)
    moves: list[Move] = []
    for kind, ground in grounds.items():
        mine = blamed[kind]
        may = May(
            cpuset=apart is not None,
            severe=(not mine or any(not verdict.cold for verdict in mine))
            and not (doomed and kind is Kind.MEMORY),
            kill=chosen is not None,
            urgent=tick.in_trouble and kind is Kind.MEMORY,
        )
        before = ladders.get(kind, Ladder())
        after = ladder.step(section, kind, ground, may, now.monotonic_usec, before)
        ladders[kind] = after
        if after.rung is not before.rung:
            moves.append(_move(kind, before, after, mine, ground))
    state = msgspec.structs.replace(
        state,
        ladders=ladders,
        tighten=_tighten(now, state.tighten, ladders, grounds, blamed),
        apart=apart if _at_least_cpuset(ladders) else None,
    )
    if chosen is None or ladders[Kind.MEMORY].rung is not Rung.TERM or state.kill.pending is not None:
        return state, tuple(moves), ()
    kill, effect = kills.begin(section.kill, state.kill, now, chosen, ranked)
    if effect.means is Means.KILL:
        ladders[Kind.MEMORY] = msgspec.structs.replace(ladders[Kind.MEMORY], rung=Rung.KILL)
    return msgspec.structs.replace(state, kill=kill, ladders=ladders), tuple(moves), (effect,)


def _is_doomed(config: Config, now: Snapshot, ranked: tuple[victims.Candidate, ...]) -> bool:
    """Memory is short, and nobody may be killed: what is frozen keeps what it holds.

    LS then waits for as long as the freeze lasts, and after it for the OOM killer all the same.
    """
    may_follow = any(each.kill_rank is not None for each in ranked)
    return not may_follow and kills.scarce(config.interference.kill, now) is True


def _ranked(config: Config, now: Snapshot, state: State) -> tuple[victims.Candidate, ...]:
    if config.interference.answer is not MaxAnswer.KILL:
        return ()
    return victims.rank(config, now, kills.cooling(config.interference.kill, state.kill.spent, now))


def _move(kind: Kind, before: Ladder, after: Ladder, verdicts: list[Verdict], ground: Evidence) -> Move:
    worst = asks.worst(verdicts)
    rule = f"{RULE}/{kind}"
    if worst is None:
        why = {Evidence.UNKNOWN: "the signals are unknown"}.get(ground, "no LS workload suffers through BE")
        return Move(kind, before.rung, after.rung, "", Reason(rule, why))
    return Move(kind, before.rung, after.rung, worst.path, asks.because(rule, worst))


def _tighten(
    now: Snapshot,
    before: dict[Kind, Tighten],
    ladders: dict[Kind, Ladder],
    grounds: dict[Kind, Evidence],
    blamed: dict[Kind, list[Verdict]],
) -> dict[Kind, Tighten]:
    asked = {
        kind: asks.tighten(blamed[kind], grounds[kind], now, before.get(kind))
        for kind in (Kind.MEMORY, Kind.IO)
        if ladders[kind].rung is not Rung.IDLE
    }
    return {kind: each for kind, each in asked.items() if each is not None}


def _answer(now: Snapshot, state: State) -> Answer:
    ladders = state.ladders
    lift = kills.victim_root(state.kill)
    return Answer(
        squeeze=min((each.squeeze for each in ladders.values()), default=1.0),
        avoid_cpus=state.apart,
        memory_tighten=state.tighten.get(Kind.MEMORY),
        io_tighten=state.tighten.get(Kind.IO),
        freeze=_frozen(now, ladders, lift),
        lift=lift,
    )


def _at_least_cpuset(ladders: dict[Kind, Ladder]) -> bool:
    return any(
        ladders.get(kind, Ladder()).rung in (Rung.CPUSET, Rung.FREEZE) for kind in (Kind.CPU, Kind.LATENCY)
    )


def _frozen(now: Snapshot, ladders: dict[Kind, Ladder], lift: CgroupId | None) -> tuple[CgroupId, ...]:
    """BE's least important level of priority, one more each time that was not enough.

    Once frozen nobody does anything any more, so it is not asked again who the culprits are. Who waits for
    memory needs it from whoever holds most of it: of a level the biggest workload is frozen first.
    """
    reach = max((each.reach for kind, each in _freezing(ladders) if kind is not Kind.MEMORY), default=0)
    levels = sorted({workload.priority for workload in now.tier(Tier.BE)}, reverse=True)[:reach]
    of_memory = max((each.reach for kind, each in _freezing(ladders) if kind is Kind.MEMORY), default=0)
    holders = {workload.id for workload in sorted(now.tier(Tier.BE), key=_least_and_biggest)[:of_memory]}
    return tuple(
        workload.id
        for workload in now.tier(Tier.BE)
        if (workload.priority in levels or workload.id in holders) and workload.id != lift
    )


def _freezing(ladders: dict[Kind, Ladder]) -> list[tuple[Kind, Ladder]]:
    return [(kind, each) for kind, each in ladders.items() if each.rung is Rung.FREEZE]


def _least_and_biggest(workload: Workload) -> tuple[int, bool, int, str]:
    """What is frozen stays so: it does not grow, and another may have become bigger meanwhile."""
    thawed = workload.setting(CgroupFreeze.file) != "1"
    return -workload.priority, thawed, -(workload.sample.memory_current or 0), workload.path


def _freezes(
    config: Config, now: Snapshot, answer: Answer, verdicts: tuple[Verdict, ...]
) -> tuple[Desired, ...]:
    worst = asks.worst([verdict for verdict in verdicts if verdict.cause is Cause.BE])
    lease = int(config.interference.freeze_lease) / 1e6
    text = f"frozen for {lease:g} s at most"
    reason = Reason(f"{RULE}/freeze", text)
    if worst is not None:
        because = asks.because(f"{RULE}/freeze", worst)
        reason = msgspec.structs.replace(
            because, text=f"{text}: {because.text}", clamp="interference.freeze_lease"
        )
    return tuple(
        Desired(workload.id, workload.path, workload.tier, CgroupFreeze(True), reason)
        for workload in now.tier(Tier.BE)
        if workload.id in answer.freeze and workload.setting("cgroup.freeze") is not None
    )
