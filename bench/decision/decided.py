"""What the fold decides in a play of the decision-quality study. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.approach import POSSIBLE
from services.geofence.domain.entries import Demand
from services.geofence.domain.state import CaseState

HELP_MS = 480_000
"""Time for which a unit counts as present, or nearly present, after a dispatch on a prediction."""
SAME_DISPATCH_MS = 600_000
"""A demand within this time after the last one ended belongs to the same dispatch."""


class Demanded(NamedTuple):
    """A demand that was active from one moment to another; sorts by its start."""

    from_ms: int
    until_ms: int
    kind: str


class Sent(NamedTuple):
    """A demand to respond, and how long its cause lasted; sorts by its start."""

    from_ms: int
    until_ms: int
    """End of the ring's entry or of the unknown position; a prediction ends at once."""
    kind: str
    reported_m: float | None
    """Reported distance on which the decision is based."""


@dataclass(slots=True)
class Decided:
    """Decisions of the fold for a play."""

    responds: list[Demanded] = field(default_factory=list)
    """Demands to respond: a ring's until it is cleared, any other for HELP_MS."""
    near: list[Demanded] = field(default_factory=list)
    """UNKNOWN_NEAR with NOTIFY or more: while it is active, and for HELP_MS after each alert."""
    recorded: list[Demanded] = field(default_factory=list)
    """UNKNOWN_NEAR with any demand, even only RECORD, while it is active."""
    sent: list[Sent] = field(default_factory=list)
    """All demands to respond, of every kind."""
    demands: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of alerts by kind and demand."""

    @property
    def dispatches(self) -> list[Sent]:
        """The first demand of each dispatch: demands within 10 minutes after the end of another are one dispatch."""
        firsts: list[Sent] = []
        ended_ms: int | None = None
        for sent in sorted(self.sent):
            if ended_ms is None or sent.from_ms - ended_ms >= SAME_DISPATCH_MS:
                firsts.append(sent)
            ended_ms = sent.until_ms if ended_ms is None else max(ended_ms, sent.until_ms)
        return firsts


class Listener:
    """Notes what the fold's alerts demand while a play is folded."""

    def __init__(self, until_ms: int) -> None:
        self._until_ms = until_ms
        """End of the play; later alerts don't count."""
        self._decided = Decided()
        self._entered: dict[int, Sent] = {}
        """Demand of each active ring with RESPOND, by radius, mm."""
        self._unknown: Sent | None = None
        """Demand of the active UNKNOWN_NEAR with RESPOND."""
        self._since: dict[Demand, int] = {}
        """Start of the active UNKNOWN_NEAR with at least NOTIFY, and with any demand."""

    def note(self, alert: Alert, stamp_ms: int) -> None:
        """Notes an alert of an entry with a stamp."""
        if alert.at_ms >= self._until_ms:
            return
        decided = self._decided
        decided.demands[alert.kind.value, alert.demand.name] += 1
        if alert.kind is AlertKind.RING_CLEARED and alert.ring_mm in self._entered:
            self._end_ring(self._entered.pop(alert.ring_mm), stamp_ms)
        if alert.kind is AlertKind.UNKNOWN_NEAR and alert.demand >= Demand.NOTIFY:
            decided.near.append(Demanded(stamp_ms, stamp_ms + HELP_MS, alert.kind.value))
        if alert.demand is Demand.RESPOND:
            self._note_respond(alert, stamp_ms)

    def note_state(self, case_state: CaseState | None, stamp_ms: int) -> None:
        """Notes which UNKNOWN_NEAR are active after an entry."""
        active = [*case_state.near.values()] if case_state else []
        if case_state:
            possible = POSSIBLE.of(case_state).values()
            active += [Demand.NOTIFY if presence.notified else Demand.RECORD for presence in possible]
        if self._unknown and Demand.RESPOND not in active:
            self._decided.sent.append(self._unknown._replace(until_ms=stamp_ms))
            self._unknown = None
        for demand in (Demand.NOTIFY, Demand.RECORD):
            if max(active, default=0) >= demand:
                self._since.setdefault(demand, stamp_ms)
            elif demand in self._since:
                self._end_near(demand, stamp_ms)

    def end(self) -> Decided:
        """The decisions, where everything active ends with the play."""
        for sent in self._entered.values():
            self._end_ring(sent, self._until_ms)
        if self._unknown:
            self._decided.sent.append(self._unknown._replace(until_ms=self._until_ms))
        for demand in [*self._since]:
            self._end_near(demand, self._until_ms)
        self._decided.responds.sort()
        self._decided.sent.sort()
        return self._decided

    def _note_respond(self, alert: Alert, stamp_ms: int) -> None:
        reported_m = None if alert.distance_mm is None else alert.distance_mm / 1000
        sent = Sent(stamp_ms, stamp_ms, alert.kind.value, reported_m)
        if alert.kind is AlertKind.RING_ENTERED:
            self._entered.setdefault(alert.ring_mm, sent)
            return
        self._decided.responds.append(Demanded(stamp_ms, stamp_ms + HELP_MS, alert.kind.value))
        if alert.kind is AlertKind.UNKNOWN_NEAR:
            self._unknown = self._unknown or sent
        else:
            self._decided.sent.append(sent)

    def _end_ring(self, sent: Sent, until_ms: int) -> None:
        self._decided.responds.append(Demanded(sent.from_ms, until_ms, sent.kind))
        self._decided.sent.append(sent._replace(until_ms=until_ms))

    def _end_near(self, demand: Demand, until_ms: int) -> None:
        ended = Demanded(self._since.pop(demand), until_ms, AlertKind.UNKNOWN_NEAR.value)
        (self._decided.near if demand is Demand.NOTIFY else self._decided.recorded).append(ended)
