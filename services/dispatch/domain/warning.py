"""When a protected person is told what: at once of what is new, nearer or graver, and else no more often than one can read. Pure.

A threat holds from the alert that tells of it to the one that takes it back, by their places in the log, in whatever order they
come. When none holds any more, that is said too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from services.dispatch.domain.events import BEFORE_ALL, Demand, Place

READ_MS = 20_000
"""Between two messages of which the second isn't urgent: to look at the telephone, read two sentences and act on them. Mesh time."""


class Notice(Enum):
    """What a person is told."""

    APPROACH = "APPROACH"
    """A ring is entered."""
    CHANGED = "CHANGED"
    """The distance within a ring has changed."""
    COMING = "COMING"
    """Going on like this, contact comes before help."""
    UNSEEN = "UNSEEN"
    """Where the wearer is isn't known, and they can be near."""
    TAMPERED = "TAMPERED"
    """The tag says that it was opened."""
    NEUTRAL = "NEUTRAL"
    """Something that mustn't be read over a shoulder, or that is new to this version."""
    STAY_INSIDE = "STAY_INSIDE"
    """Help comes later than the wearer would, who is too near to go outside."""
    LEAVE = "LEAVE"
    """Help comes later than the wearer would, and there is time to go."""
    OVER = "OVER"
    """What was told of no longer holds."""
    PHONE_SILENT = "PHONE_SILENT"
    """Her own device isn't reporting."""


PASSING = frozenset((Notice.CHANGED, Notice.COMING, Notice.STAY_INSIDE, Notice.LEAVE))
"""What is told of a threat that holds, or comes: nothing takes it back by itself."""
NO_RECEIPT_AWAITED = frozenset((Notice.OVER, Notice.PHONE_SILENT))
"""What nobody's life hangs on within half a minute."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An alert, as far as those are concerned who are warned of it."""

    alert_id: str
    incident_id: str
    place: Place
    notice: Notice
    demand: Demand
    threat: str
    """Names what it is about, the same where that begins and where it is over."""
    ends: bool = False
    """The incident ends with it."""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 where it isn't of a ring."""
    of_place: bool = False
    """A protected place is approached."""


@dataclass(frozen=True, slots=True)
class Threat:
    """What a person was told of, or was taken back."""

    place: Place
    """The last alert of it."""
    holds: bool
    demand: Demand
    ring_m: float


@dataclass(frozen=True, slots=True)
class Told:
    """What one person was told in one incident."""

    threats: Mapping[str, Threat] = field(default_factory=lambda: MappingProxyType({}))
    last_ms: int | None = None
    """When the last message goes out, or went, mesh time."""
    open: bool = False
    """That it is over is still to be said."""

    @property
    def holding(self) -> tuple[Threat, ...]:
        """Threats that hold."""
        return tuple(threat for threat in self.threats.values() if threat.holds)


@dataclass(frozen=True, slots=True)
class WarningMessage:
    """What a person is to be told."""

    notice: Notice
    demand: Demand
    due_ms: int
    """When it goes out unless a newer one takes its place before, mesh time."""
    ring_m: float = 0.0
    of_place: bool = False


def decide(told: Told, seen: Occurrence, now_ms: int) -> tuple[Told, WarningMessage | None]:
    """What an alert makes of what a person was told, and the message that it leads to, if any."""
    if seen.ends or seen.demand is Demand.RECORD:
        return _over(told, seen, now_ms)
    urgent = _is_urgent(told, seen)
    if seen.notice in PASSING:
        if seen.notice is Notice.CHANGED and not told.holding:
            return told, None  # its clearing came first
    else:
        known = told.threats.get(seen.threat)
        if known and seen.place <= known.place:
            return told, None
        threat = Threat(seen.place, True, seen.demand, seen.ring_m)
        told = replace(told, threats=MappingProxyType({**told.threats, seen.threat: threat}))
    due_ms = now_ms if urgent else _when_read(told, now_ms)
    # A distance that has changed is as grave as the ring within which it did.
    demand = max(seen.demand, *(one.demand for one in told.holding)) if seen.notice is Notice.CHANGED else seen.demand
    message = WarningMessage(seen.notice, demand, due_ms, seen.ring_m, seen.of_place)
    return replace(told, last_ms=due_ms, open=True), message


def _is_urgent(told: Told, seen: Occurrence) -> bool:
    """Whether it can't wait: it is new, graver, or of a nearer ring than any that holds."""
    if seen.notice is Notice.CHANGED:
        return False
    if seen.notice is not Notice.APPROACH:
        known = told.threats.get(seen.threat)
        return known is None or not known.holds
    holding = told.holding
    rings = [one.ring_m for one in holding if one.ring_m]
    return not rings or seen.ring_m < min(rings) or all(seen.demand > one.demand for one in holding)


def _over(told: Told, seen: Occurrence, now_ms: int) -> tuple[Told, WarningMessage | None]:
    threats = dict(told.threats)
    known = threats.get(seen.threat)
    took_back = seen.ends
    if seen.ends:
        threats |= {key: replace(threat, holds=False) for key, threat in threats.items() if threat.place <= seen.place}
    elif seen.place > (known.place if known else BEFORE_ALL):
        took_back = known is not None and known.holds
        threats[seen.threat] = Threat(seen.place, False, seen.demand, known.ring_m if known else seen.ring_m)
    told = replace(told, threats=MappingProxyType(threats))
    over = took_back and not told.holding
    if not told.open or not over:
        return told, None
    due_ms = _when_read(told, now_ms)
    return replace(told, last_ms=due_ms, open=False), WarningMessage(Notice.OVER, Demand.RECORD, due_ms)


def _when_read(told: Told, now_ms: int) -> int:
    """When the last message has been read. One that is still waiting gives its turn away."""
    if told.last_ms is None:
        return now_ms
    return told.last_ms if told.last_ms > now_ms else max(now_ms, told.last_ms + READ_MS)
