"""What the decision needs of a device: requested in SENSING, delivered as a command, obeyed, and shown; one command for each change."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.ingest.commands.asks import HELD, REFUSED_BEFORE
from tandem.common.v1 import alert_pb2, command_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.nats import running_server
from tests.support.ingest.asked import (
    MOJ_DESK,
    NPA_DESK,
    OPERATOR,
    Reporting,
    Tag,
    publish_request,
    sensing,
    stored_commands,
)
from tests.support.ingest.ingest import (
    VENDOR,
    WITHIN_S,
    Client,
    IngestMesh,
    create_streams,
    now_ms,
    position,
    running_ingest,
)

EVERY = "report_every"
USUAL = "report_as_usual"
LOCATE = "locate_now"
RECEIVED, REFUSED = command_pb2.COMMAND_STATE_RECEIVED, command_pb2.COMMAND_STATE_REFUSED
YES, NO = ingest_pb2.OBEDIENCE_YES, ingest_pb2.OBEDIENCE_NO


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


@pytest.fixture
async def people(mesh: IngestMesh, client: Client) -> AsyncIterator[Reporting]:
    async with server.channel(mesh.address) as channel:
        yield Reporting(channel)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[IngestMesh, IngestMesh]]:
    """Two ingest processes on one server."""
    with running_server(tmp_path / "nats") as nats:
        asyncio.run(create_streams(nats.url, 1))
        with running_ingest(nats, tmp_path / "a.log") as a, running_ingest(nats, tmp_path / "b.log") as b:
            yield a, b


async def kinds(bus: Bus, device_id: str) -> list[tuple[str, int]]:
    """Kind of each stored command of a device, with its interval."""
    return [
        (command.instruction.WhichOneof("kind") or "", command.instruction.report_every.interval_s)
        for command in await stored_commands(bus, device_id)
    ]


async def dead_letter_reasons(bus: Bus, *sequences: int) -> list[str]:
    """Waits until there is a dead letter of ingest for each of these messages of SENSING, and returns the reasons."""
    reasons: dict[int, str] = {}
    async with asyncio.timeout(WITHIN_S):
        async for messages in pull.read(bus, flow.DEAD_LETTERS.name, 1):
            for message in messages:
                letter = alert_pb2.DeadLetter.FromString(message.data)
                assert message.subject == flow.dead_letter_subject(letter.by, letter.stream, letter.sequence)
                if letter.by == flow.SENSING_READER and letter.stream == flow.SENSING.name:
                    reasons[letter.sequence] = letter.reason
            if reasons.keys() >= set(sequences):
                break
    return [reasons[sequence] for sequence in sequences]


# ── requested, delivered, obeyed, shown ──────────────────────────────────────────────────────────────────────────────


async def test_an_interval_is_requested_delivered_obeyed_and_shown(client: Client, people: Reporting) -> None:
    await client.route("asked")
    async with Tag(client, "asked").connected() as tag:
        request = sensing("s-1", "asked", 20)
        await publish_request(client.bus, request)
        await tag.until(lambda tag: tag.interval_s == 20)
        (command,) = tag.received
        assert 1_790 <= command.instruction.report_every.for_s <= 1_800
        row = await people.until("asked", lambda row: row.delivery == RECEIVED)
        assert row.obeys == ingest_pb2.OBEDIENCE_NOT_YET
        await tag.report_each(20)
        row = await people.until("asked", lambda row: row.obeys == YES)
    (ask,) = row.asks
    assert (ask.asked_by, ask.interval_s, row.observed_interval_s, row.slow) == ("geofence", 20, 20, False)
    assert (ask.asked_at.ToMilliseconds(), ask.until.ToMilliseconds()) == (request.decided_at_ms, request.until_ms)
    assert not [field.name for field, _ in row.ListFields() if "lat" in field.name or "lon" in field.name]


async def test_a_device_that_confirms_and_does_not_obey_is_shown(client: Client, people: Reporting) -> None:
    await client.route("liar")
    async with Tag(client, "liar", obeys=False).connected() as tag:
        await publish_request(client.bus, sensing("s-liar", "liar", 10))
        await people.until("liar", lambda row: row.delivery == RECEIVED)
        await tag.report_each(25)
        row = await people.until("liar", lambda row: row.obeys == NO)
        assert row.observed_interval_s == 25
        await publish_request(client.bus, sensing("s-slow", "liar", 150))
        await people.until("liar", lambda row: row.obeys == YES)  # closer reports than asked do no harm


async def test_a_device_that_refuses_an_interval_gets_the_next_one_and_is_shown(
    client: Client, people: Reporting
) -> None:
    await client.route("choosy")
    async with Tag(client, "choosy", least_interval_s=40).connected() as tag:
        await people.ask("choosy", "d-1", 60)
        await publish_request(client.bus, sensing("s-30", "choosy", 30))
        await tag.until(lambda tag: tag.instructed == [(EVERY, 60), (EVERY, 30), (EVERY, 60)])
        row = await people.row("choosy")
        assert [(ask.interval_s, ask.refused) for ask in row.asks] == [(30, True), (60, False)]
        await publish_request(client.bus, sensing("s-30-renewed", "choosy", 30))
        await publish_request(client.bus, sensing("s-50", "choosy", 50))
        await tag.until(lambda tag: tag.instructed[3:] == [(EVERY, 50)])
        await people.ask("choosy", "d-2", None)
        await publish_request(client.bus, sensing("s-30-again", "choosy", 30))
        row = await people.until("choosy", lambda row: [ask.interval_s for ask in row.asks] == [30])
        assert (row.delivery, row.refused_because, row.obeys) == (REFUSED, "at least 40 s", NO)
    renewed = (await stored_commands(client.bus, "choosy"))[-1]
    assert await people.expired_because("choosy", renewed.command_id) == REFUSED_BEFORE


async def test_a_position_now_is_sent_at_once_and_not_doubled(client: Client, people: Reporting) -> None:
    await client.route("located", "absent")
    async with Tag(client, "located").connected() as tag:
        await publish_request(client.bus, sensing("l-1", "located", None, 60))
        await tag.until(lambda tag: tag.instructed == [(LOCATE, 0)])
        await tag.report(now_ms())
        await people.until("located", lambda row: (row.locates_sent, row.locates_answered) == (1, 1))
    await publish_request(client.bus, sensing("l-over", "absent", None, 60, until_ms=now_ms() - 1, decided_at_ms=1))
    for number in range(3):
        await publish_request(client.bus, sensing(f"l-2-{number}", "absent", None, 2))
    await publish_request(client.bus, sensing("i-1", "absent", 60))
    async with asyncio.timeout(WITHIN_S):
        while (EVERY, 60) not in await kinds(client.bus, "absent"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await kinds(client.bus, "absent") == [(LOCATE, 0), (EVERY, 60)]
    (locate, _) = await stored_commands(client.bus, "absent")
    assert await people.expired_because("absent", locate.command_id) == ""


async def test_all_processes_know_what_a_device_does(pair: tuple[IngestMesh, IngestMesh]) -> None:
    a, b = pair
    async with (
        a.connected() as on_a,
        b.connected() as on_b,
        server.channel(a.address) as channel_to_a,
        server.channel(b.address) as channel,
    ):
        people = Reporting(channel)
        await on_a.route("roaming")
        await publish_request(on_a.bus, sensing("o-1", "roaming", 20))
        async with Tag(on_a, "roaming").connected() as tag, Tag(on_b, "roaming").connected() as other:
            await tag.until(lambda tag: tag.interval_s == 20)
            await people.until("roaming", lambda row: row.delivery in (RECEIVED, command_pb2.COMMAND_STATE_SENT))
            now = now_ms()
            for number in range(6):  # each process accepts every second fix only
                await (tag, other)[number % 2].report(now + number * 20_000)
            for shown_by in (people, Reporting(channel_to_a)):
                row = await shown_by.until("roaming", lambda row: row.obeys == YES and row.observed_interval_s == 20)
                assert row.last_fix.ToMilliseconds() == now + 100_000
    b.service.kill()
    b.service.start()
    async with b.connected(), server.channel(b.address) as channel:
        row = await Reporting(channel).until("roaming", lambda row: row.obeys == YES)
        assert row.last_fix.ToMilliseconds() == now + 100_000, "a restart loses nothing"


# ── contradictory askers ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_smallest_interval_is_in_effect_and_each_asker_ends_only_its_own(
    client: Client, people: Reporting
) -> None:
    await client.route("shared")
    probation = "spiffe://tandem/service/dispatch-probation"
    async with Tag(client, "shared").connected() as tag:
        await publish_request(client.bus, sensing("s-60", "shared", 60))
        await tag.until(lambda tag: tag.instructed == [(EVERY, 60)])
        await people.ask("shared", "d-600", 600, for_s=3_600)
        assert await people.expired_because("shared", "d-600") == HELD
        await people.ask("shared", "p-15", 15, for_s=300, who=probation, reference="incident-1")
        await tag.until(lambda tag: tag.instructed[1:] == [(EVERY, 15)])
        await people.ask("shared", "d-usual", None)
        await people.ask("shared", "p-usual", None, who=probation, reference="incident-1")
        await tag.until(lambda tag: tag.instructed[2:] == [(EVERY, 60)])
        row = await people.row("shared")
    assert [(ask.asked_by, ask.interval_s) for ask in row.asks] == [("geofence", 60)]


# ── kills ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_device_keeps_a_wrong_interval_after_ingest_was_killed(mesh: IngestMesh) -> None:
    async with mesh.connected() as client, server.channel(mesh.address) as channel:
        people = Reporting(channel)
        await client.route("alone", "others", "begun")
        for device_id in ("alone", "others"):
            await publish_request(client.bus, sensing(f"k-{device_id}", device_id, 20, 5))
        await people.ask("others", "k-desk", 90)
        tags = [Tag(client, device_id) for device_id in ("alone", "others")]
        async with tags[0].connected(), tags[1].connected():
            for tag in tags:
                await tag.until(lambda tag: tag.interval_s == 20)
            for device_id in ("alone", "others"):
                await people.until(device_id, lambda row: row.delivery == RECEIVED)
        mesh.service.kill()
        await publish_request(client.bus, sensing("k-begun", "begun", 45))
        await asyncio.sleep(5)  # both needs end while nobody reads
    mesh.service.start()
    async with mesh.connected() as client:
        for device_id, expected in (("alone", (USUAL, 0)), ("others", (EVERY, 90)), ("begun", (EVERY, 45))):
            async with Tag(client, device_id).connected() as tag:
                await tag.until(lambda tag, expected=expected: tag.instructed == [expected])  # type: ignore[misc]
        assert await kinds(client.bus, "alone") == [(EVERY, 20), (USUAL, 0)]
        assert sorted(await kinds(client.bus, "others")) == [(EVERY, 20), (EVERY, 90), (EVERY, 90)]


async def test_two_processes_store_one_command_for_each_change(pair: tuple[IngestMesh, IngestMesh]) -> None:
    a, b = pair
    async with a.connected() as client, b.connected(), server.channel(b.address) as channel:
        people = Reporting(channel)
        await client.route("both")
        async with Tag(client, "both").connected() as tag:
            await publish_request(client.bus, sensing("b-1", "both", 20, 4))
            await publish_request(client.bus, sensing("b-locate", "both", None, 60))
            await tag.until(lambda tag: tag.interval_s == 20)
            await people.ask("both", "b-desk", 60, for_s=8)
            await tag.until(lambda tag: (USUAL, 0) in tag.instructed)
        await people.until("both", lambda row: not row.asks)
        stored = await kinds(client.bus, "both")
        assert Counter(stored) == Counter([(LOCATE, 0), (EVERY, 20), (EVERY, 60), (EVERY, 60), (USUAL, 0)])
        assert Counter(tag.instructed) == Counter([(LOCATE, 0), (EVERY, 20), (EVERY, 60), (USUAL, 0)])
        b.service.kill()
        a.service.kill()
        a.service.start()
        b.service.start()
        await a.service.ready(a.address)
        await b.service.ready(b.address)
        await asyncio.sleep(2)
        assert len(await kinds(client.bus, "both")) == 5, "a restart stores nothing new"


# ── what can't be used ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_unusable_requests_become_dead_letters_and_end_nothing(client: Client, people: Reporting) -> None:
    await client.route("bad", "good")
    now = now_ms()
    without_need = sensing("x-need", "bad", 60)
    without_need.ClearField("report_every")
    bad = {
        "report_every.interval_s: must be from 1 to 3600": sensing("x-0", "bad", 0),
        "report_every.interval_s": sensing("x-day", "bad", 86_400),
        "need: is missing": without_need,
        "until_ms": sensing("x-long", "bad", 60, until_ms=now + 86_400_000),
        "until_ms: must be after decided_at_ms": sensing("x-ended", "bad", 60, until_ms=now - 1_000),
        "device_id: is missing": sensing("x-device", "", 60),
    }
    sequences = [(await publish_request(client.bus, request)).seq for request in bad.values()]
    first = await publish_request(client.bus, sensing("same", "bad", 60))
    other = await publish_request(client.bus, sensing("same", "bad", 20))
    elsewhere = await client.bus.publish("sensing.0.another", sensing("x-1", "bad", 60).SerializeToString())
    await publish_request(client.bus, sensing("good", "good", 60))
    reasons = await dead_letter_reasons(client.bus, *sequences, other.seq, elsewhere.seq)
    for reason, expected in zip(
        reasons, [*bad, "request_id: another request has this id", "request_id: differs"], strict=True
    ):
        assert reason.startswith(expected), reason
    assert first.seq < other.seq
    async with Tag(client, "good").connected() as tag:
        await tag.until(lambda tag: tag.instructed == [(EVERY, 60)])
    assert await kinds(client.bus, "bad") == [(EVERY, 60)]


async def test_a_revoked_or_unknown_device_gets_nothing(client: Client, people: Reporting) -> None:
    await client.route("revoked", revoked=True)
    for device_id in ("revoked", "unknown"):
        await publish_request(client.bus, sensing(f"n-{device_id}", device_id, 60))
    answers = await client.send(
        ingest_pb2.ReportRequest(batch=1, positions=[position("revoked", "r-1"), position("unknown", "r-2")])
    )
    assert not [command for answer in answers for command in answer.commands]


# ── who may see what ─────────────────────────────────────────────────────────────────────────────────────────────────


async def status(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call  # type: ignore[misc]
    return refused.value.code()


async def test_desks_see_their_own_devices_and_not_the_decisions_intervals(client: Client, people: Reporting) -> None:
    await client.route("a-tag", "b-tag")
    await client.route("an-app", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE)
    async with Tag(client, "a-tag").connected() as tag:
        await publish_request(client.bus, sensing("v-1", "a-tag", 20))
        await people.ask("a-tag", "v-desk", 60)
        await people.ask("b-tag", "v-desk-b", 60)
        await people.ask("an-app", "v-app", 60, who=NPA_DESK)
        await tag.until(lambda tag: tag.interval_s == 20)
        await tag.report_each(20)
        await people.until("a-tag", lambda row: row.obeys == YES)
        shown = await people.row("a-tag", MOJ_DESK)
        assert [(ask.asked_by, ask.interval_s) for ask in shown.asks] == [(MOJ_DESK, 60)]
        assert (shown.own_ask_in_effect, shown.observed_interval_s, shown.obeys) == (False, 0, YES)
    for who, interval_s in ((MOJ_DESK, 0), (OPERATOR, 20)):
        (listed,) = [listed for listed in await people.commands("a-tag", who) if listed.issued_by == "geofence"]
        assert listed.command.instruction.report_every.interval_s == interval_s
    own = await people.row("b-tag", MOJ_DESK)
    assert own.own_ask_in_effect
    assert await status(people.row("a-tag", NPA_DESK)) is grpc.StatusCode.NOT_FOUND
    assert await status(people.row("an-app", MOJ_DESK)) is grpc.StatusCode.NOT_FOUND
    assert await status(people.page(VENDOR)) is grpc.StatusCode.PERMISSION_DENIED
    assert await status(people.row("nobodys")) is grpc.StatusCode.NOT_FOUND
    listed_to = {who: {row.device_id for row in (await people.page(who)).devices} for who in (MOJ_DESK, NPA_DESK)}
    assert {"a-tag", "b-tag"} <= listed_to[MOJ_DESK] and "an-app" not in listed_to[MOJ_DESK]
    assert "an-app" in listed_to[NPA_DESK] and not {"a-tag", "b-tag"} & listed_to[NPA_DESK]


async def test_the_list_comes_in_pages(client: Client, people: Reporting) -> None:
    names = [f"paged-{number}" for number in range(5)]
    await client.route(*names)
    for name in names:
        await people.ask(name, f"ask-{name}", 60)
    seen: list[str] = []
    token = ""
    while True:
        answer = await people.page(page_size=2, page_token=token)
        assert len(answer.devices) <= 2
        seen += [row.device_id for row in answer.devices]
        token = answer.next_page_token
        if not token:
            break
    assert seen == sorted(set(seen)) and set(names) <= set(seen)
    assert await status(people.page(page_size=1_001)) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("prefix", ["sensing-", "interval-"])
async def test_no_desk_can_use_an_id_of_the_mesh(client: Client, people: Reporting, prefix: str) -> None:
    await client.route("guessed")
    await people.ask("guessed", "ordinary", 60)
    assert await status(people.ask("guessed", f"{prefix}0123", 60)) is grpc.StatusCode.INVALID_ARGUMENT
