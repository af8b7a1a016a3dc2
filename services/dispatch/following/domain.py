"""Steps of an assignment whose target is followed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.dispatch.domain.enums import Advice


@dataclass(frozen=True, slots=True)
class Raced:
    """The race against the wearer began to be lost, or is no longer being lost."""

    at_ms: int
    assignment_id: str
    losing: bool
    advice: Advice
    wearer_s: int | None
    """The wearer's time to the destination, seconds; None if the wearer doesn't come nearer."""
    responder_s: int
    """The responder's time to the destination, seconds."""
    by_ring: bool
    """Whether the distance is known only by the ring. `wearer_s` is then the greatest possible time: radius divided by pace."""
    supervisor_desk: str = ""
    """Supervisor's desk that is notified too; empty if there is no roster."""
    due_ms: int | None = None
    """New deadline of the offer, mesh time; None if the deadline doesn't change."""
