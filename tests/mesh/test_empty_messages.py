"""A message without content doesn't end a reader, although the server takes it for the last answer to a request across accounts."""

from __future__ import annotations

import asyncio

import pytest

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor
from tests.support.common.nats import TestServer

WITHIN_S = 30.0
SUBJECT = flow.incident_subject("probation", "x")


async def read(nats: TestServer, start: int | StreamCursor, count: int) -> list[pull.Delivered]:
    """Reads `count` messages as the police's leg."""
    delivered: list[pull.Delivered] = []
    async with nats.bus_as("dispatch-police") as bus, asyncio.timeout(WITHIN_S):
        async for messages in pull.read(bus, flow.INCIDENTS.name, start, subjects=(SUBJECT,)):
            delivered += messages
            if len(delivered) >= count:
                break
    return delivered


@pytest.mark.parametrize("contents", [(b"", b"a", b"b"), (b"a", b"", b"", b"b"), (b"", b"", b"")])
async def test_a_reader_continues_after_messages_without_content(
    bus: Bus, nats: TestServer, contents: tuple[bytes, ...]
) -> None:
    for data in contents:
        await bus.publish(SUBJECT, data)
    delivered = await read(nats, 1, len(contents))
    assert [message.data for message in delivered] == list(contents)
    await bus.publish(SUBJECT, b"behind")
    for n, message in enumerate(delivered):
        resumed = await read(nats, message.cursor, len(contents) - n)
        assert [later.data for later in resumed] == [*contents[n + 1 :], b"behind"]


async def test_a_running_reader_continues_after_a_message_without_content(bus: Bus, nats: TestServer) -> None:
    contents = [b"a", b"", b"b", b"", b"", b"c"]
    reading = asyncio.create_task(read(nats, 1, len(contents)))
    for n, data in enumerate(contents):
        await bus.publish(SUBJECT, data)
        if n % 2:
            await asyncio.sleep(0.1)  # so that some messages arrive alone
    assert [message.data for message in await reading] == contents


async def test_a_durable_reader_continues_after_a_message_without_content(bus: Bus, nats: TestServer) -> None:
    contents = [b"a", b"", b"b"]
    seen: list[bytes] = []
    async with nats.bus_as("registry") as registry, asyncio.timeout(WITHIN_S):
        for data in contents:
            await bus.publish(flow.disclosure_subject("geofence", "x"), data)
        durable, subjects = flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.subjects
        async for messages in pull.consume(registry, flow.DISCLOSURES.name, durable, subjects=subjects):
            for message in messages:
                seen.append(message.data)
                await pull.ack(registry, message)
            if set(contents) <= set(seen):
                break
