"""What threatens a protected person, and the one present instruction that follows from it. Pure.

Her threats in each incident follow from the alerts; the police's advice, an end by the police's desk and a silent call for help are
inputs like them. From all her incidents together follows one instruction, or none. The gravest and nearest threat decides:

1. The wearer is within reach of herself.
2. The police advise her, because the wearer arrives before help: stay inside, or leave.
3. The wearer is within reach of a protected place of hers.
4. The wearer may be near: nobody knows where the wearer is, or the wearer is coming.
5. The wearer is within a farther ring, the nearest one first.

So two instructions never apply at the same time. An instruction is replaced at once if the situation gets graver or nearer, else when
she has had time to read it. It lasts as long as its threat: no clock ends it. It is repeated meanwhile. When nothing threatens her any
more, an all-clear takes its place.

Log positions decide which of two alerts is later, not their order of arrival.

The Ministry's notices stand beside the instruction: `decide_notice` says which one a person gets after an alert. The fold says when a
notice is due and when it has ended. Alerts may arrive in any order, so log positions decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, assert_never

from services.common.privacy.notices import NoticeGround
from services.dispatch.domain.enums import Advice, Demand
from services.dispatch.domain.events import BEFORE_ALL, LogPosition

READ_MS = 20_000
"""Minimum time between an instruction and the next one that isn't graver or nearer, milliseconds of mesh time: enough to read two
sentences on a phone and act on them."""
CLOSE_MARGIN_MS = 1_000
"""An alert that was decided less than this before the police closed their assignment isn't ended by that, milliseconds: the desk may
not have known it."""
ALL_CLEAR_MS = 600_000
"""Time for which an all-clear is shown as the present one, milliseconds of mesh time. A clock may end an all-clear, never a danger."""
ALL_CLEAR_READ_MS = 60_000
"""Time for which an all-clear stays after it was on a screen, milliseconds of mesh time."""


class MessageKind(Enum):
    """Kind of a message to a protected person."""

    INSTRUCTION = "INSTRUCTION"
    """The present instruction: who, where, and what to do."""
    OVER = "OVER"
    """All-clear: the instruction no longer applies."""
    PHONE_SILENT = "PHONE_SILENT"
    """Her own device isn't reporting."""
    MINISTRY = "MINISTRY"
    """A notice of the Ministry: the wearer breaches the order, or there is a marked risk of it."""
    MINISTRY_OVER = "MINISTRY_OVER"
    """The Ministry's notice has ended."""
    ONE_OVER = "ONE_OVER"
    """The Ministry's notice has ended, and an instruction still applies."""


ENDS = frozenset((MessageKind.OVER, MessageKind.MINISTRY_OVER))
"""Messages after which nothing applies any more."""


class ReceiptKind(Enum):
    """Kind of a receipt, in the order of their usual arrival."""

    DELIVERED = "delivered"
    """The device or the gateway has delivered the message."""
    DISPLAYED = "displayed"
    """The message was on the screen."""
    ACKNOWLEDGED = "acknowledged"
    """The person has answered."""


class ChannelKind(Enum):
    """Kind of a channel to a person."""

    GATEWAY = "gateway"
    DEVICE = "device"


class ChannelId(NamedTuple):
    """A channel to a person: a gateway by its name, or a device by its id."""

    kind: ChannelKind
    name: str

    @classmethod
    def parse(cls, text: str) -> ChannelId:
        """Parses the text form of a channel. Raises ValueError."""
        kind, _, name = text.partition("/")
        return cls(ChannelKind(kind), name)

    def __str__(self) -> str:
        """Text form of a channel for the database: `gateway/NAME` or `device/ID`."""
        return f"{self.kind.value}/{self.name}"


# ── her threats in one incident ──────────────────────────────────────────────────────────────────────────────────────


class ThreatKind(Enum):
    """Kinds of threats."""

    RING = "RING"
    """The wearer is within a ring around her or a protected place."""
    COMING = "COMING"
    """At the present movement, the wearer arrives before help."""
    UNSEEN = "UNSEEN"
    """The wearer's position is unknown, and the wearer may be near."""
    TAMPERED = "TAMPERED"
    """The tag reports that it was opened."""
    OTHER = "OTHER"
    """An alert of a kind that this version doesn't know."""


@dataclass(frozen=True, slots=True)
class Threatened:
    """An alert that raises a threat, or raises it once more."""

    alert_id: str
    place: LogPosition
    decided_ms: int
    """When the alert was decided, mesh time."""
    key: str
    """Key of the threat, the same when the threat begins and ends."""
    kind: ThreatKind
    demand: Demand
    order_id: str
    place_id: str = ""
    """The protected place as `order/place`; empty if the person herself is threatened."""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 if the alert concerns no ring."""
    partition: int = 0
    """Partition of the log, by which the alert's figures are found."""


@dataclass(frozen=True, slots=True)
class DistanceChanged:
    """An alert that the distance within a ring has changed. She needn't have been warned of the ring."""

    ring: Threatened
    """The ring as a threat that demands WARN."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """An alert that a threat is over."""

    alert_id: str
    place: LogPosition
    key: str
    ends_incident: bool = False
    """The alert ends the incident, and with it all that threatens her in it."""


@dataclass(frozen=True, slots=True)
class CalledSilently:
    """An alert that she has called for help in silence."""

    alert_id: str
    place: LogPosition
    decided_ms: int


@dataclass(frozen=True, slots=True)
class DeskClosed:
    """The police have closed their assignment to her or to a place of hers."""

    place_id: str
    """The protected place as `order/place`; empty for the assignment to the person herself."""
    closed_ms: int
    """When they closed it, mesh time."""
    found_nobody: bool
    """Whether the unit found nobody. Then nobody knows where the wearer is, and only the decision ends the threat."""


Occurrence: TypeAlias = Threatened | DistanceChanged | Cleared | CalledSilently | DeskClosed


class Figure(NamedTuple):
    """The alert with the newest distance to the wearer within a ring. The distance itself is in MEASURES."""

    alert_id: str
    place: LogPosition
    at_ms: int
    """When the alert was decided, mesh time."""
    before_alert_id: str
    """The alert with the distance before; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Threat:
    """A threat to one person in one incident, active or over."""

    kind: ThreatKind
    place: LogPosition
    """Log position of the last alert that raised or ended the threat."""
    holds: bool
    demand: Demand
    order_id: str
    place_id: str
    """The protected place as `order/place`; empty if the person herself is threatened."""
    alert_id: str
    """The last alert that raised the threat."""
    partition: int
    begun_ms: int
    """Since when the threat is active, mesh time."""
    decided_ms: int
    """When the last alert that raised the threat was decided, mesh time."""
    ring_m: float = 0.0
    figure: Figure | None = None
    """The newest distance within the ring since the threat was raised; None if there is none."""
    closed: bool = False
    """Whether the police's desk has ended the threat, and no alert has."""


class SilentCall(NamedTuple):
    """A silent call for help that nobody has closed."""

    place: LogPosition
    decided_ms: int


@dataclass(frozen=True, slots=True)
class IncidentThreats:
    """What threatens one person in one incident."""

    threats: Mapping[str, Threat] = field(default_factory=lambda: MappingProxyType({}))
    """Threats by key."""
    calm: LogPosition = BEFORE_ALL
    """Log position up to which nothing threatened her any more the last time. Advice up to there is over."""
    ended: LogPosition = BEFORE_ALL
    """Log position of the alert that ended the incident; BEFORE_ALL while none did."""
    silent_call: SilentCall | None = None
    """Her silent call for help, while the incident goes on and the police have not closed their assignment to her."""

    @property
    def active(self) -> tuple[Threat, ...]:
        """Threats that are active."""
        return tuple(threat for threat in self.threats.values() if threat.holds)

    @property
    def is_open(self) -> bool:
        """Whether something threatens her, or she has called for help in silence."""
        return bool(self.active) or self.silent_call is not None


def is_late(state: IncidentThreats, occurrence: Threatened | DistanceChanged) -> bool:
    """Whether a later alert, which arrived first, has overtaken an alert, so that it informs of nothing."""
    raised = occurrence.ring if isinstance(occurrence, DistanceChanged) else occurrence
    known = state.threats.get(raised.key)
    if raised.place <= state.ended:
        return True
    if isinstance(occurrence, Threatened):
        return known is not None and raised.place <= known.place
    if known is not None and known.holds:
        return known.figure is not None and raised.place <= known.figure.place
    # She needn't have been warned of the ring, so its clearing may be unknown.
    return raised.place <= max(known.place if known else BEFORE_ALL, BEFORE_ALL if state.active else state.calm)


def evolve(state: IncidentThreats, occurrence: Occurrence) -> IncidentThreats:
    """Her threats in an incident after an occurrence. A repeated or late one changes nothing."""
    match occurrence:
        case Threatened():
            return state if is_late(state, occurrence) else _raised(state, occurrence)
        case DistanceChanged():
            return state if is_late(state, occurrence) else _distance_changed(state, occurrence.ring)
        case Cleared():
            return _cleared(state, occurrence)
        case CalledSilently():
            known = state.silent_call.place if state.silent_call else BEFORE_ALL
            if occurrence.place <= max(known, state.ended):
                return state
            return replace(state, silent_call=SilentCall(occurrence.place, occurrence.decided_ms))
        case DeskClosed():
            return _closed(state, occurrence)
        case _:
            assert_never(occurrence)


def _raised(state: IncidentThreats, raised: Threatened) -> IncidentThreats:
    known = state.threats.get(raised.key)
    goes_on = known is not None and known.holds
    threat = Threat(
        kind=raised.kind,
        place=raised.place,
        holds=True,
        demand=raised.demand,
        order_id=raised.order_id,
        place_id=raised.place_id,
        alert_id=raised.alert_id,
        partition=raised.partition,
        begun_ms=known.begun_ms if known and goes_on else raised.decided_ms,
        decided_ms=raised.decided_ms,
        ring_m=raised.ring_m,
        figure=known.figure if known and goes_on else None,
    )
    return replace(state, threats=MappingProxyType({**state.threats, raised.key: threat}))


def _distance_changed(state: IncidentThreats, ring: Threatened) -> IncidentThreats:
    known = state.threats.get(ring.key)
    if known is None or not known.holds:
        # The ring is active, since the decision measures within it. A ring that the desk has closed is as grave as before.
        state = _raised(state, replace(ring, demand=known.demand if known and known.closed else ring.demand))
    threat = state.threats[ring.key]
    before = threat.figure.alert_id if threat.figure else threat.alert_id if threat.alert_id != ring.alert_id else ""
    figure = Figure(ring.alert_id, place=ring.place, at_ms=ring.decided_ms, before_alert_id=before)
    return replace(state, threats=MappingProxyType({**state.threats, ring.key: replace(threat, figure=figure)}))


def _cleared(state: IncidentThreats, cleared: Cleared) -> IncidentThreats:
    threats = dict(state.threats)
    silent_call = state.silent_call
    ended = state.ended
    if cleared.ends_incident:
        ended = max(ended, cleared.place)
        over = [key for key, threat in threats.items() if threat.place <= cleared.place]
        if silent_call is not None and silent_call.place <= cleared.place:
            silent_call = None
    else:
        known = threats.get(cleared.key)
        if known is None:
            # The alert that raised the threat comes later, and mustn't raise it.
            threats[cleared.key] = _unknown(cleared)
        over = [cleared.key] if known is not None and known.place < cleared.place else []
    for key in over:
        threats[key] = replace(threats[key], holds=False, place=max(threats[key].place, cleared.place), closed=False)
    state = replace(state, threats=MappingProxyType(threats), silent_call=silent_call, ended=ended)
    return _calmed(state, cleared.place) if over else state


def _unknown(cleared: Cleared) -> Threat:
    """The end of a threat whose beginning isn't known."""
    return Threat(
        kind=ThreatKind.OTHER,
        place=cleared.place,
        holds=False,
        demand=Demand.RECORD,
        order_id="",
        place_id="",
        alert_id="",
        partition=0,
        begun_ms=0,
        decided_ms=0,
    )


def _closed(state: IncidentThreats, closed: DeskClosed) -> IncidentThreats:
    known_ms = closed.closed_ms - CLOSE_MARGIN_MS
    over = {
        key: replace(threat, holds=False, closed=True)
        for key, threat in state.threats.items()
        if threat.holds and threat.place_id == closed.place_id and threat.decided_ms <= known_ms
    }
    silent_call = state.silent_call
    if silent_call is not None and not closed.place_id and silent_call.decided_ms <= known_ms:
        silent_call = None
    state = replace(state, silent_call=silent_call)
    if not over or closed.found_nobody:
        return state
    state = replace(state, threats=MappingProxyType({**state.threats, **over}))
    return _calmed(state, max(threat.place for threat in over.values()))


def _calmed(state: IncidentThreats, place: LogPosition) -> IncidentThreats:
    """The state after a threat has ended. No alert ends the prediction that the wearer is coming: it ends with the last other
    threat."""
    if all(threat.kind is ThreatKind.COMING for threat in state.active):
        threats = {key: replace(threat, holds=False) for key, threat in state.threats.items()}
        return replace(state, threats=MappingProxyType(threats), calm=max(state.calm, place))
    return state


# ── the one instruction ──────────────────────────────────────────────────────────────────────────────────────────────


class InstructedAct(Enum):
    """The one thing to do."""

    LOCK_IN = "LOCK_IN"
    """Stay behind a locked door."""
    STAY_INSIDE = "STAY_INSIDE"
    """The police's advice: stay inside, away from doors and windows."""
    LEAVE = "LEAVE"
    """The police's advice: leave now."""
    KEEP_AWAY = "KEEP_AWAY"
    """Don't go to the protected place; if she is in it, lock the door."""
    GO_INDOORS = "GO_INDOORS"
    """Be indoors, where a door can be locked."""
    KEEP_PHONE = "KEEP_PHONE"
    """Keep the phone at hand."""


class Level(IntEnum):
    """Gravity of a threat or advice, from least to most."""

    FARTHER_RING = 1
    MAY_BE_NEAR = 2
    AT_PLACE = 3
    ADVISED = 4
    AT_HERSELF = 5


class Rank(NamedTuple):
    """Order of instructions: the greater one is graver, or as grave and nearer."""

    level: Level
    demand: Demand
    advice: int
    """2 for the advice to stay inside, 1 for the advice to leave, 0 without advice: to leave, there has to be time."""
    nearness_m: float
    """The ring's radius, metres, negative, so that a nearer ring is greater."""


class Advised(NamedTuple):
    """The police's advice in an incident, because the wearer arrives before help."""

    advice: Advice
    place_id: str
    """The protected place at which the wearer would arrive, as `order/place`; empty for the person herself."""
    place: LogPosition
    """Log position of the alert on which the advice rests."""
    advice_id: str
    at_ms: int
    """When the police's leg gave it, mesh time."""


class WarnedIncident(NamedTuple):
    """One of her incidents, with what threatens her in it and the advice there."""

    incident_id: str
    threats: IncidentThreats
    advice: Sequence[Advised] = ()
    drill: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """The instruction that follows from her threats. Two of them that say the same are one instruction."""

    rank: Rank
    act: InstructedAct
    kind: ThreatKind
    ring_m: float
    of_place: bool
    is_unseen: bool
    """The wearer's position isn't known any more since the ring was measured."""
    order_id: str
    drill: bool
    incident_id: str
    alert_id: str
    """The alert that raised the threat."""
    place: LogPosition
    partition: int
    since_ms: int
    """Since when she is threatened in this incident, mesh time."""
    figure: Figure | None = None

    @property
    def content(self) -> tuple[object, ...]:
        """What the instruction says. An instruction with the same content isn't a new one."""
        figure = self.figure.alert_id if self.figure else ""
        ring = self.ring_m, self.of_place, self.is_unseen, figure
        return self.drill, self.act, self.kind, self.order_id, *ring


_ADVISED_ACTS = {Advice.STAY_INSIDE: InstructedAct.STAY_INSIDE, Advice.LEAVE: InstructedAct.LEAVE}


class _Candidate(NamedTuple):
    rank: Rank
    tie_break: LogPosition
    """Of two equal threats whose place isn't known, the later one is told; of other equal ones the earlier."""
    order_id: str
    incident: WarnedIncident
    threat: Threat
    act: InstructedAct


def instruct(incidents: Iterable[WarnedIncident]) -> Instruction | None:
    """The one instruction that follows from all that threatens a person; None if nothing does. A drill gives way to a live threat."""
    candidates = [candidate for incident in incidents for candidate in _candidates(incident)]
    live = [candidate for candidate in candidates if not candidate.incident.drill] or candidates
    if not live:
        return None
    first = max(live, key=lambda candidate: candidate[:3])
    threat, state = first.threat, first.incident.threats
    return Instruction(
        rank=first.rank,
        act=first.act,
        kind=threat.kind,
        ring_m=threat.ring_m,
        of_place=bool(threat.place_id),
        is_unseen=_is_unseen(threat, state),
        order_id=threat.order_id,
        drill=first.incident.drill,
        incident_id=first.incident.incident_id,
        alert_id=threat.alert_id,
        place=threat.place,
        partition=threat.partition,
        since_ms=min(other.begun_ms for other in state.active),
        figure=threat.figure,
    )


def _is_unseen(threat: Threat, state: IncidentThreats) -> bool:
    """Whether the wearer's position isn't known, or can't be relied on, since a ring was measured."""
    measured = threat.figure.place if threat.figure else threat.place
    unseen = (ThreatKind.UNSEEN, ThreatKind.TAMPERED)
    return threat.kind is ThreatKind.RING and any(
        other.kind in unseen and other.place > measured for other in state.active
    )


def _candidates(incident: WarnedIncident) -> list[_Candidate]:
    active = incident.threats.active
    advice = [advised for advised in incident.advice if _applies(advised, incident.threats)]
    found = [_candidate(incident, threat, advice) for threat in active]
    if found and advice:
        # Advice for herself goes before advice for a place, where she may not be.
        advised = max(advice, key=lambda each: (not each.place_id, _order_of(each), each.place))
        main = max(found, key=lambda candidate: candidate[:3])
        rank = Rank(Level.ADVISED, demand=Demand.RESPOND, advice=_order_of(advised), nearness_m=main.rank.nearness_m)
        found.append(main._replace(rank=rank, act=_ADVISED_ACTS[advised.advice]))
    return found


def _applies(advised: Advised, state: IncidentThreats) -> bool:
    """Whether advice is in force for her: she is threatened since, and it is for herself or a place of an order that protects her."""
    order_ids = {threat.order_id for threat in state.active}
    return (
        advised.advice in _ADVISED_ACTS
        and advised.place > max(state.calm, state.ended)
        and (not advised.place_id or advised.place_id.partition("/")[0] in order_ids)
    )


def _order_of(advised: Advised) -> int:
    return 2 if advised.advice is Advice.STAY_INSIDE else 1


def _candidate(incident: WarnedIncident, threat: Threat, advice: Sequence[Advised]) -> _Candidate:
    nearness_m, newest = -threat.ring_m, (-threat.place[0], -threat.place[1])
    responds = threat.demand is Demand.RESPOND
    if responds and threat.kind is ThreatKind.RING and not threat.place_id:
        is_advised = any(advised.advice is Advice.STAY_INSIDE for advised in advice)
        level, act = Level.AT_HERSELF, InstructedAct.STAY_INSIDE if is_advised else InstructedAct.LOCK_IN
    elif responds and threat.kind is ThreatKind.RING and not _is_unseen(threat, incident.threats):
        level, act = Level.AT_PLACE, InstructedAct.KEEP_AWAY
    elif responds:
        level = Level.MAY_BE_NEAR
        act = InstructedAct.GO_INDOORS
        nearness_m = 0.0
        newest = threat.place
    elif threat.demand is Demand.NOTIFY:
        level, act = Level.FARTHER_RING, InstructedAct.KEEP_AWAY if threat.place_id else InstructedAct.GO_INDOORS
    else:
        level, act = Level.FARTHER_RING, InstructedAct.KEEP_PHONE
    rank = Rank(level, demand=threat.demand, advice=0, nearness_m=nearness_m)
    return _Candidate(rank, tie_break=newest, order_id=threat.order_id, incident=incident, threat=threat, act=act)


# ── when it is issued ──────────────────────────────────────────────────────────────────────────────────────────────────


class Issued(NamedTuple):
    """What she was told last, or what waits to be told. `instruction` is None for the all-clear."""

    instruction: Instruction | None
    at_ms: int
    """When it was told, or is due, mesh time."""


class DueInstruction(NamedTuple):
    """A new instruction, or with None the all-clear, and when it is due, mesh time."""

    instruction: Instruction | None
    due_ms: int


class Unchanged(Enum):
    """Why nothing new is told."""

    AS_ISSUED = "AS_ISSUED"
    """What she was told last still applies. Nothing waits."""
    AS_WAITING = "AS_WAITING"
    """What waits is what applies."""


def plan(
    issued: Issued | None, waiting: Issued | None, present: Instruction | None, *, now_ms: int
) -> DueInstruction | Unchanged:
    """What to tell a person whose situation demands the instruction `present`, or none.

    A graver or nearer instruction is due at once, any other one when she has read the last. Only an instruction that she was told is
    followed by an all-clear.
    """
    last = issued.instruction if issued else None
    if _says(last) == _says(present):
        return Unchanged.AS_ISSUED
    if waiting is not None and _says(waiting.instruction) == _says(present):
        return Unchanged.AS_WAITING
    is_urgent = present is not None and (last is None or present.rank > last.rank)
    return DueInstruction(present, now_ms if is_urgent or issued is None else max(now_ms, issued.at_ms + READ_MS))


def _says(instruction: Instruction | None) -> tuple[object, ...]:
    return instruction.content if instruction else ()


# ── how long it lasts, and how often it is repeated ──────────────────────────────────────────────────────────────────

FIRST_REPEAT_MS: Mapping[ReceiptKind | None, int] = {
    None: 60_000,
    ReceiptKind.DELIVERED: 300_000,
    ReceiptKind.DISPLAYED: 600_000,
    ReceiptKind.ACKNOWLEDGED: 600_000,
}
"""Time from an instruction to its first repetition by its last receipt, milliseconds of mesh time. Each further interval is twice as
long.

Nobody knows whether a phone without a receipt got anything: it is tried again soon. A phone that has the message may lie unread. Who
has read it is reminded, since a danger that goes on is easily believed to be over.
"""
MAX_REPEAT_MS = 8 * 3_600_000
"""Maximum time between two repetitions, milliseconds of mesh time. An instruction may last for days, as long as the wearer is unseen.
With intervals that double, a night of 8 hours has at most 5 repetitions of what she has read, and 8 of what no phone has confirmed."""


def repeat_after_ms(instruction: Instruction, receipt: ReceiptKind | None, repetitions: int) -> int | None:
    """Time from the last sending of an instruction to the next, milliseconds of mesh time; None if it isn't repeated any more.

    `receipt` is its last receipt. An instruction that demands no response isn't repeated once a phone has it: nobody is woken without a
    change that concerns her.
    """
    if receipt is not None and instruction.rank.demand is not Demand.RESPOND:
        return None
    return min(FIRST_REPEAT_MS[receipt] << min(repetitions, 16), MAX_REPEAT_MS)


_SHOWN_FIRST = (MessageKind.INSTRUCTION, MessageKind.MINISTRY, MessageKind.OVER, MessageKind.MINISTRY_OVER)
"""Order in which a message is shown as the present one. The police's instruction says what to do; a notice of the Ministry that is open
goes before an all-clear."""


class Last(NamedTuple):
    """The last message of the police to a person, or the last of the Ministry in an incident."""

    kind: MessageKind
    issued_ms: int
    displayed_ms: int | None
    """When it was first on a screen, mesh time; None if it wasn't."""


def choose_shown(last: Sequence[Last], now_ms: int) -> int | None:
    """The index of the message that is shown as the present one; None if none is."""
    shown = [index for index, each in enumerate(last) if each.kind in _SHOWN_FIRST and _is_shown(each, now_ms)]
    return min(shown, key=lambda index: (_SHOWN_FIRST.index(last[index].kind), -last[index].issued_ms), default=None)


def _is_shown(last: Last, now_ms: int) -> bool:
    """Whether the last message still counts. Anything but an all-clear does, whatever the time; an all-clear until it was read."""
    if last.kind not in ENDS:
        return True
    is_read = last.displayed_ms is not None and now_ms >= last.displayed_ms + ALL_CLEAR_READ_MS
    return not is_read and now_ms < last.issued_ms + ALL_CLEAR_MS


class NoticeRefusal(Enum):
    """Why a notice of the Ministry isn't given. The police's own warning of the same alert is sent all the same."""

    NO_GROUND = "NO_GROUND"
    """The alert names no article that this version knows."""
    ORDER_OVER = "ORDER_OVER"
    """The order is over, or no longer protects the person."""
    EXERCISE = "EXERCISE"
    """Nobody is notified by the Ministry in an exercise."""
    OUTDATED = "OUTDATED"
    """The notice is too old to be given: the reason for it is long past."""


@dataclass(frozen=True, slots=True)
class NoticeAlert:
    """The part of an alert that concerns a notice of the Ministry."""

    ground: NoticeGround | None
    """The article on which the notice rests; None if the alert names none that this version knows."""
    person_ids: tuple[str, ...]
    """Persons who get the notice. The alert warns each of them."""
    ended: bool
    """Whether the notice has ended."""
    wearer_id: str
    case_id: str


@dataclass(frozen=True, slots=True)
class NoticeState:
    """The notices of one person in one incident, by log positions."""

    due: LogPosition = BEFORE_ALL
    """The last alert that made a notice due."""
    ended: LogPosition = BEFORE_ALL
    """The last alert that ended the notice."""

    @property
    def is_open(self) -> bool:
        """Whether a notice was given and hasn't ended."""
        return self.due > self.ended


def decide_notice(state: NoticeState, place: LogPosition, *, ended: bool) -> tuple[NoticeState, MessageKind | None]:
    """The state of a person's notices after an alert at a log position, and the message to her; None if there is none."""
    if not ended:
        is_late = place <= state.ended or place <= state.due
        return replace(state, due=max(state.due, place)), None if is_late else MessageKind.MINISTRY
    after = replace(state, ended=max(state.ended, place))
    return after, MessageKind.MINISTRY_OVER if state.is_open and not after.is_open else None
