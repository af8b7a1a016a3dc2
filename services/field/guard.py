"""Access control of the routes of her app and of units' pages: rate limits, cookie and proof, security headers. Denies by default."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import grpc
import grpc.aio
from aiohttp import web
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.clock import wall_us
from services.common.errors import InvalidField, RetryableError, Unauthenticated
from services.common.observability.telemetry import logger
from services.common.web.connections import RequestLimit, source_of
from services.common.web.server import body_of, check_host, proven
from services.field import credentials
from services.field.credentials import (
    PHONE_COOKIE,
    PHONE_COOKIE_LASTS_S,
    UNIT_COOKIE,
    UNIT_COOKIE_LASTS_S,
    KnownPhones,
    PhoneCookies,
    PhoneSession,
    RequestProof,
    UnitCookies,
    UnitSession,
    UsedProofs,
)
from services.field.domain import text_of
from services.field.metrics import FieldMetrics
from services.field.push import PushAddresses
from services.field.settings import FieldSettings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "worker-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
"""Content security policy of every answer."""
ADDRESS_PER_S, ADDRESS_BURST = 100.0, 1_000
"""Requests from one address without a phone's proof: in the long run a second, and at once. Requests with a proof count by phone
alone: a mobile network's address has many phones behind it, and a stranger there mustn't lock her out."""
PHONE_PER_S, PHONE_BURST = 2.0, 120
"""Requests of one phone: in the long run a second, and at once. A phone that was replaced has a limit of its own, so that its holder
can't use up hers."""
CODE_PER_S, CODE_BURST = 0.1, 20
"""Enrolment codes that one address may try: in the long run a second, and at once."""
UNIT_PAGE_PER_S, UNIT_PAGE_BURST = 2.0, 120
"""Requests of one unit's page: in the long run a second, and at once. A page that was replaced has a limit of its own."""
LINK_PER_S, LINK_BURST = 5.0, 200
"""Links that one address may try: in the long run a second, and at once. A link has 256 bits, so nobody guesses one; but a station
begins its shift behind one address."""
UNIT_ENDED = {"SIGN_IN_ENDED": "ended", "SHIFT_OVER": "shift_over", "UNIT_REMOVED": "unit_removed"}
"""Answers to a page whose sign-in has ended, by the leg's reason."""


@dataclass(frozen=True, slots=True)
class PhoneCall:
    """A request that passed access control."""

    request: web.Request
    content: Any
    """Parsed JSON of the body; None without a body."""
    session: PhoneSession
    wait_s: float = 0.0
    """Time for which the phone has to wait because it asks too often, seconds. More than 0 only for what isn't refused for it."""

    def text(self, name: str) -> str:
        """A text of the content, empty if it is missing or no text."""
        return text_of(self.content, name)


def _is_never_urgent(_content: Any) -> bool:
    return False


Answer = Callable[[PhoneCall], Awaitable[web.Response]]
OpenAnswer = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """A request is refused. `code` is for the app, which has a text for it in each language."""

    def __init__(self, status: int, code: str, *, wait_s: float = 0.0, **more: Any) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.wait_s = wait_s
        self.more = more

    def answer(self) -> web.Response:
        """The answer with the code."""
        response = web.json_response({"error": self.code, **self.more}, status=self.status)
        if self.wait_s:
            response.headers["Retry-After"] = str(math.ceil(self.wait_s))
        return response


class RequestGuard:
    """Access control that both apps share: rate limits by address, the origin, the proof, and the headers of each answer."""

    def __init__(self, settings: FieldSettings, metrics: FieldMetrics, codes: RequestLimit) -> None:
        self._settings = settings
        self._metrics = metrics
        self._codes = codes
        self._by_address = RequestLimit(ADDRESS_PER_S, ADDRESS_BURST)
        self._hosts, self._used = settings.public_hosts, UsedProofs(wall_us() // 1000)

    def open_get(self, path: str, answer: OpenAnswer) -> web.RouteDef:
        """Makes the route of a file that is the same for everybody."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self._limit_address(request)
            return await answer(request, None)

        return web.get(path, self._handler(handle), allow_head=False)

    def enrolling(self, path: str, answer: OpenAnswer) -> web.RouteDef:
        """Makes the route by which a phone is connected, the only one of an app that needs no cookie and changes something."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self._limit_address(request)
            self._check_origin(request)
            if wait_s := self._codes.wait_s(_source(request), time.monotonic()):
                raise Refused(429, "too_often", wait_s=wait_s)
            return await answer(request, parsed(request, await body_of(request)))

        return web.post(path, self._handler(handle))

    async def _proven_body(self, request: web.Request, key: str, *, whose: str) -> tuple[bytes, RequestProof]:
        """The body of a request that one of our own pages made and a phone's key signed just now, with its proof.

        `whose` names the phone in the log. Raises Refused, also for a repeated request, which doesn't count as one of the phone's. The
        caller adds the proof to the used ones once the request is within the phone's limit.
        """
        if request.method == "POST":
            self._check_origin(request)
        body = await body_of(request)
        given, now_ms = credentials.parse_proof(request.headers.get(credentials.PROOF_HEADER, "")), wall_us() // 1000
        if given is None:
            self._refuse_unproven(request, "no_proof")
        if not given.is_valid(key, credentials.statement(request.method, request.path_qs, given, body=body)):
            self._limit_address(request)  # before the line of the log, which could fill the disk
            logger().warning("phone_without_its_key", device_id=whose)
            raise Refused(401, "no_proof")
        if not self._used.can_judge(given, now_ms):
            self._refuse_unproven(request, "clock", now_ms=now_ms)
        if self._used.holds(given, key):
            self._limit_address(request)
            logger().warning("request_repeated", device_id=whose)
            raise Refused(401, "repeated")
        proven(request, key)
        return body, given

    def _refuse_unproven(self, request: web.Request, code: str, **more: Any) -> NoReturn:
        """Refuses a request without a phone's proof, and counts it by its address."""
        self._limit_address(request)
        raise Refused(401, code, **more)

    def _limit_address(self, request: web.Request) -> None:
        """Counts a request without a phone's proof. Raises Refused if its address makes too many."""
        if wait_s := self._by_address.wait_s(_source(request), time.monotonic()):
            raise Refused(429, "too_often", wait_s=wait_s)

    def _handler(
        self, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                check_host(request, self._hosts)
                response = await answer(request)
            except Refused as refused:
                response = refused.answer()
            except InvalidField as error:
                response = web.json_response(
                    {"error": "invalid", "field": error.field, "reason": error.reason}, status=400
                )
            except RetryableError as error:
                response = Refused(503, "away", wait_s=error.retry_after_s).answer()
            except grpc.aio.AioRpcError as error:
                response = _of_rpc(error)
            except web.HTTPException as error:
                response = web.json_response({"error": "http", "status": error.status}, status=error.status)
            self._metrics.answers.labels(str(response.status)).inc()
            self.protect(response)
            return response

        return handle

    def _check_origin(self, request: web.Request) -> None:
        """Refuses a request that a page of another site made. Browsers say whose page it is."""
        origin = request.headers.get("Origin")
        if origin is None or (
            origin not in self._settings.origins and _host_of(origin) != request.headers.get("Host", "")
        ):
            raise Refused(403, "other_site")
        if request.content_type != "application/json":
            raise Refused(415, "not_json")

    def protect(self, response: web.StreamResponse) -> None:
        """Sets the security headers of an answer. A streamed answer needs them before its first part."""
        headers = response.headers
        headers["Content-Security-Policy"] = POLICY
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Server"] = "app"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Permissions-Policy"] = "geolocation=(self), camera=(), microphone=()"
        headers.setdefault("Cache-Control", "no-store")
        if self._settings.http_tls:
            headers["Strict-Transport-Security"] = "max-age=31536000"


class PhoneGuard(RequestGuard):
    """Makes all routes of her app, each behind access control."""

    def __init__(
        self,
        settings: FieldSettings,
        cookies: PhoneCookies,
        known: KnownPhones,
        *,
        addresses: PushAddresses,
        metrics: FieldMetrics,
    ) -> None:
        super().__init__(settings, metrics, RequestLimit(CODE_PER_S, CODE_BURST))
        self._cookies = cookies
        self._known = known
        self._addresses = addresses
        self._by_phone = RequestLimit(PHONE_PER_S, PHONE_BURST)

    def get(self, path: str, answer: Answer, *, checks_token: bool = True) -> web.RouteDef:
        """Makes a route for an enrolled phone. Without `checks_token` the route itself finds out that the phone's token has ended."""
        return web.get(path, self._handler(self._for_phone(answer, checks_token)), allow_head=False)

    def post(
        self,
        path: str,
        answer: Answer,
        *,
        checks_token: bool = True,
        is_urgent: Callable[[Any], bool] = _is_never_urgent,
    ) -> web.RouteDef:
        """Makes a route for an enrolled phone, by which something changes. `checks_token` is as in `get`.

        A request whose content is urgent isn't refused for the phone's rate; its answer learns that from `PhoneCall.wait_s`.
        """
        return web.post(path, self._handler(self._for_phone(answer, checks_token, is_urgent)))

    def enrolled(self, session: PhoneSession, response: web.Response) -> None:
        """Gives a phone its cookie."""
        response.set_cookie(
            PHONE_COOKIE,
            self._cookies.seal(session),
            path="/api",
            httponly=True,
            secure=self._settings.http_tls is not None,
            samesite="Strict",
            max_age=PHONE_COOKIE_LASTS_S,
        )

    def left(self, response: web.Response) -> None:
        """Takes a phone's cookie away."""
        response.del_cookie(PHONE_COOKIE, path="/api")

    def _for_phone(
        self, answer: Answer, checks_token: bool, is_urgent: Callable[[Any], bool] = _is_never_urgent
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            session = self._cookies.open(request.cookies.get(PHONE_COOKIE, ""))
            if session is None:
                self._refuse_unproven(request, "not_enrolled")
            body, given = await self._proven_body(request, session.key, whose=session.device_id)
            wait_s = self._by_phone.wait_s(session.key, time.monotonic())
            content = parsed(request, body)
            if wait_s and not is_urgent(content):
                raise Refused(429, "too_often", wait_s=wait_s)
            self._used.add(given, session.key, wall_us() // 1000)
            call = PhoneCall(request, content, session, wait_s=wait_s)
            try:
                if checks_token:
                    await self._known.check(session)
                return await answer(call)
            except Unauthenticated:
                self._known.forget(session)
                await self._addresses.delete_of_phone(session.device_id, session.key)  # it is woken no more
                raise Refused(401, "ended") from None

        return handle


@dataclass(frozen=True, slots=True)
class UnitCall:
    """A request of a unit's page that passed access control."""

    request: web.Request
    content: Any
    """Parsed JSON of the body; None without a body."""
    session: UnitSession

    def text(self, name: str) -> str:
        """A text of the content, empty if it is missing or no text."""
        return text_of(self.content, name)


UnitAnswer = Callable[[UnitCall], Awaitable[web.StreamResponse]]


class UnitGuard(RequestGuard):
    """Makes all routes of units' pages, each behind access control."""

    def __init__(
        self, settings: FieldSettings, cookies: UnitCookies, *, addresses: PushAddresses, metrics: FieldMetrics
    ) -> None:
        super().__init__(settings, metrics, RequestLimit(LINK_PER_S, LINK_BURST))
        self._cookies, self._addresses = cookies, addresses
        self._by_page = RequestLimit(UNIT_PAGE_PER_S, UNIT_PAGE_BURST)

    def get(self, path: str, answer: UnitAnswer) -> web.RouteDef:
        """Makes a route for a signed-in unit."""
        return web.get(path, self._handler(self._for_unit(answer)), allow_head=False)

    def post(self, path: str, answer: UnitAnswer) -> web.RouteDef:
        """Makes a route for a signed-in unit, by which something changes."""
        return web.post(path, self._handler(self._for_unit(answer)))

    def signed_in(self, session: UnitSession, response: web.Response) -> None:
        """Gives a page its cookie."""
        response.set_cookie(
            UNIT_COOKIE,
            self._cookies.seal(session),
            path="/api/unit",
            httponly=True,
            secure=self._settings.http_tls is not None,
            samesite="Strict",
            max_age=UNIT_COOKIE_LASTS_S,
        )

    def left(self, response: web.Response) -> None:
        """Takes a page's cookie away."""
        response.del_cookie(UNIT_COOKIE, path="/api/unit")

    def _for_unit(self, answer: UnitAnswer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            session = self._cookies.open(request.cookies.get(UNIT_COOKIE, ""))
            if session is None:
                self._refuse_unproven(request, "not_signed_in")
            body, given = await self._proven_body(request, session.key, whose=session.device_id)
            if wait_s := self._by_page.wait_s(session.key, time.monotonic()):
                raise Refused(429, "too_often", wait_s=wait_s)
            self._used.add(given, session.key, wall_us() // 1000)
            try:
                return await answer(UnitCall(request, parsed(request, body), session))
            except grpc.aio.AioRpcError as error:
                refusal = _unit_refusal(error)
                if isinstance(refusal, Refused) and refusal.status == 401:
                    await self._addresses.delete_of_phone(session.device_id, session.key)  # it is woken no more
                raise refusal from None

        return handle


def _unit_refusal(error: grpc.aio.AioRpcError) -> Exception:
    """The answer to a call that a leg refuses; the error itself if it is no refusal of what the unit asks."""
    reason = reason_of(error)
    if reason in UNIT_ENDED:
        return Refused(401, UNIT_ENDED[reason])
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return Refused(409, reason.lower() or "not_now")
    return error


def _source(request: web.Request) -> str:
    return source_of(request.remote or "")


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None if it has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def parsed(request: web.Request, body: bytes) -> Any:
    """The JSON of a request that changes something; None for any other. Raises InvalidField."""
    if request.method != "POST":
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidField("", "must be JSON") from None


_ANSWERS = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid"),
    grpc.StatusCode.NOT_FOUND: (404, "not_found"),
    grpc.StatusCode.FAILED_PRECONDITION: (409, "not_now"),
}


def _of_rpc(error: grpc.aio.AioRpcError) -> web.Response:
    """The answer to a failed call. What a service says stays here: it names parts of the mesh that no phone needs to know."""
    status, code = _ANSWERS.get(error.code(), (503, "away"))
    if status == 503:
        logger().warning("call_failed", code=error.code().name)
    return Refused(status, code, wait_s=5.0 if status == 503 else 0.0).answer()


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The machine-readable reason of a refusal (google.rpc.ErrorInfo); empty if it has none."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has the parts of a call that this reads
    found = status is not None and any(detail.Unpack(info) for detail in status.details)
    return info.reason if found else ""


def refusal_of_code(
    error: grpc.aio.AioRpcError, codes: Mapping[str, str], *, unknown: str, other: str
) -> Refused | grpc.aio.AioRpcError:
    """The answer to a code or link that a service refuses, and the error itself if the service couldn't say.

    `codes` are the app's codes by the service's reason, `other` is the one of any other reason, and `unknown` the one of a code that
    nobody issued.
    """
    match error.code():
        case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.INVALID_ARGUMENT:
            return Refused(404, unknown)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return Refused(409, codes.get(reason_of(error), other))
        case _:
            return error
