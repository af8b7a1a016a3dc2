"""A message without content ends nothing, though to the server it is the last answer to a request that crosses accounts."""

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
    """So many messages, as the police leg reads them."""
    found: list[pull.Delivered] = []
    async with nats.bus_as("dispatch-police") as bus, asyncio.timeout(WITHIN_S):
        async for messages in pull.read(bus, flow.INCIDENTS.name, start, (SUBJECT,)):
            found += messages
            if len(found) >= count:
                break
    return found


@pytest.mark.parametrize("contents", [(b"", b"a", b"b"), (b"a", b"", b"", b"b"), (b"", b"", b"")])
async def test_a_reader_goes_on_behind_messages_without_content(
    bus: Bus, nats: TestServer, contents: tuple[bytes, ...]
) -> None:
    for data in contents:
        await bus.publish(SUBJECT, data)
    found = await read(nats, 1, len(contents))
    assert [one.data for one in found] == list(contents)
    await bus.publish(SUBJECT, b"behind")
    for n, message in enumerate(found):
        again = await read(nats, message.cursor, len(contents) - n)
        assert [one.data for one in again] == [*contents[n + 1 :], b"behind"]


async def test_a_running_reader_goes_on_behind_a_message_without_content(bus: Bus, nats: TestServer) -> None:
    contents = [b"a", b"", b"b", b"", b"", b"c"]
    reading = asyncio.create_task(read(nats, 1, len(contents)))
    for n, data in enumerate(contents):
        await bus.publish(SUBJECT, data)
        if n % 2:
            await asyncio.sleep(0.1)  # so that some come alone
    assert [one.data for one in await reading] == contents


async def test_a_durable_reader_goes_on_behind_a_message_without_content(bus: Bus, nats: TestServer) -> None:
    contents = [b"a", b"", b"b"]
    seen: list[bytes] = []
    async with nats.bus_as("registry") as registry, asyncio.timeout(WITHIN_S):
        for data in contents:
            await bus.publish(flow.disclosure_subject("geofence", "x"), data)
        durable, subjects = flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.subjects
        async for messages in pull.consume(registry, flow.DISCLOSURES.name, durable, subjects):
            for message in messages:
                seen.append(message.data)
                await pull.ack(registry, message)
            if set(contents) <= set(seen):
                break
