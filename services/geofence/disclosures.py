"""Outbox of disclosures for the registry's ledger: writes each to disk first, then publishes it until DISCLOSURES has it.

A share is one subject's live positions for one recipient. The ledger gets two disclosures of it: its beginning, and its end with
the number of positions sent. The beginning is on disk before the first position is sent. Positions are counted on disk in blocks of
ALLOWED_BATCH: the count is raised by a whole block before the block's first position is sent. So after a kill the end counts too
many positions rather than too few. The registry may be down for any time, because the stream keeps the disclosures.
A location that goes with a notice to a protected person is a single disclosure, without an end.

Beginnings, counts and ends of all shares that come while a transaction runs are written together in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from services.common.clock import MeshClock
from services.common.errors import RetryableError, Unavailable
from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import Bus
from services.common.observability.outages import Outages
from services.common.observability.telemetry import logger
from services.common.storage.db import Database, open_database
from tandem.common.v1 import ledger_pb2

MIGRATIONS = Path(__file__).parent / "migrations"
PUBLISHER = "geofence"
ALLOWED_BATCH = 60
"""Positions of a share that may leave between two writes to disk: one minute at one position a second."""
PUBLISH_BATCH = 64
PUBLISH_DELAY_S = 0.3
"""Delay from a written disclosure to its publication, seconds, so that the disclosures of a moment share their transactions."""
END_DELAY_S = 0.2
"""Delay from the end of a share until it is written, seconds, for the same reason."""
RESUME_S = 3.0
"""Time, seconds, within which the same recipient may continue a share whose stream broke."""
RETRY_DELAY_S = 2.0
_OUTAGES = Outages("disclosures_wait", "disclosures_go_on")
END_SUFFIX = "-end"
PUBLISHED_KEPT_MS = 86_400_000
"""Time for which a published disclosure is kept here, ms of mesh time."""

_metadata = sa.MetaData()
_waiting = sa.Table(
    "waiting",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("disclosure_id", sa.String, nullable=False, unique=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
_published = sa.Table(
    "published",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("disclosure_id", sa.String, nullable=False, unique=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
)
_open_shares = sa.Table(
    "open_shares",
    _metadata,
    sa.Column("disclosure_id", sa.String, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("positions", sa.BigInteger, nullable=False),
)
"""Open shares. `positions` is the maximum number of positions that may have left."""


class _ShareEnd(NamedTuple):
    """The end of a share."""

    positions: int
    """Number of positions that have left; after a kill, at least that number."""
    at_ms: int


class OpenShare:
    """A share of positions whose beginning is on disk."""

    def __init__(self, disclosure_id: str) -> None:
        self.disclosure_id = disclosure_id
        self.allowed = ALLOWED_BATCH
        """Number of positions that may leave, as it is on disk."""
        self.positions = 0
        """Number of positions that have left."""

    @property
    def is_exhausted(self) -> bool:
        """Whether no position may leave before `DisclosureOutbox.allow`."""
        return self.positions >= self.allowed

    def count(self) -> None:
        """Counts a position before it leaves. Raises ValueError if `allow` must come first."""
        if self.is_exhausted:
            raise ValueError("a position would leave uncounted")
        self.positions += 1


@dataclass(slots=True)
class _Write:
    """Rows that wait for the next transaction, and the future of their callers."""

    done: asyncio.Future[None]
    beginnings: Sequence[tuple[str, bytes]] = ()
    """Disclosure id and payload of each beginning."""
    allowed: Sequence[tuple[int, str]] = ()
    """Number of positions that may leave, and disclosure id."""
    single: Sequence[tuple[str, bytes]] = ()
    """Disclosure id and payload of each single disclosure."""


@dataclass(slots=True)
class _Unwritten:
    """What the next transaction writes."""

    writes: list[_Write] = field(default_factory=list)
    ends: dict[str, _ShareEnd] = field(default_factory=dict)
    """Ends by disclosure id."""


class DisclosureOutbox:
    """Outbox of one evaluator's disclosures. Nothing is shared while it can't be opened; decisions don't depend on it."""

    def __init__(self, folder: Path, clock: MeshClock) -> None:
        self._path = folder / "disclosures.sqlite3"
        self._clock = clock
        self._opened: Database | None = None
        self._unwritten = _Unwritten()
        self._suspended: dict[Hashable, tuple[OpenShare, asyncio.TimerHandle]] = {}
        self._to_write, self._to_publish = asyncio.Event(), asyncio.Event()

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise _not_open()
        return self._opened

    async def begin(self, disclosures: Sequence[ledger_pb2.Disclosure]) -> list[OpenShare]:
        """Writes the beginnings of shares, all or none. Raises Unavailable if the disk refuses or the outbox isn't open; then no
        position may leave."""
        rows = [(disclosure.disclosure_id, disclosure.SerializeToString()) for disclosure in disclosures]
        shares = [OpenShare(disclosure_id) for disclosure_id, _ in rows]
        try:
            await self._written(beginnings=rows)
        except asyncio.CancelledError:
            for share in shares:  # the recipient disconnected during the write
                self.end(share)
            raise
        return shares

    async def allow(self, shares: Collection[OpenShare]) -> None:
        """Lets each share send another ALLOWED_BATCH of positions. Raises Unavailable if the disk refuses or the outbox isn't open."""
        await self._written(allowed=[(share.allowed + ALLOWED_BATCH, share.disclosure_id) for share in shares])
        for share in shares:
            share.allowed += ALLOWED_BATCH

    async def record(self, disclosures: Sequence[ledger_pb2.Disclosure]) -> None:
        """Writes single disclosures, which have no end, all or none. Raises Unavailable as `begin` does; then nothing may leave."""
        await self._written(single=[(each.disclosure_id, each.SerializeToString()) for each in disclosures])

    async def _written(
        self,
        beginnings: Sequence[tuple[str, bytes]] = (),
        allowed: Sequence[tuple[int, str]] = (),
        single: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Returns once the next transaction has written these rows."""
        if self._opened is None:
            raise _not_open()
        write = _Write(asyncio.get_running_loop().create_future(), beginnings, allowed=allowed, single=single)
        self._unwritten.writes.append(write)
        self._to_write.set()
        await write.done

    def end(self, share: OpenShare) -> None:
        """Ends a share. The end is written soon, at the latest when this evaluator restarts."""
        self._unwritten.ends[share.disclosure_id] = _ShareEnd(share.positions, self._clock.now_ms())
        asyncio.get_running_loop().call_later(END_DELAY_S, self._to_write.set)

    def suspend(self, key: Hashable, share: OpenShare) -> None:
        """Ends a share whose stream broke, unless `resume` continues it within RESUME_S. The key says whose share of what it is."""
        if (earlier := self._suspended.pop(key, None)) is not None:
            self._end_suspended(*earlier)
        timer = asyncio.get_running_loop().call_later(RESUME_S, self._let_lapse, key)
        self._suspended[key] = share, timer

    def resume(self, key: Hashable) -> OpenShare | None:
        """The suspended share of a key, which goes on; None if there is none."""
        share, timer = self._suspended.pop(key, (None, None))
        if timer is not None:
            timer.cancel()
        return share

    def _let_lapse(self, key: Hashable) -> None:
        self._end_suspended(*self._suspended.pop(key))

    def _end_suspended(self, share: OpenShare, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self.end(share)

    async def run(self, bus: Bus) -> None:
        """Opens the outbox, writes ends and publishes waiting disclosures, until cancelled."""
        await _persist("open", lambda: self._open(bus))

    async def _open(self, bus: Bus) -> None:
        try:
            async with open_database(self._path, MIGRATIONS) as database:
                await database.visit(self._end_interrupted_shares)
                self._opened = database
                logger().info("disclosures_opened")
                await self._work(bus)
        finally:
            self._opened = None

    async def _work(self, bus: Bus) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                # Separate tasks, so that disclosures are written even while NATS is down.
                tasks.create_task(_persist("write", lambda: _drain(self._write_some, self._to_write)))
                tasks.create_task(
                    _persist("publish", lambda: _drain(lambda: self._publish_some(bus), self._to_publish))
                )
                tasks.create_task(_persist("compare", lambda: self._keep_published(bus)))
        finally:
            for suspended in self._suspended.values():
                self._end_suspended(*suspended)
            self._suspended.clear()
            with suppress(Unavailable, DBAPIError):  # the next start ends these shares, with the counts on disk
                await self._write_some()

    async def _write_some(self) -> bool:
        """Writes what waits, in one transaction. If the disk refuses, the callers get the error, and the ends wait."""
        batch, self._unwritten = self._unwritten, _Unwritten()
        # A recipient that disconnected before its share was written has no share.
        writes = [write for write in batch.writes if not write.done.done()]
        if not writes and not batch.ends:
            return False
        try:
            await self._database.visit(lambda connection: _write(connection, writes, batch.ends))
        except BaseException as error:
            self._unwritten.ends = {**batch.ends, **self._unwritten.ends}
            reason = error.reason if isinstance(error, Unavailable) else type(error).__name__
            for write in writes:
                if not write.done.done():
                    write.done.set_exception(Unavailable(reason, retry_after_s=RETRY_DELAY_S))
            raise
        for write in writes:
            if not write.done.done():
                write.done.set_result(None)
        asyncio.get_running_loop().call_later(PUBLISH_DELAY_S, self._to_publish.set)
        return True

    def _end_interrupted_shares(self, connection: Connection) -> None:
        """Ends the shares that an earlier process left open, with the number of positions that may have left."""
        for row in connection.execute(sa.select(_open_shares)).all():
            logger().warning("share_was_cut_off", disclosure_id=row.disclosure_id, positions=row.positions)
            _end(connection, row.disclosure_id, _ShareEnd(row.positions, self._clock.now_ms()))

    async def _publish_some(self, bus: Bus) -> bool:
        """Publishes the oldest waiting disclosures. Returns whether more may wait."""
        rows = await self._database.visit(_oldest_waiting)
        if not rows:
            return False
        # Each disclosure has a unique subject. After a kill it may be published twice: the server then rejects the second one, and the
        # rejection counts as success.
        await asyncio.gather(
            *(
                bus.publish_until_stored(
                    flow.disclosure_subject(PUBLISHER, row.disclosure_id),
                    row.payload,
                    msg_id=row.disclosure_id,
                    expected_last=0,
                )
                for row in rows
            )
        )
        at_ms = self._clock.now_ms()
        await self._database.visit(lambda connection: _move(connection, rows, at_ms))
        return len(rows) == PUBLISH_BATCH

    async def _keep_published(self, bus: Bus) -> None:
        """Republishes disclosures that the stream has lost, after each connection and every minute, until cancelled."""
        newest = sa.select(_published).order_by(_published.c.id.desc())
        query = newest.offset(sa.bindparam("skipped")).limit(sa.bindparam("most"))

        async def page(skipped: int, limit: int) -> list[lost_publications.SoleMessage]:
            part = {"skipped": skipped, "most": limit}
            rows = await self._database.visit(lambda connection: connection.execute(query, part).all())
            return [_message_of(row) for row in rows]

        await lost_publications.keep_restored(bus, flow.DISCLOSURES.name, page)


def _not_open() -> Unavailable:
    return Unavailable("the outbox of disclosures isn't open", retry_after_s=RETRY_DELAY_S)


async def _persist(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work` until cancelled, again after an error of the disk or of the server. `name` is for the log."""
    fields = {"work": name}
    while True:
        try:
            with _OUTAGES.working(fields):
                await work()
        except (RetryableError, DBAPIError, OSError) as error:
            _OUTAGES.failed(fields, error.reason if isinstance(error, RetryableError) else type(error).__name__)
            await asyncio.sleep(RETRY_DELAY_S)


async def _drain(work: Callable[[], Awaitable[bool]], wake: asyncio.Event) -> None:
    """Calls `work` while it returns True, then waits for `wake`."""
    wake.clear()
    while await work():
        wake.clear()
    await wake.wait()


def _message_of(row: sa.Row[*tuple[Any, ...]]) -> lost_publications.SoleMessage:
    return lost_publications.SoleMessage(
        flow.disclosure_subject(PUBLISHER, row.disclosure_id), row.payload, row.disclosure_id
    )


class _WaitingRow(NamedTuple):
    """A disclosure that waits to be published."""

    id: int
    disclosure_id: str
    payload: bytes


def _oldest_waiting(connection: Connection) -> list[_WaitingRow]:
    query = f"select id, disclosure_id, payload from {_waiting.name} order by id limit {PUBLISH_BATCH}"  # noqa: S608  # constants
    return [_WaitingRow._make(row) for row in connection.exec_driver_sql(query)]


def _move(connection: Connection, rows: Sequence[_WaitingRow], at_ms: int) -> None:
    """Moves published disclosures to the published ones, and deletes the oldest of these."""
    kept = [(row.disclosure_id, row.payload, at_ms) for row in rows]
    insert = "insert or ignore into published (disclosure_id, payload, at_ms) values (?, ?, ?)"
    connection.exec_driver_sql(insert, kept)
    connection.exec_driver_sql("delete from waiting where id = ?", [(row.id,) for row in rows])
    connection.exec_driver_sql("delete from published where at_ms < ?", (at_ms - PUBLISHED_KEPT_MS,))


def _write(connection: Connection, writes: Sequence[_Write], ends: Mapping[str, _ShareEnd]) -> None:
    """Writes beginnings, counts and ends. The driver's own statements: each share of the mesh passes here three times."""
    beginnings = [row for write in writes for row in write.beginnings]
    if new := [*beginnings, *(row for write in writes for row in write.single)]:
        connection.exec_driver_sql("insert into waiting (disclosure_id, payload) values (?, ?)", new)
    if beginnings:
        opened = [(*row, ALLOWED_BATCH) for row in beginnings]
        connection.exec_driver_sql(
            "insert into open_shares (disclosure_id, payload, positions) values (?, ?, ?)", opened
        )
    if allowed := [row for write in writes for row in write.allowed]:
        connection.exec_driver_sql("update open_shares set positions = ? where disclosure_id = ?", allowed)
    for disclosure_id, end in ends.items():
        _end(connection, disclosure_id, end)


def _end(connection: Connection, disclosure_id: str, end: _ShareEnd) -> None:
    """Writes the end of a share. Does nothing if the beginning of the share was never written."""
    query = "delete from open_shares where disclosure_id = ? returning payload"
    row = connection.exec_driver_sql(query, (disclosure_id,)).first()
    if row is None:
        return
    ended = ledger_pb2.Disclosure.FromString(row.payload)
    ended.disclosure_id += END_SUFFIX
    ended.at_ms, ended.positions = end.at_ms, end.positions
    values = (ended.disclosure_id, ended.SerializeToString())
    connection.exec_driver_sql("insert into waiting (disclosure_id, payload) values (?, ?)", values)
