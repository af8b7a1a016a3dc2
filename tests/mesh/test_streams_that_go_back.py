"""Readers of a stream that went back: they see the difference, whatever has taken the sequences since, and never go on behind them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.messaging import cursors, flow, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.ingest.admission.routes import Routes
from services.ingest.commands.service import Commands
from tandem.common.v1 import command_pb2, log_pb2
from tests.support import torn
from tests.support.common.nats import TestServer

LOG = "LOG_0"
WITHIN_S = 20.0


class Reader:
    """Reads a stream in a task of its own."""

    def __init__(self, messages: AsyncIterator[list[pull.Delivered]]) -> None:
        self.seen: list[pull.Delivered] = []
        self._arrived = asyncio.Event()
        self.task = asyncio.create_task(self._read(messages))

    async def _read(self, batches: AsyncIterator[list[pull.Delivered]]) -> None:
        async for messages in batches:
            self.seen += messages
            self._arrived.set()

    async def until(self, count: int) -> None:
        """Waits until so many messages are read."""
        async with asyncio.timeout(WITHIN_S):
            while len(self.seen) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def refusal(self) -> StreamWentBack:
        """The error that ends it."""
        with pytest.raises(StreamWentBack) as error:
            await asyncio.wait_for(self.task, WITHIN_S)
        return error.value


async def stored(bus: Bus, *contents: str) -> None:
    for content in contents:
        await bus.publish_until_stored("log.0.report", content.encode())


def tear(nats: TestServer, store: Path, seed: int = 1) -> None:
    """kill -9, the last message's bytes overwritten, started again."""
    nats.kill()
    torn.overwrite_tail(store, LOG, random.Random(seed))
    nats.start()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "nats"


async def test_a_reader_at_the_lost_entry_does_not_go_on_behind_the_new_one(
    nats: TestServer, bus: Bus, store: Path
) -> None:
    await stored(bus, "1", "2", "3")
    reader = Reader(pull.read(bus, LOG, 1))
    await reader.until(3)
    tear(nats, store)
    await stored(bus, "new 3", "4")
    error = await reader.refusal()
    assert (error.stream, error.sequence) == (LOG, 3)
    assert [one.data for one in reader.seen] == [b"1", b"2", b"3"]
    known = [one.cursor for one in reader.seen]
    common = await cursors.last_common(bus, LOG, known)
    assert common == known[1]
    again = Reader(pull.read(bus, LOG, common))
    await again.until(2)
    again.task.cancel()
    assert [one.data for one in again.seen] == [b"new 3", b"4"]


async def test_a_stream_that_is_shorter_now_is_told_before_anything_takes_the_place(
    nats: TestServer, bus: Bus, store: Path
) -> None:
    await stored(bus, "1", "2")
    reader = Reader(pull.read(bus, LOG, 1))
    await reader.until(2)
    tear(nats, store)
    error = await reader.refusal()
    assert (error.sequence, error.found, error.last) == (2, None, 1)


async def test_a_reader_of_some_subjects_sees_it_too(nats: TestServer, bus: Bus, store: Path) -> None:
    await stored(bus, "1", "2")
    reader = Reader(pull.read(bus, LOG, 1, ("log.0.report",)))
    await reader.until(2)
    tear(nats, store)
    await bus.publish_until_stored("log.0.tick", b"of another kind")
    await stored(bus, "3")
    error = await reader.refusal()
    assert error.sequence == 2
    assert error.found is None or error.found.digest != reader.seen[1].cursor.digest


async def test_an_older_copy_put_back_under_a_reader(nats: TestServer, bus: Bus, store: Path, tmp_path: Path) -> None:
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
    common = await cursors.last_common(bus, LOG, [one.cursor for one in reader.seen])
    assert common and common.sequence == 2


async def test_a_reader_that_begins_at_the_end_knows_the_entry_before(nats: TestServer, bus: Bus, store: Path) -> None:
    await stored(bus, "1", "2")
    reader = Reader(pull.read(bus, LOG, 3))
    await asyncio.sleep(0.5)
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
    assert [one.data for one in reader.seen] == [b"3"]
    assert reader.seen[0].cursor == await cursors.at(bus, LOG, 3)


async def test_an_entry_that_has_aged_out_is_no_difference(nats: TestServer, bus: Bus) -> None:
    await stored(bus, "1", "2", "3")
    reader = Reader(pull.read(bus, LOG, 1))
    await reader.until(3)
    config = (await bus.js.stream_info(LOG)).config
    config.max_msgs = 2
    config.discard = None
    await bus.api(f"STREAM.UPDATE.{LOG}", config.as_dict() | {"max_msgs": 2, "discard": "old"})
    kept = [one.cursor for one in reader.seen]
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
    assert [one.data for one in late.seen[:2]] == [b"2", b"3"]


async def test_a_durable_reader_gets_all_once_more(nats: TestServer, bus: Bus, store: Path) -> None:
    await stored(bus, "1", "2")
    reader = Reader(acknowledged(bus))
    await reader.until(2)
    tear(nats, store)
    await stored(bus, "new 2", "3")
    async with asyncio.timeout(WITHIN_S):
        while not {b"new 2", b"3"} <= {one.data for one in reader.seen}:
            await reader.until(len(reader.seen) + 1)
    reader.task.cancel()


async def acknowledged(bus: Bus) -> AsyncIterator[list[pull.Delivered]]:
    async for messages in pull.consume(bus, LOG, "taker", ("log.0.report",)):
        yield messages
        for message in messages:
            await pull.ack(bus, message)


async def test_routes_and_commands_are_read_once_more(nats: TestServer, bus: Bus, store: Path) -> None:
    clock = MeshClock()
    routes = Routes(bus, clock)
    commands = Commands(bus, routes, clock)
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
    assert [one.command.command_id for one in commands.of_device("tag-1")] == ["third", "second", "first"]


async def test_a_reader_goes_on_behind_an_empty_message_in_the_account_of_a_user(nats: TestServer, bus: Bus) -> None:
    subject = "incident.police.x"
    for content in (b"1", b"", b"", b"4"):
        await bus.publish_until_stored(subject, content)
    async with nats.bus_as("dispatch-probation") as user:
        reader = Reader(pull.read(user, "INCIDENTS", 1, ("incident.police.>",)))
        await reader.until(4)
        reader.task.cancel()
        again = Reader(pull.read(user, "INCIDENTS", reader.seen[2].cursor, ("incident.police.>",)))
        await again.until(1)
        again.task.cancel()
    assert [one.data for one in again.seen] == [b"4"]
