"""Handovers between the shifts of a desk: their records, and which records may be appended. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.common.errors import Conflict, FailedPrecondition

ACKNOWLEDGED, OWN = "handover_acknowledged", "handover_own"
"""Codes of the reasons why an acknowledgement is refused."""


@dataclass(frozen=True, slots=True)
class HandoverWritten:
    """The leaving shift wrote a handover."""

    handover_id: str
    notes: str
    open_incident_ids: tuple[str, ...]
    """Incidents that were open at that moment, newest first, as the leg knows them."""
    review_case_ids: tuple[str, ...]
    device_ids: tuple[str, ...]
    by: str
    """SPIFFE id of the writer."""
    at_ms: int
    """Mesh time, milliseconds since 1970 UTC."""
    reviews_incomplete: bool = False
    """The writer couldn't see all match reviews that waited."""
    devices_incomplete: bool = False
    """The writer couldn't see all devices in trouble."""


@dataclass(frozen=True, slots=True)
class HandoverAcknowledged:
    """A person of the next shift acknowledged a handover."""

    handover_id: str
    remark: str
    by: str
    """SPIFFE id of the person."""
    at_ms: int
    """Mesh time, milliseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class ShiftHandover:
    """A handover with its acknowledgement, if there is one."""

    written: HandoverWritten
    acknowledged: HandoverAcknowledged | None = None


def decide_write(known: ShiftHandover | None, written: HandoverWritten) -> bool:
    """Whether a handover must be stored; false for the repetition of a stored one. Raises Conflict if the id has other content."""
    if known is None:
        return True
    stored = known.written
    # The leg adds these two, which differ in a repetition.
    if stored != replace(written, open_incident_ids=stored.open_incident_ids, at_ms=stored.at_ms):
        raise Conflict(f"handover {written.handover_id} is stored with other content: write it under another id")
    return False


def decide_acknowledge(known: ShiftHandover, acknowledged: HandoverAcknowledged) -> bool:
    """Whether an acknowledgement must be stored; false for a repetition.

    Raises FailedPrecondition for the writer of the handover, and if another person has acknowledged it.
    """
    if known.acknowledged is not None:
        if known.acknowledged.by == acknowledged.by:
            return False
        raise FailedPrecondition("another person has acknowledged this handover", ACKNOWLEDGED)
    if known.written.by == acknowledged.by:
        raise FailedPrecondition(
            "the person who wrote a handover can't acknowledge it: a person of the next shift does", OWN
        )
    return True
