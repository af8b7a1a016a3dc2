"""Posts signed messages to receivers. The body of a response is neither read nor logged."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from services.common.privacy import signing
from services.common.web.receivers import Receiver

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=10.0, connect=5.0)


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Opens a session that uses no cookies and no proxy from the environment, so that messages reach only the receiver."""
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(
        timeout=REQUEST_TIMEOUT, trust_env=False, cookie_jar=jar, auto_decompress=False
    ) as session:
        yield session


async def post(
    session: aiohttp.ClientSession, receiver: Receiver, message_id: str, *, body: bytes, content_type: str
) -> str:
    """Posts a signed message. Returns the reason for the failure; empty on success."""
    headers = signing.signed_headers(receiver.secrets, message_id, int(time.time()), body=body)
    try:
        async with session.post(
            receiver.url, data=body, headers=headers | {"Content-Type": content_type}, allow_redirects=False
        ) as answer:
            return "" if 200 <= answer.status < 300 else f"HTTP status {answer.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return type(error).__name__
