"""A protected person is warned although other parts of the mesh are down."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.privacy import secret_keys
from services.dispatch.settings import DispatchSettings
from services.dispatch.warning import domain
from tandem.common.v1 import command_pb2, contact_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support import torn
from tests.support.common.nats import TestServer
from tests.support.dispatch import dispatch
from tests.support.dispatch.dispatch import publish, running
from tests.support.dispatch.warned import flagged, until
from tests.support.dispatch.warning import (
    HANDLE,
    FakeDevice,
    Gateway,
    put_case,
    ring,
    settings,
)
from tests.support.full_stream import full
from tests.support.registry import records, registry


@pytest.fixture
def records_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[registry.RegistryMesh]:
    """Runs a real registry. The parameter is whether it has the public key of the warning leg."""
    key = tmp_path / "warning" / "warning.key"
    secret_keys.open_private_keys(key)
    env = {"TANDEM_WARNING_PUBLIC_KEY": str(secret_keys.public_file(key))} if request.param else {}
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
        assert len(case.persons[0].sealed_contact) > secret_keys.PADDED_TO
        made = settings(records_system.nats, tmp_path / "warning", gateway)
        async with gateway.serving(), running(made):
            await until(made, "select 1 from contacts")
            await publish(client.bus, ring(1, protected=("p-1",)))
            message = await gateway.message()
    assert message["to"] == "010-1111-2222" and message["text"].startswith(
        "[알림] 접근금지 결정의 상대방: 귀하로부터 1 km 이내."
    )


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


async def test_a_receipt_with_the_sequence_of_a_lost_step_of_another_service_counts(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    made = settings(nats, tmp_path / "leg")
    await put_case(bus, made, "app-1")
    device = FakeDevice(bus)
    async with running(made):
        await publish(bus, ring(1))
        warning_id, _ = await device.shown()
        step = command_pb2.CommandStep(
            command_id="of-another-service", device_id="tag-1", state=command_pb2.COMMAND_STATE_RECEIVED, at_ms=1
        )
        subject = flow.command_step_subject(step.command_id, "RECEIVED")
        await bus.publish_until_stored(subject, step.SerializeToString())
        lost = (await bus.bounds_of(flow.COMMANDS.name)).last
        nats.kill()
        torn.overwrite_tail(tmp_path / "nats", flow.COMMANDS.name, random.Random(1))
        nats.start()
        await device.arrived(warning_id)
        assert (await bus.bounds_of(flow.COMMANDS.name)).last == lost
        await until(made, "select 1 from messages where delivered_ms is not null")


async def test_of_commands_that_the_server_loses_the_newest_comes_back(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No receipt of an all-clear is awaited, so nobody would miss it. The warning before it says what is no longer so."""
    monkeypatch.setattr(domain, "READ_MS", 1)
    made = settings(nats, tmp_path / "leg")
    await put_case(bus, made, "app-1")
    nats.kill()
    torn.copy_of(tmp_path / "nats", flow.COMMANDS.name, tmp_path / "empty")
    nats.start()
    device = FakeDevice(bus)
    async with running(made):
        await publish(bus, ring(1))
        await device.shown()
        await publish(bus, ring(2, demand=geometry_pb2.RECORD, ends=True))
        all_clear = await device.shown(2)
        await until(
            made, "select 1 from messages natural join sendings where kind = 'OVER' and outcome = 'handed over'"
        )
        nats.kill()
        torn.put_back(tmp_path / "nats", flow.COMMANDS.name, tmp_path / "empty")
        nats.start()
        assert await device.shown() == all_clear
    assert (await bus.bounds_of(flow.COMMANDS.name)).last == 1


async def test_a_command_that_a_full_stream_refuses_is_retried(nats: TestServer, bus: Bus, tmp_path: Path) -> None:
    made = settings(nats, tmp_path / "leg")
    await put_case(bus, made, "app-1")
    async with running(made):
        async with full(bus, flow.COMMANDS.name):
            await publish(bus, ring(1))
            await until(made, "select 1 from sendings where tries >= 1")
        await FakeDevice(bus).shown()
        await until(made, "select 1 from sendings where outcome = 'handed over'")


def test_gateways_without_a_receipt_endpoint_are_refused(nats: TestServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TANDEM_LINK_PORT"):
        settings(nats, tmp_path, Gateway(), link_port=None)


async def test_a_disk_that_refuses_the_database_of_the_warnings_at_the_start_ends_no_leg(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    made.warning_database.mkdir()  # SQLite can't open a folder
    await put_case(bus, made)
    await publish(bus, ring(1))
    with capture_logs() as logs:
        async with gateway.serving(), running(made):
            async with asyncio.timeout(60):
                while not any(line["event"] == "database_awaited" for line in logs):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            made.warning_database.rmdir()
            assert (await gateway.message())["to"] == HANDLE
