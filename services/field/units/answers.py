"""Content for a unit's page: its duty and the events of its targets, from the messages of its leg."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from services.common import times
from services.common.ids import PlaceId
from tandem.common.v1 import alert_pb2, exercise_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2, roster_pb2, unit_duty_pb2

_ENDS = {
    unit_duty_pb2.TASK_OFFERED_ON: "offered_on",
    unit_duty_pb2.TASK_CLOSED: "closed",
    unit_duty_pb2.TASK_UNKNOWN: "unknown",
}
OTHER = "other"
"""Name of a value that this version doesn't know. The page has a text for such a kind, state and leg."""


def duty(message: unit_duty_pb2.GetDutyResponse) -> dict[str, Any]:
    """The unit with its offers and assignments."""
    unit = message.unit
    return {
        "unit": unit.unit.unit_id,
        "class": unit.unit.unit_class,
        "status": _name(roster_pb2.UnitStatus, unit.status),
        "shift_until_ms": times.from_timestamp(unit.unit.shift_until),
        "distress_ms": _ms(unit, "distress_at"),
        "tasks": [_task(task) for task in message.tasks],
        "ends": [{"assignment": end.assignment_id, "reason": _ENDS.get(end.reason, "unknown")} for end in message.ends],
    }


def _task(task: unit_duty_pb2.UnitTask) -> dict[str, Any]:
    assignment = task.assignment
    return {
        "assignment": assignment.assignment_id,
        "incident": assignment.incident_id,
        "state": _name(dispatch_pb2.AssignmentState, assignment.state),
        "offer": assignment.offer_number,
        "kind": _name(alert_pb2.AlertKind, assignment.kind),
        "to": _destination(assignment),
        "subject": assignment.subject_id,
        "is_exercise": assignment.exercise != exercise_pb2.EXERCISE_UNSPECIFIED,
        "is_check": assignment.task == notice_pb2.CHECK,
        "asked_ms": _ms(assignment, "offered_at"),
        "due_ms": _ms(assignment, "due_at"),
        "arrival_due_ms": _ms(assignment, "arrival_due_at"),
        "reminded_ms": _ms(assignment, "reminded_at"),
        "distress_ms": _ms(assignment, "distress_at"),
        "one_scene_ms": _ms(assignment, "one_scene_at"),
        "spoofing_ms": _ms(assignment, "spoofing_suspected_at"),
        "travel_s": assignment.choice.travel_s if assignment.choice.HasField("travel_s") else None,
        "losing": assignment.race.losing,
        "flag": _name(dispatch_pb2.WarningFlag, assignment.person_flag.flag) if assignment.person_flag.flag else "",
        "others": [
            {
                "leg": _name(alert_pb2.Leg, other.leg),
                "state": _name(dispatch_pb2.AssignmentState, other.state),
                "class": other.unit_class,
                "distress_ms": _ms(other, "distress_at"),
            }
            for other in task.others
        ],
    }


def _destination(assignment: dispatch_pb2.Assignment) -> str:
    if PlaceId.parse(assignment.subject_id) is not None:
        return "place"
    goes_to_wearer = assignment.leg == alert_pb2.PROBATION or assignment.task == notice_pb2.CHECK
    return "wearer" if goes_to_wearer else "person"


def target(event: following_pb2.TargetEvent) -> dict[str, Any]:
    """An event of a target."""
    if not event.HasField("target"):
        return {"incident": event.incident_id, "followed": False}
    position = event.target
    found: dict[str, Any] = {
        "incident": event.incident_id,
        "followed": True,
        "subject": position.subject_id,
        "is_wearer": position.is_wearer,
        "unknown": position.unknown,
        "interrupted": position.interrupted,
    }
    if position.HasField("lat_deg"):
        found |= {"lat": position.lat_deg, "lon": position.lon_deg, "accuracy": position.accuracy_m}
        found |= {"age_s": position.age_s if position.HasField("age_s") else None}
    return found


def _name(enum: Any, number: int) -> str:
    """The name of a generated enumeration's value for the page; OTHER if a leg that is newer than field sends one that field doesn't
    know: a unit must see its tasks all the same."""
    name: str = enum.Name(number) if number in enum.values() else OTHER
    return name.lower()


def _ms(message: Message, name: str) -> int | None:
    """A time of a message, milliseconds of mesh time; None if it is absent."""
    return times.from_timestamp(getattr(message, name)) if message.HasField(name) else None
