"""A warning leg's database with one protected person, whose messages are opened at the moments at which they are due."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.storage.db import Database, open_database
from services.dispatch.domain.enums import Advice, Demand
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.warning.channels import WarningBus
from services.dispatch.warning.domain import CalledSilently, Cleared, ReceiptKind, Threatened, ThreatKind
from services.dispatch.warning.opening import MessageOpener
from services.dispatch.warning.phones import EndedIncidents, OpenNotices, ShownNotices
from services.dispatch.warning.receipts import ReceiptStore
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import ContactBook, WarningStore
from services.dispatch.warning.tables import ContactRow, MessageRow, Sending, message_of, messages, sending_of, sendings
from services.dispatch.warning.translate import CaseContacts, ClosedAssignment, GivenAdvice, WarnableAlert

DEVICE = "app-1"


@dataclass(frozen=True, slots=True)
class StoppedClock(MeshClock):
    """A clock of the mesh that goes on when the test says so."""

    moments: list[int] | None = None

    def now_ms(self) -> int:
        """The moment that the test has set."""
        return (self.moments or [0])[-1]


def entered(
    sequence: int,
    ring_m: float = 100.0,
    demand: Demand = Demand.RESPOND,
    *,
    incident_id: str = "i1",
    kind: ThreatKind = ThreatKind.RING,
    order_id: str = "order-1",
    place_id: str = "",
    drill: bool = False,
) -> WarnableAlert:
    """An alert that a ring is entered, or another threat has begun."""
    place = (sequence, 0)
    key = f"{kind.value} {order_id} {place_id} {ring_m}"
    occurrence = Threatened(
        f"a{sequence}", place, 0, key, kind, demand, order_id, place_id, ring_m if kind is ThreatKind.RING else 0.0
    )
    return WarnableAlert(f"a{sequence}", incident_id, place, demand, occurrence, ("p1",), order_id, 0, drill, 0)


class InstructedPerson:
    """A protected person `p1` with a device, and the parts of the warning leg that instruct her."""

    def __init__(self, database: Database, clock: StoppedClock) -> None:
        self.database, self.clock = database, clock
        self.notices = OpenNotices(database, clock)
        self.store, self.receipts = WarningStore(database, self.notices.opened), ReceiptStore(database)
        self.ended_incidents = EndedIncidents(database, clock)
        contacts = ContactBook(self.store, ())
        self._opener = MessageOpener(self.store, clock, contacts, gateways=(), mesh=WarningBus())
        self._numbers = itertools.count(1)

    @property
    def now_ms(self) -> int:
        """The present moment, mesh time."""
        return self.clock.now_ms()

    def _position(self, stream: str) -> StreamPosition:
        return StreamPosition(stream, "log", next(self._numbers))

    async def has_orders(self, *begun_ms: int, device_ids: Sequence[str] = (DEVICE,)) -> None:
        """Stores the contacts of her cases: one order for each moment at which one began."""
        for number, from_ms in enumerate(begun_ms, 1):
            row = ContactRow(f"case-{number}", "p1", 1, b"", list(device_ids), None, f"order-{number}", from_ms)
            case = CaseContacts(f"case-{number}", next(self._numbers), (row,))
            await self.store.put_contacts([case], self.now_ms, self._position("LOG_0"))

    async def reads(self, *alerts: WarnableAlert, ago_ms: int = 0) -> None:
        """The leg reads alerts that were decided together."""
        at_ms = self.now_ms - ago_ms
        await self.store.accept([_at(alert, at_ms) for alert in alerts], self.now_ms, self._position("ALERTS"))

    def cleared(self, sequence: int, alert: WarnableAlert) -> WarnableAlert:
        """The alert that the threat of another one is over."""
        assert isinstance(alert.occurrence, Threatened)
        place = (sequence, 0)
        occurrence = Cleared(f"a{sequence}", place, alert.occurrence.key)
        return replace(alert, alert_id=f"a{sequence}", place=place, demand=Demand.RECORD, occurrence=occurrence)

    def ended(self, sequence: int, incident_id: str = "i1", *, drill: bool = False) -> WarnableAlert:
        """The alert that ends an incident."""
        alert = entered(sequence, incident_id=incident_id, drill=drill)
        occurrence = Cleared(f"a{sequence}", (sequence, 0), "end", ends_incident=True)
        return replace(alert, demand=Demand.RECORD, occurrence=occurrence)

    def called_silently(self, sequence: int, incident_id: str = "i1") -> WarnableAlert:
        """The alert that she has called for help in silence."""
        alert = entered(sequence, incident_id=incident_id)
        return replace(alert, occurrence=CalledSilently(f"a{sequence}", (sequence, 0), self.now_ms))

    async def is_advised(self, advice: Advice, sequence: int, subject_id: str = "p1", incident_id: str = "i1") -> None:
        """The leg reads advice of the police, or its withdrawal."""
        number = next(self._numbers)
        given = GivenAdvice(f"step-{number}", incident_id, subject_id, advice, number, (sequence, 0), self.now_ms)
        await self.store.accept_advice([given], self.now_ms, self._position("ADVICE"))

    async def police_close(self, subject_id: str = "p1", *, found_nobody: bool = False) -> None:
        """The leg reads that the police have closed an assignment."""
        closed = ClosedAssignment(f"step-{next(self._numbers)}", "i1", subject_id, self.now_ms, found_nobody)
        await self.store.accept_closings([closed], self.now_ms, self._position("INCIDENTS"))

    async def passes(self, pause_ms: int) -> None:
        """Lets time pass, in which messages are opened and repeated at the moments at which they are due."""
        assert self.clock.moments
        until_ms = self.now_ms + pause_ms
        while True:
            due = await self.store.due(self.now_ms)
            at_once = [message for message in due.messages if not message.ground]
            if at_once:
                await self._opener.open(at_once, due.contacts)
            elif due.repeats:
                await self._opener.repeat(due.repeats, due.contacts)
            else:
                next_ms = await self._next_ms()
                if next_ms is None or next_ms > until_ms:
                    break
                self.clock.moments.append(max(next_ms, self.now_ms))
        self.clock.moments.append(until_ms)

    def stands_still(self, pause_ms: int) -> None:
        """Lets time pass, in which the leg is down."""
        assert self.clock.moments
        self.clock.moments.append(self.now_ms + pause_ms)

    async def _next_ms(self) -> int | None:
        waits = sa.select(sa.func.min(messages.c.due_ms)).where(messages.c.state == "waiting", messages.c.ground == "")
        repeats = sa.select(sa.func.min(messages.c.repeat_ms))
        query = sa.select(waits.scalar_subquery(), repeats.scalar_subquery())
        [row] = await self.database.visit(lambda connection: connection.execute(query).all())
        return min((at_ms for at_ms in row if at_ms is not None), default=None)

    async def confirms(self, message: MessageRow, receipt: ReceiptKind = ReceiptKind.DELIVERED) -> None:
        """A receipt of a message arrives."""
        await self.receipts.put(message, receipt, self.now_ms)

    async def messages(self) -> list[MessageRow]:
        """All messages that she was told, in order."""
        query = sa.select(messages).where(messages.c.issued_ms.is_not(None)).order_by("issued_ms", "made_ms")
        rows = await self.database.visit(lambda connection: connection.execute(query).all())
        return [message_of(tuple(row)) for row in rows]

    async def kinds(self) -> list[str]:
        """The kinds of all messages that she was told, in order."""
        return [message.kind for message in await self.messages()]

    async def sendings(self) -> list[Sending]:
        """All sendings, in the order of their storing."""
        query = sa.select(sendings).order_by(sa.text("rowid"))
        rows = await self.database.visit(lambda connection: connection.execute(query).all())
        return [sending_of(tuple(row)) for row in rows]

    async def shown(self) -> ShownNotices:
        """What her app shows."""
        return await self.notices.of_device(DEVICE)


def _at(alert: WarnableAlert, at_ms: int) -> WarnableAlert:
    occurrence = alert.occurrence
    if isinstance(occurrence, Threatened):
        occurrence = replace(occurrence, decided_ms=at_ms)
    return replace(alert, occurrence=occurrence, decided_ms=at_ms)


@asynccontextmanager
async def instructed_person(folder: Path, *, now_ms: int = 1_796_113_860_000) -> AsyncIterator[InstructedPerson]:
    """A person with one order and one device."""
    async with open_database(folder / "warning.sqlite3", MIGRATIONS) as database:
        her = InstructedPerson(database, StoppedClock(moments=[now_ms]))
        await her.has_orders(now_ms - 86_400_000)
        yield her
