"""Outcomes of incidents, read from both agencies' legs and the warning leg, and as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from services.client.actors import REVIEWER
from services.client.calls import call, call_once, may_succeed_later
from services.client.mesh import Clients
from services.common import times
from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, geometry_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2

PAGE_SIZE = 200
ANSWER_WITHIN_S = 5.0
"""Time after which a leg counts as silent for somebody who can't wait, seconds of wall time."""


@dataclass(frozen=True, slots=True)
class AssignmentOutcome:
    """One assignment of a leg, and how it was answered."""

    leg: str
    destination: str
    """Id of the wearer, protected person or place to go to."""
    state: str
    responds: bool
    """Whether the assignment needs an acknowledgement: somebody has to go, or has to be warned."""
    report_to_published_ms: float | None
    """Time from receiving the deciding report to the offer, milliseconds of wall time; None if no report decided."""
    acknowledged_ms: int | None
    """Time of the acknowledgement, mesh time, milliseconds since 1970 UTC."""
    absent: tuple[str, ...] = ()
    """Other legs whose part in the incident this leg hasn't seen."""
    task: str = ""
    """Task beside the response, such as CHECK; empty for the response."""
    person_flag: str = ""
    """Fact about the warned person that the police must know, such as NO_RECEIPT; empty if there is none."""

    def to_json(self, shift_ms: int) -> dict[str, Any]:
        """The printed JSON object, with all times moved back by `shift_ms`. Entries of the warning leg don't name a leg."""
        agency = {"agency": self.leg} if self.leg in flow.AGENCY_LEGS else {}
        return agency | {
            "destination": self.destination,
            "state": self.state,
            "report_to_published_ms": self.report_to_published_ms,
            "acknowledged_at": moment_text(self.acknowledged_ms, shift_ms),
            **({"absent_legs": list(self.absent)} if self.absent else {}),
            **({"task": self.task} if self.task else {}),
            **({"person_flag": self.person_flag} if self.person_flag else {}),
        }


@dataclass(slots=True)
class IncidentOutcome:
    """An incident, joined from each leg's own record."""

    incident_id: str
    order_ids: set[str] = field(default_factory=set)
    opened_ms: int = times.MAX_MS
    """Time when the first leg opened the incident, mesh time, milliseconds since 1970 UTC."""
    ended_ms: int | None = None
    """Time when the last leg noted the end of the incident, mesh time; None while none did."""
    answers: list[AssignmentOutcome] = field(default_factory=list)
    exercise: bool = False
    """Whether the incident is a drill or a canary."""
    is_open: bool = False
    """Whether some leg has it as open."""
    first_ended_ms: int | None = None
    """Time when the first leg noted the end of the incident, mesh time; None while none did."""

    @property
    def responds(self) -> bool:
        """Whether the incident demands that an agency sends somebody."""
        return any(answer.responds for answer in self.answers if answer.leg in flow.AGENCY_LEGS)

    @property
    def answered(self) -> bool:
        """Whether both agencies must send somebody, and have acknowledged all such assignments."""
        due = [answer for answer in self.answers if answer.responds and answer.leg in flow.AGENCY_LEGS]
        return {answer.leg for answer in due} == set(flow.AGENCY_LEGS) and all(
            answer.acknowledged_ms is not None for answer in due
        )

    def to_json(self, shift_ms: int = 0) -> dict[str, Any]:
        """The printed JSON object, with all times moved back by `shift_ms`."""
        return {
            "incident_id": self.incident_id,
            "order_ids": sorted(self.order_ids),
            "opened_at": moment_text(self.opened_ms, shift_ms),
            "exercise": self.exercise,
            "legs": [answer.to_json(shift_ms) for answer in self.answers if answer.leg in flow.AGENCY_LEGS],
            "warnings": [answer.to_json(shift_ms) for answer in self.answers if answer.leg not in flow.AGENCY_LEGS],
        }


async def read(clients: Clients, order_ids: Collection[str] | None = None, since_ms: int = 0) -> list[IncidentOutcome]:
    """Incidents opened from `since_ms` on (mesh time), newest last. `order_ids` restricts them to these orders."""
    return _joined({leg: await _listed_by(clients, leg, since_ms) for leg in flow.LEGS}, order_ids)


async def read_answering(clients: Clients) -> tuple[list[IncidentOutcome], list[str]]:
    """Incidents as those legs know them that answer within 5 s, newest last, and the legs that don't answer."""
    answering = await asyncio.gather(*(_answers(clients, leg) for leg in flow.LEGS))
    silent = [leg for leg, answers in zip(flow.LEGS, answering, strict=True) if not answers]
    return _joined({leg: await _listed_by(clients, leg, 0) for leg in flow.LEGS if leg not in silent}), silent


async def read_incident(clients: Clients, incident_id: str) -> tuple[list[dispatch_pb2.Incident], list[str]]:
    """An incident as the agencies' legs know it, none if no leg knows it, and the legs that don't answer."""
    found: list[dispatch_pb2.Incident] = []
    silent: list[str] = []
    request, identity = dispatch_pb2.ListIncidentsRequest(incident_id=incident_id), clients.identity(REVIEWER)
    for leg in flow.AGENCY_LEGS:
        try:
            answer = await call_once(clients.legs[leg].dispatch.ListIncidents, request, identity)
        except grpc.aio.AioRpcError as error:
            if not may_succeed_later(error):
                raise
            silent.append(leg)
            continue
        found += answer.incidents
    return found, silent


async def _answers(clients: Clients, leg: str) -> bool:
    """Whether a leg answers now. A refusal is an answer, too."""
    request, identity = dispatch_pb2.ListIncidentsRequest(page_size=1), clients.identity(REVIEWER)
    try:
        await clients.legs[leg].dispatch.ListIncidents(request, timeout=ANSWER_WITHIN_S, metadata=identity)
    except grpc.aio.AioRpcError as error:
        return not may_succeed_later(error) or error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return True


def _joined(
    listed: Mapping[str, Sequence[dispatch_pb2.Incident]], order_ids: Collection[str] | None = None
) -> list[IncidentOutcome]:
    """Incidents of several legs, newest last. Each leg's own assignments only, since its view of the other legs may be stale."""
    incidents: dict[str, IncidentOutcome] = {}
    for leg, records in listed.items():
        for record in records:
            if order_ids is not None and set(order_ids).isdisjoint(record.order_ids):
                continue
            own = [
                assignment for assignment in record.assignments if assignment.leg == alert_pb2.Leg.Value(leg.upper())
            ]
            if not own:
                continue
            incident = incidents.setdefault(record.incident_id, IncidentOutcome(record.incident_id))
            incident.order_ids.update(record.order_ids)
            incident.opened_ms = min(incident.opened_ms, times.from_timestamp(record.opened_at))
            if record.HasField("ended_at"):
                ended_ms = times.from_timestamp(record.ended_at)
                incident.ended_ms = max(incident.ended_ms or 0, ended_ms)
                incident.first_ended_ms = min(incident.first_ended_ms or times.MAX_MS, ended_ms)
            else:
                incident.is_open = True
            incident.exercise = any(assignment.exercise for assignment in own)
            incident.answers += [_answer(leg, assignment) for assignment in own]
    return sorted(incidents.values(), key=lambda incident: (incident.opened_ms, incident.incident_id))


async def _listed_by(clients: Clients, leg: str, since_ms: int) -> list[dispatch_pb2.Incident]:
    listed: list[dispatch_pb2.Incident] = []
    token = ""
    while True:
        request = dispatch_pb2.ListIncidentsRequest(page_size=PAGE_SIZE, page_token=token)
        page = await call(clients.legs[leg].dispatch.ListIncidents, request, clients.identity(REVIEWER))
        for incident in page.incidents:
            if times.from_timestamp(incident.opened_at) < since_ms:
                return listed
            listed.append(incident)
        token = page.next_page_token
        if not token:
            return listed


def _answer(leg: str, assignment: dispatch_pb2.Assignment) -> AssignmentOutcome:
    return AssignmentOutcome(
        leg=leg,
        destination=assignment.subject_id,
        state=dispatch_pb2.AssignmentState.Name(assignment.state),
        responds=leg not in flow.AGENCY_LEGS or assignment.demand == geometry_pb2.Demand.RESPOND,
        report_to_published_ms=round(assignment.report_to_published_ms, 3)
        if assignment.HasField("report_to_published_ms")
        else None,
        acknowledged_ms=times.from_timestamp(assignment.acknowledged_at)
        if assignment.HasField("acknowledged_at")
        else None,
        absent=tuple(alert_pb2.Leg.Name(other).lower() for other in assignment.absent_legs),
        task=notice_pb2.Task.Name(assignment.task) if assignment.task else "",
        person_flag=dispatch_pb2.WarningFlag.Name(flag) if (flag := assignment.person_flag.flag) else "",
    )


def all_answered(incidents: Sequence[IncidentOutcome]) -> bool:
    """Whether at least one incident demands a response, and both agencies acknowledged every such incident."""
    responding = [incident for incident in incidents if incident.responds]
    return bool(responding) and all(incident.answered for incident in responding)


def to_json(match_ms: float | None, incidents: Iterable[IncidentOutcome], shift_ms: int = 0) -> dict[str, Any]:
    """The JSON object that `demo` and `replay` print."""
    return {
        "match_ms": None if match_ms is None else round(match_ms, 3),
        "incidents": [incident.to_json(shift_ms) for incident in incidents],
    }


def moment_text(mesh_ms: int | None, shift_ms: int) -> str | None:
    """A time moved back by `shift_ms`, as RFC 3339; None for no time."""
    return None if mesh_ms is None else times.to_rfc3339(mesh_ms - shift_ms)
