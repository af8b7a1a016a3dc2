"""Answers of a desk to its own leg: acknowledge, refuse, report progress, close. The answers are forms, which need no script.

Each answer goes to the user's own leg under the user's name. That leg doesn't know another leg's destinations.
"""

from __future__ import annotations

from functools import partial

import grpc.aio
from aiohttp import web

from services.common.observability.telemetry import logger
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console import translate
from services.console.domain import desk
from services.console.domain.desk import BadField, DeskAnswer
from services.console.domain.people import DESKS
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.redirects import see_other
from services.console.review import refusals
from services.console.review.refusals import AnswerRefusal
from services.console.review.views import IncidentPages, id_of
from tandem.dispatch.v1 import dispatch_pb2


class Answers:
    """Endpoints of the answer forms."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, incidents: IncidentPages) -> None:
        self._guard, self._mesh, self._incidents = guard, mesh, incidents

    def routes(self) -> list[web.RouteDef]:
        """Makes a route for each act."""
        return [self._guard.post(f"/incidents/{{id}}/{act}", DESKS, partial(self._answer, act)) for act in desk.ACTS]

    async def _answer(self, act: str, ask: Ask) -> web.StreamResponse:
        incident_id = id_of(ask)
        try:
            answer = desk.read(act, ask.form)
            assignment = await self._ask(ask, answer)
        except BadField as error:
            return await self._refused(ask, refusals.of_field(error, act, ask.form))
        except grpc.aio.AioRpcError as error:
            logger().info("answer_refused", act=act, code=error.code().name)
            return await self._refused(ask, refusals.of_leg(error, act, ask.form))
        by = assignment.acknowledged_by
        if act == desk.ACKNOWLEDGE and by and by.rpartition("/")[2] != ask.user.name:
            # The leg accepts a repeated acknowledgement. But this user must learn that another user has the assignment.
            return await self._refused(ask, AnswerRefusal(409, "answer_TAKEN_BY", detail=by, act=act, form=ask.form))
        if _wants_json(ask):
            return web.json_response({"state": translate.assignment(assignment).state})
        # The fragment makes Tab reach the next step first.
        return see_other(f"/incidents/{incident_id}#to-{answer.assignment_id}")

    async def _ask(self, ask: Ask, answer: DeskAnswer) -> dispatch_pb2.Assignment:
        leg = self._mesh.leg_of(ask.user.role).dispatch
        me, within_s = self._mesh.identity(ask.user), UNARY_DEADLINE_S
        id_, offer = answer.assignment_id, answer.offer
        seen = dispatch_pb2.AssignmentState.Value(answer.seen)
        if answer.act == desk.ACKNOWLEDGE:
            acknowledge = dispatch_pb2.AcknowledgeRequest(assignment_id=id_, offer_number=offer)
            return (await leg.Acknowledge(acknowledge, metadata=me, timeout=within_s)).assignment
        if answer.act == desk.REJECT:
            reject = dispatch_pb2.RejectRequest(
                assignment_id=id_, offer_number=offer, seen_state=seen, reason=answer.reason
            )
            return (await leg.Reject(reject, metadata=me, timeout=within_s)).assignment
        if answer.act == desk.PROGRESS:
            state = dispatch_pb2.AssignmentState.Value(answer.state)
            step = dispatch_pb2.ProgressRequest(assignment_id=id_, offer_number=offer, seen_state=seen, state=state)
            return (await leg.Progress(step, metadata=me, timeout=within_s)).assignment
        cause = dispatch_pb2.CloseCause.Value(answer.cause)
        close = dispatch_pb2.CloseRequest(
            assignment_id=id_, offer_number=offer, seen_state=seen, cause=cause, note=answer.note
        )
        return (await leg.Close(close, metadata=me, timeout=within_s)).assignment

    async def _refused(self, ask: Ask, refusal: AnswerRefusal) -> web.StreamResponse:
        """Shows the reason of a refusal on the current page of the incident, or on a separate page if the leg doesn't give it."""
        if _wants_json(ask):
            return web.Response(status=refusal.status, text=refusal.words(ask.texts))
        try:
            return await self._incidents.show(ask, refusal=refusal)
        except (grpc.aio.AioRpcError, web.HTTPNotFound):
            back = f"/incidents/{id_of(ask)}"
            return assets.page(ask, "unanswered.html", status=refusal.status, path=back, refusal=refusal)


def _wants_json(ask: Ask) -> bool:
    return "application/json" in ask.request.headers.get("Accept", "")
