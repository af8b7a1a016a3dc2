"""Phones without a browser: each waits for its notices over HTTP as the app does, and notes when the first one arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from bench.mesh.population import Party
from services.common.failure import CommandFailed
from tests.support.field.phone import PhoneClient

RETRY_S = 0.5
ADDRESSES = 250
"""Number of source addresses, each with some of the phones: one address may try few codes a minute."""


class WaitingPhones:
    """The phones of protected persons whose page isn't in a browser."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.notified_ms: dict[int, float] = {}
        """When the first notice arrived, milliseconds since 1970 UTC, by the number of the case."""

    @asynccontextmanager
    async def connected(self, case: Party, code: str) -> AsyncIterator[PhoneClient]:
        """A phone that is enrolled. Raises CommandFailed if field refuses it."""
        address = f"127.0.{1 + case.number // ADDRESSES}.{1 + case.number % ADDRESSES}"
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            client = PhoneClient(self._url, session)
            answer = await client.enrol(code)
            if answer.status != 200:
                raise CommandFailed(f"field refused a phone: {answer.status} {answer.content}")
            yield client

    async def follow(self, case: Party, client: PhoneClient) -> None:
        """Waits for notices until cancelled."""
        known = ""
        while True:
            answer = await client.notices(known, wait=True)
            if answer.status != 200:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.content["present"]:
                self.notified_ms.setdefault(case.number, time.time() * 1000)
            known = answer.content["digest"]
