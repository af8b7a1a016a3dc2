"""Warnings: a protected person is warned although other parts are down, receipts are tracked, and an answer never betrays her."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.common import times
from services.common.clock import MeshClock, wall_us
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.privacy import sealing
from services.common.privacy.signing import SIGNATURE_HEADER
from services.dispatch.domain import warning as decisions
from services.dispatch.exchange.links import Token, open_key
from services.dispatch.settings import DispatchSettings
from services.dispatch.warning import consumer, sender
from services.dispatch.warning.http import AnswerLinks
from tandem.common.v1 import alert_pb2, contact_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch import dispatch
from tests.support.dispatch.dispatch import Desk, Subscription, publish, running
from tests.support.dispatch.warning import (
    DURESS_CHOICE,
    HANDLE,
    WITHIN_S,
    FakeDevice,
    Gateway,
    RealDevice,
    answer,
    put_case,
    ring,
    settings,
)
from tests.support.ingest.ingest import running_ingest
from tests.support.registry import records, registry


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets short times: a receipt is awaited for 2 s, and a message is read in 1 s."""
    monkeypatch.setattr(consumer, "RECEIPT_WITHIN_MS", 2_000)
    monkeypatch.setattr(decisions, "READ_MS", 1_000)
    monkeypatch.setattr(sender, "FIRST_WAIT_MS", 100)


def rows(made: DispatchSettings, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{made.warning_database}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


async def until(made: DispatchSettings, query: str) -> list[Any]:
    """Waits until a query returns rows, and returns them."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                if found := rows(made, query):
                    return found
            except sqlite3.OperationalError as error:
                assert "no such table" in str(error) or "unable to open" in str(
                    error
                )  # the tables are still being created
            await asyncio.sleep(0.05)


async def flagged(desk: Subscription, flag: dispatch_pb2.WarningFlag.ValueType) -> dispatch_pb2.Assignment:
    """Waits for a step with a flag, and returns its assignment."""
    while True:
        assignment = (await desk.next_of_any()).step.assignment
        if assignment.person_flag.flag == flag:
            return assignment


# ── channels, real and fake ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["gateway", "fake device", "real device"])
async def way(
    request: pytest.FixtureRequest, nats: TestServer, bus: Bus, tmp_path: Path
) -> AsyncIterator[tuple[DispatchSettings, Any]]:
    """Prepares a warning leg with one channel to its person, and the far end of that channel."""
    if request.param == "gateway":
        gateway = Gateway()
        made = settings(nats, tmp_path / "leg", gateway)
        async with gateway.serving():
            await put_case(bus, made)
            yield made, gateway
        return
    made = settings(nats, tmp_path / "leg")
    await put_case(bus, made, "app-1")
    if request.param == "fake device":
        yield made, FakeDevice(bus)
        return
    with running_ingest(nats, tmp_path / "ingest.log") as mesh:
        async with RealDevice.connected(mesh) as device:
            yield made, device


async def test_each_channel_shows_the_text_once_and_its_receipt_is_stored(way: Any, bus: Bus) -> None:
    made, far_end = way
    async with running(made) as leg, leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        warning_id, text = await far_end.shown()
        assert text == "Notice: within 1 km. Keep your phone with you. If you can't speak, 112 takes text messages."
        await far_end.arrived(warning_id)
        acknowledged = (await desk.next(dispatch_pb2.ACKNOWLEDGED)).step.assignment
        assert acknowledged.acknowledged_by == f"receipt/{warning_id}"
        await publish(bus, ring(2, 100.0, geometry_pb2.RESPOND))
        second, text = await far_end.shown(2)
        assert second != warning_id and text.startswith("Notice: within 100 m. Lock the door")
        await far_end.arrived(second)
        await until(made, "select 1 from messages where delivered_ms is not null limit 1 offset 1")
        await publish(bus, ring(1), ring(2, 100.0, geometry_pb2.RESPOND))
    assert rows(
        made, "select count(*), count(delivered_ms), max(tries) from messages join sendings using (message_id)"
    ) == [(2, 2, 1)]
    assert rows(made, "select flag from told") == [(0,)]


async def test_a_missing_receipt_is_flagged_once_on_each_channel(way: Any, bus: Bus) -> None:
    made, far_end = way

    def not_reached() -> float:
        return REGISTRY.get_sample_value("tandem_dispatch_not_reached_total", {"leg": "warning"}) or 0

    before = not_reached()
    async with running(made) as leg, leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        warning_id, _ = await far_end.shown()
        await flagged(desk, dispatch_pb2.NO_RECEIPT)
        await far_end.arrived(warning_id)
        await flagged(desk, dispatch_pb2.REACHED)
        async with asyncio.timeout(WITHIN_S):  # a step is published shortly after the desk gets it
            while dispatch_pb2.REACHED not in await flags_of_steps(bus):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert not_reached() == before + 1
    assert await flags_of_steps(bus) == [dispatch_pb2.NO_RECEIPT, dispatch_pb2.REACHED]


async def flags_of_steps(bus: Bus) -> list[int]:
    """Returns the flags of the leg's steps on INCIDENTS, each distinct time once."""
    steps = await dispatch.stored_steps(bus, "warning", "incident-1", 1)
    moments = {(step.assignment.person_flag.flag, step.assignment.person_flag.at.ToNanoseconds()) for step in steps}
    return sorted(flag for flag, _ in moments if flag)


async def test_a_message_is_retried_until_the_gateway_accepts_it_and_each_attempt_is_signed(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    gateway.answers = [500, 429, 204]
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made):
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        message = await gateway.message(3)
        await until(made, "select 1 from sendings where outcome = 'handed over' and tries = 3")
    assert message["to"] == HANDLE and message["type"] == "tandem.warning.v1" and message["silent"]
    assert len({headers["Tandem-Id"] for headers, _ in gateway.requests}) == 1
    assert all(headers[SIGNATURE_HEADER].startswith("v1=") for headers, _ in gateway.requests)
    # The handle is in no file of the leg.
    held = b"".join(path.read_bytes() for path in (tmp_path / "leg").rglob("*") if path.is_file())
    assert HANDLE.encode() not in held


async def test_a_hanging_gateway_delays_no_other_channel(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LANE_CONCURRENCY", 2)
    hanging, other = Gateway("hanging"), Gateway("other")
    hanging.hangs.clear()
    made = settings(nats, tmp_path / "leg", hanging, other)
    await put_case(bus, made, "app-1")
    await publish(bus, *(ring(number, incident=f"incident-{number}") for number in range(1, 7)))
    async with hanging.serving(), other.serving(), running(made):
        await other.message(6)
        await until(
            made, "select 1 from sendings where way = 'device/app-1' and outcome = 'handed over' limit 1 offset 5"
        )
        assert len(hanging.requests) == 2
        hanging.hangs.set()
        await hanging.message(6)


# ── the police ───────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def three_legs(
    nats: TestServer, bus: Bus, folder: Path, gateway: Gateway
) -> AsyncIterator[tuple[DispatchSettings, Desk]]:
    """Runs all legs, and yields the settings of the warning leg and the police desk."""
    made = settings(nats, folder / "warning", gateway)
    await put_case(bus, made)
    police, probation = (dispatch.settings(leg, nats, folder / leg) for leg in ("police", "probation"))
    async with gateway.serving(), running(police) as leg, running(probation), running(made):
        await until(made, "select 1 from contacts")
        yield made, leg.desk


async def test_a_missing_receipt_is_flagged_to_the_police_and_not_to_probation(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    async with three_legs(nats, bus, tmp_path, gateway) as (_, police), police.subscription() as desk:
        await publish(bus, ring(1))
        warning_id, _ = await gateway.shown()
        assignment = await flagged(desk, dispatch_pb2.NO_RECEIPT)
        assert (assignment.subject_id, assignment.state, assignment.demand) == (
            "p1",
            dispatch_pb2.NOTIFIED,
            geometry_pb2.NOTIFY,
        )
        await gateway.arrived(warning_id)
        await flagged(desk, dispatch_pb2.REACHED)
        # The probation leg reads the same stream, but stores none of the flags.
        seen: dict[int, dispatch_pb2.Assignment] = {}
        async with asyncio.timeout(WITHIN_S):
            while seen.get(alert_pb2.WARNING, dispatch_pb2.Assignment()).state != dispatch_pb2.ACKNOWLEDGED:
                with closing(sqlite3.connect(tmp_path / "probation" / "dispatch-probation.sqlite3")) as database:
                    for (payload,) in database.execute("select payload from peer_assignments"):
                        peer = dispatch_pb2.Assignment.FromString(payload)
                        seen[peer.leg] = peer
                await asyncio.sleep(0.05)
        assert alert_pb2.POLICE in seen and not any(assignment.HasField("person_flag") for assignment in seen.values())
    with closing(sqlite3.connect(tmp_path / "police" / "dispatch-police.sqlite3")) as database:
        kinds = [kind for (kind,) in database.execute("select kind from events order by id")]
    assert kinds == ["AlertFolded", "Notified", "Flagged", "Flagged"]


async def test_every_choice_looks_the_same_and_the_duress_choice_alarms_the_police(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    async with three_legs(nats, bus, tmp_path, gateway) as (made, police), police.subscription() as desk:
        await publish(bus, ring(1, 100.0, geometry_pb2.RESPOND))
        offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
        await police.acknowledge(offered.assignment_id)
        url = (await gateway.message())["answer_url"]
        before = await answer(url, "GET")
        assert before[0] == 200 and before[2].count("<button") == 3
        assert rows(made, "select acknowledged_ms from messages") == [(None,)], "a preview answers nothing"
        ordinary = [str(choice) for choice in (1, 2, 3) if choice != DURESS_CHOICE]
        first = await answer(url, choice=ordinary[0])
        assert first[0] == 200
        await until(made, "select 1 from messages where acknowledged_ms is not null")
        assert (await police.list()).incidents[0].assignments[0].state == dispatch_pb2.ACKNOWLEDGED
        assert await answer(url, choice=ordinary[1]) == first
        assert rows(made, "select duress from told") == [(0,)]
        assert await answer(url, choice=str(DURESS_CHOICE)) == first
        assert await answer(url, choice=str(DURESS_CHOICE)) == first == await answer(url, choice=ordinary[0])
        assert await answer(url, "GET") == before
        assignment = await flagged(desk, dispatch_pb2.DURESS)
        assert assignment.state == dispatch_pb2.ACKNOWLEDGED, "a unit is on its way"
        # The departure of the wearer's tag ends the demand of the alerts, but not the duress.
        await publish(bus, ring(2, 100.0, geometry_pb2.RECORD, ends=True))
        async with asyncio.timeout(WITHIN_S):
            while dispatch_pb2.STOOD_DOWN not in {  # noqa: ASYNC110
                assignment.state for assignment in (await police.list()).incidents[0].assignments
            }:
                await asyncio.sleep(0.05)  # the warning leg's assignment
        (mine,) = [
            assignment
            for assignment in (await police.list()).incidents[0].assignments
            if assignment.leg == alert_pb2.POLICE
        ]
        assert mine.state == dispatch_pb2.ACKNOWLEDGED


async def test_duress_on_a_warning_without_a_police_assignment_is_offered_to_the_police(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    async with three_legs(nats, bus, tmp_path, gateway) as (_, police), police.subscription() as desk:
        await publish(bus, ring(1))
        url = (await gateway.message())["answer_url"]
        assert (await answer(url, choice=str(DURESS_CHOICE)))[0] == 200
        offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
        assert offered.subject_id == "p1" and offered.demand == geometry_pb2.RESPOND and offered.HasField("due_at")
        await flagged(desk, dispatch_pb2.DURESS)
        acknowledged = await police.acknowledge(offered.assignment_id)
        assert acknowledged.state == dispatch_pb2.ACKNOWLEDGED


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_forged_expired_and_invalid_answers_and_receipts_change_nothing(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "RECEIPT_WITHIN_MS", 60_000)
    gateway, other = Gateway(), Gateway("other")
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made):
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        message = await gateway.message()
        url, warning_id = message["answer_url"], message["warning_id"]
        base, token = url.rsplit("/", 1)
        links = AnswerLinks(open_key(made.link_key), made.link_url)
        late = links._links.write(Token("warning", warning_id, "", wall_us() // 1_000_000 - 1, warning_id))
        unknown = links.url("warning-0").rsplit("/", 1)[1]
        stolen = AnswerLinks(bytes(32), made.link_url).url(warning_id).rsplit("/", 1)[1]
        for bad, status in ((token[:-2] + "AA", 403), (stolen, 403), ("x.y", 403), (late, 410), (unknown, 404)):
            for method in ("GET", "POST"):
                assert (await answer(f"{base}/{bad}", method, choice="1"))[0] == status, bad
        for form in ({}, {"choice": "4"}, {"choice": "1", "event": "displayed"}, {"event": "panic"}):
            assert (await answer(url, **form))[0] == 400
        delivered = {"warning_id": warning_id, "status": "delivered"}
        for more in ({"key": bytes(32)}, {"ago_s": 400}, {"ago_s": -400}):
            assert await gateway.receipt(delivered, **more) == 403
        other.receipts_url = gateway.receipts_url
        for content, status in (
            ({"warning_id": warning_id}, 400),
            ([], 400),
            ({"warning_id": warning_id, "status": "acknowledged"}, 400),
            ({"warning_id": "warning-0", "status": "delivered"}, 404),
        ):
            assert await gateway.receipt(content) == status
        receipts = "select delivered_ms, displayed_ms, acknowledged_ms from messages"
        assert rows(made, receipts) == [(None, None, None)]
        assert (await answer(url, event="displayed"))[0] == 200
        await gateway.arrived(warning_id)
        first = rows(made, receipts)
        await gateway.arrived(warning_id)  # replayed
        assert (await answer(url, event="displayed"))[0] == 200
        assert rows(made, receipts) == first and None not in first[0][:2]


async def test_an_unreadable_contact_is_flagged_and_a_new_version_is_used(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    foreign = settings(nats, tmp_path / "foreign")
    await put_case(bus, foreign)  # sealed for the key of another leg
    async with gateway.serving(), running(made) as leg, leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        await flagged(desk, dispatch_pb2.NO_CONTACT)
        await put_case(bus, made, version=2)
        await until(made, "select 1 from contacts where version = 2")
        await publish(bus, ring(2, 100.0, geometry_pb2.RESPOND))
        warning_id, _ = await gateway.shown()
        await gateway.arrived(warning_id)
        await flagged(desk, dispatch_pb2.REACHED)


async def test_an_acknowledgement_by_a_grpc_gateway_counts_as_a_receipt(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    made = settings(nats, tmp_path / "leg")
    async with running(made) as leg, leg.desk.subscription() as desk:
        await publish(bus, ring(1), ring(2, incident="incident-2"))
        for _ in range(2):
            offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
            if offered.incident_id == "incident-1":
                await leg.desk.acknowledge(offered.assignment_id)
        other = await flagged(desk, dispatch_pb2.NO_CONTACT)
        assert other.incident_id == "incident-2"
        await leg.desk.acknowledge(other.assignment_id)
        assert (await flagged(desk, dispatch_pb2.REACHED)).incident_id == "incident-2"
    assert rows(made, "select flag from told where incident_id = 'incident-1'") == [(0,)]


async def test_an_acknowledgement_counts_although_the_wearer_leaves_before_the_receipt_is_due(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    made = settings(nats, tmp_path / "leg")
    async with running(made) as leg, leg.desk.subscription() as desk:
        await publish(bus, ring(1), ring(2, incident="incident-2"))
        for _ in range(2):
            offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
            if offered.incident_id == "incident-1":
                await leg.desk.acknowledge(offered.assignment_id)
        await publish(bus, ring(3, demand=geometry_pb2.RECORD, ends=True))
        await desk.next(dispatch_pb2.STOOD_DOWN)
        # The other warning, which nobody acknowledged, is flagged at the same time.
        assert (await flagged(desk, dispatch_pb2.NO_CONTACT)).incident_id == "incident-2"
        await until(made, "select 1 from messages where incident_id = 'incident-1' and receipt_due_ms is null")
    assert rows(made, "select flag from told where incident_id = 'incident-1'") == [(0,)]


# ── other parts down ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def records_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[registry.RegistryMesh]:
    """Runs a real registry. The parameter is whether it has the public key of the warning leg."""
    key = tmp_path / "warning" / "warning.key"
    sealing.open_private_keys(key)
    env = {"TANDEM_WARNING_PUBLIC_KEY": str(sealing.public_file(key))} if request.param else {}
    with registry.running_registry(tmp_path, 1, env=env) as mesh:
        yield mesh


@pytest.mark.parametrize("records_system", [True], indirect=True)
async def test_she_is_warned_although_the_registry_and_both_other_legs_are_down(
    records_system: registry.RegistryMesh, tmp_path: Path
) -> None:
    person = records.person()
    person.contact.handle, person.contact.language = HANDLE, contact_pb2.LANGUAGE_KOREAN
    gateway = Gateway()
    async with records_system.connected() as client:
        await client.put(person, records.wearer(), records.tag(), records.order())
        ((_, case),) = await client.cases()
        person.contact.handle, person.source_version = "010-1111-2222", 2
        await client.put(person)
        assert len(await client.cases()) == 2, "a new number is a new snapshot"
        records_system.service.kill()
        assert HANDLE.encode() not in records_system.held()
        assert len(case.persons[0].sealed_contact) > sealing.PADDED_TO
        made = settings(records_system.nats, tmp_path / "warning", gateway)
        async with gateway.serving(), running(made):
            await until(made, "select 1 from contacts")
            await publish(client.bus, ring(1, protected=("p-1",)))
            message = await gateway.message()
    assert message["to"] == "010-1111-2222" and message["text"].startswith("[알림] 1 km 이내.")


@pytest.mark.parametrize("records_system", [False], indirect=True)
async def test_a_registry_without_the_legs_key_refuses_a_contact(records_system: registry.RegistryMesh) -> None:
    person = records.person()
    person.contact.handle = HANDLE
    async with records_system.connected() as client:
        refusal = await client.refusal(person)
        assert refusal.code().name == "FAILED_PRECONDITION" and "contact" in (refusal.details() or "")
        assert await client.put(records.person()) == ["STORED"]


async def test_without_nats_known_messages_are_sent_and_the_flag_is_stored(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    gateway.answers = [503] * 5
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made) as leg, leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        await gateway.message()
        nats.kill()
        await gateway.message(6)
        await flagged(desk, dispatch_pb2.NO_RECEIPT)


async def test_a_restarted_leg_flags_overdue_receipts_once_and_sends_nothing_twice(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving():
        async with dispatch.process(made, **of_gateways(made)) as killed:
            async with dispatch.client(made):
                await until(made, "select 1 from contacts")
                await publish(bus, ring(1))
                await until(made, "select 1 from sendings where outcome = 'handed over'")
            killed.kill()
            await killed.wait()
        with closing(sqlite3.connect(made.warning_database)) as database:
            database.execute("update messages set receipt_due_ms = 1")  # its 30 s pass while nothing runs
            database.commit()
        for _ in range(2):
            async with running(made) as leg, leg.desk.subscription() as desk:
                await flagged(desk, dispatch_pb2.NO_RECEIPT)
                await asyncio.sleep(0.5)
    with closing(sqlite3.connect(tmp_path / "leg" / "dispatch-warning.sqlite3")) as database:
        assert database.execute("select count(*) from events where kind = 'Flagged'").fetchall() == [(1,)]
    assert len(gateway.requests) == 1


def of_gateways(made: DispatchSettings) -> dict[str, str]:
    """Returns the environment variables of the gateways and links for a process."""
    return {
        "TANDEM_WARNING_GATEWAYS": str(made.warning_gateways),
        "TANDEM_LINK_PORT": str(made.link_port),
        "TANDEM_LINK_URL": made.link_url,
    }


def test_gateways_without_a_receipt_endpoint_are_refused(nats: TestServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TANDEM_LINK_PORT"):
        settings(nats, tmp_path, Gateway(), link_port=None)


# ── repeats ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_simultaneous_alerts_the_nearest_ring_is_sent_first_and_her_home_later(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "READ_MS", 60_000)
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    home = ring(3)
    home.target_id = "home"
    panic = ring(4, 0.0, geometry_pb2.RESPOND)
    panic.kind = alert_pb2.PANIC
    await publish(bus, ring(1, 2000.0), ring(2), home, panic)
    async with gateway.serving(), running(made):
        texts = {(await gateway.shown(number))[1] for number in (1, 2)}
        await until(made, "select 1 from messages where of_place and state = 'waiting'")
    assert any("within 1 km." in text for text in texts) and any("there is a message" in text for text in texts)
    assert rows(made, "select state from messages order by sequence") == [
        ("replaced",),
        ("sending",),
        ("waiting",),
        ("sending",),
    ]
    # A replaced message was never sent, so no receipt is awaited.
    assert rows(made, "select receipt_due_ms from messages where state = 'replaced'") == [(None,)]


async def test_repeats_say_nearer_or_farther_by_the_distance_and_the_end_is_sent(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)

    async def publish_with_distance(message: alert_pb2.Alert, distance_m: float | None = None) -> None:
        await publish(bus, message)
        if distance_m is not None:
            measure = alert_pb2.Measure(alert_id=message.alert_id, distance_m=distance_m)
            await bus.publish_until_stored(flow.measure_subject(0, message.alert_id), measure.SerializeToString())

    def changed(sequence: int) -> alert_pb2.Alert:
        message = ring(sequence)
        message.kind = alert_pb2.DISTANCE_CHANGED
        return message

    async with gateway.serving(), running(made):
        await until(made, "select 1 from contacts")
        await publish_with_distance(ring(1), 950.0)
        await gateway.message(1)
        await publish_with_distance(changed(2), 450.0)
        assert "nearer, about 400 m." in (await gateway.shown(2))[1]
        await publish_with_distance(changed(3), 900.0)
        assert "farther away, within 1 km." in (await gateway.shown(3))[1]
        await publish_with_distance(changed(4))  # without its distance
        assert "the distance has changed, within 1 km." in (await gateway.shown(4))[1]
        cleared = ring(5, demand=geometry_pb2.RECORD, ends=True)
        await publish_with_distance(cleared)
        assert "the earlier notice has ended" in (await gateway.shown(5))[1]
        lost = alert_pb2.Alert(
            alert_id="lost",
            sequence=6,
            kind=alert_pb2.PROTECTED_DEVICE_LOST,
            demand=geometry_pb2.NOTIFY,
            order_id="order-1",
            target_id="p1",
        )
        await put_case(bus, made, "app-1", version=2)
        await until(made, "select 1 from contacts where version = 2")
        await publish_with_distance(lost)
        assert "your phone isn't reporting" in (await gateway.shown(6))[1]


async def test_police_advice_goes_to_persons_notified_of_its_order_and_its_end_to_nobody(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)

    async def advise(number: int, advice: dispatch_pb2.Advice.ValueType, subject_id: str = "order-1/home") -> None:
        given = following_pb2.AdviceGiven(
            advice_id=f"step-{number}",
            incident_id="incident-1",
            order_ids=["order-1"],
            subject_id=subject_id,
            advice=advice,
            at=times.to_timestamp(MeshClock().now_ms()),
            number=number,
            sequence=5,
        )
        await bus.publish_until_stored(flow.advice_subject("incident-1"), given.SerializeToString())

    async with gateway.serving(), running(made):
        await publish(bus, ring(5, 100.0, geometry_pb2.RESPOND))
        await gateway.shown()
        await advise(3, dispatch_pb2.STAY_INSIDE)
        assert "stay inside" in (await gateway.shown(2))[1]
        await advise(4, dispatch_pb2.ADVICE_UNSPECIFIED)
        await advise(5, dispatch_pb2.LEAVE, "another-person")
        await advise(6, dispatch_pb2.STAY_INSIDE, "order-2/home")
        await until(made, "select 1 from positions where stream = 'ADVICE' and sequence >= 4")
    assert [notice for (notice,) in rows(made, "select notice from messages order by made_ms")] == [
        "APPROACH",
        "STAY_INSIDE",
    ]
