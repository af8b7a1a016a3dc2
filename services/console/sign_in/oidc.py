"""OpenID Connect's authorization code flow with PKCE, as a client: the provider's document, its keys, and the token that it signs.

Nothing is kept: document and keys are fetched at each sign-in, which is once a shift for each person. So a key that the provider
withdrew is good for nobody from that moment on, and one that is new is known.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import aiohttp
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.common.settings import LOOPBACK

ALGORITHMS = ("RS256", "PS256", "ES256")
"""Signatures that are taken: none with a shared key, and never none at all."""
SCOPE = "openid profile"
WITHIN_S = 5.0
ANSWER_MOST_BYTES = 256 << 10
LEEWAY_S = 30
"""How far the provider's clock and ours may be apart."""


class ProviderAway(Exception):
    """The provider gives no answer that could be used."""


class TokenRefused(Exception):
    """The provider took the code not, or what it gave for it proves nobody."""


def is_safe(url: str) -> bool:
    """Whether secrets may be sent there: https, or this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK))


class Provider:
    """One identity provider, as this client of it."""

    def __init__(self, issuer: str, client_id: str, client_secret: str) -> None:
        self._issuer, self._client_id, self._client_secret = issuer, client_id, client_secret

    async def address(self, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Where a browser goes to sign in. Raises ProviderAway.

        It is asked to have them prove themselves again each time: a desk's browser is used by one after another.
        """
        async with self._client() as client:
            where = _endpoint(await self._document(client), "authorization_endpoint")
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
        return f"{where}{'&' if urlsplit(where).query else '?'}{urlencode(query)}"

    async def claims(self, code: str, redirect_uri: str, nonce: str, verifier: str, now_s: float) -> dict[str, Any]:
        """The verified claims that a code is good for. Raises ProviderAway, TokenRefused."""
        async with self._client() as client:
            document = await self._document(client)
            token = await self._exchange(client, document, code, redirect_uri, verifier)
            keys = await self._keys(client, _endpoint(document, "jwks_uri"))
        return self._verified(token, keys, nonce, now_s)

    def _client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WITHIN_S))

    async def _document(self, client: aiohttp.ClientSession) -> Mapping[str, Any]:
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        status, found = await _ask(client, "GET", url)
        if status != 200 or found.get("issuer") != self._issuer:
            raise ProviderAway("its document isn't that of this issuer")
        return found

    async def _exchange(
        self,
        client: aiohttp.ClientSession,
        document: Mapping[str, Any],
        code: str,
        redirect_uri: str,
        verifier: str,
    ) -> str:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        form["code_verifier"] = verifier
        headers = {}
        ways = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if "client_secret_basic" in ways:
            pair = f"{quote_plus(self._client_id)}:{quote_plus(self._client_secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret}
        status, found = await _ask(client, "POST", _endpoint(document, "token_endpoint"), data=form, headers=headers)
        token = found.get("id_token")
        if 400 <= status < 500:
            raise TokenRefused("the provider doesn't take the code")
        if status != 200 or not isinstance(token, str):
            raise ProviderAway("it gave no token")
        return token

    async def _keys(self, client: aiohttp.ClientSession, url: str) -> KeySet:
        status, found = await _ask(client, "GET", url)
        try:
            # Those of a signature with a public key. A shared key in there would be everybody's.
            usable = [
                one for one in found["keys"] if one.get("kty") in ("RSA", "EC") and one.get("use", "sig") == "sig"
            ]
            if status == 200 and usable:
                return KeySet.import_key_set({"keys": usable})
        except (KeyError, TypeError, AttributeError, ValueError, JoseError):
            pass
        raise ProviderAway("it shows no keys")

    def _verified(self, token: str, keys: KeySet, nonce: str, now_s: float) -> dict[str, Any]:
        wanted = jwt.JWTClaimsRegistry(
            now=int(now_s),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": nonce},
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
            raise TokenRefused("it is for others too")
        return claims


def _endpoint(document: Mapping[str, Any], name: str) -> str:
    url = document.get(name)
    if not isinstance(url, str) or not is_safe(url):
        raise ProviderAway(f"its document names no {name} by https")
    return url


async def _ask(client: aiohttp.ClientSession, method: str, url: str, **more: Any) -> tuple[int, Mapping[str, Any]]:
    """Status and the JSON object of the answer. Redirects aren't followed: they would take the secret elsewhere."""
    try:
        async with client.request(method, url, allow_redirects=False, **more) as answer:
            body = await answer.content.read(ANSWER_MOST_BYTES)
            while len(body) < ANSWER_MOST_BYTES and (part := await answer.content.read(ANSWER_MOST_BYTES - len(body))):
                body += part
            found = json.loads(body)
    except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
        raise ProviderAway(type(error).__name__) from None
    if not isinstance(found, dict):
        raise ProviderAway("its answer is no object")
    return answer.status, found
