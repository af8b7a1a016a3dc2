"""Pages of one incident: both legs, the own leg's answers, the trace, the evidence. The legs decide which data a user sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc
import grpc.aio
from aiohttp import web

from services.common import fields
from services.common.observability.lateness import late_spans
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, codes_for
from services.common.rpc.errors import InvalidField
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console import translate
from services.console.domain import board, desk, explaining, waterfall
from services.console.domain.board import IncidentCard
from services.console.domain.people import DESKS, VIEWERS, Role
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.review import incident_findings
from services.console.review import trace as traces
from services.console.review import translate as translate_evidence
from services.console.review.refusals import AnswerRefusal
from services.console.settings import ConsoleSettings
from tandem.common.v1 import notice_pb2 as common_notice_pb2
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2
from tandem.registry.v1 import disclosure_pb2, notice_pb2

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
        self._settings, self._guard, self._mesh = settings, guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes for reading. `Answers` makes those for answering."""
        guard = self._guard
        return [
            guard.get("/incidents/{id}", VIEWERS, self.incident),
            guard.post("/incidents/{id}", VIEWERS, self.evidence),
            guard.post("/incidents/{id}/download", VIEWERS, self.download),
        ]

    async def incident(self, ask: Ask) -> web.StreamResponse:
        """Shows an incident: header, both legs, trace, ledger; no positions."""
        return await self.show(ask)

    async def evidence(self, ask: Ask) -> web.StreamResponse:
        """Shows an incident with its replay and decisions. The leg records the legal grounds before it answers."""
        incident_id = id_of(ask)
        request = evidence_pb2.ReadEvidenceRequest(incident_id=incident_id, grounds=_grounds(ask, incident_id))
        try:
            answer = await self._mesh.leg_of(ask.user.role).evidence.ReadEvidence(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
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

    async def show(
        self,
        ask: Ask,
        copy: evidence_pb2.ReadEvidenceResponse | None = None,
        refusal: AnswerRefusal | None = None,
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
        trace = await traces.read(self._mesh, ask, incident)
        subjects = {to.assignment_id: to.subject_id for to in card.assignments}
        decisions: list[dict[str, Any]] = []
        if copy is not None:
            page["replay"] = translate_evidence.replay(copy)
            page["steps"] = traces.replay_steps(self._mesh, card, trace)
            page["late"] = traces.replay_late(self._mesh, subjects, trace.expected)
            tracks = translate_evidence.tracks(copy)
            for alert in translate_evidence.alerts(copy):
                alert["sides"] = explaining.sides(tracks, alert["sequence"], alert["decided"])
                decisions.append(alert)
        own_leg = ask.user.role.leg if ask.user.role in DESKS else ""
        return assets.page(
            ask,
            "incident.html",
            status=refusal.status if refusal else status,
            path=f"/incidents/{incident_id}",  # an answer's own address can't be read by GET
            page=page,
            card=card,
            shown=board.shown(card),
            level=board.rank(card)[0],
            legs={leg: sorted(card.of(leg), key=lambda to: to.subject_id) for leg in board.LEGS},
            own_leg=own_leg,
            choices={to.assignment_id: desk.choices(to) for to in card.of(own_leg)},
            causes=desk.CAUSES,
            max_reason=desk.MAX_REASON,
            max_note=desk.MAX_NOTE,
            refusal=refusal,
            steps={leg: waterfall.steps(trace.spans, leg) for leg in board.LEGS},
            late=late_spans(trace.expected),
            step_name=waterfall.step_name,
            trace=trace,
            case_versions=waterfall.case_versions(trace.spans, trace.trace_id),
            subjects=subjects,
            uses=waterfall.uses(trace.spans),
            findings=await incident_findings.of_incident(self._mesh, ask, incident_id),
            new_finding_id=incident_findings.new_finding_id(),
            wrong_finding=wrong_finding,
            grounds=await self._read_grounds(ask, board.shown(card)["orders"]),
            evidence=copy,
            has_copy=has_copy,
            rules=translate_evidence.rules(copy) if copy is not None else {},
            decisions=decisions,
            bases=_bases(ask.user.role),
            purposes=PURPOSES,
            is_over=board.is_over(card),
            makes_documents=self._settings.mesh_folder is not None,
            chosen=ask.form,
        )

    async def _read_grounds(self, ask: Ask, order_ids: Sequence[str]) -> list[tuple[str, ShownGround | None]]:
        """Returns the grounds of the orders: nothing for an order that the registry doesn't know, None for one not read now."""
        grounds: list[tuple[str, ShownGround | None]] = []
        for order_id in order_ids:
            try:
                answer = await self._mesh.notices.ListNoticeGrounds(
                    notice_pb2.ListNoticeGroundsRequest(order_id=order_id),
                    metadata=self._mesh.identity(ask.user),
                    timeout=UNARY_DEADLINE_S,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in traces.NO_TRACE:
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
        answer = await self._mesh.leg_of(ask.user.role).dispatch.ListIncidents(
            request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        if not answer.incidents:
            raise web.HTTPNotFound(text="404: the user's leg has no such incident")
        return answer.incidents[0]


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
