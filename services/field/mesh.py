"""Field as a client of the mesh for her app: enrolment, notices, her map, the state of her phone, summaries, and reports to ingest."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.common.observability.telemetry import logger
from services.common.rpc import client
from services.common.rpc.certificates import spiffe_id
from services.common.rpc.errors import FailedPrecondition
from services.common.rpc.identity import FIELD
from services.common.rpc.server import Metadata
from services.field.domain.reports import PhoneReport, ReportAnswer, ReportOutcome
from services.field.settings import FieldSettings
from tandem.dispatch.v1.afterwards_pb2_grpc import AfterwardsServiceStub
from tandem.dispatch.v1.phone_notice_pb2_grpc import PhoneNoticeServiceStub
from tandem.dispatch.v1.phone_state_pb2_grpc import PhoneStateServiceStub
from tandem.geofence.v1.region_map_pb2_grpc import RegionMapServiceStub
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub

WITHIN_S = 8.0
"""Maximum time of a call, seconds. A phone gives a request up after 40 s, and its request may wait 25 s for news."""
REPORT_TIMEOUT = aiohttp.ClientTimeout(total=WITHIN_S, connect=3.0)
RETRY_AFTER_S = 5
"""Time after which a phone sends a report again if nobody says another, seconds."""
MAX_RETRY_AFTER_S = 300
NO_ANSWER = ReportAnswer(ReportOutcome.LATER, reason="ingest doesn't answer", retry_after_s=RETRY_AFTER_S)
"""Answer to the phone for a report that ingest doesn't answer."""
CERTIFICATE_INTERVAL_S = 60.0
"""Interval at which the certificate of ingest's endpoint is read again, seconds."""


class IngestEndpoint:
    """Ingest's endpoint for phones. Each request has the token of the phone that reports, so field can report for nobody else."""

    def __init__(self, session: aiohttp.ClientSession, settings: FieldSettings) -> None:
        self._session, self._url, self._cert = (
            session,
            settings.ingest_phones.rstrip("/") + "/",
            settings.ingest_phones_cert,
        )
        self._context: ssl.SSLContext | None = None
        self._read_at_s = 0.0

    async def report(self, token: str, device_id: str, report: PhoneReport) -> ReportAnswer:
        """Sends a report, and says what became of it. Nothing is lost if this fails: then the phone keeps the report."""
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with self._session.post(
                self._url, data=report.form(device_id), headers=headers, ssl=self._tls(), allow_redirects=False
            ) as answer:
                content = await answer.json() if answer.content_type == "application/json" else {}
                return _answer(answer.status, content, answer.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return NO_ANSWER

    def _tls(self) -> ssl.SSLContext | bool:
        """Accepts the one certificate of the endpoint, for any issuer and name."""
        if self._cert is None or urlsplit(self._url).scheme != "https":
            return True
        now_s = asyncio.get_running_loop().time()
        if self._context is None:
            self._context, self._read_at_s = pinned(self._cert), now_s
        elif now_s - self._read_at_s > CERTIFICATE_INTERVAL_S:
            self._read_at_s = now_s
            try:
                self._context = pinned(self._cert)
            except (OSError, ValueError) as error:
                # The file is being replaced at this moment, or is broken: a panic goes by the certificate that is known.
                logger().error("certificate_unreadable", kind=type(error).__name__)
        return self._context


def pinned(cert: Path) -> ssl.SSLContext:
    """A context that accepts the first certificate of a file, and no other one."""
    leaf = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=leaf.public_bytes(Encoding.PEM).decode())
    return context


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
        self.enrolments, self.notices, self.ingest = enrolments, notices, ingest
        self.region_maps, self.phone_states, self.afterwards = region_maps, phone_states, afterwards
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
        aiohttp.ClientSession(
            timeout=REPORT_TIMEOUT, trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as session,
    ):
        yield FieldMesh(
            EnrolmentServiceStub(registry),
            PhoneNoticeServiceStub(warning),
            IngestEndpoint(session, settings),
            region_maps=RegionMapServiceStub(geofence),
            phone_states=PhoneStateServiceStub(police),
            afterwards=AfterwardsStubs(AfterwardsServiceStub(warning), AfterwardsServiceStub(police)),
            to_registry=to_registry,
            to_warning=to_warning,
            to_geofence=to_geofence,
            to_police=to_police,
        )
