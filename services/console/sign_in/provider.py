"""The identity provider: signing in by OpenID Connect, and checks that the accounts of signed-in users are open and have the same role.

The flow is authorization code with PKCE. No key and no document is cached: both are fetched at each sign-in, as each person signs in
once a shift. So a withdrawn key is refused at once, and a new key is accepted at once.

A session that this process knows is checked in the background, so that no page waits for the provider. Only a session that it doesn't
know, after a restart or at another replica, is checked before its page is shown.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import aiohttp
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.common.observability.telemetry import logger
from services.common.settings import LOOPBACK
from services.console.domain.people import ClaimsRule, NotAllowed, user_of
from services.console.sign_in.sessions import ConsoleSession, EndedSessions

TICK_S = 1.0
RETRY_S = 15.0
"""Interval of checks while the provider is unavailable, in s. Sessions stay meanwhile."""
CONCURRENCY = 8


class AccountEnd(StrEnum):
    """Reason why the provider's answer ended a session. The text of the sign-in page is `ended_` and the value."""

    CLOSED = "closed"
    ROLE_CHANGED = "role_changed"


@dataclass(slots=True)
class _Watched:
    session: ConsoleSession
    refresh_token: str
    check_at_s: float
    """Time of the next check, seconds since 1970 UTC."""
    seen_at_s: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Accounts:
    """Accounts of the sessions that have a refresh token."""

    def __init__(self, provider: Provider, rule: ClaimsRule, interval_s: float, *, ended: EndedSessions) -> None:
        self._provider = provider
        self._rule = rule
        self._interval_s = interval_s
        self._ended = ended
        self._watched: dict[str, _Watched] = {}
        self._ends: dict[str, tuple[AccountEnd, int]] = {}
        """Reason of each session's end, and until when it is kept, by session id."""

    def began(self, session: ConsoleSession) -> None:
        """Notes a session whose account was checked just now, by signing in."""
        self._watch(session, time.time() + self._interval_s)

    def seen(self, session: ConsoleSession) -> None:
        """Notes that a session is in use. One that nobody uses isn't checked before its next request."""
        if watched := self._watched.get(session.session_id):
            watched.seen_at_s = time.time()

    async def check(self, session: ConsoleSession) -> None:
        """Checks the account of a session that this process doesn't know, or that nobody used for a while; else notes its use."""
        if not (session.account and session.account.refresh_token) or session.session_id in self._ended:
            return
        watched = self._watched.get(session.session_id) or self._watch(session, 0.0)
        was_idle = self._is_idle(watched, time.time())
        watched.seen_at_s = time.time()
        if was_idle or not watched.check_at_s:
            await self._check(watched)

    def end_of(self, session_id: str) -> AccountEnd | None:
        """Returns the reason why a session ended; None if the provider didn't end it."""
        end = self._ends.get(session_id)
        return end[0] if end else None

    def current(self, session: ConsoleSession) -> ConsoleSession:
        """Returns the session with the newest refresh token, as providers may replace it at each use."""
        watched = self._watched.get(session.session_id)
        if watched is None or session.account is None:
            return session
        return replace(session, account=replace(session.account, refresh_token=watched.refresh_token))

    async def revoke(self, session: ConsoleSession) -> None:
        """Ends the grant of a session at the provider after signing out. If the provider is unavailable, only logs that."""
        watched = self._watched.pop(session.session_id, None)
        token = watched.refresh_token if watched else session.account.refresh_token if session.account else ""
        if not token:
            return
        try:
            await self._provider.revoke(token)
        except ProviderAway as error:
            logger().warning("grant_not_revoked", detail=str(error))

    async def run(self) -> None:
        """Checks the accounts of all sessions in use until cancelled."""
        limit = asyncio.Semaphore(CONCURRENCY)

        async def check(watched: _Watched) -> None:
            async with limit:
                await self._check(watched)

        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.time()
            self._forget_over(now_s)
            async with asyncio.TaskGroup() as tasks:
                for watched in list(self._watched.values()):
                    if watched.check_at_s <= now_s and not self._is_idle(watched, now_s):
                        tasks.create_task(check(watched))

    def _watch(self, session: ConsoleSession, check_at_s: float) -> _Watched:
        token = session.account.refresh_token if session.account else ""
        watched = _Watched(session, token, check_at_s=check_at_s, seen_at_s=time.time())
        if token:
            self._watched[session.session_id] = watched
        return watched

    def _is_idle(self, watched: _Watched, now_s: float) -> bool:
        return watched.seen_at_s + 2 * self._interval_s + RETRY_S <= now_s

    def _forget_over(self, now_s: float) -> None:
        # An idle session is kept: its refresh token may be newer than the one in its cookie.
        self._watched = {id_: watched for id_, watched in self._watched.items() if watched.session.until_s > now_s}
        self._ends = {id_: end for id_, end in self._ends.items() if end[1] > now_s}

    async def _check(self, watched: _Watched) -> None:
        """Checks an account if that is due. While the provider is unavailable, the session stays."""
        async with watched.lock:
            if watched.check_at_s > time.time():
                return
            try:
                end = await self._end(watched)
            except ProviderAway as error:
                logger().warning("account_not_checked", detail=str(error))
                watched.check_at_s = time.time() + RETRY_S
                return
            watched.check_at_s = time.time() + self._interval_s
            if end is None:
                return
            session = watched.session
            logger().warning("session_ended_by_provider", reason=end.value)
            self._ends[session.session_id] = (end, session.until_s)
            self._watched.pop(session.session_id, None)
            await self._ended.add(session.session_id, session.until_s)

    async def _end(self, watched: _Watched) -> AccountEnd | None:
        """Asks the provider. Returns the reason why the session must end, or None. Raises ProviderAway."""
        try:
            grant = await self._provider.refresh(watched.refresh_token, time.time())
        except (GrantEnded, TokenRefused):
            return AccountEnd.CLOSED
        watched.refresh_token = grant.refresh_token
        if grant.claims is None:
            return None
        account = watched.session.account
        if account is None or grant.claims["sub"] != account.subject:
            return AccountEnd.CLOSED
        try:
            user = user_of(grant.claims, self._rule)
        except NotAllowed:
            return AccountEnd.ROLE_CHANGED
        signed_in = watched.session.user
        return None if signed_in is None or user.role is signed_in.role else AccountEnd.ROLE_CHANGED


ALGORITHMS = ("RS256", "PS256", "ES256")
"""Accepted signature algorithms: all use a key pair. Algorithms with a shared key are refused, and so is `none`."""
SCOPE = "openid profile"
WITHIN_S = 5.0
MAX_ANSWER_BYTES = 256 << 10
LEEWAY_S = 30
"""Accepted difference between the provider's clock and this machine's, in s."""


class ProviderAway(Exception):
    """The provider gives no usable answer."""


class TokenRefused(Exception):
    """The provider rejected the authorization code, or returned a token that doesn't verify."""


class GrantEnded(Exception):
    """The provider no longer honours a refresh token: the account was closed, its sign-in ended, or the token was used before."""


@dataclass(frozen=True, slots=True)
class ProviderGrant:
    """The provider's answer about a person."""

    claims: dict[str, Any] | None
    """Verified claims of the ID token; None if a refresh gave no ID token, which the standard allows."""
    refresh_token: str
    """Token for the next refresh; empty if the provider gave none."""


def is_safe(url: str) -> bool:
    """Returns whether secrets may be sent to a URL: by https, or on this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK))


class Provider:
    """Client of one identity provider."""

    def __init__(self, issuer: str, client_id: str, client_secret: str) -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        # aiohttp's own context has the authorities of the time of its import, which may be before SSL_CERT_FILE was set.
        self._tls = ssl.create_default_context()

    async def address(self, redirect_uri: str, state: str, nonce: str, *, verifier: str) -> str:
        """Returns the provider's address to which a browser goes to sign in. Raises ProviderAway.

        `prompt=login` makes the provider authenticate each time, as officers share a desk's browser.
        """
        async with self._client() as client:
            address = _endpoint(await self._document(client), "authorization_endpoint")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": redirect_uri,
            "scope": SCOPE,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "prompt": "login",
        }
        return f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(query)}"

    async def exchange(
        self, code: str, redirect_uri: str, nonce: str, *, verifier: str, now_s: float
    ) -> tuple[dict[str, Any], str]:
        """Exchanges a code. Returns the verified claims, and a refresh token or an empty text. Raises ProviderAway, TokenRefused."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        async with self._client() as client:
            document = await self._document(client)
            status, answer = await self._post(
                client, document, "token_endpoint", form=form | {"code_verifier": verifier}
            )
            if 400 <= status < 500:
                raise TokenRefused("the provider rejected the code")
            token = answer.get("id_token")
            if status != 200 or not isinstance(token, str):
                raise ProviderAway("its answer has no id_token")
            keys = await self._keys(client, _endpoint(document, "jwks_uri"))
        return self._verified(token, keys, now_s=now_s, nonce=nonce), _text(answer.get("refresh_token"))

    async def refresh(self, refresh_token: str, now_s: float) -> ProviderGrant:
        """Asks whether an account is still open, and for its present claims. Raises ProviderAway, TokenRefused, GrantEnded.

        Errors of the console's own configuration, such as a wrong secret, are no reason to end sessions: they raise ProviderAway.
        """
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        async with self._client() as client:
            document = await self._document(client)
            status, answer = await self._post(client, document, "token_endpoint", form=form)
            if status == 400 and answer.get("error") == "invalid_grant":
                raise GrantEnded
            if status != 200:
                raise ProviderAway(f"it answered a refresh with status {status}")
            token = answer.get("id_token")
            claims = None
            if isinstance(token, str):
                keys = await self._keys(client, _endpoint(document, "jwks_uri"))
                claims = self._verified(token, keys, now_s=now_s)
        return ProviderGrant(claims, _text(answer.get("refresh_token")) or refresh_token)

    async def revoke(self, refresh_token: str) -> None:
        """Ends a grant at the provider, if it has an endpoint for that (RFC 7009). Raises ProviderAway."""
        async with self._client() as client:
            document = await self._document(client)
            if "revocation_endpoint" in document:
                form = {"token": refresh_token, "token_type_hint": "refresh_token"}
                status, _ = await self._post(client, document, "revocation_endpoint", form=form, has_answer=False)
                if status != 200:
                    raise ProviderAway(f"it answered a revocation with status {status}")

    def _client(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._tls)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=WITHIN_S))

    async def _document(self, client: aiohttp.ClientSession) -> Mapping[str, Any]:
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        status, document = await _request(client, "GET", url)
        if status != 200 or document.get("issuer") != self._issuer:
            raise ProviderAway("its document isn't that of this issuer")
        return document

    async def _post(
        self,
        client: aiohttp.ClientSession,
        document: Mapping[str, Any],
        endpoint: str,
        *,
        form: Mapping[str, str],
        has_answer: bool = True,
    ) -> tuple[int, Mapping[str, Any]]:
        """Sends a form to an endpoint of the provider, with the client's secret."""
        headers = {}
        methods = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if "client_secret_basic" in methods:
            pair = f"{quote_plus(self._client_id)}:{quote_plus(self._client_secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form = {**form, "client_id": self._client_id, "client_secret": self._client_secret}
        url = _endpoint(document, endpoint)
        return await _request(client, "POST", url, has_answer=has_answer, data=form, headers=headers)

    async def _keys(self, client: aiohttp.ClientSession, url: str) -> KeySet:
        status, answer = await _request(client, "GET", url)
        try:
            # Only public keys for signatures: a shared key in a public document would be known to everybody.
            usable = [
                key for key in answer["keys"] if key.get("kty") in ("RSA", "EC") and key.get("use", "sig") == "sig"
            ]
            if status == 200 and usable:
                return KeySet.import_key_set({"keys": usable})
        except (KeyError, TypeError, AttributeError, ValueError, JoseError):
            pass
        raise ProviderAway("its key set has no usable keys")

    def _verified(self, token: str, keys: KeySet, *, now_s: float, nonce: str | None = None) -> dict[str, Any]:
        """Returns the claims of a token. A refreshed token needs no nonce (OpenID Connect Core 12.2)."""
        wanted = jwt.JWTClaimsRegistry(
            now=int(now_s),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": False} if nonce is None else {"essential": True, "value": nonce},
        )
        try:
            claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
            wanted.validate(claims)
        except (JoseError, ValueError) as error:
            raise TokenRefused(type(error).__name__) from None
        if (
            claims["aud"] not in (self._client_id, [self._client_id])
            or claims.get("azp", self._client_id) != self._client_id
        ):
            raise TokenRefused("the token is for other clients, too")
        return claims


def _endpoint(document: Mapping[str, Any], name: str) -> str:
    url = document.get(name)
    if not isinstance(url, str) or not is_safe(url):
        raise ProviderAway(f"its document has no https address for {name}")
    return url


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


async def _request(
    client: aiohttp.ClientSession, method: str, url: str, *, has_answer: bool = True, **more: Any
) -> tuple[int, Mapping[str, Any]]:
    """Returns the status and the JSON object of an answer, which is empty without `has_answer`.

    Redirects aren't followed: they could carry the secret elsewhere.
    """
    try:
        async with client.request(method, url, allow_redirects=False, **more) as answer:
            body = await answer.content.read(MAX_ANSWER_BYTES)
            while len(body) < MAX_ANSWER_BYTES and (part := await answer.content.read(MAX_ANSWER_BYTES - len(body))):
                body += part
            content = json.loads(body) if has_answer else {}
    except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
        raise ProviderAway(type(error).__name__) from None
    if not isinstance(content, dict):
        raise ProviderAway("its answer is not a JSON object")
    return answer.status, content
