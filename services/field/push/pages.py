"""Answers to a phone that wants to be woken: the server's key, and the address that the phone names. Both apps use them."""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from services.field.guard import text_of
from services.field.push.messages import PushKey, parse_address
from services.field.push.store import PushAddresses


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
        self._addresses, self._key, self._services = addresses, key, services

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
