"""An OpenID provider over HTTP with its own keys: it issues codes, checks PKCE and its client, and signs. Tests can make it lie."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.support.common.ports import free_port

CLIENT, SECRET = "console-of-the-tests", "a secret: with/characters"


def new_key(kid: str) -> RSAKey:
    """Generates a key pair."""
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})


def issuer_at(port: int) -> str:
    """Issuer of a provider on this port."""
    return f"http://localhost:{port}/realms/npa"


def settings_at(port: int) -> dict[str, str]:
    """Settings of a console whose users sign in at the provider on this port."""
    return {
        "TANDEM_OIDC_ISSUER": issuer_at(port),
        "TANDEM_OIDC_CLIENT_ID": CLIENT,
        "TANDEM_OIDC_CLIENT_SECRET": SECRET,
        "TANDEM_OIDC_ROLES": "police=npa-112,police=npa-112-night,probation=moj-tracking,reviewer=audit",
    }


@dataclass
class IdentityProvider:
    """OpenID provider that signs in each browser as `person`, without a form."""

    port: int
    key: RSAKey
    """Key that signs the tokens."""
    shown: list[RSAKey]
    """Keys of the published key set."""
    person: dict[str, Any] = field(default_factory=dict)
    """Claims of the person who signs in, in addition to a token's usual claims or replacing them; None removes a claim."""
    make: Callable[[dict[str, Any]], str] | None = None
    """Makes a token of claims in place of an honest signature."""
    document_changes: dict[str, Any] = field(default_factory=dict)
    """Values that are added to the discovery document or replace its values."""
    refresh_tokens: list[str] = field(default_factory=list)
    """Refresh tokens that are good, each for one use; with none, the provider gives no refresh tokens."""
    refusal: tuple[int, str] | None = None
    """Status and error code of each refresh, in place of an answer."""
    refreshed: int = 0
    """Number of refreshes so far, also of refused ones."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """Queries of the browsers' authorization requests."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    runner: web.AppRunner | None = None

    @property
    def issuer(self) -> str:
        """Issuer of this provider."""
        return issuer_at(self.port)

    async def stop(self) -> None:
        """Stops serving."""
        if self.runner:
            await self.runner.cleanup()

    async def document(self, request: web.Request) -> web.Response:
        """Serves the discovery document."""
        names = {"authorization_endpoint": "auth", "token_endpoint": "token", "jwks_uri": "keys"}
        honest = {"issuer": self.issuer} | {key: f"{self.issuer}/{name}" for key, name in names.items()}
        return web.json_response(honest | self.document_changes)

    async def auth(self, request: web.Request) -> web.Response:
        """Signs in any browser, and sends it back with a code."""
        query = dict(request.query)
        self.asked.append(query)
        code = secrets.token_hex(8)
        self.codes[code] = query
        back = {"code": code, "state": query["state"], "iss": self.issuer}
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(back)}")

    async def token(self, request: web.Request) -> web.Response:
        """Exchanges a code for a token, once, for its client with the PKCE verifier."""
        form = await request.post()
        if form["grant_type"] == "refresh_token":
            return self._refresh(str(form["refresh_token"]))
        begun = self.codes.pop(str(form["code"]), None)
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        as_sent = f"Basic {base64.b64encode(f'{CLIENT}:a+secret%3A+with%2Fcharacters'.encode()).decode()}"
        if (
            begun is None
            or (begun["code_challenge"], begun["code_challenge_method"]) != (challenge, "S256")
            or begun["redirect_uri"] != form["redirect_uri"]
            or (request.headers.get("Authorization") != as_sent and form.get("client_secret") != SECRET)
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now_s = int(time.time())
        return self._tokens({"nonce": begun["nonce"]}, now_s)

    def _refresh(self, refresh_token: str) -> web.Response:
        self.refreshed += 1
        if self.refusal:
            status, error = self.refusal
            return web.json_response({"error": error}, status=status)
        if refresh_token not in self.refresh_tokens:
            return web.json_response({"error": "invalid_grant"}, status=400)
        self.refresh_tokens.remove(refresh_token)
        self.refresh_tokens.append(secrets.token_hex(8))
        return self._tokens({}, int(time.time()))

    def _tokens(self, further: dict[str, Any], now_s: int) -> web.Response:
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "4711", "iat": now_s, "exp": now_s + 600}
        claims |= {**further, **self.person}
        claims = {name: value for name, value in claims.items() if value is not None}
        token = self.make(claims) if self.make else self.signed(claims)
        answer = {"access_token": "unused", "token_type": "Bearer", "id_token": token}
        if self.refresh_tokens:
            answer["refresh_token"] = self.refresh_tokens[-1]
        return web.json_response(answer)

    async def keys(self, request: web.Request) -> web.Response:
        """Serves the public keys."""
        return web.json_response({"keys": [key.as_dict(private=False) for key in self.shown]})

    def signed(self, claims: dict[str, Any]) -> str:
        """Signs an honest token."""
        return jwt.encode({"alg": "RS256", "kid": self.key.kid or ""}, claims, self.key)


@asynccontextmanager
async def identity_provider(port: int = 0) -> AsyncIterator[IdentityProvider]:
    """Runs a provider, on the given port or a free one."""
    key = new_key("first")
    provider = IdentityProvider(port or free_port(), key, [key])
    app = web.Application()
    root = "/realms/npa"
    app.add_routes(
        [
            web.get(f"{root}/.well-known/openid-configuration", provider.document),
            web.get(f"{root}/auth", provider.auth),
            web.post(f"{root}/token", provider.token),
            web.get(f"{root}/keys", provider.keys),
        ]
    )
    provider.runner = web.AppRunner(app, access_log=None)
    await provider.runner.setup()
    await web.TCPSite(provider.runner, "localhost", provider.port).start()
    try:
        yield provider
    finally:
        await provider.stop()
