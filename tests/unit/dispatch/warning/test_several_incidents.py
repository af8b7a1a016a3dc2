"""Warnings of a person in several incidents at once: no message says that all is over while one of them goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.storage.db import Database, open_database
from services.dispatch.domain.enums import Demand
from services.dispatch.leg.rows import StreamPosition
from services.dispatch.phones.ended import EndedIncidents
from services.dispatch.warning import wording
from services.dispatch.warning.channels import WarningBus
from services.dispatch.warning.contacts import ContactBook
from services.dispatch.warning.domain import READ_MS, Notice, Occurrence
from services.dispatch.warning.opening import MessageOpener
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import _WARNED_ELSEWHERE, WarningStore
from services.dispatch.warning.tables import ContactRow, MessageRow, message_of, messages
from services.dispatch.warning.translate import CaseContacts, WarnableAlert
from services.dispatch.warning.wording import Language

POSITION = StreamPosition("ALERTS", "log", 1)
OVER = wording.text(Notice.OVER, Demand.RECORD, Language.KOREAN)
ONE_OVER = wording.text(Notice.ONE_OVER, Demand.RECORD, Language.KOREAN)


class Leg:
    """The alerts and messages of a warning leg for one person with one device."""

    def __init__(self, database: Database) -> None:
        self.database, self._store, self._clock = database, WarningStore(database), MeshClock()
        self.now_ms = self._clock.now_ms()
        self._opener = MessageOpener(
            self._store, self._clock, ContactBook(self._store, ()), gateways=(), mesh=WarningBus()
        )
        self.ended = EndedIncidents(database, self._clock)

    async def knows_her(self) -> None:
        row = ContactRow("case-1", "p1", version=1, sealed=b"", device_ids=["app-1"], valid_until_ms=None)
        await self._store.put_contacts(
            [CaseContacts("case-1", 1, (row,))], self.now_ms, POSITION._replace(stream="LOG_0")
        )

    async def reads(self, *alerts: WarnableAlert) -> None:
        await self._store.accept(alerts, self.now_ms, POSITION)

    async def sends(self) -> list[MessageRow]:
        """Opens all messages that wait, and returns those with a text, in the order of their sequences."""
        due = await self._store.due(self.now_ms + 2 * READ_MS)
        await self._opener.open(due.messages, due.contacts)
        query = sa.select(messages).where(messages.c.text != "").order_by("sequence", "incident_id")
        rows = await self.database.visit(lambda connection: connection.execute(query).all())
        return [message_of(tuple(row)) for row in rows]

    async def last_text(self) -> str:
        return (await self.sends())[-1].text


@pytest.fixture
async def leg(tmp_path: Path) -> AsyncIterator[Leg]:
    async with open_database(tmp_path / "warning.sqlite3", MIGRATIONS) as database:
        leg = Leg(database)
        await leg.knows_her()
        yield leg


def alert(
    sequence: int, incident_id: str, demand: Demand, *, drill: bool = False, ring_m: float = 100.0
) -> WarnableAlert:
    """An alert that a ring is entered, or with the demand RECORD that its incident ends."""
    occurrence = Occurrence(
        alert_id=f"a{sequence}",
        incident_id=incident_id,
        place=(sequence, 0),
        notice=Notice.APPROACH,
        demand=demand,
        threat=f"ring {ring_m}",
        ends=demand is Demand.RECORD,
        ring_m=ring_m,
    )
    return WarnableAlert(occurrence, ("p1",), "o1", partition=0, drill=drill)


async def test_the_end_of_one_of_two_incidents_says_that_the_other_continues(leg: Leg) -> None:
    await leg.reads(alert(1, "i1", Demand.RESPOND), alert(2, "i2", Demand.RESPOND))
    await leg.sends()
    await leg.reads(alert(3, "i1", Demand.RECORD))
    assert await leg.last_text() == ONE_OVER
    await leg.reads(alert(4, "i2", Demand.RECORD))
    assert await leg.last_text() == OVER


async def test_an_incident_that_goes_on_under_a_new_tag_is_not_called_over(leg: Leg) -> None:
    await leg.reads(alert(1, "i1", Demand.RESPOND))
    await leg.sends()
    await leg.reads(alert(2, "i1", Demand.RECORD))  # the all-clear waits until she has read the warning
    await leg.reads(alert(3, "i2", Demand.RESPOND))
    assert [message.text for message in await leg.sends() if message.sequence == 2] == [ONE_OVER]


@pytest.mark.parametrize("drill", [False, True])
async def test_a_drill_and_a_live_incident_end_independently(leg: Leg, drill: bool) -> None:
    await leg.reads(alert(1, "i1", Demand.RESPOND, drill=drill), alert(2, "i2", Demand.RESPOND, drill=not drill))
    await leg.sends()
    await leg.reads(alert(3, "i1", Demand.RECORD, drill=drill))
    assert (await leg.last_text()).removeprefix("[훈련] ") == OVER


async def test_the_app_lists_an_incident_that_ended_while_another_one_goes_on(leg: Leg) -> None:
    await leg.reads(alert(1, "i1", Demand.RESPOND), alert(2, "i2", Demand.RESPOND))
    await leg.sends()
    await leg.reads(alert(3, "i1", Demand.RECORD))
    await leg.sends()
    assert [incident.incident_id for incident in await leg.ended.of_device("app-1")] == ["i1"]


async def test_other_incidents_are_found_by_their_index(leg: Leg) -> None:
    sql = str(_WARNED_ELSEWHERE._statement.compile(compile_kwargs={"literal_binds": False}))
    values = {"to": "p1", "in": "i1", "drill": False, "state_1": "replaced", "ground_1": "", "param_1": 1}
    plan = await leg.database.visit(lambda c: c.execute(sa.text(f"explain query plan {sql}"), values).all())
    assert any("INDEX told_open" in row.detail for row in plan), plan


async def test_a_ring_that_waits_is_not_replaced_by_a_wider_one(leg: Leg) -> None:
    """He is within 100 m of a place and of her, and then comes within 1 km of another place."""
    at_place = alert(1, "i1", Demand.RESPOND)
    near_her = alert(2, "i1", Demand.RESPOND)
    near_her = replace(near_her, occurrence=replace(near_her.occurrence, threat="her"))
    await leg.reads(at_place, near_her, alert(3, "i1", Demand.NOTIFY, ring_m=1000.0))
    sent = [(message.sequence, message.ring_m, message.demand) for message in await leg.sends()]
    assert sent == [(1, 100.0, Demand.RESPOND), (3, 100.0, Demand.RESPOND)]
