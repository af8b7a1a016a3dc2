"""Commands go from a desk to the device, over the connection on which it was last heard, until a receipt or their expiry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common import ids
from services.common.messaging import flow
from services.common.rpc import server
from tandem.common.v1 import command_pb2, first_contact_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.common.nats import running_server
from tests.support.ingest.ingest import (
    SECRET,
    VENDOR,
    WITHIN_S,
    Client,
    IngestMesh,
    Reports,
    create_streams,
    now_ms,
    position,
    request,
    running_ingest,
)

MOJ_DESK, NPA_DESK = "spiffe://moj/desk/test", "spiffe://npa/desk/test"
EVERY_15_S = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=15))
VIBRATE = command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=3))


class Desk:
    """A desk that sends commands to devices."""

    def __init__(self, mesh: IngestMesh, channel: grpc.aio.Channel) -> None:
        self._stub: Any = ingest_pb2_grpc.CommandServiceStub(channel)
        self.mesh = mesh

    async def command(self, *arguments: Any, **more: Any) -> ingest_pb2.SendCommandResponse:
        """Sends a command like `command_now`, but retries until ingest knows the device's route."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    return await self.command_now(*arguments, **more)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                await asyncio.sleep(0.02)

    async def command_now(
        self,
        device_id: str,
        command_id: str,
        instruction: command_pb2.Instruction = EVERY_15_S,
        valid_for_s: int = 600,
        who: str = MOJ_DESK,
        reference: str = "",
        subject_id: str = "",
    ) -> ingest_pb2.SendCommandResponse:
        answer: ingest_pb2.SendCommandResponse = await self._stub.SendCommand(
            ingest_pb2.SendCommandRequest(
                command_id=command_id,
                device_id=device_id,
                instruction=instruction,
                valid_for_s=valid_for_s,
                reference=reference,
                subject_id=subject_id,
            ),
            metadata=server.bearer(who, SECRET),
            timeout=WITHIN_S,
        )
        return answer

    async def listed(self, device_id: str, who: str) -> list[ingest_pb2.CommandStatus]:
        answer = await self._stub.ListCommands(
            ingest_pb2.ListCommandsRequest(device_id=device_id), metadata=server.bearer(who, SECRET), timeout=WITHIN_S
        )
        return list(answer.commands)

    async def state(self, device_id: str, command_id: str, who: str = MOJ_DESK) -> tuple[str, str]:
        listed = await self.listed(device_id, who)
        (status,) = [status for status in listed if status.command.command_id == command_id]
        return command_pb2.CommandState.Name(status.state).removeprefix("COMMAND_STATE_"), status.reason

    async def comes_to(self, state: str, device_id: str, command_id: str) -> str:
        """Waits until a command is in a state and returns the reason."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                now, reason = await self.state(device_id, command_id)
                if now == state:
                    return reason
                await asyncio.sleep(0.05)


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


@pytest.fixture
async def desk(mesh: IngestMesh, client: Client) -> AsyncIterator[Desk]:
    async with server.channel(mesh.address) as channel:
        yield Desk(mesh, channel)


async def report(call: Reports, *device_ids: str) -> None:
    """Sends a report of each device, and reads the answer."""
    await call.write(
        request(7, *(position(device_id, f"r-{asyncio.get_running_loop().time()}") for device_id in device_ids))
    )
    answer: Any = await call.read()
    assert answer.batches == 1 and set(answer.outcomes) == {ingest_pb2.ACCEPTED}


def receipt(command_id: str, device_id: str, refused_because: str = "") -> ingest_pb2.ReportRequest:
    command_receipt = ingest_pb2.CommandReceipt(
        command_id=command_id, device_id=device_id, refused_because=refused_because
    )
    return ingest_pb2.ReportRequest(batch=99, receipts=[command_receipt])


async def status_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_command_goes_down_the_stream_until_its_receipt(client: Client, desk: Desk) -> None:
    await client.route("pursued")
    call = client.open()
    async with asyncio.timeout(WITHIN_S):
        await report(call, "pursued")
        await desk.command("pursued", "c-1", reference="incident-1")
        received: Any = await call.read()
        (command,) = received.commands
        assert (received.batches, list(received.outcomes)) == (0, [])
        assert (command.command_id, command.device_id) == ("c-1", "pursued")
        every = command.instruction.report_every
        assert every.interval_s == 15 and 86_300 < every.for_s <= 86_400, "an open end is the rest of a day"
        await desk.comes_to("SENT", "pursued", "c-1")
        await call.write(receipt("c-1", "pursued"))
        answer: Any = await call.read()
        assert (answer.batch, list(answer.outcomes)) == (99, [])
        await desk.comes_to("RECEIVED", "pursued", "c-1")
        await call.done_writing()


async def test_a_command_waits_for_the_device_and_is_resent_on_a_new_stream(client: Client, desk: Desk) -> None:
    await client.route("away")
    await desk.command("away", "c-2", VIBRATE)
    assert await desk.state("away", "c-2") == ("WAITING", "")
    for _ in range(2):  # no receipt on the first
        call = client.open()
        async with asyncio.timeout(WITHIN_S):
            await call.write(request(1, position("away", f"away-{id(call)}")))
            received: list[Any] = [await call.read(), await call.read()]
            assert [command.command_id for response in received for command in response.commands] == ["c-2"]
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
    async with asyncio.timeout(WITHIN_S):
        await desk.comes_to("SENT", "away", "c-2")


async def test_a_refused_command_says_why(client: Client, desk: Desk) -> None:
    await client.route("stubborn")
    await desk.command("stubborn", "c-3", VIBRATE)
    await client.send(request(1, position("stubborn", "s-1")), receipt("c-3", "stubborn", "has no motor"))
    assert await desk.comes_to("REFUSED", "stubborn", "c-3") == "has no motor"


async def test_a_unary_batch_is_answered_with_the_commands(client: Client, desk: Desk) -> None:
    await client.route("unary")
    await desk.command("unary", "c-4")
    answer = await client.stub.ReportBatch(
        ingest_pb2.ReportBatchRequest(positions=[position("unary", "u-1")]), metadata=server.bearer(VENDOR, SECRET)
    )
    assert [command.command_id for command in answer.commands] == ["c-4"]
    await client.stub.ReportBatch(
        ingest_pb2.ReportBatchRequest(receipts=[ingest_pb2.CommandReceipt(command_id="c-4", device_id="unary")]),
        metadata=server.bearer(VENDOR, SECRET),
    )
    await desk.comes_to("RECEIVED", "unary", "c-4")


async def test_a_command_ends_and_a_newer_interval_ends_an_older_one(client: Client, desk: Desk) -> None:
    await client.route("late")
    await desk.command("late", "c-5", VIBRATE, valid_for_s=1)
    await desk.command("late", "c-6", EVERY_15_S)
    await desk.command(
        "late", "c-7", command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=60)), who=MOJ_DESK
    )
    assert await desk.comes_to("EXPIRED", "late", "c-5") == ""
    assert await desk.comes_to("EXPIRED", "late", "c-6") == "superseded by a newer interval"
    answers = await client.send(request(1, position("late", "late-1")))
    assert [command.command_id for answer in answers for command in answer.commands] in ([], ["c-7"])
    assert (await desk.state("late", "c-7"))[0] in ("SENT", "WAITING")


async def test_the_same_command_twice_is_one_and_another_with_its_id_is_a_conflict(client: Client, desk: Desk) -> None:
    await client.route("twice")
    first = await desk.command("twice", "c-8", valid_for_s=100)
    assert await desk.command("twice", "c-8", valid_for_s=200) == first
    assert await status_of(desk.command("twice", "c-8", VIBRATE)) is grpc.StatusCode.ABORTED


async def test_each_desk_commands_its_own_side_alone(client: Client, desk: Desk) -> None:
    await client.route("a-tag")
    await client.route("an-app", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE)
    await desk.command("a-tag", "c-9", who=MOJ_DESK)
    await desk.command("an-app", "c-10", who=NPA_DESK)
    for device_id, who in (("a-tag", NPA_DESK), ("an-app", MOJ_DESK)):
        assert await status_of(desk.command_now(device_id, "c-11", who=who)) is grpc.StatusCode.NOT_FOUND
        assert await status_of(desk.state(device_id, "c-9", who=who)) is grpc.StatusCode.NOT_FOUND
    assert await status_of(desk.command("a-tag", "c-11", who=VENDOR)) is grpc.StatusCode.PERMISSION_DENIED
    assert await status_of(desk.command_now("no-such-device", "c-11")) is grpc.StatusCode.NOT_FOUND


async def test_the_text_and_the_answer_link_of_a_notice_go_only_to_its_device(client: Client, desk: Desk) -> None:
    await client.route("warned", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE)
    notice = command_pb2.ShowNotice(warning_id="warning-1", text="within 300 m of you", language="en", answer_url="u")
    given = command_pb2.Command(
        command_id="notice-1",
        device_id="warned",
        instruction=command_pb2.Instruction(show_notice=notice),
        issued_at_ms=now_ms(),
        expires_at_ms=now_ms() + 600_000,
        issued_by="dispatch-warning",
    )
    await client.bus.publish(flow.command_subject("dispatch-warning", "notice-1"), given.SerializeToString())
    await desk.command("warned", "c-behind-the-notice", who=NPA_DESK)
    for who in (NPA_DESK, "spiffe://tandem/operator/test"):
        (shown,) = [status for status in await desk.listed("warned", who) if status.command.command_id == "notice-1"]
        kept = command_pb2.ShowNotice(warning_id="warning-1", language="en")
        assert shown.command.instruction == command_pb2.Instruction(show_notice=kept)
    answers = await client.send(request(1, position("warned", "warned-1")))
    (received,) = [command for answer in answers for command in answer.commands if command.command_id == "notice-1"]
    assert received.instruction.show_notice == notice


@pytest.mark.parametrize("made_by", ["notice", "command"])
async def test_no_desk_can_use_an_id_that_the_mesh_derives(client: Client, desk: Desk, made_by: str) -> None:
    await client.route("an-app", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE)
    guessed = ids.hash_id(made_by, "pursuit-1", "a-tag")
    assert await status_of(desk.command("an-app", guessed, who=NPA_DESK)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_all_devices_of_a_subject_are_commanded_together_and_once(client: Client, desk: Desk) -> None:
    await client.route("tag-a", "tag-b", subject_id="w-two")
    await client.route("app-of-w", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE, subject_id="w-two")
    often = command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=15, for_s=300))
    usual = command_pb2.Instruction(report_as_usual=command_pb2.ReportAsUsual())
    first = await desk.command("", "pursuit-1", often, subject_id="w-two")
    assert await desk.command("", "pursuit-1", often, subject_id="w-two") == first
    for device_id in ("tag-a", "tag-b"):
        assert await desk.state(device_id, ids.hash_id("command", "pursuit-1", device_id)) == ("WAITING", "")
    # `report_as_usual` supersedes an interval that the device hasn't received yet.
    await desk.command("", "pursuit-2", usual, subject_id="w-two")
    assert await desk.comes_to("EXPIRED", "tag-a", ids.hash_id("command", "pursuit-1", "tag-a"))
    assert await status_of(desk.command_now("", "c", subject_id="w-none")) is grpc.StatusCode.NOT_FOUND
    assert await status_of(desk.command("tag-a", "c", subject_id="w-two")) is grpc.StatusCode.INVALID_ARGUMENT
    await client.route("app-alone", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE, subject_id="p-alone")
    assert await status_of(desk.command_now("", "c", subject_id="p-alone")) is grpc.StatusCode.NOT_FOUND, (
        "the other agency's"
    )


BAD: dict[str, dict[str, Any]] = {
    "for two days": {
        "instruction": command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=5, for_s=172_800))
    },
    "no instruction": {"instruction": command_pb2.Instruction()},
    "every 0 s": {"instruction": command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=0))},
    "vibrate for an hour": {"instruction": command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=3600))},
    "valid for nothing": {"valid_for_s": 0},
    "valid for a week": {"valid_for_s": 604_800},
    "an id with a wildcard": {"command_id": "c.>"},
    "an id of a contact": {"command_id": "contact-1"},
    "a message to the wearer": {
        "instruction": command_pb2.Instruction(remind_wearer=first_contact_pb2.RemindWearer(text="t", vibrate_s=5))
    },
    "a reference with a space": {"reference": "incident 1"},
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_command_is_refused(client: Client, desk: Desk, what: str) -> None:
    await client.route("a-tag")
    arguments: dict[str, Any] = {"command_id": "c-bad"} | BAD[what]
    assert await status_of(desk.command("a-tag", **arguments)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_receipt_of_somebody_elses_device_changes_nothing(client: Client, desk: Desk) -> None:
    await client.route("anothers", vendor_id="another")
    await desk.command("anothers", "c-12")
    await client.send(receipt("c-12", "anothers"), receipt("no-such-command", "anothers"))
    assert await desk.state("anothers", "c-12") == ("WAITING", "")


async def test_a_claim_to_a_device_brings_none_of_its_commands(client: Client, desk: Desk) -> None:
    await client.route("claimed", vendor_id="another")
    await desk.command("claimed", "c-13")
    answers = await client.send(request(1, position("claimed", "claim")))
    assert not [command for answer in answers for command in answer.commands]
    assert await desk.state("claimed", "c-13") == ("WAITING", "")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[IngestMesh, IngestMesh]]:
    """Two ingest processes on one server."""
    with running_server(tmp_path / "nats") as nats:
        asyncio.run(create_streams(nats.url, 1))
        with running_ingest(nats, tmp_path / "a.log") as a, running_ingest(nats, tmp_path / "b.log") as b:
            yield a, b


async def test_commands_outlive_the_process_and_reach_over_another(pair: tuple[IngestMesh, IngestMesh]) -> None:
    a, b = pair
    async with a.connected() as client, server.channel(a.address) as channel:
        await client.route("roaming")
        await Desk(a, channel).command("roaming", "c-14")
    a.service.kill()
    async with b.connected() as client, server.channel(b.address) as channel:
        call = client.open()
        async with asyncio.timeout(WITHIN_S):
            await call.write(request(1, position("roaming", "roaming-1")))
            commands: list[str] = []
            while not commands:
                answer: Any = await call.read()
                commands = [command.command_id for command in answer.commands]
            assert commands == ["c-14"]
            await call.write(receipt("c-14", "roaming"))
            await Desk(b, channel).comes_to("RECEIVED", "roaming", "c-14")
            await call.done_writing()


async def test_a_command_is_not_sent_to_a_sender_that_lost_the_device(client: Client, desk: Desk) -> None:
    await client.route("rebound")
    call = client.open()
    async with asyncio.timeout(WITHIN_S):
        await report(call, "rebound")
        await client.route("rebound", vendor_id="another")
        accepted = True
        while accepted:  # until ingest knows the new route
            (answer,) = await client.send(request(1, position("rebound", "still?")))
            accepted = answer.outcomes[0] == ingest_pb2.ACCEPTED
        await desk.command("rebound", "c-15")
        await client.route("bystander")
        await report(call, "bystander")  # its answer must be the next response
        await call.done_writing()
    assert await desk.state("rebound", "c-15") == ("WAITING", "")


async def test_receipts_are_stored_before_they_are_answered_and_no_command_is_resent(
    pair: tuple[IngestMesh, IngestMesh],
) -> None:
    mesh, _ = pair
    ids = [f"many-{n}" for n in range(200)]
    async with mesh.connected() as client, server.channel(mesh.address) as channel:
        await client.route("many")
        for command_id in ids:
            await Desk(mesh, channel).command("many", command_id, VIBRATE)
        receipts = [ingest_pb2.CommandReceipt(command_id=command_id, device_id="many") for command_id in ids]
        await client.send(ingest_pb2.ReportRequest(batch=1, receipts=receipts))
        mesh.service.kill()
    mesh.service.start()
    async with mesh.connected() as client, server.channel(mesh.address) as channel:
        answers = await client.send(*(request(n, position("many", f"after-{n}")) for n in range(20)))
        assert not [command for answer in answers for command in answer.commands]
        states = {(await Desk(mesh, channel).state("many", command_id))[0] for command_id in ids[::20]}
        assert states == {"RECEIVED"}
