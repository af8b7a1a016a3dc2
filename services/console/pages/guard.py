"""Access control of every page: roles, sessions, forged requests, security headers and redirects. Denies by default."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc.aio
from aiohttp import web

from services.common.observability.telemetry import logger
from services.common.web import server as common_web
from services.common.web.connections import RequestLimit, source_of
from services.common.web.server import check_host, parts_of
from services.console.domain.match_reviews import ReviewBadge
from services.console.domain.people import ConsoleUser, Role
from services.console.pages.texts import LANGUAGES, TEXTS, Texts
from services.console.settings import ConsoleSettings
from services.console.sign_in import sessions
from services.console.sign_in.provider import AccountEnd, Accounts
from services.console.sign_in.sessions import Attempt, ConsoleSession, EndedSessions, ProviderAccount, SignedCookies

CSRF_FIELD = "csrf"
CSRF_HEADER = "X-CSRF-Token"
LANGUAGE_COOKIE = "tandem_language"
STRANGER_PER_S, STRANGER_BURST = 5.0, 500
"""Sign-ins and forged forms from one address: in the long run a second, and at once. Each sign-in costs the identity provider two
requests, and each forged form a line of the log. A whole station may begin its shift behind one address."""
_SESSION = web.RequestKey("tandem_session", ConsoleSession)
"""Key of a request's session in the request."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Request that passed access control."""

    request: web.Request
    session: ConsoleSession
    texts: Texts
    csrf: str
    """Token against forged requests, for the forms of the answer."""
    form: dict[str, str]
    """Form fields of a POST."""
    badge: ReviewBadge | None = None
    """Match reviews that wait for a person, as last known; None for a role that decides none, and if they are unknown."""
    bar: Mapping[str, Any] | None = None
    """Open incidents of the user's desk, as `Feed.bar` returns them; None for a role without a desk."""

    @property
    def user(self) -> ConsoleUser:
        """Signed-in user of the request. Raises HTTPUnauthorized if there is none."""
        if self.session.user is None:
            raise web.HTTPUnauthorized(text="401: sign in first")
        return self.session.user


Page = Callable[[Ask], Awaitable[web.StreamResponse]]
ErrorPage = Callable[[Ask, int, str], web.Response]
"""Makes the page of an error from its status and its text."""


class StrangerLimit:
    """Limit of requests for which nobody is signed in, by address."""

    def __init__(self) -> None:
        self._limit = RequestLimit(STRANGER_PER_S, STRANGER_BURST)

    def check(self, request: web.Request) -> None:
        """Counts a request. Raises HTTPTooManyRequests if its address makes too many."""
        if self._limit.wait_s(source_of(request.remote or ""), time.monotonic()):
            raise web.HTTPTooManyRequests(text="429: too many requests from this address: wait a minute")


class RouteGuard:
    """Makes all routes of the console, each behind access control."""

    def __init__(
        self,
        settings: ConsoleSettings,
        keys: Sequence[bytes],
        ended: EndedSessions | None = None,
        *,
        accounts: Accounts | None = None,
    ) -> None:
        """`accounts` checks accounts with the identity provider; None without one."""
        # Cookies depend on the issuer: a change of the identity provider ends all sessions.
        self._settings, self._cookies = settings, SignedCookies(keys, settings.oidc_issuer)
        self._ended, self._accounts = ended or EndedSessions(), accounts
        self.strangers = StrangerLimit()
        self._badge_of: Callable[[Role], ReviewBadge | None] = lambda _: None
        self._bar_of: Callable[[Role], Mapping[str, Any] | None] = lambda _: None
        self._error_page: ErrorPage | None = None
        self._hosts = settings.public_hosts
        tiles = "".join(f" {origin}" for origin in settings.tiles_origins)
        self._policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; worker-src 'self'; "
            f"img-src 'self' data: blob:{tiles}; connect-src 'self'{tiles}; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        )

    def show_badges(self, badge_of: Callable[[Role], ReviewBadge | None]) -> None:
        """Sets where each page gets the number of match reviews that wait for a person."""
        self._badge_of = badge_of

    def show_bars(self, bar_of: Callable[[Role], Mapping[str, Any] | None]) -> None:
        """Sets where each page gets the open incidents of its user's desk."""
        self._bar_of = bar_of

    def show_errors(self, error_page: ErrorPage) -> None:
        """Sets the page that browsers get in place of an error's plain text."""
        self._error_page = error_page

    def get(self, path: str, roles: Collection[Role], page: Page) -> web.RouteDef:
        """Makes the route of a page for these roles."""
        return web.get(path, self._handler(roles, page), allow_head=False)

    def post(self, path: str, roles: Collection[Role], page: Page) -> web.RouteDef:
        """Makes the route of a form or call for these roles; it needs the token of its session."""
        return web.post(path, self._handler(roles, page))

    def open_get(self, path: str, page: Page) -> web.RouteDef:
        """Makes the route of a page that anybody may see: signing in, static files."""
        return web.get(path, self._handler(None, page), allow_head=False)

    def open_post(self, path: str, page: Page) -> web.RouteDef:
        """Makes the route of a form that anybody may send; it still needs the token of its session."""
        return web.post(path, self._handler(None, page))

    def signed_in(
        self,
        user: ConsoleUser | None,
        response: web.StreamResponse,
        account: ProviderAccount | None = None,
        *,
        until_s: int | None = None,
    ) -> None:
        """Begins a new session of a user, or an anonymous one. It lasts a shift, or until `until_s` if that is sooner."""
        session = sessions.new_session(user, time.time(), account=account, until_s=until_s)
        if self._accounts and user:
            self._accounts.began(session)
        self._set_cookie(response, session)

    async def signed_out(self, session: ConsoleSession, response: web.StreamResponse) -> None:
        """Ends a session, also for copies of its cookie, and begins an anonymous one in this browser."""
        await self._ended.add(session.session_id, session.until_s)
        self.signed_in(None, response)
        if self._accounts:
            await self._accounts.revoke(session)

    def is_over(self, session: ConsoleSession) -> bool:
        """Returns whether a session has ended or expired by now, which may be after its request came."""
        if self._accounts:
            self._accounts.seen(session)
        return session.session_id in self._ended or session.until_s <= time.time()

    def attempt_begun(self, attempt: Attempt, response: web.StreamResponse) -> None:
        """Gives the browser the cookie of its sign-in attempt. The browser sends that cookie to the callback alone."""
        response.set_cookie(
            sessions.ATTEMPT_COOKIE,
            self._cookies.seal_attempt(attempt),
            path=sessions.CALLBACK,
            httponly=True,
            secure=self._settings.tls,
            samesite="Lax",  # browsers don't send a strict cookie on the way back from the provider's site
            max_age=sessions.ATTEMPT_LASTS_S,
        )

    def attempt(self, request: web.Request) -> Attempt | None:
        """Returns the sign-in attempt that this browser began, or None if its cookie isn't valid."""
        return self._cookies.unseal_attempt(request.cookies.get(sessions.ATTEMPT_COOKIE, ""), time.time())

    def origin(self, request: web.Request) -> str:
        """Returns the origin under which the browser reached the console: a configured origin or loopback."""
        host = request.headers.get("Host", "")
        own = f"{'https' if self._settings.tls else 'http'}://{host}"
        return next((origin for origin in self._settings.origins if urlsplit(origin).netloc == host), own)

    def _handler(self, roles: Collection[Role] | None, page: Page) -> common_web.Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                response = await self._answer(request, roles, page)
            except web.HTTPException as error:
                response = error if error.status < 400 else self._failed(request, error.status, error.text or "")
            except grpc.aio.AioRpcError as error:
                # The service's error text holds no personal data, so it may be shown.
                response = self._failed(request, http_status(error.code()), f"{error.code().name}: {error.details()}")
            if not response.prepared:
                self.protect(response)
            return response

        return handle

    def _failed(self, request: web.Request, status: int, text: str) -> web.Response:
        """Makes the answer of an error: a page for a browser, a line in the user's language for the console's script, else text."""
        accepted = request.headers.get("Accept", "")
        if self._error_page is None or "text/html" not in accepted:
            text = _in_words(request, status, text) if "application/json" in accepted else text
            return web.Response(status=status, text=text)
        session = request.get(_SESSION) or sessions.new_session(None, time.time())
        return self._error_page(self._ask(request, session), status, text)

    def _ask(self, request: web.Request, session: ConsoleSession, form: dict[str, str] | None = None) -> Ask:
        return Ask(
            request=request,
            session=session,
            texts=Texts(_language(request)),
            csrf=self._cookies.token_of(session),
            form=form or {},
            badge=self._badge_of(session.user.role) if session.user else None,
            bar=self._bar_of(session.user.role) if session.user else None,
        )

    async def _answer(self, request: web.Request, roles: Collection[Role] | None, page: Page) -> web.StreamResponse:
        check_host(request, self._hosts)
        known, end = await self._session(request)
        if known and known.user:
            common_web.proven(request, f"{known.user.role}/{known.user.name}")
        session = request[_SESSION] = known or sessions.new_session(None, time.time())
        form: dict[str, str] = {}
        if request.method == "POST":
            _check_origin(request)
            body = await common_web.body_of(request)
            if request.content_type != "application/x-www-form-urlencoded":
                raise web.HTTPUnsupportedMediaType(text="415: Content-Type must be application/x-www-form-urlencoded")
            form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
            token = request.headers.get(CSRF_HEADER) or form.get(CSRF_FIELD, "")
            if known is None or not self._cookies.is_token(session, token):
                self.strangers.check(request)
                logger().warning("forged", path=request.match_info.route.resource.canonical)  # type: ignore[union-attr]
                raise web.HTTPForbidden(text="403: this form is of another session: load the page again")
        if roles is not None and session.user is None:
            if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
                return see_other(f"/sign-in?ended={end.value}" if end else "/sign-in")
            raise web.HTTPUnauthorized(text="401: sign in first")
        if roles is not None and session.user and session.user.role not in roles:
            raise web.HTTPForbidden(text="403: this page is for other roles")
        response = await page(self._ask(request, session, form))
        # An error page begins no session: the browser may have one already, and didn't send its strict cookie along.
        new = known is None and response.status < 400 and response.content_type == "text/html"
        if known and self._accounts and not response.prepared:
            current = self._accounts.current(known)
            new = current != known
            session = current
        if new and sessions.COOKIE not in response.cookies:
            self._set_cookie(response, session)
        return response

    def protect(self, response: web.StreamResponse) -> None:
        """Sets the security headers of an answer."""
        headers = response.headers
        headers["Content-Security-Policy"] = self._policy
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Server"] = "tandem"
        headers["Referrer-Policy"] = "same-origin"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Permissions-Policy"] = "geolocation=(), camera=(), microphone=()"
        headers.setdefault("Cache-Control", "no-store")
        if self._settings.tls:
            headers["Strict-Transport-Security"] = "max-age=31536000"

    async def _session(self, request: web.Request) -> tuple[ConsoleSession | None, AccountEnd | None]:
        """Returns the session of a request; None with the reason if the identity provider ended it."""
        session = self._cookies.unseal(request.cookies.get(sessions.COOKIE, ""), time.time())
        if session and self._accounts:
            await self._accounts.check(session)
        if session and self.is_over(session):
            return None, self._accounts.end_of(session.session_id) if self._accounts else None
        if session and session.user and self._settings.console_role not in (None, session.user.role):
            return None, None
        return session, None

    def _set_cookie(self, response: web.StreamResponse, session: ConsoleSession) -> None:
        response.set_cookie(
            sessions.COOKIE,
            self._cookies.seal(session),
            httponly=True,
            secure=self._settings.tls,
            samesite="Strict",
            max_age=sessions.LASTS_S,
        )


def _check_origin(request: web.Request) -> None:
    origin = request.headers.get("Origin")
    if origin is not None and parts_of(origin, "Origin").netloc != request.headers.get("Host", ""):
        raise web.HTTPForbidden(text="403: the request was sent from another site (Origin)")


_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 503,
}


def http_status(code: grpc.StatusCode) -> int:
    """Returns the HTTP status for a failed gRPC call."""
    return _STATUS.get(code, 502)


def _in_words(request: web.Request, status: int, text: str) -> str:
    """An error in the user's language, if it has words, with its text."""
    key = f"error_{status}"
    return f"{Texts(_language(request))(key)} ({text})" if key in TEXTS else text


def _language(request: web.Request) -> str:
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    accepted = request.headers.get("Accept-Language", "ko")
    preferred = (part[:2] for part in accepted.replace(" ", "").split(","))
    return next((language for language in preferred if language in LANGUAGES), LANGUAGES[0])


HOME = "/"
MAX_PATH_CHARS = 2_048
_VISIBLE_ASCII = re.compile(r"/[!-\[\]-~]*")
"""Path of printable ASCII without space and backslash: browsers drop tabs and line ends, and read a backslash as a slash."""


def is_own_path(text: str) -> bool:
    """Returns whether a browser that is sent to `text` stays on this origin.

    That needs one leading slash, no control character, no backslash, and no empty segment before the query: a browser reads
    `//host`, `/\\host` and `/<TAB>/host` as the address of another host.
    """
    path = re.split(r"[?#]", text, maxsplit=1)[0]
    return len(text) <= MAX_PATH_CHARS and _VISIBLE_ASCII.fullmatch(text) is not None and "//" not in path


def own_path(text: str) -> str:
    """Returns `text` if it is a path of this origin, else the home page."""
    return text if is_own_path(text) else HOME


def see_other(path: str) -> web.Response:
    """Makes the answer that sends a browser by GET to a path of this origin, or to the home page if `path` leads elsewhere."""
    return web.Response(status=303, headers={"Location": own_path(path)})


def to_provider(address: str) -> web.Response:
    """Makes the answer that sends a browser to the identity provider, whose address the caller has checked."""
    return web.Response(status=303, headers={"Location": address})
