"""A phone in tests: it has a key of its own, enrols, and makes the app's requests to a running field."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import http_ece
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from yarl import URL

from services.common.clock import wall_us
from services.field.credentials import PROOF_HEADER, RequestProof, statement
from tests.support.common.ports import free_port

Point, Raw = serialization.PublicFormat.UncompressedPoint, serialization.Encoding.X962


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Answered(NamedTuple):
    """An answer of field."""

    status: int
    content: Any
    headers: Mapping[str, str]


class PhoneClient:
    """A phone with a cookie jar and a key."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self._session = url, session
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ahead_ms = 0
        """How far the phone's clock is ahead, milliseconds."""

    @property
    def public(self) -> str:
        """Public key of the phone."""
        return base64url(self.key.public_key().public_bytes(Raw, Point))

    def proof(self, method: str, path: str, body: bytes) -> str:
        """Proof of a request."""
        unsigned = RequestProof(wall_us() // 1000 + self.ahead_ms, secrets.token_urlsafe(16), "")
        signature = self.key.sign(statement(method, path, unsigned, body=body), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(signature)
        return f"{unsigned.at_ms}.{unsigned.nonce}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    async def ask(self, method: str, path: str, content: Any = None, **headers: str) -> Answered:
        """Makes a request with the phone's proof."""
        body = b"" if content is None else json.dumps(content).encode()
        given = {PROOF_HEADER: self.proof(method, path, body), "Origin": self.url, **headers}
        if method == "POST":
            given.setdefault("Content-Type", "application/json")
        async with self._session.request(method, self.url + path, data=body or None, headers=given) as answer:
            text = await answer.text()
            return Answered(answer.status, json.loads(text) if text else None, dict(answer.headers))

    @asynccontextmanager
    async def streamed(self, method: str, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request with the phone's proof, whose answer is read as it comes."""
        headers = {PROOF_HEADER: self.proof(method, path, b""), "Origin": self.url}
        async with self._session.request(method, self.url + path, headers=headers) as answer:
            yield answer

    async def enrol(self, code: str) -> Answered:
        """Enrols the phone by a code."""
        return await self.ask("POST", "/api/enrol", {"code": code, "key": self.public})

    async def report(self, *reports: Mapping[str, Any]) -> Answered:
        """Sends reports."""
        return await self.ask("POST", "/api/reports", {"reports": list(reports)})

    async def notices(self, known: str = "", wait: bool = False) -> Answered:
        """Asks for the notices."""
        return await self.ask("GET", f"/api/notices?known={known}" + ("&wait=1" if wait else ""))

    def cookie(self, name: str = "app") -> str:
        """The phone's cookie, as somebody could copy it."""
        return next(cookie.value for cookie in self._session.cookie_jar if cookie.key == name)

    def take_cookie(self, value: str, name: str = "app") -> None:
        """Puts somebody else's cookie into this phone."""
        path = "/api/x" if name == "app" else "/api/unit/x"
        self._session.cookie_jar.update_cookies({name: value}, response_url=URL(self.url + path))


@asynccontextmanager
async def phone(url: str, trusted: ssl.SSLContext | None = None) -> AsyncIterator[PhoneClient]:
    """A phone that isn't enrolled yet. `trusted` is the context in which it accepts field's certificate."""
    jar = aiohttp.CookieJar(unsafe=True)  # field is an address here
    async with aiohttp.ClientSession(cookie_jar=jar, connector=aiohttp.TCPConnector(ssl=trusted or True)) as session:
        yield PhoneClient(url, session)


def position(number: int, lat: float, lon: float, **more: Any) -> dict[str, Any]:
    """A report of a position now."""
    return {"id": f"r{number}", "at_ms": wall_us() // 1000, "lat": lat, "lon": lon, "accuracy": 12} | more


class PushService:
    """A push service on this machine. It decrypts messages as a browser does, by RFC 8291."""

    def __init__(self) -> None:
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.auth = bytes(range(16))
        self.status = 201
        self.messages: list[tuple[Mapping[str, str], bytes]] = []
        """Headers and decrypted body of each message."""
        self.answers = asyncio.Event()
        """Cleared while the service answers no message that has arrived."""
        self.answers.set()
        self.answered = asyncio.Event()
        """Set once the service has answered a message."""

    @property
    def address(self) -> dict[str, str]:
        """What a browser gives the app."""
        point = self.key.public_key().public_bytes(Raw, Point)
        return {"endpoint": f"{self.origin}/send/x", "p256dh": base64url(point), "auth": base64url(self.auth)}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves until the end of the context."""

        async def accept(request: web.Request) -> web.Response:
            body = http_ece.decrypt(
                await request.read(), private_key=self.key, auth_secret=self.auth, version="aes128gcm"
            )
            self.messages.append((dict(request.headers), body))
            await self.answers.wait()
            self.answered.set()
            return web.Response(status=self.status)

        app = web.Application()
        app.add_routes([web.post("/send/{phone}", accept)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        try:
            yield
        finally:
            await runner.cleanup()
