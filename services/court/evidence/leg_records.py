"""Records of the legs that no service serves: where they are on this machine, and their chains of events in a bundle.

A bundle holds the incident's events in full, and hashes only of other events between them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from services.common.failure import CommandFailed
from services.court.evidence.archive import (
    CHAIN_SHAPE,
    CHAINS,
    EVENT_SHAPE,
    CorruptArchive,
    body_shape,
    canonical_json,
    lines_of,
    parsed,
)
from services.dispatch.leg import chain
from services.dispatch.leg.chain import ChainedEvent, ChainHead

CONNECT_WITHIN_S = 5.0
"""Maximum time to open a connection to PostgreSQL, seconds."""


@dataclass(frozen=True, slots=True)
class MeshRecords:
    """Where the records are."""

    folder: Path
    """The mesh's folder."""
    databases: Mapping[str, str]
    """PostgreSQL URL of each leg; empty for a leg that uses SQLite in the mesh's folder."""

    @property
    def key(self) -> Path:
        """File of the custodian's private key, which signs bundles."""
        return self.folder / "data" / "evidence.key"

    def sqlite_file(self, leg: str) -> Path:
        """SQLite file of a leg without PostgreSQL."""
        return self._data(leg) / f"dispatch-{leg}.sqlite3"

    def evidence_copies(self, leg: str) -> Path:
        """Folder of a leg's copies of evidence."""
        return self._data(leg) / f"evidence-{leg}"

    def _data(self, leg: str) -> Path:
        return self.folder / "data" / f"dispatch-{leg}"


@contextmanager
def open_sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens a leg's SQLite file for reading; it may be in use. Raises CommandFailed if it can't be read."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise CommandFailed(f"{path}: {error}") from None


@asynccontextmanager
async def open_postgres(url: str, leg: str) -> AsyncIterator[asyncpg.Connection]:
    """Opens a leg's PostgreSQL schema for reading, in one snapshot. Raises CommandFailed if it can't be read."""
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_WITHIN_S)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                yield connection
        finally:
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        # The error's text and the URL are left out, as they may contain a password.
        raise CommandFailed(f"the {leg} leg's PostgreSQL: {type(error).__name__}") from None


SHOWN_TO_OTHERS = frozenset({"at_ms", "assignment_id", "by", "due_ms", "remind_ms", "offer_number", "ask_next_ms"})
"""Fields of a leg's event that the other agency may see. An event with any other field is enclosed as its hash only."""
HIDDEN_KINDS = frozenset({"Reminded", "Assured"})
"""Events that are enclosed as their hash only: the limits of a unit on its way reveal how far the protected person is."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A section of a leg's chain from its database, from the incident's first event to its last."""

    leg: str
    before: ChainHead
    """Head of the chain before the section."""
    links: Sequence[ChainedEvent]
    head: ChainHead
    """Head of the whole chain when it was read."""

    def alert_ids(self, incident_id: str) -> list[str]:
        """Ids of the alerts that the leg has accepted for the incident."""
        bodies = (json.loads(link.body) for link in self.links if link.incident_id == incident_id)
        return [alert_id for body in bodies if (alert_id := _accepted_alert(body))]

    def to_member(self, incident_id: str, others: bool) -> bytes:
        """The bundle member, with a line per event. `others` is set if the bundle is for another agency than this leg's."""

        def lines() -> Iterator[dict[str, Any]]:
            yield {
                "leg": self.leg,
                "before": [self.before.id, self.before.hash],
                "head": [self.head.id, self.head.hash],
            }
            for link in self.links:
                shown = link.incident_id == incident_id
                if shown and others:
                    shown = link.kind not in HIDDEN_KINDS and json.loads(link.body).keys() <= SHOWN_TO_OTHERS
                content = {"incident_id": link.incident_id, "kind": link.kind, "body": link.body} if shown else {}
                yield {"id": link.id, "hash": link.hash, **content}

        return b"".join(map(canonical_json, lines()))


@dataclass(frozen=True, slots=True)
class Shown:
    """A verified event of a chain in a bundle."""

    leg: str
    id: int
    incident_id: str
    kind: str
    body: dict[str, Any]

    @property
    def alert_id(self) -> str:
        """Id of the alert that the leg accepted with this event; empty for a step."""
        return _accepted_alert(self.body)


def _accepted_alert(body: dict[str, Any]) -> str:
    """Id of the alert in an event's body; empty for a step. Only an alert's event has a log position (`place`)."""
    return str(body["alert_id"]) if body.keys() >= {"alert_id", "place"} else ""


def read_chain(path: Path, leg: str, incident_id: str) -> Chain | None:
    """Reads the incident's section of the chain from a leg's SQLite file, which may be in use.

    Returns None if the leg doesn't know the incident. Raises CommandFailed if the database can't be read.
    """
    with open_sqlite(path) as connection:
        connection.row_factory = sqlite3.Row
        first, last = connection.execute(
            "SELECT min(id), max(id) FROM events WHERE incident_id = ?", (incident_id,)
        ).fetchone()
        if first is None:
            return None
        links = connection.execute(
            "SELECT id, incident_id, kind, body, hash FROM events WHERE id BETWEEN ? AND ? ORDER BY id",
            (first, last),
        )
        events = [ChainedEvent(**row) for row in links]
        before = connection.execute("SELECT id, hash FROM events WHERE id = ?", (first - 1,)).fetchone()
        head = connection.execute("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1").fetchone()
    return Chain(leg=leg, before=_head(before), links=events, head=_head(head))


async def read_chain_postgres(url: str, leg: str, incident_id: str) -> Chain | None:
    """Reads the incident's section of the chain from a leg's PostgreSQL schema, as `read` does from SQLite."""
    async with open_postgres(url, leg) as connection:
        first, last = await connection.fetchrow(
            "SELECT min(id), max(id) FROM events WHERE incident_id = $1", incident_id
        )
        if first is None:
            return None
        links = await connection.fetch(
            "SELECT id, incident_id, kind, body, hash FROM events WHERE id BETWEEN $1 AND $2 ORDER BY id",
            first,
            last,
        )
        before = await connection.fetchrow("SELECT id, hash FROM events WHERE id = $1", first - 1)
        head = await connection.fetchrow("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1")
    return Chain(leg=leg, before=_head(before), links=[ChainedEvent(**row) for row in links], head=_head(head))


def _head(row: Any) -> ChainHead:
    """The chain's head after the event of a row with id and hash; without a row, the head of an empty chain."""
    return ChainHead(id=row["id"], hash=row["hash"]) if row else ChainHead()


def verified_events(name: str, member: bytes, head_in_manifest: Sequence[Any] | None = None) -> list[Shown]:
    """The events that a member shows in full, after verifying the hash of every event.

    Raises CorruptArchive with the first event that doesn't follow from its predecessor, or that `Chain.to_member` wouldn't write, and
    if the chain's head isn't the one in the manifest.
    """
    lines = lines_of(name, member)
    if not lines:
        raise CorruptArchive(name, None, "is empty")
    first = parsed(name, lines[0], CHAIN_SHAPE, line=1)
    if head_in_manifest is not None and first["head"] != head_in_manifest:
        raise CorruptArchive(name, None, "line 1: head: isn't the manifest's")
    leg, (last_id, last_hash) = first["leg"], first["before"]
    head = ChainHead(last_id, last_hash)
    if CHAINS.get(name, leg) != leg:
        raise CorruptArchive(name, None, f"line 1: leg: is {leg}")
    shown = []
    for number, line in enumerate(lines[1:], 2):
        event = parsed(name, line, EVENT_SHAPE, line=number)
        if event["id"] != head.id + 1:
            raise CorruptArchive(name, None, f"event {head.id + 1} is missing")
        after = ChainHead(event["id"], event["hash"])
        if len(event.keys() & {"incident_id", "kind", "body"}) not in (0, 3):
            raise CorruptArchive(name, None, f"line {number}: incident_id, kind and body go together")
        if "body" in event:
            body = parsed(name, event["body"], body_shape, line=number)
            link = ChainedEvent(
                id=event["id"],
                incident_id=event["incident_id"],
                kind=event["kind"],
                body=event["body"],
                hash=event["hash"],
            )
            after, broken = chain.first_broken(head, [link])
            if broken is not None:
                raise CorruptArchive(
                    name, None, f"event {broken} isn't the one that the leg wrote, or doesn't follow its predecessor"
                )
            shown.append(Shown(leg=leg, id=link.id, incident_id=link.incident_id, kind=link.kind, body=body))
        head = after
    if head.id > first["head"][0] or (head.id == first["head"][0] and head.hash != first["head"][1]):
        raise CorruptArchive(name, None, f"event {head.id} isn't the chain's head")
    return shown
