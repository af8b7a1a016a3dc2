"""Reports and answers of a unit's page, as requests to its leg. Parsing is the validation."""

from __future__ import annotations

from typing import Any

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.field.guard import text_of
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2, unit_duty_pb2

STATUSES = {"available": roster_pb2.AVAILABLE, "busy": roster_pb2.BUSY, "off": roster_pb2.OFF}
PROGRESS = {
    "en_route": dispatch_pb2.EN_ROUTE,
    "on_scene": dispatch_pb2.ON_SCENE,
    "apprehended": dispatch_pb2.APPREHENDED,
}
CAUSES = {
    name.lower(): number
    for name, number in dispatch_pb2.CloseCause.items()
    if number and number != dispatch_pb2.EXERCISE
}
MAX_SHOWN = 20
"""Maximum number of assignments that a page names."""


def report(token: str, content: Any, now_ms: int) -> unit_duty_pb2.ReportDutyRequest:
    """The report of a unit about itself. A position may lack. Raises InvalidField."""
    status = STATUSES.get(text_of(content, "status"))
    if status is None:
        raise InvalidField("status", f"must be {', '.join(STATUSES)} (example: available)")
    request = unit_duty_pb2.ReportDutyRequest(token=token, status=status, at=times.to_timestamp(now_ms))
    if "lat" in content or "lon" in content:
        request.position.lat_deg = _degrees(content.get("lat"), "lat", 90)
        request.position.lon_deg = _degrees(content.get("lon"), "lon", 180)
    return request


def _degrees(value: Any, name: str, bound: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidField(name, "must be a number of degrees (example: 37.5665)")
    return float(fields.number(name, value, -bound, greatest=bound))


def answer(token: str, content: Any) -> unit_duty_pb2.AnswerTaskRequest:
    """The answer of a unit to an offer or assignment. Raises InvalidField."""
    offer = content.get("offer") if isinstance(content, dict) else None
    if not isinstance(offer, int) or isinstance(offer, bool) or not 0 < offer < 1 << 31:
        raise InvalidField("offer", "must be the number of the offer (example: 1)")
    request = unit_duty_pb2.AnswerTaskRequest(
        token=token,
        assignment_id=fields.required_id("assignment", text_of(content, "assignment")),
        offer_number=offer,
    )
    kind = text_of(content, "answer")
    match kind:
        case "received":
            request.received.SetInParent()
        case "accepted":
            request.accepted.SetInParent()
        case "assured":
            request.assured.SetInParent()
        case "rejected":
            request.rejected.reason = _text(content, "reason")
        case "closed":
            request.closed.cause = _cause(content)
            request.closed.note = _text(content, "note")
        case _ if kind in PROGRESS:
            request.progress = PROGRESS[kind]
        case _:
            known = ("received", "accepted", "rejected", *PROGRESS, "assured", "closed")
            raise InvalidField("answer", f"must be {', '.join(known)} (example: accepted)")
    return request


def _cause(content: Any) -> dispatch_pb2.CloseCause.ValueType:
    cause = CAUSES.get(text_of(content, "cause"))
    if cause is None:
        raise InvalidField("cause", f"must be {', '.join(CAUSES)} (example: nobody_found)")
    return cause


def _text(content: Any, name: str) -> str:
    """A text of the content. Raises InvalidField if it can't be sent, as half a surrogate pair can't."""
    text = text_of(content, name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidField(name, "must be text (example: no car)") from None
    return text


def shown(text: str) -> list[str]:
    """The ids of assignments in a query, separated by commas. Raises InvalidField."""
    ids = [id_ for id_ in text.split(",") if id_]
    fields.at_most("shown", ids, MAX_SHOWN)
    return [fields.required_id("shown", id_) for id_ in ids]
