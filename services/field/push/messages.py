"""Sends web push messages: encrypted, signed by the server's key (VAPID), and without any content.

A message only wakes the app, which then asks for the notice by itself. So a push service learns that a phone was woken, and nothing
else; the text on a locked screen is the same for each message.
"""

from __future__ import annotations

import base64
import json
import socket
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import aiohttp.abc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02
from pywebpush import WebPusher, WebPushException

from services.common.rpc.errors import InvalidField
from services.common.storage import durable
from services.field.domain.push_services import check_endpoint, is_public
from services.field.push.store import PushAddress

BODY = json.dumps({"v": 1}).encode()
"""Body of each message: it says nothing."""
TIMEOUT = aiohttp.ClientTimeout(total=5.0, connect=3.0)
"""A push service that is slower is tried again later, and delays no other phone's message."""
P256DH_BYTES, AUTH_BYTES = 65, 16
_GONE = (404, 410)
_UNAUTHORIZED = (401, 403)
_LATER = (408, 425, 429)


class PushOutcome(Enum):
    """Outcome of a message, by the answer of its push service."""

    SENT = "sent"
    GONE = "gone"
    """The address has ended, so it is forgotten."""
    REFUSED = "refused"
    """The address, the keys or the message can't be used, so it isn't tried again."""
    UNAUTHORIZED = "unauthorized"
    """The push service doesn't accept field's own proof: its key, clock or contact is wrong. The address stays."""
    LATER = "later"
    """The push service is slow, busy or away."""


class PublicResolver(aiohttp.abc.AbstractResolver):
    """Resolves names to public addresses only, so that a name can't lead a message into the server's own network."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        """The public addresses of a host. Raises OSError if it has none."""
        found = [result for result in await self._resolver.resolve(host, port, family) if is_public(result["host"])]
        if not found:
            raise OSError("the push service has no public address")
        return found

    async def close(self) -> None:
        """Closes the resolver."""
        await self._resolver.close()


def parse_address(
    device_id: str, endpoint: str, p256dh: str, *, auth: str, services: tuple[str, ...], phone_key: str
) -> PushAddress:
    """The address that a phone names. Raises InvalidField if the endpoint is no known push service's or a key is malformed."""
    check_endpoint(endpoint, services)
    for name, text, length in (("p256dh", p256dh, P256DH_BYTES), ("auth", auth, AUTH_BYTES)):
        try:
            key = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            if name == "p256dh":
                ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
        except ValueError:
            key = b""
        if len(key) != length:
            raise InvalidField(name, f"must be {length} bytes in base64url, as the browser gives them")
    return PushAddress(device_id, endpoint=endpoint, p256dh=p256dh, auth=auth, phone_key=phone_key)


class PushKey:
    """The server's key, by which a push service knows who sends."""

    def __init__(self, path: Path, contact: str) -> None:
        self._contact = contact
        if not path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write_once(path, pem)
        self._vapid = Vapid02.from_pem(path.read_bytes())

    @property
    def public(self) -> str:
        """The public key for the browser, base64url of the point."""
        point = self._vapid.public_key.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        return base64.urlsafe_b64encode(point).decode().rstrip("=")

    def headers(self, endpoint: str) -> dict[str, str]:
        """Headers that prove the sender to the push service of an endpoint."""
        parts = urlsplit(endpoint)
        return dict(self._vapid.sign({"sub": self._contact, "aud": f"{parts.scheme}://{parts.netloc}"}))


class PushClient:
    """Sends messages to push services."""

    def __init__(self, session: aiohttp.ClientSession, key: PushKey, services: tuple[str, ...]) -> None:
        self._session, self._key, self._services = session, key, services

    async def send(self, address: PushAddress, ttl_s: int) -> PushOutcome:
        """Sends a message that the push service keeps for at most `ttl_s` seconds."""
        keys = {"p256dh": address.p256dh, "auth": address.auth}
        try:
            check_endpoint(address.endpoint, self._services)  # the setting may have changed since the phone named it
            encoded = WebPusher({"endpoint": address.endpoint, "keys": keys}).encode(BODY)
        except (InvalidField, WebPushException, ValueError):
            return PushOutcome.REFUSED
        headers = {"TTL": str(ttl_s), "Urgency": "high", "Topic": "news", "Content-Encoding": "aes128gcm"}
        try:
            async with self._session.post(
                address.endpoint,
                data=encoded["body"],
                headers=headers | self._key.headers(address.endpoint),
                allow_redirects=False,
            ) as answer:
                return outcome_of(answer.status)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return PushOutcome.LATER


def outcome_of(status: int) -> PushOutcome:
    """The outcome by the HTTP status of a push service's answer."""
    if 200 <= status < 300:
        return PushOutcome.SENT
    if status in _GONE:
        return PushOutcome.GONE
    if status in _UNAUTHORIZED:
        return PushOutcome.UNAUTHORIZED
    return PushOutcome.LATER if status in _LATER or status >= 500 else PushOutcome.REFUSED
