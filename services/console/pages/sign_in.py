"""Signing in and out: by a configured identity provider, else as a development user on loopback, else not at all."""

from __future__ import annotations

import time

from aiohttp import web

from services.common.observability.telemetry import logger
from services.console.domain.people import ALL_ROLES, NotAllowed, Role, user_of
from services.console.pages import assets
from services.console.pages.guard import HOME, Ask, RouteGuard, see_other, to_provider
from services.console.settings import ConsoleSettings
from services.console.sign_in import sessions
from services.console.sign_in.provider import AccountEnd, Provider, ProviderAway, TokenRefused
from services.console.sign_in.sessions import Attempt, ProviderAccount

_STATUS = {"provider_away": 503}
MAX_REFRESH_TOKEN = 2_000
"""Length of the longest refresh token that fits into the cookie, whose limit in browsers is 4,096 bytes."""


class _Refused(Exception):
    """A sign-in is refused. The text is the code of a `refused_*` text."""


class SigningIn:
    """Pages for signing in and out."""

    def __init__(self, settings: ConsoleSettings, guard: RouteGuard) -> None:
        self._settings, self._guard = settings, guard
        secret = settings.oidc_client_secret.get_secret_value()
        issuer = settings.oidc_issuer
        self._provider = Provider(issuer, settings.oidc_client_id, secret) if issuer else None

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes. With a provider there is no form for development users; without one there is no callback."""
        guard = self._guard
        methods = (
            [guard.open_get("/sign-in/begin", self.begin), guard.open_get(sessions.CALLBACK, self.callback)]
            if self._provider
            else [guard.open_post("/sign-in", self.signed_in)]
        )
        return [guard.open_get("/sign-in", self.sign_in), *methods, guard.post("/sign-out", ALL_ROLES, self.sign_out)]

    async def sign_in(self, ask: Ask) -> web.StreamResponse:
        """Shows the available way to sign in."""
        if ask.session.user:
            return see_other(HOME)
        end = ask.request.query.get("ended", "")
        return assets.page(
            ask,
            "sign_in.html",
            roles=self._roles(),
            provider=self._provider is not None,
            ended=end if end in set(AccountEnd) else "",
        )

    async def signed_in(self, ask: Ask) -> web.StreamResponse:
        """Signs in a development user, on loopback with development tokens only."""
        user = sessions.user_of(ask.form.get("role", ""), ask.form.get("name", ""))
        if user is None or user.role not in self._roles():
            raise web.HTTPForbidden(
                text="403: role or name is not accepted: development users need loopback, a known role, and a name of a-z 0-9 -"
            )
        response = see_other(HOME)
        self._guard.signed_in(user, response)
        return response

    async def sign_out(self, ask: Ask) -> web.StreamResponse:
        """Ends the session, also for copies of its cookie."""
        response = see_other("/sign-in")
        await self._guard.signed_out(ask.session, response)
        return response

    async def begin(self, ask: Ask) -> web.StreamResponse:
        """Sends the browser to the provider, with a cookie that identifies its return."""
        self._guard.strangers.check(ask.request)
        attempt = sessions.new_attempt()
        try:
            address = await self._known_provider().address(
                self._callback_uri(ask), attempt.state, attempt.nonce, verifier=attempt.verifier
            )
        except ProviderAway as error:
            return self._refusal(ask, "provider_away", str(error))
        response = to_provider(address)
        self._guard.attempt_begun(attempt, response)
        return response

    async def callback(self, ask: Ask) -> web.StreamResponse:
        """Handles the browser's return with a code, or with the provider's refusal."""
        self._guard.strangers.check(ask.request)
        detail = ""
        try:
            attempt = self._attempt(ask)
            now_s = time.time()
            claims, refresh_token = await self._known_provider().exchange(
                ask.request.query.get("code", ""),
                self._callback_uri(ask),
                attempt.nonce,
                verifier=attempt.verifier,
                now_s=now_s,
            )
            user = user_of(claims, self._settings.oidc_rule)
        except _Refused as error:
            reason = str(error)
        except ProviderAway as error:
            reason, detail = "provider_away", str(error)
        except TokenRefused as error:
            reason, detail = "token", str(error)
        except NotAllowed as error:
            reason = str(error)
        else:
            logger().info("signed_in", role=user.role.value)
            # Not a redirect: browsers send no strict cookie after a redirect that began at the provider's site.
            response = assets.page(ask, "signed_in.html")
            checkable = 0 < len(refresh_token) <= MAX_REFRESH_TOKEN
            account = ProviderAccount(claims["sub"], refresh_token if checkable else "")
            # Without news of the account, a session is good for no longer than the token that proved it.
            until_s = None if checkable else int(claims["exp"])
            self._guard.signed_in(user, response, account, until_s=until_s)
            response.del_cookie(sessions.ATTEMPT_COOKIE, path=sessions.CALLBACK)
            return response
        return self._refusal(ask, reason, detail)

    def _attempt(self, ask: Ask) -> Attempt:
        """Returns the attempt that this browser began. Raises _Refused if the provider's answer doesn't belong to that attempt."""
        attempt = self._guard.attempt(ask.request)
        query = ask.request.query
        if attempt is None or not sessions.is_same(attempt.state, query.get("state", "")):
            raise _Refused("state")
        if query.get("iss", self._settings.oidc_issuer) != self._settings.oidc_issuer or "code" not in query:
            raise _Refused("provider_refused")
        return attempt

    def _refusal(self, ask: Ask, reason: str, detail: str) -> web.Response:
        """Shows the reason of a refusal and keeps the browser's session. `detail` is this console's text, never a peer's."""
        logger().warning("sign_in_refused", reason=reason, detail=detail)
        response = assets.page(ask, "refused.html", status=_STATUS.get(reason, 403), reason=reason)
        response.del_cookie(sessions.ATTEMPT_COOKIE, path=sessions.CALLBACK)
        return response

    def _callback_uri(self, ask: Ask) -> str:
        return self._guard.origin(ask.request) + sessions.CALLBACK

    def _known_provider(self) -> Provider:
        if self._provider is None:
            raise web.HTTPNotFound
        return self._provider

    def _roles(self) -> list[Role]:
        """Returns the roles of development users: all roles on loopback with development tokens, else none."""
        return list(Role) if self._settings.dev_secret and not self._settings.tls else []
