"""Pages on which an agency's records clerk enters a single record. The registry validates, and the page names what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc.aio
from aiohttp import web

from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.domain.people import RECORD_CLERKS
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.refusals import FormRefusal
from services.console.records import forms
from services.console.records.forms import FORMS, RecordForm
from services.console.review.refusals import reason_and_path
from tandem.registry.v1 import registry_pb2


class RecordPages:
    """Entry of single records, for the clerks of each agency's records."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/records", RECORD_CLERKS, self.kinds),
            self._guard.get("/records/{id}", RECORD_CLERKS, self.form),
            self._guard.post("/records/{id}", RECORD_CLERKS, self.put),
        ]

    async def kinds(self, ask: Ask) -> web.StreamResponse:
        """Shows the kinds of records that the agency enters."""
        own = [form for form in FORMS.values() if form.role is ask.user.role]
        return assets.page(ask, "records.html", forms=own)

    async def form(self, ask: Ask) -> web.StreamResponse:
        """Shows the empty form of a kind."""
        return self._page(ask, _form_of(ask), {})

    async def put(self, ask: Ask) -> web.StreamResponse:
        """Stores a record. A form that is sent twice changes nothing, since it has the same version and content."""
        form = _form_of(ask)
        examples = {field.name: field.example for field in form.fields}
        try:
            answer = await self._put(ask, form)
        except InvalidField as error:
            refusal = FormRefusal(
                400, f"record_wrong_{error.field}", error.field, example=examples[error.field], form=ask.form
            )
            return self._page(ask, form, ask.form, refusal=refusal)
        except grpc.aio.AioRpcError as error:
            logger().info("record_not_stored", kind=form.kind, code=error.code().name)
            refusal = refusals.of_service(error, "record", ask.form)
            field = forms.field_of_path(form, reason_and_path(error)[1])
            if field:
                refusal = replace(refusal, key=f"record_wrong_{field}", field=field, example=examples[field], detail="")
            return self._page(ask, form, ask.form, refusal=refusal)
        outcome = registry_pb2.PutOutcome.Name(answer.outcome)
        warned = [forms.field_of_path(form, warning.field) for warning in getattr(answer, "warnings", ())]
        return self._page(ask, form, {}, outcome=outcome, warned=[field for field in warned if field])

    async def _put(self, ask: Ask, form: RecordForm) -> Any:
        """Calls the registry. Raises InvalidField if the form makes no message."""
        record = form.make(ask.form)
        name = type(record).__name__
        request = getattr(registry_pb2, f"Put{name}Request")(**{form.kind.replace("-", "_"): record})
        call = getattr(self._mesh.registry, f"Put{name}")
        return await call(request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S)

    def _page(
        self,
        ask: Ask,
        form: RecordForm,
        values: Mapping[str, str],
        *,
        refusal: FormRefusal | None = None,
        outcome: str = "",
        warned: list[str] | None = None,
    ) -> web.StreamResponse:
        return assets.page(
            ask,
            "record.html",
            status=refusal.status if refusal else 200,
            form=form,
            values=values,
            refusal=refusal,
            outcome=outcome,
            warned=warned or [],
        )


def _form_of(ask: Ask) -> RecordForm:
    """Returns the form of the address. Raises HTTPNotFound for no kind, and HTTPForbidden for one of the other agency."""
    form = FORMS.get(ask.request.match_info["id"])
    if form is None:
        raise web.HTTPNotFound(text=f"404: there are no such records: {', '.join(FORMS)}")
    if form.role is not ask.user.role:
        raise web.HTTPForbidden(text="403: these records are the other agency's")
    return form
