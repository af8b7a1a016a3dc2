"""Search for people and orders, by a disclosure of the registry: a form that names the article, never a link."""

from __future__ import annotations

from collections.abc import Mapping

import grpc.aio
from aiohttp import web

from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, codes_for
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.domain.people import VIEWERS, Role
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.refusals import FormRefusal
from tandem.registry.v1 import disclosure_pb2, record_search_pb2

PURPOSES = ("ENFORCEMENT", "VICTIM_CONTACT", "AUDIT", "COURT", "SUBJECT_REQUEST")
_EXAMPLES = {"name": "홍길동", "phone": "010-1234-5678", "birth_date": "1980-02-29", "record_id": "W-1024"}
_KINDS = {
    record_search_pb2.FOUND_KIND_WEARER: "wearer",
    record_search_pb2.FOUND_KIND_PROTECTED_PERSON: "protected_person",
    record_search_pb2.FOUND_KIND_ORDER: "order",
}
"""Key of the text of each kind."""


class PeoplePages:
    """The search for people and orders, for desks and reviewers."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/people", VIEWERS, self.form),
            self._guard.post("/people", VIEWERS, self.search),
        ]

    async def form(self, ask: Ask) -> web.StreamResponse:
        """Shows the empty form; an address may name a record's id, which is searched only by the form."""
        return self._page(ask, {"record_id": ask.request.query.get("record_id", "")[:64]})

    async def search(self, ask: Ask) -> web.StreamResponse:
        """Shows the records that match. The registry checks the article, and writes the ledger before it answers."""
        form = ask.form
        purpose = f"PURPOSE_{form.get('purpose', '')}"
        known = disclosure_pb2.Purpose.keys()
        request = record_search_pb2.SearchRecordsRequest(
            **{field: form.get(field, "").strip() for field in _EXAMPLES},
            grounds=disclosure_pb2.Grounds(
                legal_basis=form.get("legal_basis", ""),
                purpose=disclosure_pb2.Purpose.Value(purpose if purpose in known else "PURPOSE_UNSPECIFIED"),
            ),
        )
        try:
            answer = await self._mesh.desk.record_search.SearchRecords(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            logger().info("people_not_searched", code=error.code().name)
            refusal = refusals.of_service(error, "people", form, examples=_EXAMPLES)
            return self._page(ask, form, refusal=refusal)
        return self._page(ask, form, answer=answer)

    def _page(
        self,
        ask: Ask,
        form: Mapping[str, str],
        *,
        answer: record_search_pb2.SearchRecordsResponse | None = None,
        refusal: FormRefusal | None = None,
    ) -> web.StreamResponse:
        found = None
        if answer is not None:
            found = [{"kind": _KINDS.get(row.kind, ""), "row": row} for row in answer.records]
        return assets.page(
            ask,
            "people.html",
            status=refusal.status if refusal else 200,
            form=form,
            found=found,
            searched=[_KINDS[kind] for kind in answer.searched if kind in _KINDS] if answer else [],
            refusal=refusal,
            bases=codes_for(RecordKind.WEARER),
            purposes=PURPOSES,
            is_reviewer=ask.user.role is Role.REVIEWER,
            role_is_police=ask.user.role is Role.POLICE,
        )
