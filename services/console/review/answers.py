"""What a page of an incident sends: a desk's answers to its own leg, and a reviewer's findings.

The answers are forms, which need no script: accept, refuse, send a unit, report progress, close. Each answer goes to the user's own leg
under the user's name. That leg doesn't know another leg's destinations.
"""

from __future__ import annotations

from functools import partial

import grpc.aio
from aiohttp import web

from services.client.calls import call_once
from services.common import fields
from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.console import translate
from services.console.domain import desk
from services.console.domain.desk import BadField, DeskAnswer
from services.console.domain.people import DESKS
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.guard import Ask, RouteGuard, http_status, see_other
from services.console.pages.refusals import PageRefusal, answer_refusal
from services.console.review import views
from services.console.review.views import REVIEWERS, IncidentPages, id_of, wants_json
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import finding_pb2


class Answers:
    """Endpoints of the answer forms."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, incidents: IncidentPages) -> None:
        self._guard = guard
        self._mesh = mesh
        self._incidents = incidents

    def routes(self) -> list[web.RouteDef]:
        """Makes a route for each act."""
        return [self._guard.post(f"/incidents/{{id}}/{act}", DESKS, partial(self._answer, act)) for act in desk.ACTS]

    async def _answer(self, act: str, ask: Ask) -> web.StreamResponse:
        incident_id = id_of(ask)
        try:
            answer = desk.read_answer(act, ask.form)
        except BadField as error:
            return await self._refused(ask, refusals.of_field(error, act, ask.form))
        try:
            assignment = await self._ask(ask, answer)
        except grpc.aio.AioRpcError as error:
            logger().info("answer_refused", act=act, code=error.code().name)
            return await self._refused(ask, await self._of_leg(ask, error, answer))
        by = assignment.acknowledged_by
        if act == desk.ACKNOWLEDGE and by and by.rpartition("/")[2] != ask.user.name:
            # The leg accepts a repeated acknowledgement. But this user must learn that another user has the assignment.
            return await self._refused(ask, answer_refusal(409, "answer_TAKEN_BY", detail=by, act=act, form=ask.form))
        if wants_json(ask):
            return web.json_response({"state": translate.assignment(assignment).state})
        # The fragment makes Tab reach the next step first.
        return see_other(f"/incidents/{incident_id}#to-{answer.assignment_id}")

    async def _ask(self, ask: Ask, answer: DeskAnswer) -> dispatch_pb2.Assignment:
        leg = self._mesh.leg_of(ask.user.role).dispatch
        me = self._mesh.identity(ask.user)
        id_, offer = answer.assignment_id, answer.offer
        seen = dispatch_pb2.AssignmentState.Value(answer.seen or "ASSIGNMENT_STATE_UNSPECIFIED")
        if answer.act == desk.ACKNOWLEDGE:
            acknowledge = dispatch_pb2.AcknowledgeRequest(assignment_id=id_, offer_number=offer)
            return (await call_once(leg.Acknowledge, acknowledge, me)).assignment
        if answer.act == desk.REJECT:
            reject = dispatch_pb2.RejectRequest(
                assignment_id=id_, offer_number=offer, seen_state=seen, reason=answer.reason
            )
            return (await call_once(leg.Reject, reject, me)).assignment
        if answer.act == desk.PROGRESS:
            step = dispatch_pb2.ProgressRequest(assignment_id=id_, offer_number=offer, seen_state=seen)
            if (answer.seen, answer.state) == ("ACKNOWLEDGED", desk.EN_ROUTE):
                # The unit that accepted was ordered to go by that, and the leg leaves out no step.
                step.state = dispatch_pb2.DISPATCHED
                await call_once(leg.Progress, step, me)
                step.seen_state = dispatch_pb2.DISPATCHED
            step.state = dispatch_pb2.AssignmentState.Value(answer.state)
            return (await call_once(leg.Progress, step, me)).assignment
        if answer.act == desk.SEND:
            send = dispatch_pb2.SendUnitRequest(assignment_id=id_, unit_id=answer.unit, offer_number=offer)
            return (await call_once(leg.SendUnit, send, me)).assignment
        if answer.act == desk.RADIO:
            radio = dispatch_pb2.SendByRadioRequest(assignment_id=id_, unit_name=answer.unit, offer_number=offer)
            return (await call_once(leg.SendByRadio, radio, me)).assignment
        cause = dispatch_pb2.CloseCause.Value(answer.cause)
        close = dispatch_pb2.CloseRequest(
            assignment_id=id_, offer_number=offer, seen_state=seen, cause=cause, note=answer.note
        )
        return (await call_once(leg.Close, close, me)).assignment

    async def _of_leg(self, ask: Ask, error: grpc.aio.AioRpcError, answer: DeskAnswer) -> PageRefusal:
        """Makes the refusal for an error of the leg. Where somebody has sent a unit meanwhile, it says who sent which unit."""
        refusal = refusals.of_leg(error, answer.act, ask.form)
        if answer.act not in (desk.ACKNOWLEDGE, desk.SEND, desk.RADIO) or refusal.status != 409:
            return refusal
        try:
            listed = await views.read_candidates(self._mesh, ask, answer.assignment_id)
        except grpc.aio.AioRpcError:
            return refusal  # its own words stay true
        sent = desk.sent_since(listed.assignment, answer.offer)
        return refusals.of_sent(refusal, sent, assets.time_of_day(sent.at_ms)) if sent else refusal

    async def _refused(self, ask: Ask, refusal: PageRefusal) -> web.StreamResponse:
        if wants_json(ask):
            return web.Response(status=refusal.status, text=refusal.words(ask.texts))
        return await self._incidents.refused(ask, refusal)


class FindingPages:
    """Pages and forms of findings, for reviewers only."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, incidents: IncidentPages) -> None:
        self._guard = guard
        self._mesh = mesh
        self._incidents = incidents

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/findings", REVIEWERS, self.findings),
            self._guard.post("/incidents/{id}/findings", REVIEWERS, self.add),
            self._guard.post("/findings/{id}/close", REVIEWERS, self.close),
        ]

    async def add(self, ask: Ask) -> web.StreamResponse:
        """Enters a finding about an incident."""
        incident_id = id_of(ask)
        request = finding_pb2.PutFindingRequest(
            finding_id=ask.form.get("finding", ""),
            incident_id=incident_id,
            text=ask.form.get("text", "").strip(),
            owner=ask.form.get("owner", "").strip(),
            due_on=ask.form.get("due_on", ""),
        )
        try:
            await call_once(self._mesh.findings.PutFinding, request, self._mesh.identity(ask.user))
        except grpc.aio.AioRpcError as error:
            return await self._incidents.show(ask, wrong_finding=_wrong(ask, error), status=http_status(error.code()))
        return see_other(f"/incidents/{incident_id}#h-findings")

    async def close(self, ask: Ask) -> web.StreamResponse:
        """Closes a finding with what came of it."""
        try:
            finding_id = fields.required_id("finding", ask.request.match_info["id"])
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        request = finding_pb2.CloseFindingRequest(finding_id=finding_id, outcome=ask.form.get("outcome", "").strip())
        try:
            await call_once(self._mesh.findings.CloseFinding, request, self._mesh.identity(ask.user))
        except grpc.aio.AioRpcError as error:
            return await self.findings(ask, wrong=_wrong(ask, error), status=http_status(error.code()))
        return see_other("/findings")

    async def findings(self, ask: Ask, wrong: str = "", status: int = 200) -> web.StreamResponse:
        """Shows all findings: the overdue and open ones by their due day, then the closed ones."""
        listed = await call_once(
            self._mesh.findings.ListFindings, finding_pb2.ListFindingsRequest(), self._mesh.identity(ask.user)
        )
        return assets.page(
            ask,
            "findings.html",
            status=status,
            path="/findings",
            findings=listed.findings,
            is_cut=listed.is_cut,
            wrong=wrong,
        )


def _wrong(ask: Ask, error: grpc.aio.AioRpcError) -> str:
    """The reason of a refusal as one line: the field, and what is wrong with it."""
    _, field = refusals.details(error)
    return ": ".join(part for part in (ask.texts("finding_not_kept"), field, error.details() or "") if part)
