"""Disclosures that other services published, on their way to the ledger. One that names something unknown is held, and never lost.

Services know persons, orders and incidents from the registry and from alerts alone. So a disclosure about an unknown one is made up,
or the registry lacks what it names: its reader of alerts is some seconds behind, or its database was replaced by an older one. At once
the two can't be told apart. So such a disclosure is held beside the ledger, and is checked until the registry knows what it names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from prometheus_client import Gauge

from services.common import ids
from services.common.clock import wall_us
from services.common.errors import InvalidField, TandemError, Unavailable
from services.common.messaging import dead_letters, flow, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.common.privacy import notices
from services.common.privacy.grounds import RecordKind
from services.common.retrying import retried
from services.common.storage import rows as storage
from services.common.storage.rows import RowTarget
from services.registry.disclosure.service import Disclosures
from services.registry.disclosure.translate import published_disclosure
from services.registry.domain.disclosure import KnownIds, NamedIds, NamedRecord, first_unknown
from services.registry.domain.ledger import Disclosure
from services.registry.ledger import append_disclosures
from services.registry.metrics import PutOff
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS, RecordType
from services.registry.tables import alerted_incidents, held_disclosures
from services.registry.transactions import Transactions
from services.registry.unit_of_work import read_meta, write_meta

REPORT_AFTER_MS = 900_000
"""Time after which a held disclosure becomes a dead letter as well, so that a person looks at it, milliseconds. The reader of alerts is
behind for seconds."""
KEPT_MS = 365 * 86_400_000
"""How long a disclosure is held, milliseconds: as long as DISCLOSURES keeps its message."""
MAX_HELD = 10_000
"""Maximum number of held disclosures. A further one becomes a dead letter at once, and isn't held."""
CHECK_BATCH = 500
"""Maximum number of held disclosures that one transaction checks."""
MIN_CHECK_DELAY_MS, MAX_CHECK_DELAY_MS = 1_000, 60_000
"""Time between two checks of a held disclosure, milliseconds: as long as it has been held, within these bounds."""
IDLE_INTERVAL_S = 60.0
"""Interval at which a process without held disclosures looks for those that another process holds, seconds."""
_NEWEST = "disclosures"
"""Name of the value in the table `meta` that holds the cursor of the last accepted entry of DISCLOSURES."""
_RECORDS: Mapping[RecordKind, RecordType[Any]] = {
    RecordKind.WEARER: WEARERS,
    RecordKind.PROTECTED_PERSON: PERSONS,
    RecordKind.ORDER: ORDERS,
}
_HELD = RowTarget(held_disclosures, changing=())
_DUE = (
    sa.select(held_disclosures)
    .where(held_disclosures.c.check_at_ms <= sa.bindparam("now_ms"))
    .order_by(held_disclosures.c.check_at_ms)
    .limit(CHECK_BATCH)
)
_COUNT = sa.select(sa.func.count()).select_from(held_disclosures)


class PublishedDisclosure(NamedTuple):
    """A disclosure with its message in DISCLOSURES."""

    disclosure: Disclosure
    subject: str
    data: bytes
    sequence: int


class Unusable(NamedTuple):
    """A message in DISCLOSURES that becomes a dead letter."""

    sequence: int
    error: TandemError


class CheckedDisclosures(NamedTuple):
    """Result of a check of held disclosures."""

    appended: Sequence[Disclosure]
    """Those that are in the ledger now."""
    overdue: Sequence[Unusable]
    """Those that a person has to look at."""
    settled: Sequence[int]
    """Sequences of appended ones for which there is a dead letter already."""
    held: int
    """Number of disclosures that are held still."""


class PublishedDisclosures:
    """Appends published disclosures to the ledger, and holds those that name something unknown."""

    def __init__(
        self, transactions: Transactions, disclosures: Disclosures, *, held: Gauge, checks_incidents: bool = True
    ) -> None:
        """`held` is set to the number of held disclosures. Without `checks_incidents` nobody reads the alerts, so that no incident is
        known and none is asked for."""
        self._transactions = transactions
        self._disclosures = disclosures
        self._held = held
        self._checks_incidents = checks_incidents
        self._has_held = asyncio.Event()

    async def newest(self, log_id: str) -> StreamCursor | None:
        """Cursor of the last accepted entry of DISCLOSURES for this log; None if there is none."""
        stored = await self._transactions.database.visit(partial(read_meta, name=_NEWEST))
        known_log, _, cursor = (stored or b"").decode().partition(" ")
        return StreamCursor.parse(cursor) if cursor and known_log == log_id else None

    async def accept(
        self, published: Sequence[PublishedDisclosure], log_id: str, newest: StreamCursor
    ) -> list[Unusable]:
        """Append disclosures to the ledger or hold them, and store the cursor of their newest entry. Known ids are ignored.

        Returns those for which there is no room: they have to become dead letters before their messages are acknowledged.
        """
        now_ms = wall_us() // 1000

        def work(connection: sa.Connection) -> tuple[list[Disclosure], int, list[Unusable]]:
            unknown = self._unknown(connection, [each.disclosure for each in published])
            known = [each.disclosure for each in published if each.disclosure.disclosure_id not in unknown]
            append_disclosures(connection, known)
            held = _stored(connection, held_disclosures.c.disclosure_id, set(unknown))
            waiting = [each for each in published if each.disclosure.disclosure_id in unknown.keys() - held]
            free_rows = MAX_HELD - connection.execute(_COUNT).scalar_one() if waiting else 0
            storage.write(connection, [_HELD], [[_held_row(each, now_ms) for each in waiting[: max(free_rows, 0)]]])
            write_meta(connection, _NEWEST, f"{log_id} {newest}".encode())
            refused = [
                Unusable(each.sequence, unknown[each.disclosure.disclosure_id]) for each in waiting[max(free_rows, 0) :]
            ]
            return known, len(waiting), refused

        appended, waiting, refused = await self._transactions.database.visit(work)
        self._disclosures.note_appended(appended)
        if waiting:
            self._has_held.set()
        return refused

    async def run(self, bus: Bus, gate: PriorityGate) -> None:
        """Check held disclosures until cancelled. One that waits too long becomes a dead letter, too, and is held all the same."""
        while True:
            self._has_held.clear()  # before the check, so that no disclosure that is held meanwhile is missed
            with suppress(Unavailable):  # the database layer has logged the reason
                async with gate.record():
                    checked = await self.check()
                for unusable in checked.overdue:
                    await keep_dead_letter(bus, unusable)
                await self._note_reported([unusable.sequence for unusable in checked.overdue])
                if checked.held:
                    self._has_held.set()
            await asyncio.sleep(MIN_CHECK_DELAY_MS / 1000)
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_INTERVAL_S):
                    await self._has_held.wait()

    async def check(self) -> CheckedDisclosures:
        """Append the held disclosures that name only what is known now, and forget those that DISCLOSURES doesn't keep any more."""
        now_ms = wall_us() // 1000

        def work(connection: sa.Connection) -> CheckedDisclosures:
            connection.execute(sa.delete(held_disclosures).where(held_disclosures.c.held_at_ms < now_ms - KEPT_MS))
            due = connection.execute(_DUE, {"now_ms": now_ms}).all()
            readable, errors = _readable(due)
            errors |= self._unknown(connection, readable.values())
            known = [disclosure for id_, disclosure in readable.items() if id_ not in errors]
            append_disclosures(connection, known)
            _delete(connection, [disclosure.disclosure_id for disclosure in known])
            _postpone(connection, [row for row in due if row.disclosure_id in errors], now_ms)
            overdue = [
                Unusable(row.sequence, errors[row.disclosure_id])
                for row in due
                if row.disclosure_id in errors and not row.is_reported and now_ms - row.held_at_ms >= REPORT_AFTER_MS
            ]
            reported = [row.sequence for row in due if row.is_reported and row.disclosure_id not in errors]
            return CheckedDisclosures(known, overdue, reported, held=connection.execute(_COUNT).scalar_one())

        checked = await self._transactions.database.visit(work)
        self._held.set(checked.held)
        for sequence in checked.settled:
            logger().info("held_disclosure_known", sequence=sequence)
        self._disclosures.note_appended(checked.appended)
        return checked

    async def _note_reported(self, sequences: Sequence[int]) -> None:
        if sequences:
            reported = sa.update(held_disclosures).where(held_disclosures.c.sequence.in_(sequences))
            await self._transactions.database.visit(
                lambda connection: connection.execute(reported.values(is_reported=True))
            )

    def _unknown(self, connection: sa.Connection, disclosures: Iterable[Disclosure]) -> dict[str, InvalidField]:
        """What the registry doesn't know of each disclosure, by disclosure id. A record that was destroyed is known."""
        named = {disclosure.disclosure_id: named_ids(disclosure) for disclosure in disclosures}
        records = {record for each in named.values() for record in each.records}
        incidents = {each.incident_id for each in named.values() if each.incident_id}
        known = KnownIds(
            records={
                kind: _stored(connection, of_kind.key, {record.record_id for record in records if record.kind is kind})
                for kind, of_kind in _RECORDS.items()
            },
            incidents=_stored(connection, alerted_incidents.c.incident_id, incidents)
            if self._checks_incidents
            else None,
        )
        errors = {disclosure_id: first_unknown(each, known) for disclosure_id, each in named.items()}
        return {disclosure_id: error for disclosure_id, error in errors.items() if error is not None}


def named_ids(disclosure: Disclosure) -> NamedIds:
    """The records and the incident that a published disclosure names. Its reference may be an order or a case instead."""
    records = [
        NamedRecord("record_id", RecordKind(disclosure.record_kind), disclosure.record_id),
        NamedRecord("order_id", RecordKind.ORDER, disclosure.order_id),
    ]
    if person_id := notices.recipient_of(disclosure.recipient):
        records.append(NamedRecord("recipient", RecordKind.PROTECTED_PERSON, person_id))
    is_incident = disclosure.reference.startswith(ids.INCIDENT_IDS)
    is_canary = disclosure.order_id.startswith(ids.CANARY_IDS)
    return NamedIds(tuple(records), disclosure.reference if is_incident and not is_canary else "")


async def keep_dead_letter(bus: Bus, unusable: Unusable) -> None:
    """Keep the dead letter of a message in DISCLOSURES."""
    await dead_letters.keep(
        bus, flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.name, sequence=unusable.sequence, error=unusable.error
    )


def _stored(connection: sa.Connection, column: sa.Column[Any], wanted: set[str]) -> frozenset[str]:
    """Those of these ids that a column holds."""
    if not wanted:
        return frozenset()
    return frozenset(connection.execute(sa.select(column).where(column.in_(sorted(wanted)))).scalars())


def _held_row(published: PublishedDisclosure, now_ms: int) -> tuple[object, ...]:
    return (
        published.disclosure.disclosure_id,
        published.subject,
        published.data,
        published.sequence,
        now_ms,
        now_ms + MIN_CHECK_DELAY_MS,
        False,
    )


def _readable(rows: Sequence[sa.Row[Any]]) -> tuple[dict[str, Disclosure], dict[str, InvalidField]]:
    """The disclosures of held rows, and the errors of those that this version can't read any more, by disclosure id."""
    readable: dict[str, Disclosure] = {}
    errors: dict[str, InvalidField] = {}
    for row in rows:
        try:
            readable[row.disclosure_id] = published_disclosure(row.subject, bytes(row.data))
        except InvalidField as error:
            errors[row.disclosure_id] = error
    return readable, errors


def _delete(connection: sa.Connection, disclosure_ids: Sequence[str]) -> None:
    if disclosure_ids:
        connection.execute(sa.delete(held_disclosures).where(held_disclosures.c.disclosure_id.in_(disclosure_ids)))


def _postpone(connection: sa.Connection, rows: Sequence[sa.Row[Any]], now_ms: int) -> None:
    """Set the next check of rows."""
    if not rows:
        return
    by_id = held_disclosures.c.disclosure_id == sa.bindparam("of")
    postponed = sa.update(held_disclosures).where(by_id).values(check_at_ms=sa.bindparam("at_ms"))
    connection.execute(
        postponed,
        [
            {
                "of": row.disclosure_id,
                "at_ms": now_ms + min(max(now_ms - row.held_at_ms, MIN_CHECK_DELAY_MS), MAX_CHECK_DELAY_MS),
            }
            for row in rows
        ],
    )


LINGER_S = 0.25
"""Time for which messages are collected after the first one, seconds. A share begins soon after an offer, whose way to the desks goes
first."""
COALESCE_S = 1.0
"""Pause after a batch while no more messages wait, seconds. The shares of that time then come in one batch and one transaction. It is
well below `pull.ACK_WAIT_S`."""


async def consume_disclosures(
    bus: Bus,
    published: PublishedDisclosures,
    log_id: str,
    *,
    gate: PriorityGate,
    put_off: PutOff,
    health: ReaderHealth | None = None,
) -> None:
    """Accept published disclosures for the ledger until cancelled. Messages are acknowledged after the commit.

    Each disclosure is on disk in DISCLOSURES before its first position leaves, so the ledger may follow in idle time.

    The cursor of the newest entry is committed with the disclosures. With this cursor, `pull.consume` notices a stream that went
    back, and reads the stream again from its first entry. The ledger ignores a disclosure whose id it already has.
    """
    durable, stream = flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.name
    after = await retried(lambda: published.newest(log_id), on=Unavailable)
    async for messages in pull.consume(
        bus, stream, durable, subjects=flow.DISCLOSURES.subjects, after=after, health=health, linger_s=LINGER_S
    ):
        newest = max(messages, key=lambda message: message.sequence)
        put_off.note(len(messages) + newest.pending, messages[0].stamp_ms)
        async with gate.record():
            # A disclosure may be forged, so a person has to look at an unreadable one: the dead letter raises an alarm.
            parsed = await dead_letters.parse_or_keep(
                bus, durable, messages, parse=lambda data, subject: (published_disclosure(subject, data), subject, data)
            )
            sequences = {message.subject: message.sequence for message in messages}
            readable = [
                PublishedDisclosure(disclosure, subject=subject, data=data, sequence=sequences[subject])
                for disclosure, subject, data in parsed
            ]
            refused = await retried(partial(published.accept, readable, log_id, newest.cursor), on=Unavailable)
            for unusable in refused:
                await keep_dead_letter(bus, unusable)
            for message in messages:
                await pull.ack(bus, message)
        put_off.note(newest.pending, newest.stamp_ms)
        if not newest.pending:
            await asyncio.sleep(COALESCE_S)
