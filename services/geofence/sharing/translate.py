"""Translates the messages of PositionService to and from the domain's terms."""

from __future__ import annotations

from services.common import fields, times
from services.common.privacy.grounds import RecordKind
from services.common.rpc import statuses
from services.common.rpc.errors import InvalidField, RetryableError, TandemError
from services.geofence.domain.kinematics.geometry import lat_lon_deg
from services.geofence.domain.sharing import End, KnownPosition, PositionQuery, Subject
from tandem.common.v1 import presence_pb2
from tandem.geofence.v1 import positions_pb2

_KINDS = {
    positions_pb2.WEARER: RecordKind.WEARER,
    positions_pb2.PROTECTED_PERSON: RecordKind.PROTECTED_PERSON,
    positions_pb2.PROTECTED_PLACE: RecordKind.ORDER,
}


def query_of(request: positions_pb2.ShareRequest) -> PositionQuery:
    """The query of a request. Raises InvalidField."""
    under = request.WhichOneof("under")
    if under is None:
        raise InvalidField("under", "is missing: set incident_id or order_id")
    fields.required_id(under, getattr(request, under))
    subject = request.subject
    if subject.kind not in _KINDS:
        raise InvalidField("subject.kind", "is no known kind (known: WEARER, PROTECTED_PERSON, PROTECTED_PLACE)")
    is_place = subject.kind == positions_pb2.PROTECTED_PLACE
    for part in subject.subject_id.split("/", 1) if is_place else (subject.subject_id,):
        fields.required_id("subject.subject_id", part)
    return PositionQuery(
        incident_id=request.incident_id,
        order_id=request.order_id,
        legal_basis=request.legal_basis,
        subject=Subject(_KINDS[subject.kind], subject.subject_id),
        expires_at_ms=fields.moment("expires_at", request.expires_at, request.HasField("expires_at")),
    )


def opened(number: int, disclosure_id: str) -> positions_pb2.ShareEvent:
    """The event that a share is open."""
    return positions_pb2.ShareEvent(number=number, opened=positions_pb2.ShareOpened(disclosure_id=disclosure_id))


def refused(number: int, error: TandemError) -> positions_pb2.ShareEvent:
    """The event that a share isn't served."""
    refusal = positions_pb2.ShareRefused(code=statuses.status_of(error).code, reason=error.reason)
    if isinstance(error, InvalidField):
        refusal.field = error.field
    if isinstance(error, RetryableError):
        refusal.retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
    return positions_pb2.ShareEvent(number=number, refused=refusal)


def ended(number: int, reason: End) -> positions_pb2.ShareEvent:
    """The event that a share ended."""
    end = positions_pb2.ShareEnd(reason=positions_pb2.ShareEndReason.Value(reason.name))
    return positions_pb2.ShareEvent(number=number, end=end)


def position(number: int, known: KnownPosition, now_ms: int) -> positions_pb2.ShareEvent:
    """The event of a subject's position, with its age at `now_ms`, the log's time."""
    event = positions_pb2.ShareEvent(number=number)
    shown = event.position
    shown.unknown = known.unknown
    if known.fix is not None:
        shown.lat_deg, shown.lon_deg = lat_lon_deg(known.fix.point)
        shown.accuracy_m = known.fix.accuracy_mm / 1000
        shown.fix_time.CopyFrom(times.to_timestamp(known.fix.time_ms))
        shown.age_s = (now_ms - known.fix.time_ms) / 1000
        shown.source = presence_pb2.PositionSource.ValueType(known.fix.source)
    elif known.place is not None:
        center, radius_mm = known.place.bounding_ball
        shown.lat_deg, shown.lon_deg = lat_lon_deg(center)
        shown.accuracy_m = radius_mm / 1000
    return event
