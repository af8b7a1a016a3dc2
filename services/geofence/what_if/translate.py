"""Converts what-if questions and answers between protobuf and the domain types. Parsing validates; errors name their field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.geofence import translate
from services.geofence.domain.alerts import Alert, ContactRequest, DeadLetter, Output, SensingRequest
from services.geofence.domain.entries import Body, Case, EquipmentKind, EquipmentReport, Positions, Tick
from services.geofence.domain.what_if import work_of
from tandem.common.v1 import log_pb2
from tandem.geofence.v1 import what_if_pb2

MAX_STEPS = 200
MAX_SPAN_MS = 86_400_000
MAX_WORK = 500_000
"""Maximum of `work_of`; a fold of that size takes a few seconds."""
MAX_CORNERS = 2_000
MAX_ACCURACY_M = 10_000.0
_MAX_ITEMS = (("persons", 20), ("places", 20), ("rings", 10), ("encounters", 50), ("tag_device_ids", 20))


def inline_case(msg: log_pb2.CaseSnapshot) -> Case:
    """Parses a made-up case. Raises InvalidField if it is malformed or too large."""
    for name, max_items in _MAX_ITEMS:
        if len(getattr(msg, name)) > max_items:
            raise InvalidField(f"case.{name}", f"must hold at most {max_items}, but holds {len(getattr(msg, name))}")
    polygons = [place.polygon for place in msg.places] + [place.polygon for e in msg.encounters for place in e.places]
    if (
        sum(len(polygon.vertices) + sum(len(hole.vertices) for hole in polygon.holes) for polygon in polygons)
        > MAX_CORNERS
    ):
        raise InvalidField("case", f"must hold at most {MAX_CORNERS} corners in all")
    fields.required_id("case.case_id", msg.case_id)
    fields.required_id("case.order_id", msg.order_id)
    fields.required_id("case.wearer_id", msg.wearer_id)
    try:
        return translate.case_of(msg)
    except (ValueError, ArithmeticError) as error:
        raise InvalidField("case", f"can't be read: {type(error).__name__}") from error


def steps_of(messages: Sequence[what_if_pb2.WhatIfStep], case: Case) -> list[tuple[int, Body]]:
    """Parses steps into pairs of time, ms since 1970 UTC, and entry body. Raises InvalidField."""
    if not 0 < len(messages) <= MAX_STEPS:
        raise InvalidField("steps", f"must hold 1 to {MAX_STEPS} steps, but holds {len(messages)}")
    if work_of(case, len(messages)) > MAX_WORK:
        raise InvalidField("steps", "are too many for a case with this many rings and corners: send fewer steps")
    entries: list[tuple[int, Body]] = []
    for n, msg in enumerate(messages):
        at_ms = fields.moment(f"steps[{n}].at", msg.at, msg.HasField("at"))
        if entries and at_ms < entries[-1][0]:
            raise InvalidField(f"steps[{n}].at", "is earlier than the previous step: sort the steps by `at`")
        if entries and at_ms > entries[0][0] + MAX_SPAN_MS:
            raise InvalidField(f"steps[{n}].at", "is more than 24 hours after the first step")
        entries.append((at_ms, _body(f"steps[{n}]", n, msg, at_ms=at_ms, case=case)))
    return entries


def _body(field: str, n: int, msg: what_if_pb2.WhatIfStep, *, at_ms: int, case: Case) -> Body:
    match msg.WhichOneof("report"):
        case "position":
            device_id = _device(f"{field}.subject_id", msg.subject_id, case)
            inside = f"{field}.position"
            lat_deg = fields.number(f"{inside}.point.lat_deg", msg.position.point.lat_deg, -90, greatest=90)
            lon_deg = fields.number(f"{inside}.point.lon_deg", msg.position.point.lon_deg, -180, greatest=180)
            accuracy_m = fields.number(f"{inside}.accuracy_m", msg.position.accuracy_m, 0.001, greatest=MAX_ACCURACY_M)
            return Positions(
                device_ids=[device_id],
                report_ids=[f"step-{n}"],
                fix_times_ms=[at_ms],
                lat_e7=[round(lat_deg * 1e7)],
                lon_e7=[round(lon_deg * 1e7)],
                accuracy_mm=[round(accuracy_m * 1000)],
                received_wall_us=0,
            )
        case "event":
            device_id = _device(f"{field}.subject_id", msg.subject_id, case)
            name = log_pb2.EquipmentKind.Name(msg.event) if msg.event in log_pb2.EquipmentKind.values() else ""
            if name not in EquipmentKind.__members__:
                raise InvalidField(f"{field}.event", "is no known event")
            return EquipmentReport(
                device_id=device_id,
                report_id=f"step-{n}",
                event=EquipmentKind(name),
                event_time_ms=at_ms,
                received_wall_us=0,
            )
        case _:
            if msg.subject_id:
                raise InvalidField(f"{field}.report", "is missing: set position or event, or leave subject_id empty")
            return Tick()


def _device(field: str, subject_id: str, case: Case) -> str:
    """The first device of the wearer or of a protected person. Raises InvalidField."""
    fields.required_id(field, subject_id)
    devices = {target.target_id: target.device_ids for target in case.targets if target.is_person}
    devices[case.wearer_id] = case.tag_device_ids
    if subject_id not in devices:
        raise InvalidField(field, "is neither the wearer nor a protected person of the case")
    if not devices[subject_id]:
        raise InvalidField(field, "has no device in this case")
    return devices[subject_id][0]


def answer(case: Case, rules_id: str, outputs: Sequence[Output]) -> what_if_pb2.EvaluateResponse:
    """Answer to a what-if question: the alerts with their figures, and the reasons of dead letters."""
    response = what_if_pb2.EvaluateResponse(case_version=case.version, rules_id=rules_id)
    for output in outputs:
        match output:
            case Alert():
                response.alerts.add(
                    alert=translate.alert_to_proto(output, 0), measure=translate.measure_to_proto(output)
                )
            case DeadLetter():
                response.dead_letters.append(output.reason)
            case SensingRequest() | ContactRequest():
                pass  # nobody asks a device or a wearer on a supposition
            case _:
                assert_never(output)
    return response
