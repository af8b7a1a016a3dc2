"""Decision which messages a protected person gets, and when. Pure.

The message of a new, nearer or graver threat is sent at once. Other messages come no faster than a person can read. A threat is
active from the alert that raises it to the alert that ends it. The log positions of the alerts decide, not their order of arrival.
After the last active threat, a message says that the notice is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import BEFORE_ALL, LogPosition

READ_MS = 20_000
"""Minimum time between a message and the next one that isn't urgent, milliseconds of mesh time: enough to read two sentences on a phone
and act on them."""


class Notice(Enum):
    """Kind of a message to a protected person."""

    APPROACH = "APPROACH"
    """The wearer entered a ring."""
    CHANGED = "CHANGED"
    """The distance within a ring has changed."""
    COMING = "COMING"
    """At the present movement, the wearer arrives before help."""
    UNSEEN = "UNSEEN"
    """The wearer's position is unknown, and the wearer may be near."""
    TAMPERED = "TAMPERED"
    """The tag reports that it was opened."""
    NEUTRAL = "NEUTRAL"
    """A message that doesn't say what happened: nobody else may read it, or this version doesn't know the alert kind."""
    STAY_INSIDE = "STAY_INSIDE"
    """Help would arrive after the wearer, and the wearer is too near for her to go outside."""
    LEAVE = "LEAVE"
    """Help would arrive after the wearer, and there is time to leave."""
    OVER = "OVER"
    """The earlier messages no longer apply."""
    ONE_OVER = "ONE_OVER"
    """The messages of one incident no longer apply, and a warning of another incident still does."""
    PHONE_SILENT = "PHONE_SILENT"
    """Her own device isn't reporting."""
    MINISTRY = "MINISTRY"
    """A notice of the Ministry: the wearer breaches the order, or there is a marked risk of it."""
    MINISTRY_OVER = "MINISTRY_OVER"
    """The Ministry's notice has ended."""


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


PASSING = frozenset((Notice.CHANGED, Notice.COMING, Notice.STAY_INSIDE, Notice.LEAVE))
"""Notices that raise no threat of their own, so no alert ends them."""
REPLACED_BY_ANY = frozenset((Notice.CHANGED, Notice.OVER))
"""Waiting notices that any newer message to the same person replaces. Another notice is replaced by the same notice only."""
NO_RECEIPT_AWAITED = frozenset((Notice.OVER, Notice.PHONE_SILENT))
"""Notices without a receipt deadline, since no life depends on them within half a minute."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An alert, reduced to the fields that a warning needs."""

    alert_id: str
    incident_id: str
    place: LogPosition
    notice: Notice
    demand: Demand
    threat: str
    """Key of the threat, the same when the threat begins and ends. CHANGED has the key of its ring, of which the person needn't have
    been warned."""
    ends: bool = False
    """The alert ends the incident."""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 if the alert concerns no ring."""
    of_place: bool = False
    """The ring is around a protected place."""

    @property
    def clears(self) -> bool:
        """Whether the alert says that a threat is over. It concerns all who were warned in the incident."""
        return self.ends or self.demand is Demand.RECORD


@dataclass(frozen=True, slots=True)
class Threat:
    """A threat to one person in one incident, active or over."""

    place: LogPosition
    """Log position of the last alert of the threat."""
    holds: bool
    demand: Demand
    ring_m: float
    of_place: bool = False
    """The ring is around a protected place."""


@dataclass(frozen=True, slots=True)
class NotifiedState:
    """State of the warnings of one person in one incident."""

    threats: Mapping[str, Threat] = field(default_factory=lambda: MappingProxyType({}))
    last_ms: int | None = None
    """Time at which the last message went out or will go out, mesh time; None if there was no message."""
    open: bool = False
    """The person was warned, and the message OVER is still to be sent."""
    ended: LogPosition = BEFORE_ALL
    """Log position of the alert that ended the incident; BEFORE_ALL while none did."""

    @property
    def active(self) -> tuple[Threat, ...]:
        """Threats that are active."""
        return tuple(threat for threat in self.threats.values() if threat.holds)


@dataclass(frozen=True, slots=True)
class WarningMessage:
    """A message to a protected person."""

    notice: Notice
    demand: Demand
    due_ms: int
    """When the message goes out unless a newer one replaces it, mesh time."""
    ring_m: float = 0.0
    of_place: bool = False


def decide(state: NotifiedState, occurrence: Occurrence, now_ms: int) -> tuple[NotifiedState, WarningMessage | None]:
    """The state of a person's warnings after an alert, and the message that the alert leads to; None if it leads to none."""
    if occurrence.clears:
        return _over(state, occurrence, now_ms)
    if _is_outdated(state, occurrence):
        return state, None
    urgent = _is_urgent(state, occurrence)
    if occurrence.notice not in PASSING:
        threat = Threat(
            place=occurrence.place,
            holds=True,
            demand=occurrence.demand,
            ring_m=occurrence.ring_m,
            of_place=occurrence.of_place,
        )
        state = replace(state, threats=MappingProxyType({**state.threats, occurrence.threat: threat}))
    due_ms = now_ms if urgent else _when_read(state, now_ms)
    # A changed distance is as grave as the gravest active threat.
    demand = (
        max((occurrence.demand, *(threat.demand for threat in state.active)))
        if occurrence.notice is Notice.CHANGED
        else occurrence.demand
    )
    message = WarningMessage(
        notice=occurrence.notice, demand=demand, due_ms=due_ms, ring_m=occurrence.ring_m, of_place=occurrence.of_place
    )
    return replace(state, last_ms=due_ms, open=True), message


def _is_outdated(state: NotifiedState, occurrence: Occurrence) -> bool:
    """Whether a later alert, which arrived first, has ended what an alert or advice is about.

    Advice comes by a stream of its own, with the position of the alert on which it is based. If it were sent after the end, it would
    replace the waiting message OVER, and she would never hear that her warnings are over.
    """
    known = state.threats.get(occurrence.threat)
    if occurrence.place <= state.ended:
        return True
    if occurrence.notice not in PASSING:
        return known is not None and occurrence.place <= known.place
    if known and not known.holds and occurrence.place < known.place:
        return True
    newest = max((threat.place for threat in state.threats.values()), default=BEFORE_ALL)
    return not state.active and occurrence.place <= newest


def _is_urgent(state: NotifiedState, occurrence: Occurrence) -> bool:
    """Whether an alert's message must go out at once: its threat is new, graver, or of a nearer ring than the active threats.

    A ring around a place is no reason to wait with a response at the person herself: she may have left the place alone because of it.
    """
    if occurrence.notice is Notice.CHANGED:
        return False
    if occurrence.notice is not Notice.APPROACH:
        known = state.threats.get(occurrence.threat)
        return known is None or not known.holds
    active = state.active
    at_herself = occurrence.demand is Demand.RESPOND and not occurrence.of_place
    rings = [threat.ring_m for threat in active if threat.ring_m and not (at_herself and threat.of_place)]
    return not rings or occurrence.ring_m < min(rings) or all(occurrence.demand > threat.demand for threat in active)


def _over(state: NotifiedState, occurrence: Occurrence, now_ms: int) -> tuple[NotifiedState, WarningMessage | None]:
    threats = dict(state.threats)
    known = threats.get(occurrence.threat)
    cleared = occurrence.ends
    if occurrence.ends:
        threats |= {
            key: replace(threat, holds=False) for key, threat in threats.items() if threat.place <= occurrence.place
        }
    elif occurrence.place > (known.place if known else BEFORE_ALL):
        cleared = known is not None and known.holds
        threats[occurrence.threat] = Threat(
            place=occurrence.place,
            holds=False,
            demand=occurrence.demand,
            ring_m=known.ring_m if known else occurrence.ring_m,
            of_place=known.of_place if known else occurrence.of_place,
        )
    ended = max(state.ended, occurrence.place) if occurrence.ends else state.ended
    state = replace(state, threats=MappingProxyType(threats), ended=ended)
    over = cleared and not state.active
    if not state.open or not over:
        return state, None
    due_ms = _when_read(state, now_ms)
    return replace(state, last_ms=due_ms, open=False), WarningMessage(Notice.OVER, Demand.RECORD, due_ms)


def _when_read(state: NotifiedState, now_ms: int) -> int:
    """Time at which a message that isn't urgent goes out, mesh time: when the last message has been read.

    If the last message still waits, the new message replaces it and goes out at the same time.
    """
    if state.last_ms is None:
        return now_ms
    return state.last_ms if state.last_ms > now_ms else max(now_ms, state.last_ms + READ_MS)
