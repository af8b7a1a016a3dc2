"""Notes of desks over a real nats-server, real gRPC and real SQLite: both desks read them, but for those that a desk keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.dispatch.v1 import notes_pb2
from tandem.dispatch.v1.dispatch_pb2 import OFFERED
from tandem.dispatch.v1.notes_pb2_grpc import NoteServiceStub
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import DESKS, PATIENCE_S, SECRET, alert, publish, running, settings
from tests.support.dispatch.leg_state import refused

REVIEWER = "spiffe://tandem/reviewer/one"


class Noting(NamedTuple):
    """A running leg whose desk has the offer of `incident-1`."""

    leg: str
    stub: NoteServiceStub

    async def add(self, key: str, who: str = "", **fields: object) -> notes_pb2.IncidentNote:
        """Adds a note, as the leg's desk unless somebody else is named."""
        whole = {"incident_id": "incident-1", "note_key": key, "kind": notes_pb2.NOTE, "text": "she is safe"} | fields
        request = notes_pb2.AddNoteRequest(**whole)  # type: ignore[arg-type]
        metadata = server.bearer(who or DESKS[self.leg], SECRET)
        note: notes_pb2.IncidentNote = (await self.stub.AddNote(request, metadata=metadata)).note
        return note

    async def listed(self, who: str = "", incident_id: str = "incident-1") -> list[notes_pb2.IncidentNote]:
        """Lists the notes of an incident."""
        request = notes_pb2.ListNotesRequest(incident_id=incident_id)
        return list((await self.stub.ListNotes(request, metadata=server.bearer(who or DESKS[self.leg], SECRET))).notes)

    async def until_listed(self, *texts: str) -> list[notes_pb2.IncidentNote]:
        """The leg's notes, once they have these texts."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                notes = await self.listed()
                if [note.text for note in notes] == list(texts):
                    return notes
                await asyncio.sleep(0.05)


@pytest.fixture
async def desks(nats: TestServer, bus: Bus, tmp_path: Path) -> AsyncIterator[dict[str, Noting]]:
    """Runs both legs with a desk until each has its offer."""
    async with AsyncExitStack() as stack:
        noting = {}
        await publish(bus, alert(5))
        for leg in ("probation", "police"):
            configured = settings(leg, nats, tmp_path)
            running_leg = await stack.enter_async_context(running(configured))
            async with running_leg.desk.subscription() as steps:
                await steps.next(OFFERED)
            channel = await stack.enter_async_context(server.channel(f"127.0.0.1:{configured.port}"))
            noting[leg] = Noting(leg, NoteServiceStub(channel))
        yield noting


async def test_both_desks_read_a_note_once_but_not_one_that_is_kept(desks: dict[str, Noting]) -> None:
    police, probation = desks["police"], desks["probation"]
    first = await police.add(
        "key-1", text="<b>통화</b> 완료", kind=notes_pb2.CALLED_UNIT, result=notes_pb2.NOTED_SPOKEN
    )
    assert (first.by, first.leg, first.kept) == (DESKS["police"], 2, False)
    assert await police.add("key-1", text="sent twice") == first
    await police.add("key-2", text="for us alone", kept=True)
    await police.add("key-3", text="and for both")
    shown = await probation.until_listed("<b>통화</b> 완료", "and for both")
    assert shown[0] == first
    await probation.add("key-1", text="seen")
    own = await police.until_listed("<b>통화</b> 완료", "for us alone", "and for both", "seen")
    assert [note.kept for note in own] == [False, True, False, False]
    assert await police.listed(REVIEWER) == own


async def test_bad_notes_are_refused_and_leave_nothing(desks: dict[str, Noting]) -> None:
    police = desks["police"]
    await refused(police.add("k", text=""), grpc.StatusCode.INVALID_ARGUMENT, "text")
    await refused(police.add("", text="x"), grpc.StatusCode.INVALID_ARGUMENT, "note_key")
    await refused(police.add("k", kind=notes_pb2.CALLED_WEARER), grpc.StatusCode.INVALID_ARGUMENT, "result")
    await refused(police.add("k", incident_id="incident-9"), grpc.StatusCode.NOT_FOUND)
    await refused(police.listed(incident_id="incident-9"), grpc.StatusCode.NOT_FOUND)
    await refused(police.add("k", DESKS["probation"]), grpc.StatusCode.PERMISSION_DENIED)
    await refused(police.listed(DESKS["probation"]), grpc.StatusCode.PERMISSION_DENIED)
    await refused(police.add("k", REVIEWER), grpc.StatusCode.PERMISSION_DENIED)
    assert await police.listed() == []
