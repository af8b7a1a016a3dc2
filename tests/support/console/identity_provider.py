"""An OpenID provider over HTTP with keys of its own: issues codes, checks PKCE and its client, signs; a test may have it lie."""

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
    """A key pair."""
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})


def issuer_at(port: int) -> str:
    """How a provider on this port names itself."""
    return f"http://localhost:{port}/realms/npa"


def settings_at(port: int) -> dict[str, str]:
    """Settings of a console whose people sign in there."""
    return {
        "TANDEM_OIDC_ISSUER": issuer_at(port),
        "TANDEM_OIDC_CLIENT_ID": CLIENT,
        "TANDEM_OIDC_CLIENT_SECRET": SECRET,
        "TANDEM_OIDC_ROLES": "police=npa-112,police=npa-112-night,probation=moj-tracking,reviewer=audit",
    }


@dataclass
class IdentityProvider:
    """Whoever comes is `person`, without a form."""

    port: int
    key: RSAKey
    """Signs."""
    shown: list[RSAKey]
    """What it shows as its keys."""
    person: dict[str, Any] = field(default_factory=dict)
    """Claims of who signs in: besides those that each token has, or in place of them; None for one that is missing."""
    make: Callable[[dict[str, Any]], str] | None = None
    """Makes the token of its claims, in place of an honest signature."""
    told: dict[str, Any] = field(default_factory=dict)
    """What its document says beside or in place of the truth."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """What browsers came with."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    runner: web.AppRunner | None = None

    @property
    def issuer(self) -> str:
        """As it names itself."""
        return issuer_at(self.port)

    async def stop(self) -> None:
        """Goes away."""
        if self.runner:
            await self.runner.cleanup()

    async def document(self, request: web.Request) -> web.Response:
        """Where what is."""
        names = {"authorization_endpoint": "auth", "token_endpoint": "token", "jwks_uri": "keys"}
        honest = {"issuer": self.issuer} | {key: f"{self.issuer}/{name}" for key, name in names.items()}
        return web.json_response(honest | self.told)

    async def auth(self, request: web.Request) -> web.Response:
        """Signs in whoever comes, and sends them back."""
        query = dict(request.query)
        self.asked.append(query)
        code = secrets.token_hex(8)
        self.codes[code] = query
        back = {"code": code, "state": query["state"], "iss": self.issuer}
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(back)}")

    async def token(self, request: web.Request) -> web.Response:
        """The token of a code, once, for its client and whoever has the verifier."""
        form = await request.post()
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
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "4711", "iat": now_s, "exp": now_s + 60}
        claims |= {"nonce": begun["nonce"], **self.person}
        claims = {name: value for name, value in claims.items() if value is not None}
        token = self.make(claims) if self.make else self.signed(claims)
        return web.json_response({"access_token": "unused", "token_type": "Bearer", "id_token": token})

    async def keys(self, request: web.Request) -> web.Response:
        """Its public keys."""
        return web.json_response({"keys": [one.as_dict(private=False) for one in self.shown]})

    def signed(self, claims: dict[str, Any]) -> str:
        """The honest token."""
        return jwt.encode({"alg": "RS256", "kid": self.key.kid or ""}, claims, self.key)


@asynccontextmanager
async def identity_provider(port: int = 0) -> AsyncIterator[IdentityProvider]:
    """A running provider, on a port that is free where none is given."""
    key = new_key("first")
    one = IdentityProvider(port or free_port(), key, [key])
    app = web.Application()
    root = "/realms/npa"
    app.add_routes(
        [
            web.get(f"{root}/.well-known/openid-configuration", one.document),
            web.get(f"{root}/auth", one.auth),
            web.post(f"{root}/token", one.token),
            web.get(f"{root}/keys", one.keys),
        ]
    )
    one.runner = web.AppRunner(app, access_log=None)
    await one.runner.setup()
    await web.TCPSite(one.runner, "localhost", one.port).start()
    try:
        yield one
    finally:
        await one.stop()
