"""The course of an incident, minute by minute: alerts, equipment events and the steps of all legs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from services.cli.report import formats
from services.cli.report.facts import DecidedAlert, LegStep, ReportFacts
from services.cli.report.words import Words
from services.common.messaging import flow
from tandem.common.v1 import geometry_pb2

LOOK_BACK_MS = 600_000
"""Equipment events are listed from this time before the incident on, milliseconds."""


class Moment(NamedTuple):
    """A line of the course."""

    at_ms: int
    who: str
    what: str
    is_grave: bool = False
    """The line is emphasised: a response was demanded, or something was late or missing."""


def course(facts: ReportFacts, words: Words) -> list[dict[str, Any]]:
    """The course as minutes, each with its lines, as the template needs them."""
    moments = sorted(
        # At the same moment, an event of a device comes before the decision that follows from it, and a step after it.
        [*_equipment(facts, words), *_alerts(facts, words), *_steps(facts, words)],
        key=lambda moment: moment.at_ms,
    )
    return [
        {
            "minute": minute,
            "lines": [
                {
                    "time": formats.clock_time(moment.at_ms),
                    "who": moment.who,
                    "what": moment.what,
                    "grave": moment.is_grave,
                }
                for moment in lines
            ],
        }
        for minute, lines in groupby(moments, key=lambda moment: formats.minute(moment.at_ms))
    ]


def alert_text(fact: DecidedAlert, words: Words) -> str:
    """An alert in words: its kind, ring, target, distance and demand."""
    alert, measure = fact.alert, fact.measure
    parts = [words("RING_UNWATCHED") if fact.without_departure else words.alert(alert)]
    if alert.ring_m:
        parts.append(words.text(f"{formats.metres(alert.ring_m)} 기준", f"ring of {formats.metres(alert.ring_m)}"))
    if alert.target_id:
        parts.append(alert.target_id)
    if measure is not None and measure.HasField("distance_m") and not fact.without_departure:
        distance = formats.metres(measure.distance_m)
        parts.append(words.text(f"거리 {distance}", f"distance {distance}"))
    if alert.late:
        parts.append(words.text("늦게 판단됨", "decided late"))
    demand = words(geometry_pb2.Demand.Name(alert.demand)) if alert.demand else "-"
    return f"{', '.join(parts)} → {demand}"


def _alerts(facts: ReportFacts, words: Words) -> Iterator[Moment]:
    for fact in facts.alerts:
        text = alert_text(fact, words)
        if fact.at_ms != fact.decided_ms:
            moment = formats.clock_time(fact.at_ms)
            text += words.text(f" (해당 시각 {moment})", f" (of {moment})")
        is_grave = fact.alert.demand == geometry_pb2.RESPOND
        yield Moment(fact.decided_ms, words("fold"), text, is_grave=is_grave)


def _equipment(facts: ReportFacts, words: Words) -> Iterator[Moment]:
    from_ms = facts.began_ms - LOOK_BACK_MS
    for device in facts.devices:
        owner = words("wearer" if device.of_wearer else "protected")
        for event in device.equipment:
            if from_ms <= event.at_ms <= facts.last_ms:
                yield Moment(event.at_ms, words("device"), f"{owner}, {device.device_id}: {words(event.kind)}")


def _steps(facts: ReportFacts, words: Words) -> Iterator[Moment]:
    for step in facts.steps:
        is_grave = step.kind in ("LegAbsent", "StepsLost", "NobodyAvailable", "Escalated", "Rejected")
        yield Moment(step.at_ms, words(step.leg), step_text(step, words), is_grave=is_grave)


def step_text(step: LegStep, words: Words) -> str:
    """A step in words: what happened, about whom, by whom, and the details that its leg may show."""
    parts = [words.step_of(step.leg, step.kind)]
    if step.subject_id:
        parts.append(step.subject_id)
    parts += _details(step, words)
    if step.by:
        parts.append(words.text(f"처리자 {step.by}", f"by {step.by}"))
    return ", ".join(parts)


_NAMED_FIELDS = (
    ("Progressed", "state", "state"),
    ("Closed", "cause", "cause"),
    ("Flagged", "flag", "flag"),
    ("Escalated", "escalation_reason", "reason"),
    ("ContactBegun", "plan", "plan"),
    ("ContactStepped", "state", "contact"),
    ("NoteAdded", "kind", "note"),
    ("NoteAdded", "result", "result"),
)
"""Kind of a step, its field with the number of an enum, and the beginning of the names of its words. A note's text isn't shown, since
it may name people."""


def named_fields(step: LegStep, words: Words) -> Iterator[str]:
    """The numbers of enums in a step, in words: its state, cause, flag or reason."""
    for kind, field, name in _NAMED_FIELDS:
        if step.kind == kind and step.body.get(field):
            yield words.numbered(name, step.body[field])


def _details(step: LegStep, words: Words) -> Iterator[str]:
    body: Mapping[str, Any] = step.body
    yield from named_fields(step, words)
    if step.kind == "Raced":
        losing = body.get("losing")
        yield words.text(
            "피부착자가 먼저 도착할 수 있음" if losing else "출동 인원이 먼저 도착할 전망",
            "the wearer may arrive first" if losing else "the responder is expected to arrive first",
        )
    if step.kind in ("LegAbsent", "LegReturned") and body.get("leg") in flow.LEGS:
        yield words(body["leg"])
    if step.kind == "SceneShared" and not body.get("one_scene"):
        yield words.text("해제", "no longer")
    if step.kind == "TravelEstimated" and isinstance(travel_s := body.get("travel_s"), int):
        yield words.text(f"이동 {travel_s}초", f"{travel_s} s on the way")
    if step.kind == "Rejected" and body.get("reason"):
        yield words.text(f"사유: {body['reason']}", f"reason: {body['reason']}")
