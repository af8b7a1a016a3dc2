"""The server holds each user to the flow table: every user against every subject and stream of it, on a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nats
import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.messaging.permissions import inbox, reader_names
from services.common.rpc.errors import Unavailable
from tests.support.common.nats import TestServer, running_server

PARTITIONS = 2
TABLE = (*flow.FLOWS, flow.ROUTES)
VALUES = {"{p}": "1", "{state}": "SENT", "{sequence}": "7", "{replica}": "0"}
JETSTREAM = "$JS.API"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """A server with the streams of two partitions."""
    with running_server(tmp_path_factory.mktemp("nats")) as one:
        asyncio.run(_make_streams(one))
        yield one


async def _make_streams(server: TestServer) -> None:
    async with buses.connect(server.url_as("setup"), "setup") as bus:
        await streams.create(bus, PARTITIONS, MeshClock(), max_bytes=64 << 20)


@asynccontextmanager
async def signed_in(server: TestServer, user: str) -> AsyncIterator[tuple[Client, list[str]]]:
    """A connection of a user, and what the server has refused it since, in lower case as the client tells it."""
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    client = await nats.connect(server.url_as(user), inbox_prefix=inbox(user), error_cb=note)
    try:
        yield client, refused
    finally:
        await client.close()


async def settle(client: Client) -> None:
    """Returns once the server has said what it refuses. A flush's ping overtakes what is still buffered, so it takes two."""
    await client.flush(30)
    await client.flush(30)


async def refused_of(client: Client, refused: list[str], subjects: list[str]) -> set[str]:
    """Which of these subjects the user may not publish to."""
    refused.clear()
    for subject in subjects:
        await client.publish(subject, b"{}", reply=f"{client.new_inbox()}.1")
    await settle(client)
    told = {one.partition('publish to "')[2].rstrip('"') for one in refused}
    return {subject for subject in subjects if subject.lower() in told}


def example(row: flow.Flow, publisher: str) -> str:
    """The subject of a row that names a publisher, where it names any; ids have dots in them, as they may."""
    values = VALUES | {"{leg}": publisher.removeprefix("dispatch-"), "{by}": publisher}
    tokens = [values.get(token, token) for token in row.subject.split(".")]
    return ".".join("id.with.dots" if token.startswith("{") and n else token for n, token in enumerate(tokens))


def owner(row: flow.Flow, user: str, publisher: str) -> bool:
    names_publisher = "{leg}" in row.subject or "{by}" in row.subject
    return user in row.publishers and (user == publisher or not names_publisher)


async def count(server: TestServer) -> dict[str, int]:
    async with buses.connect(server.url, "test") as bus:
        return {str(one.config.name): one.state.messages for one in await bus.js.streams_info()}


@pytest.mark.parametrize("user", flow.USERS)
async def test_a_user_is_refused_on_each_subject_that_is_not_its_own(server: TestServer, user: str) -> None:
    subjects = {example(row, by): owner(row, user, by) for row in TABLE for by in row.publishers}
    before = await count(server)
    async with signed_in(server, user) as (client, refused):
        assert await refused_of(client, refused, list(subjects)) == {one for one, own in subjects.items() if not own}
        own_streams = {row.stream.format(p=1) for row in TABLE if user in row.publishers}
    after = await count(server)
    # Not by the server's word alone: nothing was stored but where the table says so, and there it was.
    assert {name for name in after if after[name] != before[name]} == own_streams


@pytest.mark.parametrize("user", flow.USERS)
async def test_a_user_reads_the_streams_that_the_table_gives_it_and_no_other(server: TestServer, user: str) -> None:
    readable = {row.stream.format(p=p): user in row.readers for row in TABLE for p in range(PARTITIONS)}
    subjects = {f"{JETSTREAM}.STREAM.MSG.GET.{name}": may for name, may in readable.items()}
    for name, may in readable.items():
        count = len(reader_names(user, name))
        # Names of its own for its readers, so many and no more, and none of anybody else's.
        for reader in (f"{user}-0", f"{user}-{count - 1}", f"{user}-{count}", "reader", "tester-0"):
            own = may and name != flow.LOG_META.name and reader in reader_names(user, name)
            verbs = ("CREATE", "MSG.NEXT", "DELETE")
            subjects |= {f"{JETSTREAM}.CONSUMER.{verb}.{name}.{reader}": own for verb in verbs}
    plain = [example(row, by) for row in TABLE for by in row.publishers]
    async with signed_in(server, user) as (client, refused):
        assert await refused_of(client, refused, list(subjects)) == {one for one, may in subjects.items() if not may}
        # Listening on a subject itself would pass by the streams.
        refused.clear()
        others = [f"{inbox(one)}.>" for one in flow.USERS if one != user]
        wanted = (*plain, *others, ">", "$JS.ACK.>", "_INBOX.>")
        for subject in wanted:
            await client.subscribe(subject)
        await settle(client)
        told = {one.partition('subscription to "')[2].rstrip('"') for one in refused}
        assert told == {one.lower() for one in wanted}


@pytest.mark.parametrize("user", flow.USERS)
async def test_nobody_deletes_anything_and_only_setup_makes_streams(server: TestServer, user: str) -> None:
    names = [row.stream.format(p=0) for row in TABLE]
    never = ("STREAM.DELETE.{}", "STREAM.PURGE.{}", "STREAM.MSG.DELETE.{}", "CONSUMER.DELETE.{}.x", "DIRECT.GET.{}")
    made = ("STREAM.CREATE.{}", "STREAM.UPDATE.{}")
    destructive = {f"{JETSTREAM}.{verb.format(name)}" for verb in never for name in names}
    making = {f"{JETSTREAM}.{verb.format(name)}" for verb in made for name in names}
    alien = {f"{JETSTREAM}.STREAM.CREATE.MINE", "$SYS.REQ.SERVER.PING", "anything"}
    async with signed_in(server, user) as (client, refused):
        found = await refused_of(client, refused, sorted(destructive | making | alien))
    assert found == destructive | alien | (set() if user == "setup" else making)


@pytest.mark.parametrize(
    "login",
    [{}, {"user": "registry"}, {"user": "registry", "pass": ""}, {"user": "registry", "pass": "wrong"}],
    ids=str,
)
async def test_without_a_users_password_nobody_comes_in(server: TestServer, login: dict[str, str]) -> None:
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"CONNECT " + json.dumps({"verbose": False, **login}).encode() + b"\r\nPING\r\n")
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"INFO ")
        assert await reader.read() == b"-ERR 'Authorization Violation'\r\n"
    writer.close()


async def test_a_refused_publish_is_told_and_fails(server: TestServer) -> None:
    with capture_logs() as said:
        async with buses.connect(server.url_as("ingest"), "ingest") as bus:
            with pytest.raises(Unavailable):
                await bus.publish("log.0.case", b"")
    assert [one["reason"] for one in said if one["event"] == "nats_refused"] == [
        'permissions violation for publish to "log.0.case"'
    ]


ELSEWHERE = (
    *("log.0.case", "log_meta", "alert.0.forged", f"$KV.{flow.DEVICES_BUCKET}.tag"),
    *(f"{JETSTREAM}.STREAM.{verb}.{flow.ALERTS.name}" for verb in ("DELETE", "PURGE")),
)
"""Where no answer may come to: subjects that count, and requests that are obeyed."""


async def test_an_answer_that_is_asked_for_elsewhere_comes_to_nobody(tmp_path: Path) -> None:
    """JetStream answers to whatever subject it is asked to; that subject is one of the asker's own account."""
    with running_server(tmp_path / "nats") as server:
        await _make_streams(server)
        before = await count(server)
        async with buses.connect(server.url_as("ingest"), "ingest") as bus:
            await bus.publish("quarantine.x", b"forged")
            stream, stored = flow.QUARANTINE.name, await bus.bounds_of(flow.QUARANTINE.name)
            name = reader_names("ingest", stream)[0]
            config = {"name": name, "ack_policy": "none", "deliver_policy": "all", "mem_storage": True}
            await bus.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
            request = json.dumps({"batch": 1, "no_wait": True}).encode()
            for subject in ELSEWHERE:
                # The message for the first, that there is none for the others: an empty payload, as a deletion has.
                await bus.client.publish(f"{JETSTREAM}.CONSUMER.MSG.NEXT.{stream}.{name}", request, reply=subject)
                await bus.client.publish(f"{JETSTREAM}.STREAM.MSG.GET.{stream}", b'{"seq": 1}', reply=subject)
            await bus.client.flush()
            await bus.api("INFO", {})
            assert await bus.bounds_of(stream) == stored
        assert await count(server) == before | {flow.QUARANTINE.name: 1}


async def test_what_is_pushed_elsewhere_leaves_the_premises_and_all_streams(tmp_path: Path) -> None:
    """A consumer may be told to push, in the account of the streams: what comes so stands under its old subject, or is nothing."""
    with running_server(tmp_path / "nats") as server:
        await _make_streams(server)
        async with buses.connect(server.url, "test") as bus:
            log_meta = await streams.read_log_meta(bus)
        before = await count(server)
        async with buses.connect(server.url_as("ingest"), "ingest") as bus:
            stream = flow.QUARANTINE.name
            for name, subject in zip(reader_names("ingest", stream), ELSEWHERE, strict=False):
                config = {"name": name, "ack_policy": "none", "deliver_policy": "all", "mem_storage": True}
                pushed = {"deliver_subject": subject, "idle_heartbeat": 100_000_000}
                request = {"stream_name": stream, "config": config | pushed}
                await bus.api(f"CONSUMER.CREATE.{stream}.{name}", request)
            await bus.publish("quarantine.x", b"forged")
            await bus.publish("quarantine.x", b"")
            await asyncio.sleep(0.5)  # several heartbeats
        assert (await count(server)).keys() == before.keys()
        async with buses.connect(server.url, "test") as bus:
            assert await streams.read_log_meta(bus) == log_meta
            for name, kept in (await count(server)).items():
                if kept == before[name] or name in (stream, flow.LOG_META.name):
                    continue
                assert {one.subject for one in await _all(bus, name)} <= {"quarantine.x"}


async def _all(bus: Bus, stream: str) -> list[pull.Delivered]:
    last = (await bus.bounds_of(stream)).last
    return [one async for one in pull.between(bus, stream, 1, last)]
