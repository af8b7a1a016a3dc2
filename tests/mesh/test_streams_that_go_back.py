"""Readers of a stream that went back notice it, whichever entries have reused the sequences, and never continue after them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.messaging import cursors, flow, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.health import ReaderHealth
from services.ingest.admission.routes import Routes
from services.ingest.commands.service import Commands
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import command_pb2, log_pb2
from tests.support import torn
from tests.support.common.nats import TestServer

LOG = "LOG_0"
WITHIN_S = 20.0


class Reader:
    """A separate task that reads a stream."""

    def __init__(self, messages: AsyncIterator[list[pull.Delivered]]) -> None:
        self.seen: list[pull.Delivered] = []
        self._arrived = asyncio.Event()
        self.task = asyncio.create_task(self._read(messages))

    async def _read(self, batches: AsyncIterator[list[pull.Delivered]]) -> None:
        async for messages in batches:
            self.seen += messages
            self._arrived.set()

    async def until(self, count: int) -> None:
        """Waits until `count` messages are read."""
        async with asyncio.timeout(WITHIN_S):
            while len(self.seen) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def refusal(self) -> StreamWentBack:
        """Waits for the error that ends the reader."""
        with pytest.raises(StreamWentBack) as error:
            await asyncio.wait_for(self.task, WITHIN_S)
        return error.value


async def stored(bus: Bus, *contents: str) -> None:
    for content in contents:
        await bus.publish_until_stored("log.0.report", content.encode())


def tear(nats: TestServer, store: Path, seed: int = 1) -> None:
    """Kills the server, overwrites the end of the last message, and restarts the server."""
    nats.kill()
    torn.overwrite_tail(store, LOG, random.Random(seed))
    nats.start()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "nats"


async def test_a_reader_at_the_lost_entry_does_not_continue_after_the_new_one(
    nats: TestServer, bus: Bus, store: Path
) -> None:
    await stored(bus, "1", "2", "3")
    reader = Reader(pull.read(bus, LOG, 1))
    await reader.until(3)
    tear(nats, store)
    await stored(bus, "new 3", "4")
    error = await reader.refusal()
    assert (error.stream, error.sequence) == (LOG, 3)
    assert [message.data for message in reader.seen] == [b"1", b"2", b"3"]
    known = [message.cursor for message in reader.seen]
    common = await cursors.last_common(bus, LOG, known)
    assert common == known[1]
    resumed = Reader(pull.read(bus, LOG, common))
    await resumed.until(2)
    resumed.task.cancel()
    assert [message.data for message in resumed.seen] == [b"new 3", b"4"]


async def test_a_shorter_stream_is_noticed_before_its_sequences_are_reused(
    nats: TestServer, bus: Bus, store: Path
) -> None:
    await stored(bus, "1", "2")
    reader = Reader(pull.read(bus, LOG, 1))
    await reader.until(2)
    tear(nats, store)
    error = await reader.refusal()
    assert (error.sequence, error.found, error.last) == (2, None, 1)


async def test_a_reader_with_a_subject_filter_notices_it_too(nats: TestServer, bus: Bus, store: Path) -> None:
    await stored(bus, "1", "2")
    reader = Reader(pull.read(bus, LOG, 1, subjects=("log.0.report",)))
    await reader.until(2)
    tear(nats, store)
    await bus.publish_until_stored("log.0.tick", b"of another kind")
    await stored(bus, "3")
    error = await reader.refusal()
    assert error.sequence == 2
    assert error.found is None or error.found.digest != reader.seen[1].cursor.digest


async def test_a_reader_notices_that_an_older_copy_was_restored(
    nats: TestServer, bus: Bus, store: Path, tmp_path: Path
) -> None:
    await stored(bus, "1", "2")
    nats.kill()
    torn.copy_of(store, LOG, tmp_path / "copy")
    nats.start()
    await stored(bus, "3", "4")
    reader = Reader(pull.read(bus, LOG, 1))
    await reader.until(4)
    nats.kill()
    torn.put_back(store, LOG, tmp_path / "copy")
    nats.start()
    await stored(bus, *(f"new {n}" for n in range(3, 9)))
    error = await reader.refusal()
    assert error.sequence == 4
    common = await cursors.last_common(bus, LOG, [message.cursor for message in reader.seen])
    assert common and common.sequence == 2


async def test_a_reader_that_begins_at_the_end_compares_the_entry_before(
    nats: TestServer, bus: Bus, store: Path
) -> None:
    await stored(bus, "1", "2")
    health = ReaderHealth(LOG)
    reader = Reader(pull.read(bus, LOG, 3, health=health))
    async with asyncio.timeout(WITHIN_S):
        while health.unable():  # noqa: ASYNC110  # until the server has sent a heartbeat, after the reader's first comparison
            await asyncio.sleep(0.02)
    tear(nats, store)
    await stored(bus, "new 2", "3")
    assert (await reader.refusal()).sequence == 2
    assert not reader.seen


async def test_a_position_is_compared_at_the_start(bus: Bus) -> None:
    await stored(bus, "1", "2")
    cursor = await cursors.at(bus, LOG, 2)
    assert cursor
    for other in (
        cursor._replace(digest="0" * 16),
        cursor._replace(stored_at_ns=cursor.stored_at_ns + 1),
        cursor._replace(sequence=3),
    ):
        assert (await Reader(pull.read(bus, LOG, other)).refusal()).sequence == other.sequence
    assert (await Reader(pull.read(bus, LOG, 4)).refusal()).last == 2
    reader = Reader(pull.read(bus, LOG, StreamCursor.parse(str(cursor))))
    await stored(bus, "3")
    await reader.until(1)
    reader.task.cancel()
    assert [message.data for message in reader.seen] == [b"3"]
    assert reader.seen[0].cursor == await cursors.at(bus, LOG, 3)


async def test_an_entry_that_has_aged_out_is_no_difference(nats: TestServer, bus: Bus) -> None:
    await stored(bus, "1", "2", "3")
    reader = Reader(pull.read(bus, LOG, 1))
    await reader.until(3)
    config = (await bus.js.stream_info(LOG)).config
    config.max_msgs = 2
    config.discard = None
    await bus.api(f"STREAM.UPDATE.{LOG}", config.as_dict() | {"max_msgs": 2, "discard": "old"})
    kept = [message.cursor for message in reader.seen]
    assert not await cursors.holds(bus, LOG, kept[0])
    assert await cursors.holds(bus, LOG, kept[1])
    late = Reader(pull.read(bus, LOG, kept[0]))
    await late.until(2)
    nats.kill()
    nats.start()
    await stored(bus, "4", "5", "6")
    await reader.until(6)
    reader.task.cancel()
    late.task.cancel()
    assert [message.data for message in late.seen[:2]] == [b"2", b"3"]


async def test_a_durable_reader_gets_all_messages_once_more(nats: TestServer, bus: Bus, store: Path) -> None:
    await stored(bus, "1", "2")
    reader = Reader(acknowledged(bus))
    await reader.until(2)
    tear(nats, store)
    await stored(bus, "new 2", "3")
    async with asyncio.timeout(WITHIN_S):
        while not {b"new 2", b"3"} <= {message.data for message in reader.seen}:
            await reader.until(len(reader.seen) + 1)
    reader.task.cancel()


async def acknowledged(bus: Bus) -> AsyncIterator[list[pull.Delivered]]:
    async for messages in pull.consume(bus, LOG, "taker", subjects=("log.0.report",)):
        yield messages
        for message in messages:
            await pull.ack(bus, message)


async def test_routes_and_commands_are_read_once_more(nats: TestServer, bus: Bus, store: Path) -> None:
    clock = MeshClock()
    routes = Routes(bus, clock)
    commands = Commands(bus, routes, clock, metrics=IngestMetrics(CollectorRegistry()))
    bucket = f"KV_{flow.DEVICES_BUCKET}"

    async def route(device_id: str) -> None:
        data = log_pb2.DeviceRoute(partitions=[0], vendor_id="acme").SerializeToString()
        await bus.publish_until_stored(f"$KV.{flow.DEVICES_BUCKET}.{device_id}", data)

    async def command(command_id: str) -> None:
        vibrate = command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=1))
        given = command_pb2.Command(
            command_id=command_id, device_id="tag-1", instruction=vibrate, issued_at_ms=clock.now_ms()
        )
        await bus.publish_until_stored(flow.command_subject("ingest", command_id), given.SerializeToString())

    await route("tag-1")
    await route("tag-2")
    await command("first")
    await command("second")
    await routes.load()
    await commands.load()
    following = [asyncio.create_task(routes.follow(lambda *_: None)), asyncio.create_task(commands.follow())]
    await asyncio.sleep(0.5)
    nats.kill()
    for stream in (bucket, flow.COMMANDS.name):
        torn.overwrite_tail(store, stream, random.Random(1))
    nats.start()
    await route("tag-3")
    await command("third")
    async with asyncio.timeout(WITHIN_S):
        while not routes.partitions("tag-3") or len(commands.of_device("tag-1")) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for task in following:
        assert not task.done()
        task.cancel()
    assert [status.command.command_id for status in commands.of_device("tag-1")] == ["third", "second", "first"]


async def test_a_reader_continues_after_an_empty_message_in_a_users_account(nats: TestServer, bus: Bus) -> None:
    subject = "incident.police.x"
    for content in (b"1", b"", b"", b"4"):
        await bus.publish_until_stored(subject, content)
    async with nats.bus_as("dispatch-probation") as user:
        reader = Reader(pull.read(user, "INCIDENTS", 1, subjects=("incident.police.>",)))
        await reader.until(4)
        reader.task.cancel()
        resumed = Reader(pull.read(user, "INCIDENTS", reader.seen[2].cursor, subjects=("incident.police.>",)))
        await resumed.until(1)
        resumed.task.cancel()
    assert [message.data for message in resumed.seen] == [b"4"]
