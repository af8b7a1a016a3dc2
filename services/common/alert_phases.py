"""Which part of an event an alert tells: its beginning, its end, or a change of it. No I/O, no clock."""

from __future__ import annotations

from enum import StrEnum

from tandem.common.v1 import alert_pb2, geometry_pb2


class AlertPhase(StrEnum):
    """The part of an event that an alert tells. Its kind doesn't say it: a JAMMED that demands RECORD is the end of the suspicion."""

    BEGUN = "BEGUN"
    """What the kind names has begun, or happens at this moment."""
    OVER = "OVER"
    """What the kind names is over, or is claimed no longer."""
    UNCONFIRMED = "UNCONFIRMED"
    """What the kind names is no longer watched or claimed, and no report shows that it is over."""
    CHANGED = "CHANGED"
    """For the record. The alert alone doesn't say whether what its kind names began, continued or ended."""


_ENDED_BY_RECORD = frozenset(
    {
        alert_pb2.TAMPERED,
        alert_pb2.PANIC,
        alert_pb2.JAMMED,
        alert_pb2.DEVICE_OFF,
        alert_pb2.PROTECTED_DEVICE_LOST,
        alert_pb2.OUTAGE,
        alert_pb2.NOT_FITTED,
        alert_pb2.TAG_LAPSED,
    }
)
"""Kinds whose alert that demands RECORD is the end of the event."""


def phase_of(alert: alert_pb2.Alert) -> AlertPhase:
    """The part of an event that an alert tells, by its kind, demand, ring, destinations, outage, and whether its end is confirmed."""
    if alert.unconfirmed:
        return AlertPhase.UNCONFIRMED
    if alert.demand != geometry_pb2.RECORD:
        return AlertPhase.BEGUN
    if alert.kind == alert_pb2.SPOOFING_SUSPECTED:
        return AlertPhase.CHANGED
    # An outage explains a silence: its beginning demands only RECORD, as the notice of the outage covers it.
    is_covered = bool(alert.outage_id) and alert.kind != alert_pb2.OUTAGE
    if alert.kind == alert_pb2.UNKNOWN_NEAR and not is_covered and not alert.ring_m:
        return AlertPhase.OVER if alert.destinations else AlertPhase.CHANGED
    return AlertPhase.OVER if alert.kind in _ENDED_BY_RECORD and not is_covered else AlertPhase.BEGUN
