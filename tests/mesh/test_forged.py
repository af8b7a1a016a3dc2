"""No user can publish in another's name: the server refuses it, and messages that disagree with their subject have no effect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from services.common.errors import Unavailable
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from tandem.common.v1 import alert_pb2, command_pb2, ledger_pb2, log_pb2
from tests.support.ingest import ingest
from tests.support.ingest.ingest import IngestMesh
from tests.support.registry import records
from tests.support.registry.registry import WITHIN_S, RegistryMesh, running_registry
from tests.support.stream_readers.of_registry import step_message

POLICE, PROBATION = "spiffe://npa/desk/seoul", "spiffe://moj/desk/seoul"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryMesh]:
    """A registry that the tests of this module share. Each test discloses under its own ids."""
    with running_registry(tmp_path_factory.mktemp("registry"), 1) as running:
        asyncio.run(put_records(running))
        yield running


async def put_records(registry: RegistryMesh) -> None:
    """Puts the wearer, the person and the order that the disclosures name."""
    async with registry.connected() as client:
        await client.put(*records.unlinked())


def disclosure(disclosure_id: str, who: str = POLICE, **changes: Any) -> ledger_pb2.Disclosure:
    content: dict[str, Any] = {
        "at_ms": 1_700_000_000_000,
        "legal_basis": "TAG_16_2",
        "purpose": "ENFORCEMENT",
        "reference": "o-1",
        "record_kind": "WEARER",
        "record_id": "w-1",
        "order_id": "o-1",
        "recipient": who,
    }
    return ledger_pb2.Disclosure(disclosure_id=disclosure_id, who=who, **content | changes)


def chained(registry: RegistryMesh) -> set[str]:
    """Ids of the disclosures in the ledger."""
    return {row[0] for row in registry.query("select disclosure_id from ledger")}


async def until_chained(registry: RegistryMesh, disclosure_id: str) -> None:
    """Returns once the ledger has the disclosure."""
    async with asyncio.timeout(WITHIN_S):
        while disclosure_id not in chained(registry):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def dead_letter_reason(bus: Bus, sequence: int) -> str:
    """Reason of the registry's dead letter for a message of DISCLOSURES. Waits for it."""
    async with asyncio.timeout(WITHIN_S):
        async for messages in pull.read(bus, flow.DEAD_LETTERS.name, 1):
            for message in messages:
                dead_letter = alert_pb2.DeadLetter.FromString(message.data)
                if (dead_letter.stream, dead_letter.sequence) == (flow.DISCLOSURES.name, sequence):
                    return dead_letter.reason
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("user", ["dispatch-police", "dispatch-probation", "dispatch-warning", "explain", "evidence"])
async def test_no_user_can_disclose_under_anothers_subject(registry: RegistryMesh, user: str) -> None:
    forged = disclosure(f"forged-by-{user}")
    async with registry.connected() as client:
        async with buses.connect(registry.nats.url_as(user), user) as bus:
            with pytest.raises(Unavailable):
                await bus.publish(f"disclosure.geofence.{forged.disclosure_id}", forged.SerializeToString())
        # A later disclosure is in the ledger, so the forged one would be there too.
        valid = disclosure(f"valid-after-{user}")
        await client.bus.publish(f"disclosure.geofence.{valid.disclosure_id}", valid.SerializeToString())
        await until_chained(registry, valid.disclosure_id)
        assert forged.disclosure_id not in chained(registry)


NOTICE = {
    "who": "spiffe://moj/desk/tracking-centre",
    "recipient": "spiffe://tandem/protected-person/p-1",
    "legal_basis": "TAG_15_2",
    "purpose": "VICTIM_CONTACT",
}
FORGED = {
    "a notice without a ground": ("dispatch-warning", disclosure("f-6", **NOTICE | {"legal_basis": ""}), "legal_basis"),
    "a notice under another article": (
        "dispatch-warning",
        disclosure("f-7", **NOTICE | {"legal_basis": "TAG_16_2"}),
        "legal_basis",
    ),
    "a notice without an incident": ("dispatch-warning", disclosure("f-8", **NOTICE, reference=""), "reference"),
    "a notice by the police": ("dispatch-warning", disclosure("f-9", **NOTICE | {"who": POLICE}), "who"),
    "a notice to a desk": ("dispatch-warning", disclosure("f-10", **NOTICE | {"recipient": PROBATION}), "recipient"),
    "a notice for enforcement": (
        "dispatch-warning",
        disclosure("f-11", **NOTICE | {"purpose": "ENFORCEMENT"}),
        "purpose",
    ),
    "a share under the article of a notice": (
        "dispatch-police",
        disclosure("f-12", legal_basis="TAG_31_8_2_5"),
        "legal_basis",
    ),
    "of the other agency": ("dispatch-police", disclosure("f-1", PROBATION), "who"),
    "to a role that explain does not serve": ("explain", disclosure("f-2", POLICE), "who"),
    "to another recipient": ("geofence", disclosure("f-3", recipient=PROBATION), "recipient"),
    "under another id": ("geofence", disclosure("f-4"), "disclosure_id"),
    "by a user that discloses nothing": ("ingest", disclosure("f-5"), "subject"),
}


@pytest.mark.parametrize("forgery", FORGED)
async def test_a_disclosure_that_disagrees_with_its_publisher_becomes_a_dead_letter(
    registry: RegistryMesh, forgery: str
) -> None:
    by, forged, field = FORGED[forgery]
    subject_id = "another-id" if field == "disclosure_id" else forged.disclosure_id
    async with registry.connected() as client:
        ack = await client.bus.publish(f"disclosure.{by}.{subject_id}", forged.SerializeToString())
        assert (await dead_letter_reason(client.bus, ack.seq)).startswith(f"{field}: ")
        valid = disclosure(f"valid-after-{forged.disclosure_id}")
        await client.bus.publish(f"disclosure.dispatch-police.{valid.disclosure_id}", valid.SerializeToString())
        await until_chained(registry, valid.disclosure_id)
        assert forged.disclosure_id not in chained(registry)


MADE_UP = {
    "a wearer": {"record_id": "w-nobody"},
    "a protected person": {
        "record_kind": "PROTECTED_PERSON",
        "record_id": "p-nobody",
        "legal_basis": "TAG_DECREE_23_10",
    },
    "an order": {"order_id": "o-nobody"},
    "an incident": {"reference": "incident-nobody"},
}


@pytest.mark.parametrize("what", MADE_UP)
async def test_a_leg_writes_no_row_of_the_ledger_about_what_it_made_up(registry: RegistryMesh, what: str) -> None:
    made_up = disclosure(f"made-up-{what.split()[-1]}", **MADE_UP[what])
    async with registry.connected():
        async with buses.connect(registry.nats.url_as("dispatch-police"), "dispatch-police") as bus:
            # Its own steps make no incident known: alerts do.
            await bus.publish(*step_message("police", "incident-nobody"))
            for message in (made_up, disclosure(f"valid-after-{made_up.disclosure_id}")):
                subject = flow.disclosure_subject("dispatch-police", message.disclosure_id)
                await bus.publish(subject, message.SerializeToString())
        await until_chained(registry, f"valid-after-{made_up.disclosure_id}")
        held = {row[0] for row in registry.query("select disclosure_id from held_disclosures")}
        assert made_up.disclosure_id in held and made_up.disclosure_id not in chained(registry)


async def test_the_warning_leg_can_give_only_notices(mesh: IngestMesh) -> None:
    async with mesh.connected() as client:
        await client.route("forged-tag", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE)
        quiet = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=3600))
        notice = command_pb2.Instruction(show_notice=command_pb2.ShowNotice(warning_id="w", text="t", language="en"))
        now_ms = ingest.now_ms()
        times: dict[str, Any] = {"issued_at_ms": now_ms, "expires_at_ms": now_ms + 600_000}

        def command(command_id: str, instruction: command_pb2.Instruction, by: str = "dispatch-warning") -> bytes:
            return command_pb2.Command(
                command_id=command_id, device_id="forged-tag", instruction=instruction, issued_by=by, **times
            ).SerializeToString()

        async with buses.connect(mesh.nats.url_as("dispatch-warning"), "dispatch-warning") as bus:
            for subject in ("command.ingest.silence-her", "command.silence-her"):
                with pytest.raises(Unavailable):
                    await bus.publish(subject, command("silence-her", quiet))
            mine = "command.dispatch-warning"
            await bus.publish(f"{mine}.notice-quiet", command("notice-quiet", quiet))
            await bus.publish(f"{mine}.notice-as-a-desk", command("notice-as-a-desk", notice, POLICE))
            await bus.publish(f"{mine}.not-her-id", command("not-her-id", notice))
            await bus.publish(f"{mine}.notice-other", command("notice-another", notice))
            await bus.publish(f"{mine}.notice-valid", command("notice-valid", notice))
        given: set[str] = set()
        async with asyncio.timeout(WITHIN_S):
            for n in range(1, 1000):
                answers = await client.send(ingest.request(n, ingest.position("forged-tag", f"forged-{n}")))
                given |= {command.command_id for answer in answers for command in answer.commands}
                if "notice-valid" in given:
                    break
                await asyncio.sleep(0.05)
        assert given == {"notice-valid"}


@pytest.mark.parametrize("by", ["geofence", "dispatch-police", "registry"])
async def test_no_user_can_publish_anothers_dead_letters(registry: RegistryMesh, by: str) -> None:
    reader = {"geofence": "fold", "dispatch-police": "police-alerts", "registry": "registry-disclosures"}[by]
    subjects = [f"dead_letter.{by}.{reader}.LOG_0.77", f"dead_letter.{reader}.LOG_0.77"]
    async with buses.connect(registry.nats.url_as("dispatch-warning"), "dispatch-warning") as bus:
        for subject in subjects:
            with pytest.raises(Unavailable):
                await bus.publish(subject, b"occupied")
