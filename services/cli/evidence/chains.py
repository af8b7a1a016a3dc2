"""The legs' event chains in a bundle: the incident's events as they are written, of all others between them the hash alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from services.cli.evidence.format import CHAIN_SHAPE, CHAINS, EVENT_SHAPE, body_shape, lines_of, parsed
from services.cli.evidence.seal import canonical
from services.cli.evidence.tar import CorruptArchive
from services.cli.failure import CommandFailed
from services.common.storage.postgres import CONNECT_WITHIN_S
from services.dispatch.leg import chain
from services.dispatch.leg.chain import ChainedEvent, ChainHead

SHOWN_TO_OTHERS = frozenset({"at_ms", "assignment_id", "by", "due_ms"})
"""Fields of a leg's event that the other agency may have; an event with any other one is enclosed by its hash."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A stretch of a leg's chain, from the incident's first event to its last, as its database has it."""

    leg: str
    before: ChainHead
    """What the stretch follows."""
    links: Sequence[ChainedEvent]
    head: ChainHead
    """The chain's end when it was read."""

    def alert_ids(self, incident_id: str) -> list[str]:
        """Alerts that the leg has taken in for the incident."""
        bodies = (json.loads(link.body) for link in self.links if link.incident_id == incident_id)
        return [alert_id for body in bodies if (alert_id := _taken_in(body))]

    def to_member(self, incident_id: str, others: bool) -> bytes:
        """As it is enclosed, a line for each event; `others`: for an agency whose own leg this isn't."""

        def lines() -> Iterator[dict[str, Any]]:
            yield {
                "leg": self.leg,
                "before": [self.before.id, self.before.hash],
                "head": [self.head.id, self.head.hash],
            }
            for link in self.links:
                shown = link.incident_id == incident_id
                if shown and others:
                    shown = json.loads(link.body).keys() <= SHOWN_TO_OTHERS
                content = {"incident_id": link.incident_id, "kind": link.kind, "body": link.body} if shown else {}
                yield {"id": link.id, "hash": link.hash, **content}

        return b"".join(map(canonical, lines()))


@dataclass(frozen=True, slots=True)
class Shown:
    """An event of a chain that was followed."""

    leg: str
    id: int
    incident_id: str
    kind: str
    body: dict[str, Any]

    @property
    def alert_id(self) -> str:
        """The alert that the leg took in with it; empty where it is a step."""
        return _taken_in(self.body)


def _taken_in(body: dict[str, Any]) -> str:
    """An alert has a place in the log; a step that names one has its own moment only."""
    return str(body["alert_id"]) if body.keys() >= {"alert_id", "place"} else ""


def read(path: Path, leg: str, incident_id: str) -> Chain | None:
    """The incident's stretch of the chain in a leg's database, which may be in use; None where the leg knows nothing of it.

    Raises CommandFailed where the database can't be read.
    """
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            first, last = connection.execute(
                "SELECT min(id), max(id) FROM events WHERE incident_id = ?", (incident_id,)
            ).fetchone()
            if first is None:
                return None
            links = connection.execute(
                "SELECT id, incident_id, kind, body, hash FROM events WHERE id BETWEEN ? AND ? ORDER BY id",
                (first, last),
            )
            found = [ChainedEvent(*row) for row in links]
            before = connection.execute("SELECT id, hash FROM events WHERE id = ?", (first - 1,)).fetchone()
            head = connection.execute("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1").fetchone()
    except sqlite3.Error as error:
        raise CommandFailed(f"{path}: {error}") from None
    return Chain(leg, ChainHead(*before) if before else ChainHead(), found, ChainHead(*head))


async def read_postgres(url: str, leg: str, incident_id: str) -> Chain | None:
    """The same from a leg's schema of PostgreSQL. Raises CommandFailed where it can't be read."""
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_WITHIN_S)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                first, last = await connection.fetchrow(
                    "SELECT min(id), max(id) FROM events WHERE incident_id = $1", incident_id
                )
                if first is None:
                    return None
                links = await connection.fetch(
                    "SELECT id, incident_id, kind, body, hash FROM events WHERE id BETWEEN $1 AND $2 ORDER BY id",
                    *(first, last),
                )
                before = await connection.fetchrow("SELECT id, hash FROM events WHERE id = $1", first - 1)
                head = await connection.fetchrow("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1")
        finally:
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        # Neither its text nor the URL, which may hold a password, is repeated.
        raise CommandFailed(f"the {leg} leg's PostgreSQL: {type(error).__name__}") from None
    return Chain(
        leg, ChainHead(*before) if before else ChainHead(), [ChainedEvent(*row) for row in links], ChainHead(*head)
    )


def stated_head(name: str, member: bytes) -> tuple[int, str]:
    """The chain's end when it was read, as the member says it: id and hash. Raises Broken."""
    lines = lines_of(name, member)
    if not lines:
        raise CorruptArchive(name, None, "is empty")
    id_, hash_ = parsed(name, lines[0], CHAIN_SHAPE, 1)["head"]
    return id_, hash_


def follow(name: str, member: bytes) -> list[Shown]:
    """The events that a member shows, each proven to follow from the hash before it. Raises Broken with the first that doesn't, or that
    isn't such as `Chain.to_member` writes it.
    """
    lines = lines_of(name, member)
    if not lines:
        raise CorruptArchive(name, None, "is empty")
    told = parsed(name, lines[0], CHAIN_SHAPE, 1)
    leg, head = told["leg"], ChainHead(*told["before"])
    if CHAINS.get(name, leg) != leg:
        raise CorruptArchive(name, None, f"line 1: leg: is {leg}")
    found = []
    for number, line in enumerate(lines[1:], 2):
        event = parsed(name, line, EVENT_SHAPE, number)
        if event["id"] != head.id + 1:
            raise CorruptArchive(name, None, f"event {head.id + 1} is missing")
        after = ChainHead(event["id"], event["hash"])
        if len(event.keys() & {"incident_id", "kind", "body"}) not in (0, 3):
            raise CorruptArchive(name, None, f"line {number}: incident_id, kind and body go together")
        if "body" in event:
            body = parsed(name, event["body"], body_shape, number)
            link = ChainedEvent(event["id"], event["incident_id"], event["kind"], event["body"], event["hash"])
            after, broken = chain.first_broken(head, [link])
            if broken is not None:
                raise CorruptArchive(
                    name, None, f"event {broken} isn't the one that the leg wrote, or doesn't follow its predecessor"
                )
            found.append(Shown(leg, link.id, link.incident_id, link.kind, body))
        head = after
    if head.id > told["head"][0] or (head.id == told["head"][0] and head.hash != told["head"][1]):
        raise CorruptArchive(name, None, f"event {head.id} isn't the chain's head")
    return found
