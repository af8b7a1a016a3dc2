"""Field as a client of the mesh, for her app and for units' pages.

Her app needs enrolment, notices, her map, the state of her phone, summaries, and reports to ingest; a unit's page needs its leg.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from services.common.certificates import client_context, spiffe_id
from services.common.errors import FailedPrecondition, TooMuchInProgress
from services.common.observability.telemetry import logger
from services.common.panic_lane import PanicLane
from services.common.rpc import client
from services.common.rpc.identity import FIELD
from services.common.rpc.server import Metadata
from services.field.domain import PhoneReport, ReportAnswer, ReportOutcome
from services.field.settings import FieldSettings
from tandem.dispatch.v1.afterwards_pb2_grpc import AfterwardsServiceStub
from tandem.dispatch.v1.phone_notice_pb2_grpc import PhoneNoticeServiceStub
from tandem.dispatch.v1.phone_state_pb2_grpc import PhoneStateServiceStub
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub
from tandem.geofence.v1.region_map_pb2_grpc import RegionMapServiceStub
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub

WITHIN_S = 8.0
"""Maximum time of a call, seconds. A phone gives a request up after 40 s, and its request may wait 25 s for news."""
REPORT_CONNECTIONS = 100
"""Maximum number of connections to ingest for reports that are no panics."""
REPORT_TIMEOUT = aiohttp.ClientTimeout(total=WITHIN_S, connect=3.0)
RETRY_AFTER_S = 5
"""Time after which a phone sends a report again if nobody says another, seconds."""
MAX_RETRY_AFTER_S = 300
NO_ANSWER = ReportAnswer(ReportOutcome.LATER, reason="ingest doesn't answer", retry_after_s=RETRY_AFTER_S)
"""Answer to the phone for a report that ingest doesn't answer."""
CERTIFICATE_INTERVAL_S = 60.0
"""Interval at which the certificates for ingest's port are read again, seconds."""
PANIC_CONNECTIONS = 1_000
"""Maximum number of connections to ingest for panics, beside those for other reports. A phone has one panic under way."""


class IngestEndpoint:
    """The port that ingest has for field. Each request has the token of the phone that reports, so field can report for nobody else."""

    def __init__(
        self, session: aiohttp.ClientSession, settings: FieldSettings, *, panic_session: aiohttp.ClientSession
    ) -> None:
        """`panic_session` has connections of its own, so that a panic never waits for other reports."""
        self._session, self._panic_session = session, panic_session
        self._url = settings.ingest_phones.rstrip("/") + "/"
        self._files = settings.tls_files() if urlsplit(self._url).scheme == "https" else None
        self._context: ssl.SSLContext | None = None
        self._read_at_s = 0.0
        self._panics = PanicLane[ReportAnswer]()

    async def report(self, token: str, device_id: str, report: PhoneReport) -> ReportAnswer:
        """Sends a report, and says what became of it. Nothing is lost if this fails: then the phone keeps the report."""
        if not report.is_panic:
            return await self._post(self._session, token, report.form(device_id))
        send = partial(self._post, self._panic_session, token, report.form(device_id))
        try:
            # By token: a phone that was replaced can't hold up the one that has its device now.
            return await self._panics.send(token, report.at_ms, send)
        except TooMuchInProgress as error:
            return ReportAnswer(ReportOutcome.LATER, reason=error.reason, retry_after_s=math.ceil(error.retry_after_s))

    async def _post(self, session: aiohttp.ClientSession, token: str, form: Mapping[str, str]) -> ReportAnswer:
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with session.post(
                self._url, data=form, headers=headers, ssl=self._tls(), allow_redirects=False
            ) as answer:
                content = await answer.json() if answer.content_type == "application/json" else {}
                return _answer(answer.status, content, answer.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return NO_ANSWER

    def _tls(self) -> ssl.SSLContext | bool:
        """Context with field's own certificate, and with the authorities of ingest's."""
        if self._files is None:
            return True
        now_s = asyncio.get_running_loop().time()
        if self._context is None:
            self._context, self._read_at_s = client_context(self._files), now_s
        elif now_s - self._read_at_s > CERTIFICATE_INTERVAL_S:
            self._read_at_s = now_s
            try:
                self._context = client_context(self._files)
            except (OSError, ValueError) as error:
                # The files are being replaced at this moment, or are broken: a panic goes by the certificate that is known.
                logger().error("certificate_unreadable", kind=type(error).__name__)
        return self._context


def _answer(status: int, content: Any, retry_after: str) -> ReportAnswer:
    """The phone's answer, by ingest's. A report is refused only in ingest's own words: another server's answer must lose no report."""
    content = content if isinstance(content, dict) else {}
    refused = content.get("refused") or [{}]
    field, reason = str(refused[0].get("field", "")), str(refused[0].get("reason", ""))
    commands = content.get("commands", ())
    if status == 401:
        return ReportAnswer(ReportOutcome.UNKNOWN_PHONE, field, reason)
    if status == 200 and content.get("accepted", 0) > 0:
        return ReportAnswer(ReportOutcome.STORED, field, reason, commands=commands)
    if status in (200, 400, 403) and reason:
        return ReportAnswer(ReportOutcome.REFUSED, field, reason, commands=commands)
    wait_s = int(retry_after) if retry_after.isdecimal() else RETRY_AFTER_S
    if status not in (429, 503):
        logger().warning("ingest_answer_unknown", status=status)
    return ReportAnswer(
        ReportOutcome.LATER, field, reason, retry_after_s=min(wait_s, MAX_RETRY_AFTER_S), commands=commands
    )


class AfterwardsStubs(NamedTuple):
    """Stubs of what happened in an incident. Each of the two legs serves a part."""

    at_warning: AfterwardsServiceStub
    at_police: AfterwardsServiceStub


class FieldMesh:
    """The services that field calls, and its identity there."""

    def __init__(
        self,
        enrolments: EnrolmentServiceStub,
        notices: PhoneNoticeServiceStub,
        ingest: IngestEndpoint,
        *,
        region_maps: RegionMapServiceStub,
        phone_states: PhoneStateServiceStub,
        afterwards: AfterwardsStubs,
        to_registry: Metadata,
        to_warning: Metadata,
        to_geofence: Metadata,
        to_police: Metadata,
    ) -> None:
        self.enrolments = enrolments
        self.notices = notices
        self.ingest = ingest
        self.region_maps = region_maps
        self.phone_states = phone_states
        self.afterwards = afterwards
        self.to_registry, self.to_warning = to_registry, to_warning
        self.to_geofence, self.to_police = to_geofence, to_police


@asynccontextmanager
async def connect(settings: FieldSettings) -> AsyncIterator[FieldMesh]:
    """Opens the channels. They connect to unavailable services as soon as these are up.

    Raises FailedPrecondition if the certificate isn't field's: with another one it would be somebody else.
    """
    if settings.tls and (own := spiffe_id(settings.tls_files().cert)) != FIELD:
        raise FailedPrecondition(f"TANDEM_TLS_CERT is of {own}, but field needs a certificate of {FIELD}")
    async with (
        client.connection(settings, settings.registry, FIELD) as (registry, to_registry),
        client.connection(settings, settings.dispatch_warning, FIELD) as (warning, to_warning),
        client.connection(settings, settings.geofence, FIELD) as (geofence, to_geofence),
        client.connection(settings, settings.dispatch_police, FIELD) as (police, to_police),
        _reporting(REPORT_CONNECTIONS) as session,
        _reporting(PANIC_CONNECTIONS) as panic_session,
    ):
        yield FieldMesh(
            EnrolmentServiceStub(registry),
            PhoneNoticeServiceStub(warning),
            IngestEndpoint(session, settings, panic_session=panic_session),
            region_maps=RegionMapServiceStub(geofence),
            phone_states=PhoneStateServiceStub(police),
            afterwards=AfterwardsStubs(AfterwardsServiceStub(warning), AfterwardsServiceStub(police)),
            to_registry=to_registry,
            to_warning=to_warning,
            to_geofence=to_geofence,
            to_police=to_police,
        )


def _reporting(connections: int) -> aiohttp.ClientSession:
    """A session for reports to ingest with at most this many connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=REPORT_TIMEOUT,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
"""Option of a channel that shares no connection. A connection carries at most 512 calls at once, and further ones wait."""


class UnitLeg(NamedTuple):
    """The stubs of a leg, with the metadata of each call."""

    stub: UnitDutyServiceStub
    streams: UnitDutyServiceStub
    """For streams of targets, over a connection of their own: as many as there are must hold up no call for help."""
    metadata: Metadata


UnitLegs = Mapping[str, UnitLeg]
"""The legs that send units, by name."""


@asynccontextmanager
async def connect_unit_legs(settings: FieldSettings) -> AsyncIterator[UnitLegs]:
    """Opens the channels. They connect to unavailable legs as soon as these are up."""
    async with AsyncExitStack() as stack:
        legs = {}
        for name, target in (("probation", settings.dispatch_probation), ("police", settings.dispatch_police)):
            channel, metadata = await stack.enter_async_context(client.connection(settings, target, FIELD))
            own, _ = await stack.enter_async_context(client.connection(settings, target, FIELD, OWN_CONNECTION))
            legs[name] = UnitLeg(UnitDutyServiceStub(channel), UnitDutyServiceStub(own), metadata)
        yield legs
