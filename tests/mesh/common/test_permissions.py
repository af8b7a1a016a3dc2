"""A real nats-server enforces the flow table, checked for every user with every subject and stream of the table."""

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
from services.common.errors import Unavailable
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.messaging.permissions import inbox, reader_names
from tests.support.common.nats import TestServer, running_server

PARTITIONS = 2
TABLE = (*flow.FLOWS, flow.ROUTES)
VALUES = {"{p}": "1", "{state}": "SENT", "{sequence}": "7", "{replica}": "0"}
JETSTREAM = "$JS.API"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """A server with the streams of two partitions."""
    with running_server(tmp_path_factory.mktemp("nats")) as running:
        asyncio.run(_make_streams(running))
        yield running


async def _make_streams(server: TestServer) -> None:
    async with buses.connect(server.url_as("setup"), "setup") as bus:
        await streams.create(bus, PARTITIONS, MeshClock(), max_bytes=64 << 20)


@asynccontextmanager
async def signed_in(server: TestServer, user: str) -> AsyncIterator[tuple[Client, list[str]]]:
    """A user's connection, and the server's refusals on it as the client reports them, in lower case."""
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    client = await nats.connect(server.url_as(user), inbox_prefix=inbox(user), error_cb=note)
    try:
        yield client, refused
    finally:
        await client.close()


async def settle(client: Client) -> None:
    """Returns once the server has reported its refusals. The ping of a flush overtakes buffered data, so two flushes are needed."""
    await client.flush(30)
    await client.flush(30)


async def refused_of(client: Client, refused: list[str], subjects: list[str]) -> set[str]:
    """Those of some subjects that the user may not publish to."""
    refused.clear()
    for subject in subjects:
        await client.publish(subject, b"{}", reply=f"{client.new_inbox()}.1")
    await settle(client)
    reported = {refusal.partition('publish to "')[2].rstrip('"') for refusal in refused}
    return {subject for subject in subjects if subject.lower() in reported}


def example(row: flow.Flow, publisher: str) -> str:
    """Example of a row's subject that names a publisher, if the row has a token for it. Its ids contain dots, which are permitted."""
    values = VALUES | {"{leg}": publisher.removeprefix("dispatch-"), "{by}": publisher}
    tokens = [values.get(token, token) for token in row.subject.split(".")]
    return ".".join("id.with.dots" if token.startswith("{") and n else token for n, token in enumerate(tokens))


def owner(row: flow.Flow, user: str, publisher: str) -> bool:
    names_publisher = "{leg}" in row.subject or "{by}" in row.subject
    return user in row.publishers and (user == publisher or not names_publisher)


async def count(server: TestServer) -> dict[str, int]:
    async with buses.connect(server.url, "test") as bus:
        return {str(info.config.name): info.state.messages for info in await bus.js.streams_info()}


@pytest.mark.parametrize("user", flow.USERS)
async def test_a_user_may_publish_only_its_own_subjects(server: TestServer, user: str) -> None:
    subjects = {example(row, by): owner(row, user, by) for row in TABLE for by in row.publishers}
    before = await count(server)
    async with signed_in(server, user) as (client, refused):
        foreign = {subject for subject, own in subjects.items() if not own}
        assert await refused_of(client, refused, list(subjects)) == foreign
        own_streams = {row.stream.format(p=1) for row in TABLE if user in row.publishers}
    after = await count(server)
    # The streams confirm the server's reports: messages were stored exactly in the user's own streams.
    assert {name for name in after if after[name] != before[name]} == own_streams


@pytest.mark.parametrize("user", flow.USERS)
async def test_a_user_may_read_only_the_streams_that_the_table_gives_it(server: TestServer, user: str) -> None:
    readable = {row.stream.format(p=p): user in row.readers for row in TABLE for p in range(PARTITIONS)}
    subjects = {f"{JETSTREAM}.STREAM.MSG.GET.{name}": may for name, may in readable.items()}
    for name, may in readable.items():
        count = len(reader_names(user, name))
        # A user may use only its own names for readers, up to their number.
        for reader in (f"{user}-0", f"{user}-{count - 1}", f"{user}-{count}", "reader", "tester-0"):
            own = may and name != flow.LOG_META.name and reader in reader_names(user, name)
            verbs = ("CREATE", "MSG.NEXT", "DELETE")
            subjects |= {f"{JETSTREAM}.CONSUMER.{verb}.{name}.{reader}": own for verb in verbs}
    plain = [example(row, by) for row in TABLE for by in row.publishers]
    async with signed_in(server, user) as (client, refused):
        forbidden = {subject for subject, may in subjects.items() if not may}
        assert await refused_of(client, refused, list(subjects)) == forbidden
        # A plain subscription would bypass the streams' permissions.
        refused.clear()
        others = [f"{inbox(other)}.>" for other in flow.USERS if other != user]
        wanted = (*plain, *others, ">", "$JS.ACK.>", "_INBOX.>")
        for subject in wanted:
            await client.subscribe(subject)
        await settle(client)
        reported = {refusal.partition('subscription to "')[2].rstrip('"') for refusal in refused}
        assert reported == {subject.lower() for subject in wanted}


@pytest.mark.parametrize("user", flow.USERS)
async def test_no_user_may_delete_and_only_setup_may_make_streams(server: TestServer, user: str) -> None:
    names = [row.stream.format(p=0) for row in TABLE]
    never = ("STREAM.DELETE.{}", "STREAM.PURGE.{}", "STREAM.MSG.DELETE.{}", "CONSUMER.DELETE.{}.x", "DIRECT.GET.{}")
    setup_only = ("STREAM.CREATE.{}", "STREAM.UPDATE.{}")
    destructive = {f"{JETSTREAM}.{verb.format(name)}" for verb in never for name in names}
    making = {f"{JETSTREAM}.{verb.format(name)}" for verb in setup_only for name in names}
    alien = {f"{JETSTREAM}.STREAM.CREATE.MINE", "$SYS.REQ.SERVER.PING", "anything"}
    async with signed_in(server, user) as (client, refused):
        rejected = await refused_of(client, refused, sorted(destructive | making | alien))
    assert rejected == destructive | alien | (set() if user == "setup" else making)


@pytest.mark.parametrize(
    "login",
    [{}, {"user": "registry"}, {"user": "registry", "pass": ""}, {"user": "registry", "pass": "wrong"}],
    ids=str,
)
async def test_a_login_without_a_valid_password_is_refused(server: TestServer, login: dict[str, str]) -> None:
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"CONNECT " + json.dumps({"verbose": False, **login}).encode() + b"\r\nPING\r\n")
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"INFO ")
        assert await reader.read() == b"-ERR 'Authorization Violation'\r\n"
    writer.close()


async def test_a_refused_publish_fails_and_is_logged(server: TestServer) -> None:
    with capture_logs() as logged:
        async with buses.connect(server.url_as("ingest"), "ingest") as bus:
            with pytest.raises(Unavailable):
                await bus.publish("log.0.case", b"")
    assert [line["reason"] for line in logged if line["event"] == "nats_refused"] == [
        'permissions violation for publish to "log.0.case"'
    ]


ELSEWHERE = (
    *("log.0.case", "log_meta", "alert.0.forged", f"$KV.{flow.DEVICES_BUCKET}.tag"),
    *(f"{JETSTREAM}.STREAM.{verb}.{flow.ALERTS.name}" for verb in ("DELETE", "PURGE")),
)
"""Subjects to which no answer may be redirected: subjects of streams, and requests that the server executes."""


async def test_an_answer_redirected_to_another_subject_reaches_no_stream(tmp_path: Path) -> None:
    """JetStream answers to any reply subject, but within the account of the requesting user, where the answer has no effect."""
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
                # The first request gets the message. The others get an empty status message, like the payload of a deletion.
                await bus.client.publish(f"{JETSTREAM}.CONSUMER.MSG.NEXT.{stream}.{name}", request, reply=subject)
                await bus.client.publish(f"{JETSTREAM}.STREAM.MSG.GET.{stream}", b'{"seq": 1}', reply=subject)
            await bus.client.flush()
            await bus.api("INFO", {})
            assert await bus.bounds_of(stream) == stored
        assert await count(server) == before | {flow.QUARANTINE.name: 1}


async def test_a_push_consumer_changes_neither_the_log_metadata_nor_other_streams(tmp_path: Path) -> None:
    """A push consumer delivers within the account of the streams, but its messages keep their old subject or are empty."""
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
                assert {message.subject for message in await _all(bus, name)} <= {"quarantine.x"}


async def _all(bus: Bus, stream: str) -> list[pull.Delivered]:
    last = (await bus.bounds_of(stream)).last
    return [message async for message in pull.between(bus, stream, 1, last=last)]
