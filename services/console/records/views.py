"""Pages on which an agency's records clerk enters, extends or ends a single record. The registry validates, and the page names what is
wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
from services.console.records.forms import FORMS, FormGroup, RecordForm
from services.console.review.refusals import reason_and_path
from tandem.registry.v1 import registry_pb2


class RecordPages:
    """Forms of single records, for the clerks of each agency's records."""

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
        """Shows the forms of the agency: what it enters, changes and ends."""
        own = [form for form in FORMS.values() if form.role is ask.user.role]
        groups = {group: [form for form in own if form.group is group] for group in FormGroup}
        return assets.page(ask, "records.html", groups={group: made for group, made in groups.items() if made})

    async def form(self, ask: Ask) -> web.StreamResponse:
        """Shows the empty form of a kind."""
        form = _form_of(ask)
        return self._page(ask, form, self._initial(form))

    async def put(self, ask: Ask) -> web.StreamResponse:
        """Stores a record. A form that is sent twice changes nothing, since it has the same version and content."""
        form = _form_of(ask)
        examples = {field.name: field.example for field in form.fields}
        try:
            answer = await form.method(self._mesh)(
                form.make(ask.form), metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
        except InvalidField as error:
            refusal = FormRefusal(
                400, f"record_wrong_{error.field}", error.field, example=examples[error.field], form=ask.form
            )
            return self._page(ask, form, ask.form, refusal=refusal)
        except grpc.aio.AioRpcError as error:
            logger().info("record_not_stored", kind=form.kind, code=error.code().name)
            return self._page(ask, form, ask.form, refusal=_refusal_of(error, form, ask.form))
        outcome = registry_pb2.PutOutcome.Name(answer.outcome)
        paths = [warning.field for warning in getattr(answer, "warnings", ())]
        # A form of fewer fields than the record has no field for some warnings, such as the number of extensions.
        warned = [forms.field_of_path(form, path) or path.rpartition(".")[2] for path in paths]
        return self._page(ask, form, self._initial(form), outcome=outcome, warned=warned)

    def _initial(self, form: RecordForm) -> dict[str, str]:
        """Values of an empty form: the present time where a form mostly states that."""
        now = assets.local_second(self._mesh.clock.now_ms())
        return {field.name: now for field in form.fields if field.is_now}

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


def _refusal_of(error: grpc.aio.AioRpcError, form: RecordForm, sent: Mapping[str, str]) -> FormRefusal:
    """Refusal of a form by the registry: the wrong field with an example, or the state that forbids it."""
    refusal = refusals.of_service(error, "record", sent)
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return replace(refusal, key=f"record_blocked_{form.kind}", detail="")
    if error.code() is grpc.StatusCode.NOT_FOUND and form.group is not FormGroup.ENTER:
        return replace(refusal, key="record_none", detail="")
    examples = {field.name: field.example for field in form.fields}
    field = forms.field_of_path(form, reason_and_path(error)[1])
    if not field:
        return refusal
    return replace(refusal, key=f"record_wrong_{field}", field=field, example=examples[field], detail="")


def _form_of(ask: Ask) -> RecordForm:
    """Returns the form of the address. Raises HTTPNotFound for no kind, and HTTPForbidden for one of the other agency."""
    form = FORMS.get(ask.request.match_info["id"])
    if form is None:
        raise web.HTTPNotFound(text=f"404: there are no such records: {', '.join(FORMS)}")
    if form.role is not ask.user.role:
        raise web.HTTPForbidden(text="403: these records are the other agency's")
    return form
