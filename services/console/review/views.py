"""Pages of one incident afterwards: both legs, the own leg's answers, the trace, notes, findings and the evidence.

The legs decide which data a user sees.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import grpc.aio
from aiohttp import web

from services.client.calls import call_once
from services.common import fields, times
from services.common.clock import wall_us
from services.common.errors import InvalidField
from services.common.observability.expected_times import expected_times
from services.common.observability.lateness import ExpectedTime, late_spans
from services.common.observability.spans import last_step_us
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, codes_for
from services.console import translate
from services.console.domain import board, desk, waterfall
from services.console.domain.board import IncidentCard, IncidentQuery
from services.console.domain.people import DESKS, VIEWERS, Role
from services.console.domain.units import CandidateList
from services.console.domain.waterfall import TraceSpan
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.pages.guard import Ask, RouteGuard, http_status
from services.console.pages.refusals import PageRefusal
from services.console.settings import ConsoleSettings
from tandem.common.v1 import notice_pb2 as common_notice_pb2
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2, notes_pb2, roster_pb2
from tandem.registry.v1 import disclosure_pb2, finding_pb2, notice_pb2, trace_pb2

MAX_SEARCHED = 5_000
PAGE_SIZE = 1_000
PURPOSES = ("ENFORCEMENT", "AUDIT", "COURT")


class ShownGround(NamedTuple):
    """The ground of the Ministry's notices under an order, for one wearer."""

    article: str
    """Code of the article; empty if there is no ground."""
    is_over: bool
    """Whether the order is over."""


class IncidentPages:
    """Pages of incidents."""

    def __init__(self, settings: ConsoleSettings, guard: RouteGuard, mesh: MeshClient) -> None:
        self._settings = settings
        self._guard = guard
        self._mesh = mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes for reading. `Answers` makes those for answering."""
        guard = self._guard
        return [
            guard.get("/incidents/{id}", VIEWERS, self.show),
            guard.post("/incidents/{id}", VIEWERS, self.evidence),
            guard.post("/incidents/{id}/download", VIEWERS, self.download),
        ]

    async def evidence(self, ask: Ask) -> web.StreamResponse:
        """Shows an incident with its replay and decisions. The leg records the legal grounds before it answers."""
        incident_id = id_of(ask)
        request = evidence_pb2.ReadEvidenceRequest(incident_id=incident_id, grounds=_grounds(ask, incident_id))
        try:
            answer = await call_once(
                self._mesh.leg_of(ask.user.role).evidence.ReadEvidence, request, self._mesh.identity(ask.user)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return await self.show(ask, has_copy=False, status=404)
        return await self.show(ask, answer)

    async def download(self, ask: Ask) -> web.StreamResponse:
        """Sends the leg's copy of the evidence as a file."""
        incident_id = id_of(ask)
        request = evidence_pb2.DownloadEvidenceRequest(incident_id=incident_id, grounds=_grounds(ask, incident_id))
        parts = self._mesh.leg_of(ask.user.role).evidence.DownloadEvidence(
            request, metadata=self._mesh.identity(ask.user)
        )
        data = [part.data async for part in parts]  # read it all first, so that a refusal can still be shown
        name = f"{incident_id}-{ask.user.role.leg}.jsonl"
        return web.Response(
            body=b"".join(data),
            headers={
                "Content-Type": "application/x-ndjson",
                "Content-Disposition": f'attachment; filename="{name}"',
            },
        )

    async def card(self, ask: Ask) -> IncidentCard:
        """Reads the incident of the address. Raises HTTPNotFound if the user's leg has no such incident."""
        return translate.incident(await self._read_incident(ask, id_of(ask)))

    async def refused(self, ask: Ask, refusal: PageRefusal) -> web.StreamResponse:
        """Shows the reason of a refusal on the current page of the incident, or on a separate page if the leg doesn't give it."""
        try:
            return await self.show(ask, refusal=refusal)
        except (grpc.aio.AioRpcError, web.HTTPNotFound):
            back = f"/incidents/{id_of(ask)}"
            return assets.page(ask, "unanswered.html", status=refusal.status, path=back, refusal=refusal)

    async def show(
        self,
        ask: Ask,
        copy: evidence_pb2.ReadEvidenceResponse | None = None,
        refusal: PageRefusal | None = None,
        *,
        has_copy: bool = True,
        wrong_finding: str = "",
        status: int = 200,
    ) -> web.StreamResponse:
        """Shows the current page of an incident, with the given evidence, or with the reason why an answer or finding was refused.

        Without `has_copy` it says that the leg has no copy of the evidence, and shows what is left: answers and trace.
        """
        incident_id = id_of(ask)
        incident = await self._read_incident(ask, incident_id)
        card = translate.incident(incident)
        page: dict[str, Any] = assets.island(ask, self._settings.tiles)
        trace = await read_trace(self._mesh, ask, incident)
        subjects = {to.assignment_id: to.subject_id for to in card.assignments}
        decisions: list[dict[str, Any]] = []
        if copy is not None:
            page["replay"] = translate.replay(copy)
            page["steps"] = _replay_steps(self._mesh, card, trace)
            page["late"] = _replay_late(self._mesh, subjects, trace.expected)
            tracks = translate.tracks(copy)
            for alert in translate.alerts(copy):
                alert["sides"] = waterfall.sides(tracks, alert["sequence"], alert["decided"])
                decisions.append(alert)
        own_leg = ask.user.role.leg if ask.user.role in DESKS else ""
        choices = {to.assignment_id: desk.choices(to) for to in card.of(own_leg)}
        to_send = [assignment_id for assignment_id, choice in choices.items() if choice.send]
        return assets.page(
            ask,
            "incident.html",
            status=refusal.status if refusal else status,
            path=f"/incidents/{incident_id}",  # an answer's own address can't be read by GET
            page=page,
            card=card,
            shown=board.shown(card, own_leg=own_leg),
            legs={leg: card.of(leg) for leg in board.LEGS},
            own_leg=own_leg,
            choices=choices,
            candidates=await read_all_candidates(self._mesh, ask, to_send),
            now_ms=self._mesh.clock.now_ms(),
            max_unit_name=desk.MAX_UNIT_NAME,
            causes=desk.CAUSES,
            max_reason=desk.MAX_REASON,
            max_note=desk.MAX_NOTE,
            refusal=refusal,
            notes=await self._read_notes(ask, incident_id),
            note_kinds=desk.NOTE_KINDS,
            noted_results=desk.NOTED_RESULTS,
            note_key=(refusal.form.get("key") if refusal else "") or secrets.token_hex(16),
            steps={leg: waterfall.steps(trace.spans, leg) for leg in board.LEGS},
            late=late_spans(trace.expected),
            step_name=waterfall.step_name,
            trace=trace,
            case_versions=waterfall.case_versions(trace.spans, trace.trace_id),
            subjects=subjects,
            uses=waterfall.uses(trace.spans),
            findings=await read_findings(self._mesh, ask, incident_id),
            new_finding_id=new_finding_id(),
            wrong_finding=wrong_finding,
            grounds=await self._read_grounds(ask, board.shown(card)["orders"]),
            evidence=copy,
            has_copy=has_copy,
            rules=translate.rules(copy) if copy is not None else {},
            decisions=decisions,
            bases=_bases(ask.user.role),
            purposes=PURPOSES,
            is_over=board.is_over(card),
            makes_documents=self._settings.mesh_folder is not None,
            chosen=ask.form,
        )

    async def _read_notes(self, ask: Ask, incident_id: str) -> list[dict[str, Any]] | None:
        """Returns the notes, oldest first; None if the leg doesn't give them now."""
        try:
            return await read_notes(self._mesh, ask, incident_id)
        except grpc.aio.AioRpcError as error:
            if error.code() not in NO_TRACE:
                raise
            logger().info("no_notes", incident_id=incident_id, code=error.code().name)
            return None

    async def _read_grounds(self, ask: Ask, order_ids: Sequence[str]) -> list[tuple[str, ShownGround | None]]:
        """Returns the grounds of the orders: nothing for an order that the registry doesn't know, None for one not read now."""
        grounds: list[tuple[str, ShownGround | None]] = []
        for order_id in order_ids:
            try:
                answer = await call_once(
                    self._mesh.notices.ListNoticeGrounds,
                    notice_pb2.ListNoticeGroundsRequest(order_id=order_id),
                    self._mesh.identity(ask.user),
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in NO_TRACE:
                    raise
                logger().info("no_grounds", order_id=order_id, code=error.code().name)
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    grounds.append((order_id, None))  # a missing line would read as "no ground"
                continue
            for found in answer.grounds:
                article = common_notice_pb2.NoticeGround.Name(found.ground) if found.ground else ""
                grounds.append((order_id, ShownGround(article, found.order_over)))
        return grounds

    async def _read_incident(self, ask: Ask, incident_id: str) -> dispatch_pb2.Incident:
        request = dispatch_pb2.ListIncidentsRequest(incident_id=incident_id)
        answer = await call_once(
            self._mesh.leg_of(ask.user.role).dispatch.ListIncidents, request, self._mesh.identity(ask.user)
        )
        if not answer.incidents:
            raise web.HTTPNotFound(text="404: the user's leg has no such incident")
        return answer.incidents[0]


def wants_json(ask: Ask) -> bool:
    """Returns whether a script asks, and not a form."""
    return "application/json" in ask.request.headers.get("Accept", "")


def id_of(ask: Ask) -> str:
    """Returns the incident id of the address. Raises HTTPBadRequest."""
    try:
        return fields.required_id("incident", ask.request.match_info["id"])
    except InvalidField as error:
        raise web.HTTPBadRequest(text=f"400: {error}") from None


def _grounds(ask: Ask, incident_id: str) -> disclosure_pb2.Grounds:
    """Returns the grounds that the user gave. The leg decides whether these grounds suffice."""
    name = f"PURPOSE_{ask.form.get('purpose', '')}"
    purposes = disclosure_pb2.Purpose
    purpose = purposes.Value(name) if name in purposes.keys() else purposes.PURPOSE_UNSPECIFIED  # noqa: SIM118
    return disclosure_pb2.Grounds(legal_basis=ask.form.get("legal_basis", ""), purpose=purpose, reference=incident_id)


def _bases(role: Role) -> list[str]:
    """Returns the codes of the legal bases that allow reading the evidence of the role's leg."""
    persons = () if role is Role.PROBATION else (RecordKind.PROTECTED_PERSON,)
    return codes_for(RecordKind.WEARER, *persons)


NO_TRACE = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # the budget of the history is spent
    grpc.StatusCode.UNIMPLEMENTED,  # the registry is of an older version, as during an upgrade
)
"""Codes of the registry with which a page is shown without a trace."""


@dataclass(frozen=True, slots=True)
class ShownTrace:
    """An incident's trace as far as the user may see it; without spans if there is none."""

    trace_id: str
    spans: Sequence[TraceSpan]
    is_cut: bool
    expected: Sequence[ExpectedTime]
    """When each step was expected, in the order of the due times."""
    rows: Sequence[waterfall.Row]
    start_us: int
    """Start of the incident, wall clock, microseconds since 1970 UTC; 0 without a trace."""
    length_us: int
    """Time from the start of the incident to its last step, microseconds; 0 without a trace."""


async def read_trace(mesh: MeshClient, ask: Ask, incident: dispatch_pb2.Incident) -> ShownTrace:
    """Reads the trace of an incident. It is empty if there is none, or while the registry is unavailable."""
    trace = await _trace_of(mesh, ask, incident.incident_id)
    expected = expected_times(trace, incident.assignments, mesh.clock, now_us=wall_us())
    spans = translate.spans(trace)
    rows = waterfall.rows(spans, trace.trace_id, expected)
    start_us = rows[0].span.start_us if rows else 0
    return ShownTrace(
        trace_id=trace.trace_id,
        spans=spans,
        is_cut=trace.is_cut,
        expected=expected,
        rows=rows,
        start_us=start_us,
        length_us=last_step_us(row.span for row in rows) - start_us if rows else 0,
    )


async def _trace_of(mesh: MeshClient, ask: Ask, incident_id: str) -> trace_pb2.GetTraceResponse:
    """The registry's trace of an incident; an empty one with a code of NO_TRACE. Raises AioRpcError with any other."""
    request = trace_pb2.GetTraceRequest(incident_id=incident_id)
    try:
        return await call_once(mesh.traces.GetTrace, request, mesh.identity(ask.user))
    except grpc.aio.AioRpcError as error:
        if error.code() not in NO_TRACE:
            raise
        logger().info("no_trace", incident_id=incident_id, code=error.code().name)
        return trace_pb2.GetTraceResponse()


def _replay_steps(mesh: MeshClient, card: IncidentCard, trace: ShownTrace) -> list[dict[str, Any]]:
    """Returns the states of each destination with their times, and its unit. The states are from the trace, else from the list."""
    moves = waterfall.moves(trace.spans)
    steps = []
    for to in card.assignments:
        listed = ((to.offered_ms, "OFFERED"), (to.acknowledged_ms, "ACKNOWLEDGED"))
        traced = [[mesh.clock.to_mesh_ms(us // 1000), state] for us, state in moves.get(to.assignment_id, ())]
        states = traced or [[at_ms, state] for at_ms, state in listed if at_ms is not None]
        steps.append({"leg": to.leg, "subject": to.subject_id, "unit": to.unit_id, "states": states})
    return steps


def _replay_late(
    mesh: MeshClient, subjects: Mapping[str, str], expected_times: Iterable[ExpectedTime]
) -> list[dict[str, Any]]:
    """Returns the steps that came too late or not at all, with when they were due and came, for the replay."""
    return [
        {
            "name": f"expected_{expected.name}",
            "leg": expected.leg,
            "subject": subjects.get(expected.assignment_id, ""),
            "due": mesh.clock.to_mesh_ms(expected.due_us // 1000),
            "met": None if expected.met_us is None else mesh.clock.to_mesh_ms(expected.met_us // 1000),
        }
        for expected in expected_times
        if expected.is_late
    ]


async def read_candidates(mesh: MeshClient, ask: Ask, assignment_id: str) -> CandidateList:
    """Returns the units that can go to a destination of the user's own leg. Raises AioRpcError."""
    answer = await call_once(
        mesh.leg_of(ask.user.role).roster.ListCandidates,
        roster_pb2.ListCandidatesRequest(assignment_id=assignment_id),
        mesh.identity(ask.user),
    )
    return translate.candidates(answer)


async def read_all_candidates(
    mesh: MeshClient, ask: Ask, assignment_ids: Iterable[str]
) -> Mapping[str, CandidateList | None]:
    """Returns the units that can go to each destination, by assignment id; None where the leg doesn't give them now."""
    lists: dict[str, CandidateList | None] = {}
    for assignment_id in assignment_ids:
        try:
            lists[assignment_id] = await read_candidates(mesh, ask, assignment_id)
        except grpc.aio.AioRpcError as error:
            # The page is shown all the same: a unit can be sent by radio.
            logger().info("candidates_not_read", assignment_id=assignment_id, code=error.code().name)
            lists[assignment_id] = None
    return lists


async def read_notes(mesh: MeshClient, ask: Ask, incident_id: str) -> list[dict[str, Any]]:
    """Reads the notes of an incident from the user's leg, oldest first. Raises AioRpcError."""
    answer = await call_once(
        mesh.leg_of(ask.user.role).notes.ListNotes,
        notes_pb2.ListNotesRequest(incident_id=incident_id),
        mesh.identity(ask.user),
    )
    return [note_item(note) for note in answer.notes]


def note_item(note: notes_pb2.IncidentNote) -> dict[str, Any]:
    """Returns a note as the browser gets it."""
    return {
        "id": note.note_id,
        "leg": translate.leg_name(note.leg),
        "at": times.from_timestamp(note.at),
        "by": note.by.rpartition("/")[2],
        "kind": notes_pb2.NoteKind.Name(note.kind),
        "result": notes_pb2.NotedResult.Name(note.result) if note.result else "",
        "text": note.text,
        "kept": note.kept,
    }


REVIEWERS = frozenset({Role.REVIEWER})
"""Roles that write and see findings."""


def new_finding_id() -> str:
    """Makes the id of a finding that a form enters, so that pressing its button twice enters it once."""
    return f"finding-{secrets.token_hex(8)}"


async def read_findings(mesh: MeshClient, ask: Ask, incident_id: str) -> Sequence[finding_pb2.ReviewFinding]:
    """Reads the findings about an incident; none while the registry is unavailable, and for a user who is no reviewer."""
    if ask.user.role not in REVIEWERS:
        return ()
    try:
        listed = await call_once(
            mesh.findings.ListFindings,
            finding_pb2.ListFindingsRequest(incident_id=incident_id),
            mesh.identity(ask.user),
        )
    except grpc.aio.AioRpcError as error:
        if http_status(error.code()) < 500:
            raise
        logger().info("no_findings", incident_id=incident_id, code=error.code().name)
        return ()
    return list(listed.findings)


class IncidentSearch:
    """The search among the incidents of the user's leg."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the route."""
        return [self._guard.get("/search", VIEWERS, self.search)]

    async def search(self, ask: Ask) -> web.StreamResponse:
        """Shows incidents by time, office, cause and outcome."""
        query = ask.request.query
        question = IncidentQuery(
            from_ms=_local_ms(query.get("from", "")),
            until_ms=_local_ms(query.get("until", "")),
            text=query.get("text", "").strip(),
            cause=query.get("cause", ""),
            outcome=query.get("outcome", ""),
            office=query.get("office", ""),
        )
        known, is_cut = await self._all_incidents(ask)
        matched = board.matching(known, question)
        destinations = [to for incident in known for to in incident.assignments]
        return assets.page(
            ask,
            "search.html",
            query=query,
            matched=[(incident, board.shown(incident)) for incident in matched[:200]],
            count=len(matched),
            is_cut=is_cut,
            known_causes=sorted({to.kind for to in destinations if to.kind}),
            known_outcomes=sorted({to.close_cause for to in destinations if to.close_cause}),
            offices=sorted({to.office_id for to in destinations if to.office_id}),
            leg_names=board.LEGS,
            leg_state=board.leg_state,
        )

    async def _all_incidents(self, ask: Ask) -> tuple[list[IncidentCard], bool]:
        incidents: list[IncidentCard] = []
        token = ""
        while len(incidents) < MAX_SEARCHED:
            request = dispatch_pb2.ListIncidentsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await call_once(
                self._mesh.leg_of(ask.user.role).dispatch.ListIncidents, request, self._mesh.identity(ask.user)
            )
            incidents += [translate.incident(incident) for incident in answer.incidents]
            token = answer.next_page_token
            if not token:
                return incidents, False
            await asyncio.sleep(0)
        return incidents, True


def _local_ms(text: str) -> int | None:
    """Parses a form's time in Korea's time zone, such as 2026-03-02T10:00; None for an empty text. Raises HTTPBadRequest."""
    if not text:
        return None
    try:
        return assets.ms_of_local(text)
    except ValueError:
        raise web.HTTPBadRequest(text=f'400: "{text}" is not a time (example: 2026-03-02T10:00)') from None
