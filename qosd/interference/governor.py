"""Interference in one function: signals, verdicts, ladders, and what they ask of everybody else. Pure."""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.errors import Malformed
from qosd.interference import kills, ladder, victims
from qosd.interference.activity import Frame, be_share_of_capacity
from qosd.interference.blame import Blame, Cause, judge
from qosd.interference.kills import Effect, Means
from qosd.interference.ladder import Ladder, May, Rung
from qosd.interference.recall import Remembered, adopt
from qosd.interference.signals import BaselineKey, Baselines, Kind, Signal, from_pressure, learn
from qosd.interference.verdict import Docket, Evidence, Hearing, Verdict, evidence, forget, hear
from qosd.model import CgroupFreeze, CgroupId, Snapshot, Tier, Workload, printable
from qosd.plan import Desired, Reason
from qosd.schema.interference import MaxAnswer
from qosd.topology import parse_cpulist

RULE = "interference.ladder"
_NOT_ASKED = Blame(Cause.UNKNOWN, 0.0, "")
_LATE = 3  # intervals: what a tick saw that came so late is no ground for going further


class State(msgspec.Struct, frozen=True, gc=False):
    baselines: Baselines = {}
    docket: Docket = Docket()
    ladders: dict[Kind, Ladder] = {}
    kill: kills.State = kills.State()
    remembered: Remembered = {}
    """Baselines of an earlier run, for workloads of which nothing is learned yet."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the rungs ask of the governors; neutral by default."""

    squeeze: float = 1.0
    """A factor on BE's allowance."""
    avoid_cpus: tuple[int, ...] = ()
    """CPUs that BE should keep off: those the victims are bound to."""
    memory_tighten: bool = False
    io_tighten: bool = False
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
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, given: tuple[Signal, ...] = ()
) -> tuple[State, Outcome]:
    """`given` are signals of others: probes, fed latencies."""
    if prev is not None and now.monotonic_usec - prev.monotonic_usec > _LATE * int(config.interval):
        prev = None
    docket, gone = forget(
        state.docket, frozenset(workload.id for workload in now.tier(Tier.LS)), now.monotonic_usec
    )
    state = msgspec.structs.replace(state, docket=docket)
    heard, state, ended, began = _listen(config, prev, now, state, given)
    verdicts = tuple(watch.verdict for watch in state.docket.watches.values() if watch.verdict is not None)
    grounds = {kind: Evidence.UNKNOWN if prev is None else evidence(kind, verdicts, heard) for kind in Kind}
    state, effects = _kill(config, now, state, grounds[Kind.MEMORY])
    state, moves, begun = _climb(config, now, state, grounds, verdicts)
    answer = _answer(now, state, verdicts)
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
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, given: tuple[Signal, ...]
) -> tuple[frozenset[BaselineKey], State, tuple[Verdict, ...], tuple[Verdict, ...]]:
    """Hear this tick's signals: which they were, the next state, the verdicts that ended and that began."""
    if prev is None:
        return frozenset(), state, (), ()
    section = config.interference
    baselines = adopt(state.baselines, state.remembered, now)
    signals = (*from_pressure(section, prev, now, baselines), *given)
    frame = Frame(prev, now, _tightened(state), kills.scarce(section.kill, now) is True)
    paths = {workload.id: printable(workload.path) for workload in now.tier(Tier.LS)}
    hearings = tuple(
        Hearing(signal, _blame(config, signal, frame), paths[signal.victim])
        for signal in signals
        if signal.victim in paths
    )
    result = hear(section, hearings, state.docket, now.monotonic_usec)
    be = be_share_of_capacity(prev, now)
    quiet = be is not None and be * 100 <= section.quiet_pct
    following = msgspec.structs.replace(
        state, docket=result.docket, baselines=learn(baselines, signals, now, quiet=quiet)
    )
    heard = frozenset(BaselineKey(signal.victim, signal.name) for signal in signals)
    return heard, following, result.ended, result.began


def _blame(config: Config, signal: Signal, frame: Frame) -> Blame:
    """Asked only where there is something to answer for: it looks at every cgroup."""
    if signal.value < signal.threshold:
        return _NOT_ASKED
    return judge(signal, frame, config.interference.be_share_pct)


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
    config: Config,
    now: Snapshot,
    state: State,
    grounds: dict[Kind, Evidence],
    verdicts: tuple[Verdict, ...],
) -> tuple[State, tuple[Move, ...], tuple[Effect, ...]]:
    section = config.interference
    ranked = _ranked(config, now, state)
    chosen = kills.choose(section.kill, section.answer, state.kill, now, ranked)
    ladders = dict(state.ladders)
    moves: list[Move] = []
    for kind, ground in grounds.items():
        mine = [verdict for verdict in verdicts if verdict.kind is kind and verdict.cause is Cause.BE]
        may = May(
            cpuset=bool(_own_cpus(now, mine)),
            severe=not mine or any(not verdict.cold for verdict in mine),
            kill=chosen is not None,
        )
        before = ladders.get(kind, Ladder())
        after = ladder.step(section, kind, ground, may, now.monotonic_usec, before)
        ladders[kind] = after
        if after.rung is not before.rung:
            moves.append(_move(kind, before, after, mine, ground))
    state = msgspec.structs.replace(state, ladders=ladders)
    if chosen is None or ladders[Kind.MEMORY].rung is not Rung.TERM or state.kill.pending is not None:
        return state, tuple(moves), ()
    kill, effect = kills.begin(section.kill, state.kill, now, chosen, ranked)
    if effect.means is Means.KILL:
        ladders[Kind.MEMORY] = msgspec.structs.replace(ladders[Kind.MEMORY], rung=Rung.KILL)
    return msgspec.structs.replace(state, kill=kill, ladders=ladders), tuple(moves), (effect,)


def _ranked(config: Config, now: Snapshot, state: State) -> tuple[victims.Candidate, ...]:
    if config.interference.answer is not MaxAnswer.KILL:
        return ()
    return victims.rank(config, now, kills.cooling(config.interference.kill, state.kill.spent, now))


def _move(kind: Kind, before: Ladder, after: Ladder, verdicts: list[Verdict], ground: Evidence) -> Move:
    worst = max(verdicts, key=lambda verdict: verdict.value / verdict.threshold, default=None)
    rule = f"{RULE}/{kind}"
    if worst is None:
        why = {Evidence.UNKNOWN: "the signals are unknown"}.get(ground, "no LS workload suffers through BE")
        return Move(kind, before.rung, after.rung, "", Reason(rule, why))
    return Move(kind, before.rung, after.rung, worst.path, _because(rule, worst))


def _because(rule: str, verdict: Verdict) -> Reason:
    return Reason(
        rule,
        f"{verdict.path} waits through BE: {verdict.signal} {verdict.value:.1f}"
        f" against {verdict.threshold:.1f} (verdict {verdict.id}); {verdict.text}",
        verdict.evidence,
        threshold=f"{verdict.threshold:.1f}",
        margin=f"{verdict.value - verdict.threshold:+.1f}",
    )


def _answer(now: Snapshot, state: State, verdicts: tuple[Verdict, ...]) -> Answer:
    ladders = state.ladders
    standing = {each.rung for each in ladders.values()}
    mine = [verdict for verdict in verdicts if verdict.cause is Cause.BE]
    lift = kills.victim_root(state.kill)
    return Answer(
        squeeze=min((each.squeeze for each in ladders.values()), default=1.0),
        avoid_cpus=_own_cpus(now, mine) if _at_least_cpuset(ladders) else (),
        memory_tighten=_is_up(ladders, Kind.MEMORY),
        io_tighten=_is_up(ladders, Kind.IO),
        freeze=_frozen(now, ladders, lift) if Rung.FREEZE in standing else (),
        lift=lift,
    )


def _is_up(ladders: dict[Kind, Ladder], kind: Kind) -> bool:
    return ladders.get(kind, Ladder()).rung is not Rung.IDLE


def _at_least_cpuset(ladders: dict[Kind, Ladder]) -> bool:
    return any(
        ladders.get(kind, Ladder()).rung in (Rung.CPUSET, Rung.FREEZE) for kind in (Kind.CPU, Kind.LATENCY)
    )


def _own_cpus(now: Snapshot, verdicts: list[Verdict]) -> tuple[int, ...]:
    """The CPUs that the victims are bound to; none where one may run anywhere: BE must run somewhere."""
    online = set(now.host.cpus_online or ())
    bound: set[int] = set()
    for verdict in verdicts:
        workload = now.workload(verdict.victim)
        bound.update(_mask(workload) or online)
    return tuple(sorted(bound)) if online - bound else ()


def _mask(workload: Workload | None) -> tuple[int, ...]:
    text = workload.setting("cpuset.cpus") if workload is not None else None
    try:
        return parse_cpulist(text, "cpuset.cpus") if text else ()
    except Malformed:
        return ()


def _frozen(now: Snapshot, ladders: dict[Kind, Ladder], lift: CgroupId | None) -> tuple[CgroupId, ...]:
    """BE's least important level of priority, one more each time that was not enough.

    Once frozen nobody does anything any more, so it is not asked again who the culprits are.
    """
    reach = max(each.reach for each in ladders.values() if each.rung is Rung.FREEZE)
    levels = sorted({workload.priority for workload in now.tier(Tier.BE)}, reverse=True)[:reach]
    return tuple(
        workload.id for workload in now.tier(Tier.BE) if workload.priority in levels and workload.id != lift
    )


def _freezes(
    config: Config, now: Snapshot, answer: Answer, verdicts: tuple[Verdict, ...]
) -> tuple[Desired, ...]:
    worst = max(
        (verdict for verdict in verdicts if verdict.cause is Cause.BE),
        key=lambda verdict: verdict.value / verdict.threshold,
        default=None,
    )
    lease = int(config.interference.freeze_lease) / 1e6
    text = f"frozen for {lease:g} s at most"
    reason = Reason(f"{RULE}/freeze", text)
    if worst is not None:
        because = _because(f"{RULE}/freeze", worst)
        reason = msgspec.structs.replace(
            because, text=f"{text}: {because.text}", clamp="interference.freeze_lease"
        )
    return tuple(
        Desired(workload.id, workload.path, workload.tier, CgroupFreeze(True), reason)
        for workload in now.tier(Tier.BE)
        if workload.id in answer.freeze and workload.setting("cgroup.freeze") is not None
    )
