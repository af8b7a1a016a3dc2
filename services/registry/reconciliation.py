"""Reconciliation: the agencies' lists as they come in, their comparison with the stored records, and alarms for missing proof."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.errors import InvalidField, TooMuchInProgress, Unavailable
from services.common.observability.telemetry import logger
from services.common.storage import db
from services.common.storage.statements import Prepared
from services.registry import tables
from services.registry.domain.reconciliation import (
    Agency,
    Difference,
    Finding,
    Listed,
    compare_lists,
    is_overdue,
    root_hash,
    summary_counts,
)
from services.registry.domain.records import ListedKind
from services.registry.keys import Vault
from services.registry.records.kinds import LISTED_BY
from services.registry.records.store import masked
from services.registry.transactions import Transactions
from services.registry.unit_of_work import Repository
from tandem.registry.v1 import reconciliation_pb2

LISTED_BATCH = 1000


@dataclass(frozen=True, slots=True)
class ReconciliationStatus:
    """State of the reconciliation between an agency's list and the stored records."""

    agency: Agency
    since_ms: int
    """When the registry began to expect lists from the agency, mesh time."""
    compared_at_ms: int | None
    differences: int
    proven_at_ms: int | None
    """When the list and the stored records were last equal, mesh time."""
    root: bytes
    alarmed_at_ms: int | None


class ReconciliationRepository(Repository):
    """The digests of the records and the reconciliations as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault

    async def listed(self, kinds: Iterable[ListedKind]) -> list[Listed]:
        """Live records of some kinds, as their agency would list them. Reads page by page, so that other tasks get a turn."""
        digests, records = tables.record_digests, list[Listed]()
        for kind in kinds:
            after = ""
            while True:
                # No agency lists the synthetic records of exercises.
                is_live = ~digests.c.record_id.startswith(ids.EXERCISE_IDS, autoescape=True)
                wanted = sa.and_(digests.c.kind == kind.value, digests.c.record_id > after, is_live)
                page = sa.select(digests).where(wanted).order_by(digests.c.record_id).limit(LISTED_BATCH)
                rows = await self._rows(page)
                records += map(self._unmasked, rows)
                if len(rows) < LISTED_BATCH:
                    break
                after = rows[-1].record_id
        return records

    def _unmasked(self, row: sa.Row[Any]) -> Listed:
        row_entry = Listed(
            kind=ListedKind(row.kind), record_id=row.record_id, source_version=row.source_version, digest=row.masked
        )
        return replace(row_entry, digest=masked(self._vault, row_entry))

    async def begin(self, now_ms: int) -> None:
        """Set `since_ms` to `now_ms` for each agency from which the registry didn't expect lists before."""
        for agency in Agency:
            values = {"agency": agency.value, "since_ms": now_ms, "differences": 0}
            await db.insert_once(self._connection, tables.reconciliations, values)

    async def update(self, agency: Agency, **values: object) -> None:
        """Update columns of an agency's row in the table `reconciliations`."""
        table = tables.reconciliations
        await self._connection.execute(sa.update(table).where(table.c.agency == agency.value).values(**values))

    async def mark_alarmed(self, agency: Agency, at_ms: int) -> bool:
        """Store that the alarm about the missing proof was raised; false if it was raised already."""
        table = tables.reconciliations
        due = sa.and_(table.c.agency == agency.value, table.c.alarmed_at_ms.is_(None))
        marked = await self._connection.execute(sa.update(table).where(due).values(alarmed_at_ms=at_ms))
        return marked.rowcount > 0


def read_statuses(connection: sa.Connection) -> list[ReconciliationStatus]:
    """Reconciliation statuses of the agencies from which the registry expects lists. Read within a visit."""
    return [
        ReconciliationStatus(
            agency=Agency(agency),
            since_ms=since_ms,
            compared_at_ms=compared_at_ms,
            differences=differences,
            proven_at_ms=proven_at_ms,
            root=bytes(root or b""),
            alarmed_at_ms=alarmed_at_ms,
        )
        for agency, since_ms, compared_at_ms, differences, proven_at_ms, root, alarmed_at_ms in _STATUSES.fetch(
            connection
        )
    ]


_STATUSES = Prepared(
    sa.select(*(tables.reconciliations.c[column.name] for column in dataclasses.fields(ReconciliationStatus))).order_by(
        tables.reconciliations.c.agency
    )
)


MAX_STREAMS = 2
"""Maximum number of lists of one caller at a time: the one that is compared, and its successor."""
MAX_RECORDS = 500_000
"""Maximum number of records in an agency's list, and in all its lists that are held at a time: some 200 MB an agency."""
RETRY_AFTER_S = 10.0


class IncomingList:
    """One agency's list, as far as it has come in."""

    def __init__(self, lists: IncomingLists, agency: Agency) -> None:
        self._lists = lists
        self._agency = agency
        self._records: dict[tuple[ListedKind, str], Listed] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[Listed]:
        """The records so far, in the order in which they came."""
        return list(self._records.values())

    def add(self, part: Sequence[Listed]) -> None:
        """Add a part of the list. Raises InvalidField for a repeated record or a list that is too long, and TooMuchInProgress."""
        if len(self) + len(part) > self._lists.max_records:
            raise InvalidField("records", f"a list must hold at most {self._lists.max_records}")
        self._lists.require_room(self._agency, len(part))
        for n, record in enumerate(part):
            key = record.kind, record.record_id
            if key in self._records:
                raise InvalidField(f"records[{n}].record_id", "is listed twice")
            self._records[key] = record
            self._lists.held[self._agency] += 1


class IncomingLists:
    """All lists that are held in memory, from the first part until the last answer."""

    def __init__(self, *, max_streams: int = MAX_STREAMS, max_records: int = MAX_RECORDS) -> None:
        self.max_records = max_records
        self.held: Counter[Agency] = Counter()
        """Number of records that are held, by agency."""
        self._max_streams = max_streams
        self._streams: Counter[str] = Counter()

    @contextmanager
    def begin(self, caller_id: str, agency: Agency) -> Iterator[IncomingList]:
        """A new list of a caller, which is forgotten at the end. Raises TooMuchInProgress if the caller has too many."""
        if self._streams[caller_id] >= self._max_streams:
            raise TooMuchInProgress(
                f"a caller may have at most {self._max_streams} lists in progress: end one of them first", RETRY_AFTER_S
            )
        incoming = IncomingList(self, agency)
        self._streams[caller_id] += 1
        try:
            yield incoming
        finally:
            self.held[agency] -= len(incoming)
            self._streams[caller_id] -= 1
            if not self._streams[caller_id]:
                del self._streams[caller_id]

    def require_room(self, agency: Agency, records: int) -> None:
        """Raises TooMuchInProgress unless an agency's lists may hold so many records more."""
        if self.held[agency] + records > self.max_records:
            raise TooMuchInProgress(
                f"an agency's lists in progress may hold at most {self.max_records} records together: end one of them first",
                RETRY_AFTER_S,
            )


CHECK_INTERVAL_S = 1.0
"""How often overdue reconciliations are checked, seconds of wall time."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of comparing an agency's list with the stored records."""

    differences: Sequence[Difference]
    listed_root: bytes
    stored_root: bytes
    listed: int
    stored: int
    compared_at_ms: int


class ReconciliationService:
    """Compares lists with the stored records, and raises an alarm if an agency's list isn't proven equal in time."""

    def __init__(self, transactions: Transactions, clock: MeshClock, unproven_s: Gauge) -> None:
        self._transactions = transactions
        self._clock = clock
        self._unproven_s = unproven_s
        self._comparing = asyncio.Lock()

    async def compare(self, agency: Agency, listed: Sequence[Listed]) -> Compared:
        """Compare an agency's full list with the stored records, and store the result."""
        # One comparison at a time, because each holds all stored records of the agency in memory.
        async with self._comparing:
            now_ms = self._clock.now_ms()
            async with self._transactions.reading() as work:
                stored = await ReconciliationRepository(work.connection, work.vault).listed(LISTED_BY[agency])
            # In a thread and outside a transaction, because sorting and hashing long lists would block other calls.
            differences, listed_root, stored_root = await asyncio.to_thread(_compare, listed, stored)
        async with self._transactions.changing() as work:
            reconciliations = ReconciliationRepository(work.connection, work.vault)
            await reconciliations.begin(now_ms)
            values: dict[str, object] = {"compared_at_ms": now_ms, "differences": len(differences)}
            if not differences:
                values |= {"proven_at_ms": now_ms, "root": stored_root, "alarmed_at_ms": None}
            await reconciliations.update(agency, **values)
        logger().info("reconciled", agency=agency.value, records=len(stored), **summary_counts(differences))
        return Compared(
            differences=differences,
            listed_root=listed_root,
            stored_root=stored_root,
            listed=len(listed),
            stored=len(stored),
            compared_at_ms=now_ms,
        )

    async def statuses(self) -> list[tuple[ReconciliationStatus, bool]]:
        """Reconciliation status of each agency, and whether its proof is overdue."""
        now_ms = self._clock.now_ms()
        statuses = await self._transactions.database.visit(read_statuses)
        if len(statuses) < len(Agency):
            async with self._transactions.open() as work:
                await ReconciliationRepository(work.connection, work.vault).begin(now_ms)
            statuses = await self._transactions.database.visit(read_statuses)
        return [(status, is_overdue(status.since_ms, status.proven_at_ms, now_ms)) for status in statuses]

    async def run(self) -> None:
        """Check for overdue reconciliations until cancelled."""
        while True:
            with contextlib.suppress(Unavailable):  # logged by the database layer; the next check finds the same work
                await self.alarm()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def alarm(self) -> None:
        """Raise one alarm per period in which an agency's list isn't proven equal in time."""
        now_ms = self._clock.now_ms()
        for status, overdue in await self.statuses():
            proven_ms = status.since_ms if status.proven_at_ms is None else status.proven_at_ms
            self._unproven_s.labels(status.agency.value).set((now_ms - proven_ms) / 1000)
            if overdue and status.alarmed_at_ms is None:
                async with self._transactions.open() as work:
                    first = await ReconciliationRepository(work.connection, work.vault).mark_alarmed(
                        status.agency, now_ms
                    )
                if first:
                    logger().error("reconciliation_overdue", agency=status.agency.value, differences=status.differences)


def _compare(listed: Sequence[Listed], stored: Sequence[Listed]) -> tuple[list[Difference], bytes, bytes]:
    """The differences, the root of the list and the root of the stored records."""
    return compare_lists(listed, stored), root_hash(listed), root_hash(stored)


RECORDS_BATCH = 1000
DIGEST_BYTES = 32


def parse_listed(msg: reconciliation_pb2.ReconcileRequest, agency: Agency) -> list[Listed]:
    """Parse a part of an agency's list. Raises InvalidField."""
    if len(msg.records) > RECORDS_BATCH:
        raise InvalidField("records", f"must hold at most {RECORDS_BATCH}")
    return [_listed(f"records[{n}]", record, agency) for n, record in enumerate(msg.records)]


def _listed(field: str, msg: reconciliation_pb2.ListedRecord, agency: Agency) -> Listed:
    kinds = {kind.value: kind for kind in LISTED_BY[agency]}
    if msg.kind not in kinds:
        raise InvalidField(f"{field}.kind", "must be a kind of record that belongs to the caller's agency")
    if msg.source_version < 0:
        raise InvalidField(f"{field}.source_version", "must be 0 or more")
    if len(msg.digest) != DIGEST_BYTES:
        raise InvalidField(f"{field}.digest", f"must be {DIGEST_BYTES} bytes")
    record_id = fields.required_id(f"{field}.record_id", msg.record_id)
    return Listed(kind=kinds[msg.kind], record_id=record_id, source_version=msg.source_version, digest=msg.digest)


def listed_to_proto(listed: Listed) -> reconciliation_pb2.ListedRecord:
    """A listed record as a message."""
    return reconciliation_pb2.ListedRecord(
        kind=_kind(listed.kind), record_id=listed.record_id, source_version=listed.source_version, digest=listed.digest
    )


def difference_to_proto(difference: Difference) -> reconciliation_pb2.Difference:
    """A difference between an agency's list and the stored records as a message."""
    findings = {
        Finding.MISSING: reconciliation_pb2.FINDING_MISSING,
        Finding.EXTRA: reconciliation_pb2.FINDING_EXTRA,
        Finding.DIFFERENT: reconciliation_pb2.FINDING_DIFFERENT,
    }
    return reconciliation_pb2.Difference(
        finding=findings[difference.finding],
        kind=_kind(difference.kind),
        record_id=difference.record_id,
        listed_version=difference.listed_version,
        stored_version=difference.stored_version,
    )


def _kind(kind: ListedKind) -> reconciliation_pb2.RecordKind.ValueType:
    return reconciliation_pb2.RecordKind.Value(f"RECORD_KIND_{kind.name}")


def status_to_proto(
    reconciliation_status: ReconciliationStatus, overdue: bool
) -> reconciliation_pb2.AgencyReconciliation:
    """Reconciliation status of an agency as a message."""
    msg = reconciliation_pb2.AgencyReconciliation(
        agency=reconciliation_status.agency.value,
        root=reconciliation_status.root,
        differences=reconciliation_status.differences,
        overdue=overdue,
    )
    if reconciliation_status.proven_at_ms is not None:
        msg.proven_equal_at.CopyFrom(times.to_timestamp(reconciliation_status.proven_at_ms))
    if reconciliation_status.compared_at_ms is not None:
        msg.compared_at.CopyFrom(times.to_timestamp(reconciliation_status.compared_at_ms))
    return msg
