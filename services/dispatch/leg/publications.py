"""What a leg publishes: its steps on INCIDENTS and its advice on ADVICE by an outbox, and its disclosures on DISCLOSURES.

The outbox publishes each committed step until it is stored, in order within an incident. Publications are recorded afterwards, many at
a time, while the next steps are being published. A step whose record was lost is published once more under the same id. The stream
recognises it as a duplicate.

Disclosures are published before their answer is sent, kept for a day, and republished if DISCLOSURES loses them. The registry copies
each disclosure into the ledger within moments. A stream that went back may have lost a disclosure before that.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import sqlalchemy as sa

from services.common import clock
from services.common.errors import Unavailable
from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import Bus, PubAck
from services.common.messaging.lost_publications import Publication, SoleMessage
from services.common.observability import spans
from services.common.retrying import retried
from services.common.storage import rows, statements
from services.common.storage.rows import RowTarget
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import tables, translate
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import disclosures
from services.dispatch.leg.translate import NumberedStep
from services.dispatch.metrics import DispatchMetrics
from tandem.common.v1 import exercise_pb2, ledger_pb2
from tandem.dispatch.v1 import dispatch_pb2

PUBLISH_CONCURRENCY = 256
"""Incidents whose steps are published concurrently."""

Settle: TypeAlias = Callable[[], Awaitable[None]]
"""Returns once the streams are known to hold all published steps."""


class StoredAs(NamedTuple):
    """The stream message that a published step became."""

    stream: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Published:
    """Steps that were published, with the stream messages that they became and the latency of their offers."""

    steps: list[NumberedStep] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)
    """Latency of offers, milliseconds, by assignment id."""
    stored: dict[int, StoredAs] = field(default_factory=dict)
    """Stream messages by the sequence of the step."""


class StepOutbox:
    """Committed steps that INCIDENTS may not have yet. After a restart they are read from the store."""

    def __init__(self, leg: Leg, unpublished: Iterable[NumberedStep], metrics: DispatchMetrics) -> None:
        self._leg, self._metrics = leg, metrics
        self._waiting = deque(unpublished)
        self._held: dict[int, float] = {}
        """Arrival time, on the monotonic clock, of each step that is waiting, being published or not recorded yet."""
        self._hold(self._waiting)
        self._wake = asyncio.Event()
        self._publishing: dict[str, deque[NumberedStep]] = {}
        """Steps that follow the one that is being published, by incident."""
        self._published = Published()
        """Published steps that aren't recorded yet."""
        self._republished: set[int] = set()
        """Sequences of steps that were published before. The latency of their offers was measured then."""
        self._noteworthy = asyncio.Event()

    def add(self, steps: Iterable[NumberedStep], republished: bool = False) -> None:
        """Adds steps that were just committed, or if `republished`, steps that a stream has lost."""
        steps = tuple(step for step in steps if step.sequence not in self._held)
        if republished:
            self._republished.update(step.sequence for step in steps)
        self._hold(steps)
        self._waiting.extend(steps)
        self._wake.set()

    def age_s(self) -> float:
        """Age of the oldest step in the outbox, seconds."""
        return time.monotonic() - next(iter(self._held.values()), time.monotonic())

    def holds(self, sequence: int) -> bool:
        """Whether a step is waiting, being published or not recorded yet."""
        return sequence in self._held

    def _hold(self, steps: Iterable[NumberedStep]) -> None:
        now_s = time.monotonic()
        self._held.update((step.sequence, now_s) for step in steps)

    async def run(self, bus: Bus, settle: Settle) -> None:
        """Publishes committed steps until cancelled, each after `settle`. The steps of an incident follow each other, and no incident
        waits for another."""
        places = asyncio.Semaphore(PUBLISH_CONCURRENCY)
        async with asyncio.TaskGroup() as tasks:
            while True:
                while not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                incident_id = self._waiting[0].step.assignment.incident_id
                if incident_id not in self._publishing:
                    await places.acquire()
                    self._publishing[incident_id] = deque()
                    publishing = tasks.create_task(self._publish_in_order(bus, incident_id, settle))
                    publishing.add_done_callback(lambda _: places.release())
                self._publishing[incident_id].append(self._waiting.popleft())

    async def note(self, mark: Callable[[Published], Awaitable[None]]) -> None:
        """Records published steps with `mark` until cancelled."""
        while True:
            await self._noteworthy.wait()
            published, self._published = self._published, Published()
            self._noteworthy.clear()
            await mark(published)
            for step in published.steps:
                self._held.pop(step.sequence, None)
                self._republished.discard(step.sequence)

    async def _publish_in_order(self, bus: Bus, incident_id: str, settle: Settle) -> None:
        """Publishes the steps of an incident until none is left."""
        steps = self._publishing[incident_id]
        try:
            while steps:
                await settle()
                await self._publish_step(bus, steps.popleft())
        finally:
            del self._publishing[incident_id]

    async def _publish_step(self, bus: Bus, step: NumberedStep) -> None:
        if step.step.kept:
            ack = await self._publish_advice(bus, step.step)
        else:
            ack = await self._publish(bus, step.step)
            self._measure(step)
        if ack is not None:
            self._published.stored[step.sequence] = StoredAs(ack.stream, ack.seq)
        self._published.steps.append(step)
        self._noteworthy.set()

    async def _publish_advice(self, bus: Bus, step: dispatch_pb2.Step) -> PubAck | None:
        """Publishes the advice in a step that isn't published itself. Returns None if the step has no advice."""
        advice = translate.advice(step)
        if advice is None:
            return None
        subject = flow.advice_subject(step.assignment.incident_id)
        return await bus.publish_until_stored(subject, advice, msg_id=step.step_id)

    async def _publish(self, bus: Bus, step: dispatch_pb2.Step) -> PubAck | None:
        incident_id = step.assignment.incident_id
        context = spans.traceparent(incident_id, "step", step.assignment.assignment_id, step.number)
        return await bus.publish_until_stored(
            flow.incident_subject(self._leg, incident_id),
            translate.outward(step),
            msg_id=step.step_id,
            headers={spans.TRACEPARENT: context},
        )

    def _measure(self, step: NumberedStep) -> None:
        """Measures the latency of an offer, at the first publication of the step that made the offer."""
        assignment = step.step.assignment
        is_first = assignment.state == dispatch_pb2.OFFERED and step.step.number == assignment.offer_number
        if not is_first or step.sequence in self._republished or not assignment.HasField("cause"):
            return
        latency_ms = (clock.wall_us() - assignment.cause.received_wall_us) / 1000
        self._published.latency_ms[assignment.assignment_id] = latency_ms
        # A canary has no trace, so its exemplar would lead nowhere.
        is_traced = assignment.exercise != exercise_pb2.CANARY
        exemplar = {"trace_id": spans.trace_id_of(assignment.incident_id)} if is_traced else None
        self._metrics.offer_ms.labels(self._leg).observe(latency_ms, exemplar)


_PAGE = 500


def mark_published(connection: sa.Connection, published: Published, log_id: str) -> None:
    """Marks steps as published, and records their stream messages and the latency of their offers."""
    dialect = connection.dialect.name
    sequences = [step.sequence for step in published.steps]
    statements.execute(connection, _MARK_PUBLISHED[dialect], [_list(connection, sequences)])
    if published.stored:
        [(last,)] = statements.fetch(connection, _LAST_RECORDED)
        notes = [
            (step_sequence, last + offset, entry.stream, log_id, entry.sequence)
            for offset, (step_sequence, entry) in enumerate(published.stored.items(), 1)
        ]
        rows.write(connection, _NOTES, [notes])
    if published.latency_ms:
        ids, latencies_ms = list(published.latency_ms), list(published.latency_ms.values())
        if statements.is_postgresql(connection):
            statements.execute(connection, _MARK_LATENCY[dialect], (ids, latencies_ms))
        else:
            statements.execute_many(connection, _MARK_LATENCY[dialect], list(zip(latencies_ms, ids, strict=True)))


def _list(connection: sa.Connection, numbers: list[int]) -> object:
    return numbers if statements.is_postgresql(connection) else json.dumps(numbers)


_NOTES = (RowTarget(tables.published_steps, ("recorded", "stream", "log_id", "stream_sequence")),)
"""A later publication of a step replaces an earlier one."""
_MARK_PUBLISHED = {
    "postgresql": "UPDATE steps SET published = true WHERE sequence = ANY($1::BIGINT[])",
    "sqlite": "UPDATE steps SET published = 1 WHERE sequence IN (SELECT value FROM json_each(?1))",
}
_LAST_RECORDED = "SELECT coalesce(max(recorded), 0) FROM published_steps"
_MARK_LATENCY = {
    "postgresql": """
        UPDATE assignments SET report_to_published_ms = offers.ms
            FROM unnest($1::VARCHAR[], $2::DOUBLE PRECISION[]) AS offers (id, ms) WHERE assignment_id = offers.id
    """,
    "sqlite": "UPDATE assignments SET report_to_published_ms = ? WHERE assignment_id = ?",
}

_NOTES_C, _STEPS_C = tables.published_steps.c, tables.steps.c
_OF_STREAM = (
    sa.select(_NOTES_C.recorded, _NOTES_C.stream_sequence, _STEPS_C.step_id, _STEPS_C.payload)
    .select_from(tables.published_steps.join(tables.steps, _NOTES_C.step_sequence == _STEPS_C.sequence))
    .where(_NOTES_C.stream == sa.bindparam("stream"), _NOTES_C.log_id == sa.bindparam("log_id"))
)
_NEWEST_STEPS = (
    _OF_STREAM.where(_NOTES_C.recorded < sa.bindparam("before"))
    .order_by(_NOTES_C.recorded.desc())
    .limit(sa.bindparam("most"))
)
_HIGHEST_STEP = (
    _OF_STREAM.where(_NOTES_C.recorded <= sa.bindparam("up_to")).order_by(_NOTES_C.stream_sequence.desc()).limit(1)
)


class PublishedSteps:
    """A leg's records of its publications on one stream of one log; implements lost_publications.PublicationRecords."""

    def __init__(self, store: Store, leg: Leg, stream: str, *, log_id: str) -> None:
        self._store = store
        self._leg = leg
        self.stream = stream
        self._log_id = log_id

    async def newest(self, before: int, limit: int) -> list[Publication]:
        """The newest publications, as lost_publications.PublicationRecords.newest."""
        return await self._read(_NEWEST_STEPS, {"before": before, "most": limit})

    async def highest(self, up_to: int) -> Publication | None:
        """The publication with the greatest stream sequence, as lost_publications.PublicationRecords.highest."""
        publications = await self._read(_HIGHEST_STEP, {"up_to": up_to})
        return publications[0] if publications else None

    async def unpublish(self, lost: Sequence[Publication]) -> None:
        """Marks steps that the stream has lost as unpublished."""
        notes, steps = tables.published_steps, tables.steps
        positions = [publication.position for publication in lost]

        def work(connection: sa.Connection) -> None:
            for first in range(0, len(positions), _PAGE):
                mine = notes.c.recorded.in_(positions[first : first + _PAGE])
                which = sa.select(notes.c.step_sequence).where(mine)
                connection.execute(sa.update(steps).where(steps.c.sequence.in_(which)).values(published=False))
                connection.execute(sa.delete(notes).where(mine))

        await self._store.transaction(work)

    async def forget_before(self, stream_sequence: int) -> None:
        """Deletes records of messages that the stream no longer keeps, and records of other logs."""
        notes = tables.published_steps
        old = (notes.c.stream_sequence < stream_sequence) | (notes.c.log_id != self._log_id)
        delete = sa.delete(notes).where(notes.c.stream == self.stream, old)
        await self._store.transaction(lambda connection: connection.execute(delete))

    async def _read(self, query: sa.Select[int, int, str, bytes], values: Mapping[str, object]) -> list[Publication]:
        given = {"stream": self.stream, "log_id": self._log_id, **values}
        found = await self._store.reading_history(lambda connection: connection.execute(query, given).all())
        return [
            Publication(position=position, sequence=sequence, subject=self._subject(payload), message_id=step_id)
            for position, sequence, step_id, payload in found
        ]

    def _subject(self, payload: bytes) -> str:
        incident_id = dispatch_pb2.Step.FromString(payload).assignment.incident_id
        if self.stream == flow.ADVICE.name:
            return flow.advice_subject(incident_id)
        return flow.incident_subject(self._leg, incident_id)


RECORDED_WITHIN_S = 4.0
"""Time limit for storing the disclosures of one call, seconds."""
RETENTION_MS = 86_400_000
"""Retention of a disclosure in the leg's database, milliseconds of mesh time."""
_NEWEST_DISCLOSURES = (
    sa.select(disclosures)
    .order_by(disclosures.c.at_ms.desc(), disclosures.c.disclosure_id)
    .offset(sa.bindparam("skipped"))
    .limit(sa.bindparam("most"))
)


class LegDisclosures:
    """Stores the disclosures that one leg made, and republishes lost ones."""

    def __init__(self, leg: Leg, store: Store) -> None:
        self._leg, self._store = leg, store

    async def record(self, bus: Bus, made: Sequence[ledger_pb2.Disclosure]) -> None:
        """Publishes and stores disclosures before their answer is sent. Raises StoreFull or Unavailable if one can't be stored."""
        try:
            async with asyncio.timeout(RECORDED_WITHIN_S):
                await asyncio.gather(*(self._publish(bus, disclosure) for disclosure in made))
                await self.keep(made)
        except TimeoutError:
            raise Unavailable(
                f"the disclosure can't be recorded: not stored within {RECORDED_WITHIN_S:.0f} s"
            ) from None

    async def _publish(self, bus: Bus, disclosure: ledger_pb2.Disclosure) -> None:
        id_ = disclosure.disclosure_id
        subject = flow.disclosure_subject(flow.leg_user(self._leg), id_)
        await bus.publish(subject, disclosure.SerializeToString(), msg_id=id_)

    async def keep(self, made: Sequence[ledger_pb2.Disclosure]) -> None:
        """Stores disclosures that were just published. Raises Unavailable."""
        if not made:
            return
        rows = [
            {
                "disclosure_id": disclosure.disclosure_id,
                "payload": disclosure.SerializeToString(),
                "at_ms": disclosure.at_ms,
            }
            for disclosure in made
        ]

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.delete(disclosures).where(disclosures.c.at_ms < made[0].at_ms - RETENTION_MS))
            ids = [disclosure.disclosure_id for disclosure in made]
            connection.execute(sa.delete(disclosures).where(disclosures.c.disclosure_id.in_(ids)))
            connection.execute(sa.insert(disclosures), rows)

        await self._store.transaction(work)

    async def run(self, bus: Bus) -> None:
        """Republishes disclosures that DISCLOSURES has lost, until cancelled. A full stream or disk doesn't end the leg."""
        await retried(lambda: lost_publications.keep_restored(bus, flow.DISCLOSURES.name, self._page))

    async def _page(self, skipped: int, limit: int) -> list[SoleMessage]:
        part = {"skipped": skipped, "most": limit}
        rows = await self._store.transaction(lambda connection: connection.execute(_NEWEST_DISCLOSURES, part).all())
        return [
            SoleMessage(
                flow.disclosure_subject(flow.leg_user(self._leg), row.disclosure_id), row.payload, row.disclosure_id
            )
            for row in rows
        ]
