"""HTTP endpoint for phones with the OsmAnd protocol or Traccar Client, and for field. Each phone has a token.

The protocol is in docs/reference/devices.md.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from prometheus_client import Counter

from services.common.clock import MeshClock
from services.common.errors import InvalidField, RetryableError
from services.common.observability import spans, telemetry
from services.common.panic_lane import PanicLane
from services.common.rpc.identity import FIELD
from services.common.web.server import body_of, proven, served
from services.common.web.tls import PortCaller
from services.ingest.admission.checks import Quarantine
from services.ingest.admission.routes import Routes
from services.ingest.batch import Batch, Reports
from services.ingest.commands.service import CommandDelivery
from services.ingest.domain import Endpoint, Reason, Refusal, Sender
from services.ingest.endpoints.phones import PhoneRequest, osmand_parameters, parse_osmand, parse_traccar, said_by
from services.ingest.intake import Intake
from services.ingest.metrics import IngestMetrics
from services.ingest.settings import IngestSettings
from tandem.ingest.v1 import ingest_pb2

TOO_OFTEN_RETRY_S = 5
"""Retry-After of a rate-limited request, seconds."""
NO_SPIFFE_ID = ""
"""Sender under which refusals of phones are counted, as phones have no SPIFFE id."""
FORBIDDEN = {Reason.UNKNOWN_DEVICE, Reason.REVOKED, Reason.NOT_YOURS}


class PhoneEndpoint:
    """Reads requests of phones and hands their reports to the intake."""

    def __init__(
        self,
        intake: Intake,
        routes: Routes,
        commands: CommandDelivery,
        *,
        quarantine: Quarantine,
        clock: MeshClock,
        metrics: IngestMetrics,
    ) -> None:
        self._intake = intake
        self._routes = routes
        self._commands = commands
        self._quarantine = quarantine
        self._clock = clock
        self._metrics = metrics
        self._panics = PanicLane[Batch]()
        self._traces = telemetry.is_on()

    async def report(self, request: web.Request) -> web.Response:
        """Answers a request once its accepted reports are durable."""
        if self._traces:
            telemetry.carry(request.headers.get(spans.TRACEPARENT, ""))
        answer = await self._answer(request)
        self._metrics.http_answers.labels(str(answer.status)).inc()
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            query = osmand_parameters(request.rel_url.raw_query_string)
        except InvalidField as error:
            return _refused(400, error, Reason.INVALID)
        device_id = self._routes.device_of_token(_token(request, query))
        if device_id is None:
            self._quarantine.refused(NO_SPIFFE_ID, "", Reason.NOT_YOURS)
            answer = _refused(
                401,
                InvalidField("token", "is unknown, expired, or of a revoked device: get a new one"),
                Reason.NOT_YOURS,
            )
            answer.headers["WWW-Authenticate"] = "Bearer"
            answer.force_close()  # an unauthenticated peer must not hold a connection
            return answer
        proven(request, device_id)
        as_json = request.content_type == "application/json"
        try:
            sent = _read(await body_of(request), query, as_json, received_ms=self._clock.now_ms())
        except InvalidField as error:
            self._quarantine.refused(NO_SPIFFE_ID, device_id, Reason.INVALID, phone_id=device_id)
            return _refused(400, error, Reason.INVALID)
        if sent.device_id != device_id:
            self._quarantine.refused(NO_SPIFFE_ID, sent.device_id, Reason.NOT_YOURS, phone_id=device_id)
            field = "device_id" if as_json else "id"
            return _refused(
                403,
                InvalidField(field, "is not the device of this token: correct the id, or use its token"),
                Reason.NOT_YOURS,
            )
        return await self._accept(sent, as_json)

    async def _accept(self, sent: PhoneRequest, as_json: bool) -> web.Response:
        """Answers a phone's request about its own device."""
        units = self._routes.units_heard(sent.device_id, sent.surroundings.identifiers)
        said = said_by(sent, units, "location.coords" if as_json else "lat")
        reports = Reports.of(said, [sent.device_id] * len(said))
        reports.charges = sent.charges
        try:
            batch = await self._stored(sent, reports)
        except RetryableError as error:
            retry_after_s = math.ceil(error.retry_after_s)
            return web.json_response({"reason": error.reason}, status=503, headers={"Retry-After": str(retry_after_s)})
        status = status_of(reports.count, batch.refusals, as_json)
        answer = _answered(status, reports.count, batch.refusals, commands=self._commands_for(sent.device_id))
        if status == 429:
            answer.headers["Retry-After"] = str(TOO_OFTEN_RETRY_S)
        return answer

    async def _stored(self, sent: PhoneRequest, reports: Reports) -> Batch:
        """Returns the batch of a request once it is durable. Raises RetryableError."""
        accept = partial(self._intake.accept, Sender("", "", sent.device_id), reports, endpoint=Endpoint.HTTP)
        if sent.has_panic:
            return await self._panics.send(sent.device_id, sent.report_id, partial(accept, is_panic=True))
        return await accept()

    def _commands_for(self, device_id: str) -> list[ingest_pb2.DeviceCommand]:
        commands = self._commands.due_commands([device_id])
        self._commands.sent(commands)
        return commands


@asynccontextmanager
async def serve(settings: IngestSettings, endpoint: PhoneEndpoint, closed: Counter) -> AsyncIterator[tuple[int, int]]:
    """Serves the HTTP endpoint, and yields its ports: that for phones and that for field.

    `closed` counts the connections that are closed because of the peer's behaviour.
    """
    routes = [
        web.route(method, path, endpoint.report)
        for method in ("GET", "POST")
        for path in ("/", "/osmand", "/{token}", "/{token}/")
    ]
    files = settings.tls_files() if settings.tls else None
    async with (
        served(
            "http", routes, settings.host, port=settings.http_port, closed=closed, tls=settings.http_tls
        ) as for_phones,
        served(
            "field",
            [web.post("/", endpoint.report)],
            settings.host,
            port=settings.field_port,
            closed=closed,
            tls=(files.cert, files.key) if files else None,
            caller=PortCaller(FIELD, files.authority) if files else None,
        ) as for_field,
    ):
        yield for_phones, for_field


def status_of(count: int, refusals: Sequence[Refusal], as_json: bool) -> int:
    """Returns the HTTP status of an answer about `count` reports. The status tells an app only whether to send them again."""
    reasons = {refusal.code for refusal in refusals}
    if Reason.TOO_OFTEN in reasons:
        return 429
    if len(refusals) < count:
        return 200
    if reasons <= FORBIDDEN:
        return 403
    # Traccar Client repeats its oldest location until a 2xx, and only then sends the next. So a location that can never be accepted
    # would block all that follow. Such a location is counted in the quarantine, and the answer gives the reason.
    return 200 if as_json else 400


def _token(request: web.Request, query: Mapping[str, str]) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    return request.match_info.get("token") or query.get("token", "")


def _read(body: bytes, query: Mapping[str, str], as_json: bool, *, received_ms: int) -> PhoneRequest:
    if as_json:
        return parse_traccar(body, received_ms)
    try:
        form = osmand_parameters(body.decode())
    except UnicodeDecodeError:
        raise InvalidField("", "isn't text in UTF-8") from None
    for name in form.keys() & query.keys():
        raise InvalidField(name, "is there in the query and in the form: send it once")
    return parse_osmand({**query, **form}, received_ms)


def _refused(status: int, error: InvalidField, reason: Reason) -> web.Response:
    return _answered(status, 1, [Refusal(index=0, field=error.field, reason=error.reason, code=reason)], commands=[])


def _answered(
    status: int, count: int, refusals: Sequence[Refusal], *, commands: Sequence[ingest_pb2.DeviceCommand]
) -> web.Response:
    content: dict[str, Any] = {
        "accepted": count - len(refusals),
        "refused": [
            {
                "index": refusal.index,
                "field": refusal.field,
                "reason": refusal.reason,
                "code": ingest_pb2.RefusalCode.Name(ingest_pb2.RefusalCode.ValueType(refusal.code)),
            }
            for refusal in refusals
        ],
        "commands": [MessageToDict(command, preserving_proto_field_name=True) for command in commands],
    }
    return web.json_response(content, status=status)
