"""Outbox of disclosures for the registry's ledger: writes each to disk first, then publishes it until DISCLOSURES has it.

A share is one subject's live positions for one recipient. The ledger gets two disclosures of it: its beginning, and its end with
the number of positions sent. The beginning is on disk before the first position is sent. Positions are counted on disk in blocks of
ALLOWED_BATCH: the count is raised by a whole block before the block's first position is sent. So after a kill the end counts too
many positions rather than too few. The registry may be down for any time, because the stream keeps the disclosures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from services.common.clock import MeshClock
from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import Unavailable
from services.common.storage.db import Database, open_database
from tandem.common.v1 import ledger_pb2

MIGRATIONS = Path(__file__).parent / "migrations"
PUBLISHER = "geofence"
ALLOWED_BATCH = 60
"""Positions of a share that may leave between two writes to disk: one minute at one position a second."""
PUBLISH_BATCH = 64
RETRY_DELAY_S = 2.0
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

    def __init__(self, outbox: DisclosureOutbox, disclosure_id: str) -> None:
        self._outbox = outbox
        self._allowed = 0
        self.disclosure_id = disclosure_id
        self.positions = 0
        """Number of positions that have left."""

    async def count(self) -> None:
        """Counts a position before it leaves. Raises Unavailable if the disk refuses or the outbox isn't open; then the position
        must not leave."""
        if self.positions == self._allowed:
            await self._outbox.allow(self.disclosure_id, self._allowed + ALLOWED_BATCH)
            self._allowed += ALLOWED_BATCH
        self.positions += 1


class DisclosureOutbox:
    """Outbox of one evaluator's disclosures. Nothing is shared while it can't be opened; decisions don't depend on it."""

    def __init__(self, folder: Path, clock: MeshClock) -> None:
        self._path = folder / "disclosures.sqlite3"
        self._clock = clock
        self._opened: Database | None = None
        self._ended: dict[str, _ShareEnd] = {}
        """Ended shares whose end isn't on disk yet."""
        self._ends_waiting, self._rows_waiting = asyncio.Event(), asyncio.Event()

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise Unavailable("the outbox of disclosures isn't open", retry_after_s=RETRY_DELAY_S)
        return self._opened

    async def begin(self, disclosures: Sequence[ledger_pb2.Disclosure]) -> list[OpenShare]:
        """Writes the beginnings of shares, all or none. Raises Unavailable if the disk refuses or the outbox isn't open; then no
        position may leave."""
        shares = [OpenShare(self, disclosure.disclosure_id) for disclosure in disclosures]

        def write(connection: Connection) -> None:
            for disclosure in disclosures:
                payload = disclosure.SerializeToString()
                opened = {"disclosure_id": disclosure.disclosure_id, "payload": payload, "positions": 0}
                connection.execute(sa.insert(_waiting).values(disclosure_id=disclosure.disclosure_id, payload=payload))
                connection.execute(sa.insert(_open_shares).values(opened))

        try:
            await self._database.visit(write)
        except asyncio.CancelledError:
            for share in shares:  # the recipient disconnected during the write
                self.end(share)
            raise
        self._rows_waiting.set()
        return shares

    async def allow(self, disclosure_id: str, positions: int) -> None:
        """Increases the number of positions that a share may send. Raises Unavailable if the disk refuses or the outbox isn't open."""
        where = _open_shares.c.disclosure_id == disclosure_id
        allowed = sa.update(_open_shares).where(where).values(positions=positions)
        await self._database.visit(lambda connection: connection.execute(allowed))

    def end(self, share: OpenShare) -> None:
        """Ends a share. The end is written soon, at the latest when this evaluator restarts."""
        self._ended[share.disclosure_id] = _ShareEnd(share.positions, self._clock.now_ms())
        self._ends_waiting.set()

    async def run(self, bus: Bus) -> None:
        """Opens the outbox, writes ends and publishes waiting disclosures, until cancelled."""
        await _persist(lambda: self._open(bus))

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
                # Separate tasks, so that ends are written even while NATS is down.
                tasks.create_task(_persist(lambda: _drain(self._write_ends, self._ends_waiting)))
                tasks.create_task(_persist(lambda: _drain(lambda: self._publish_some(bus), self._rows_waiting)))
                tasks.create_task(_persist(lambda: self._keep_published(bus)))
        finally:
            with suppress(Unavailable, DBAPIError):  # the next start ends these shares, with the counts on disk
                await self._write_ends()

    async def _write_ends(self) -> bool:
        ended = dict(self._ended)
        if not ended:
            return False

        def write(connection: Connection) -> None:
            for disclosure_id, end in ended.items():
                _end(connection, disclosure_id, end)

        await self._database.visit(write)
        for disclosure_id in ended:
            del self._ended[disclosure_id]
        self._rows_waiting.set()
        return True

    def _end_interrupted_shares(self, connection: Connection) -> None:
        """Ends the shares that an earlier process left open, with the number of positions that may have left."""
        for row in connection.execute(sa.select(_open_shares)).all():
            logger().warning("share_was_cut_off", disclosure_id=row.disclosure_id, positions=row.positions)
            _end(connection, row.disclosure_id, _ShareEnd(row.positions, self._clock.now_ms()))

    async def _publish_some(self, bus: Bus) -> bool:
        oldest = sa.select(_waiting).order_by(_waiting.c.id).limit(PUBLISH_BATCH)
        rows = await self._database.visit(lambda connection: connection.execute(oldest).all())
        for row in rows:
            # Each disclosure has a unique subject. After a kill it may be published twice: the server then rejects the second one,
            # and the rejection counts as success.
            subject = flow.disclosure_subject(PUBLISHER, row.disclosure_id)
            await bus.publish_until_stored(subject, row.payload, msg_id=row.disclosure_id, expected_last=0)
        if rows:
            at_ms = self._clock.now_ms()

            def move(connection: Connection) -> None:
                kept = [{"disclosure_id": row.disclosure_id, "payload": row.payload, "at_ms": at_ms} for row in rows]
                connection.execute(sa.insert(_published).prefix_with("OR IGNORE"), kept)
                connection.execute(sa.delete(_waiting).where(_waiting.c.id.in_([row.id for row in rows])))
                connection.execute(sa.delete(_published).where(_published.c.at_ms < at_ms - PUBLISHED_KEPT_MS))

            await self._database.visit(move)
        return bool(rows)

    async def _keep_published(self, bus: Bus) -> None:
        """Republishes disclosures that the stream has lost, after each connection and every minute, until cancelled."""
        newest = sa.select(_published).order_by(_published.c.id.desc())

        async def newest_first() -> list[lost_publications.SoleMessage]:
            rows = await self._database.visit(lambda connection: connection.execute(newest).all())
            return [_message_of(row) for row in rows]

        await lost_publications.keep_restored(bus, flow.DISCLOSURES.name, newest_first)


async def _persist(work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work` until cancelled, again after an error of the disk or of the server."""
    while True:
        try:
            await work()
        except (Unavailable, DBAPIError, OSError) as error:
            logger().error("disclosures_wait", reason=type(error).__name__)
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


def _end(connection: Connection, disclosure_id: str, end: _ShareEnd) -> None:
    """Writes the end of a share. Does nothing if the beginning of the share was never written."""
    where = _open_shares.c.disclosure_id == disclosure_id
    row = connection.execute(sa.select(_open_shares).where(where)).first()
    if row is None:
        return
    ended = ledger_pb2.Disclosure.FromString(row.payload)
    ended.disclosure_id += END_SUFFIX
    ended.at_ms, ended.positions = end.at_ms, end.positions
    row_values = {"disclosure_id": ended.disclosure_id, "payload": ended.SerializeToString()}
    connection.execute(sa.insert(_waiting).values(row_values))
    connection.execute(sa.delete(_open_shares).where(where))
