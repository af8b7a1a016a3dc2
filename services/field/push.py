"""Web push messages, which wake a phone whose page isn't open: encrypted, signed by the server's key (VAPID), and without any content.

A message only wakes the app, which then asks for the notice by itself. So a push service learns that a phone was woken, and nothing
else; the text on a locked screen is the same for each message. A phone that wants to be woken gets the server's key and names its
address, in her app and on a unit's page. The addresses are stored by device, with no name and no person's id.
"""

from __future__ import annotations

import base64
import json
import socket
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import aiohttp.abc
import sqlalchemy as sa
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02
from pywebpush import WebPusher, WebPushException
from sqlalchemy.dialects.sqlite import insert

from services.common.errors import InvalidField, Unavailable
from services.common.observability.telemetry import logger
from services.common.storage import stored_files
from services.common.storage.db import Database
from services.field.domain import check_endpoint, is_public, text_of

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
            stored_files.write_once(path, pem)
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
        self._session = session
        self._key = key
        self._services = services

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


class PushOwner(Protocol):
    """A phone with a cookie of field."""

    @property
    def device_id(self) -> str:
        """Key of the phone among those that are woken."""

    @property
    def key(self) -> str:
        """Public key of the phone."""


class PushPages:
    """Gives phones the server's key, and stores their addresses. The caller has checked that the phone may be woken."""

    def __init__(self, addresses: PushAddresses, key: PushKey, services: tuple[str, ...]) -> None:
        self._addresses = addresses
        self._key = key
        self._services = services

    def key(self) -> web.Response:
        """The answer with the server's public key."""
        return web.json_response({"key": self._key.public})

    async def put(self, owner: PushOwner, content: Any) -> web.Response:
        """Stores the address that a phone names. Raises InvalidField, Unavailable."""
        address = parse_address(
            owner.device_id,
            text_of(content, "endpoint"),
            text_of(content, "p256dh"),
            auth=text_of(content, "auth"),
            services=self._services,
            phone_key=owner.key,
        )
        await self._addresses.put(address)
        return web.json_response({})


metadata = sa.MetaData()
push_addresses = sa.Table(
    "push_addresses",
    metadata,
    sa.Column("device_id", primary_key=True),
    sa.Column("endpoint"),
    sa.Column("p256dh"),
    sa.Column("auth"),
    sa.Column("phone_key"),
)


@dataclass(frozen=True, slots=True)
class PushAddress:
    """Address and keys by which a phone gets web push (RFC 8030, RFC 8291)."""

    device_id: str
    endpoint: str = field(repr=False)
    """Address at the push service. With it and the server's key, the phone can be woken."""
    p256dh: str = field(repr=False)
    """Public key of the phone's browser, base64url."""
    auth: str = field(repr=False)
    """Secret of the phone's browser, base64url."""
    phone_key: str = field(repr=False)
    """Public key of the phone that named the address, as it is in the phone's cookie."""


class PushAddresses:
    """The addresses in field's database. All methods but `delete_earlier` raise Unavailable if the database refuses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, address: PushAddress) -> None:
        """Stores the address of a device in place of its earlier one."""
        new = insert(push_addresses).values(asdict(address))
        changed = {name: new.excluded[name] for name in ("endpoint", "p256dh", "auth", "phone_key")}
        statement = new.on_conflict_do_update(index_elements=["device_id"], set_=changed)
        await self._database.visit(lambda connection: connection.execute(statement))

    async def of(self, device_id: str) -> PushAddress | None:
        """The address of a device; None if its phone takes no push."""
        query = sa.select(push_addresses).where(push_addresses.c.device_id == device_id)
        row = await self._database.visit(lambda connection: connection.execute(query).first())
        return PushAddress(**row._mapping) if row else None

    async def delete(self, address: PushAddress) -> None:
        """Deletes an address, unless the device has another one by now."""
        await self._delete(address.device_id, push_addresses.c.endpoint == address.endpoint)

    async def delete_of_phone(self, device_id: str, phone_key: str) -> None:
        """Deletes the address that a phone named for a device. An address that another phone named since stays."""
        await self._delete(device_id, push_addresses.c.phone_key == phone_key)

    async def delete_earlier(self, device_id: str) -> None:
        """Deletes the address of the phone that had a device before. It never fails.

        The code that connects the new phone is used by now. So a database that refuses must not undo that, and the earlier phone may be
        woken in vain.
        """
        try:
            await self._delete(device_id)
        except Unavailable:
            logger().warning("push_address_kept", device_id=device_id)

    async def _delete(self, device_id: str, *also: sa.ColumnElement[bool]) -> None:
        gone = sa.delete(push_addresses).where(push_addresses.c.device_id == device_id, *also)
        await self._database.visit(lambda connection: connection.execute(gone))
