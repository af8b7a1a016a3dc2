"""The bus on a real nats-server: acknowledged messages are stored, rejections are reported, and a killed server loses nothing."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop
from nats.aio.transport import TcpTransport

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, StoreFull, Unavailable
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, session, streams
from services.common.messaging.bus import AlreadyStored, Bus
from tandem.common.v1 import alert_pb2
from tests.support.common.nats import TestServer
from tests.support.ingest.ingest import create_streams


async def test_the_second_publish_of_an_alert_is_refused(bus: Bus) -> None:
    subject = flow.alert_subject(0, "alert-1")
    await bus.publish(subject, b"first", expected_last=0)
    with pytest.raises(AlreadyStored):
        await bus.publish(subject, b"second", expected_last=0)
    assert (await bus.js.get_last_msg("ALERTS", subject)).data == b"first"


async def test_a_message_that_is_published_twice_under_its_id_is_stored_once(bus: Bus) -> None:
    first = await bus.publish("log.0.report", b"x", msg_id="m1")
    second = await bus.publish("log.0.report", b"x", msg_id="m1")
    assert second.seq == first.seq
    assert (await bus.js.stream_info("LOG_0")).state.messages == 1


async def test_a_full_stream_raises_store_full_until_it_is_enlarged(nats: TestServer, bus: Bus) -> None:
    info = await bus.js.stream_info("DEAD_LETTERS")
    info.config.max_bytes = 4096
    await bus.js.update_stream(info.config)
    with pytest.raises(StoreFull) as refusal:
        for n in range(100):
            await bus.publish(f"dead_letter.test.x.{n}", b"y" * 256)
    assert refusal.value.retry_after_s > 0
    info.config.max_bytes = 1 << 20
    await bus.js.update_stream(info.config)
    await bus.publish("dead_letter.test.x.more", b"y" * 256)


async def test_without_a_server_the_outcome_is_unknown(nats: TestServer, bus: Bus) -> None:
    nats.kill()
    with pytest.raises(Unavailable):
        await bus.publish("log.0.report", b"x", msg_id="m")
    nats.start()
    await bus.publish_until_stored("log.0.report", b"x", msg_id="m")


async def write_to_lost_connections(url: str) -> None:
    """Checks that writes to a lost connection raise OSError before the client notices the loss, and that the client reconnects."""
    async with buses.connect(url, "test") as bus:
        for n in range(5):
            transport = bus.client._transport
            assert isinstance(transport, TcpTransport) and transport._io_writer
            transport._io_writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(OSError, match="closed"):
                transport.write(b"PING\r\n")  # type: ignore[no-untyped-call]
            with pytest.raises(OSError, match="closed"):
                transport.writelines([b"PING\r\n"])  # type: ignore[no-untyped-call]
            await bus.publish_until_stored("log.0.report", b"x", msg_id=f"{n}")
            assert bus.reconnects == n + 1


def test_a_write_to_a_lost_connection_is_an_os_error_under_uvloop_too(nats: TestServer) -> None:
    asyncio.run(create_streams(nats.url, 1))
    uvloop.run(write_to_lost_connections(nats.url))


async def test_an_empty_stream_has_nothing_between_its_bounds(bus: Bus) -> None:
    bounds = await bus.bounds_of("SENSING")
    assert not [message async for message in pull.between(bus, "SENSING", bounds.first, last=bounds.last)]


async def test_a_request_that_jetstream_cannot_read_is_not_retried(bus: Bus) -> None:
    with pytest.raises(ValueError, match=r"request STREAM.MSG.GET with the fields \['seq'\]"):
        await bus.api("STREAM.MSG.GET.SENSING", {"seq": 0})


async def test_reading_by_sequence_survives_kills_and_yields_each_message_once(nats: TestServer, bus: Bus) -> None:
    total = 300
    seen: list[bytes] = []

    async def read() -> None:
        async for messages in pull.read(bus, "LOG_0", 1):
            seen.extend(message.data for message in messages)
            if len(seen) >= total:
                return

    reader = asyncio.create_task(read())
    for n in range(total):
        await bus.publish_until_stored("log.0.report", str(n).encode(), msg_id=str(n))
        if n % 100 == 50:
            await nats.restart_after(0.1)
    await asyncio.wait_for(reader, 30)
    assert seen == [str(n).encode() for n in range(total)]


async def test_a_reader_continues_at_once_after_its_process_was_suspended(bus: Bus) -> None:
    seen: list[bytes] = []
    reads = asyncio.Event()

    async def read() -> None:
        async for messages in pull.read(bus, "LOG_0", 1):
            seen.extend(message.data for message in messages)
            reads.set()
            if len(seen) == 2:
                return

    reader = asyncio.create_task(read())
    await bus.publish("log.0.report", b"before")
    async with asyncio.timeout(10):
        await reads.wait()
    # Like a long garbage collection or a suspended machine, this lasts longer than the reader waits for heartbeats.
    time.sleep(4 * session.HEARTBEAT_S)  # noqa: ASYNC251
    await bus.publish("log.0.report", b"after")
    # The server keeps the old consumer for 10 s. A reader that reused its name would have to wait for its deletion.
    async with asyncio.timeout(10):
        await reader
    assert seen == [b"before", b"after"]


async def test_a_durable_consumer_redelivers_unacknowledged_messages(bus: Bus) -> None:
    for n in range(3):
        await bus.publish(flow.alert_subject(0, f"alert-{n}"), str(n).encode(), expected_last=0)
    async for messages in pull.consume(bus, "ALERTS", "probation-alerts", subjects=("alert.>",)):
        await pull.ack(bus, messages[0])
        break
    await bus.client.flush()
    seen: list[bytes] = []
    async for messages in pull.consume(bus, "ALERTS", "probation-alerts", subjects=("alert.>",)):
        for message in messages:
            seen.append(message.data)
            await pull.ack(bus, message)
        if len(seen) == 2:
            break
    assert sorted(seen) == [b"1", b"2"]


async def test_a_dead_letter_keeps_its_reason(bus: Bus) -> None:
    for _ in range(2):
        await bus.store_dead_letter(
            flow.dead_letter_subject("fold", "LOG_0", 7), "LOG_0", 7, by="fold", reason="no such field"
        )
    message = await bus.js.get_last_msg("DEAD_LETTERS", "dead_letter.geofence.fold.LOG_0.7")
    assert alert_pb2.DeadLetter.FromString(message.data or b"").reason == "no such field"
    assert (await bus.js.stream_info("DEAD_LETTERS")).state.messages == 1


async def test_full_dead_letters_block_no_reader(bus: Bus) -> None:
    info = await bus.js.stream_info("DEAD_LETTERS")
    info.config.max_bytes = 4096
    await bus.js.update_stream(info.config)
    async with asyncio.timeout(10):
        for n in range(100):
            await bus.store_dead_letter(
                flow.dead_letter_subject("fold", "LOG_0", n), "LOG_0", n, by="fold", reason="no such field"
            )
    assert 0 < (await bus.js.stream_info("DEAD_LETTERS")).state.messages < 100


async def test_the_number_of_partitions_is_fixed_at_the_first_start(bus: Bus) -> None:
    assert (await streams.create(bus, 1, MeshClock())).partitions == 1
    with pytest.raises(FailedPrecondition, match="1 partitions"):
        await streams.create(bus, 3, MeshClock())


async def test_streams_are_on_disk_and_cannot_be_purged(bus: Bus) -> None:
    config = (await bus.js.stream_info("LOG_0")).config
    assert config.storage == "file" and config.deny_delete and config.deny_purge and config.discard == "new"
