"""Reads the alerts of an order that the stream ALERTS no longer holds. They are in the legs' records, kept as long as the order's data.

A leg records each alert that demands something of its agency, with its kind, demand and ring. It doesn't record alerts that demand
nothing, or only a warning to the protected person.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg

from services.cli.failure import CommandFailed
from services.cli.report.facts import DecidedAlert
from services.common.storage.postgres import CONNECT_WITHIN_S
from services.dispatch.evidence.model import EVIDENCE_LEGS
from services.dispatch.settings import for_leg
from tandem.common.v1 import alert_pb2, geometry_pb2

_QUERY = """
    SELECT events.incident_id, events.body FROM events JOIN incidents ON incidents.incident_id = events.incident_id
    WHERE events.kind = 'AlertFolded' AND incidents.exercise = 0 AND incidents.opened_ms < {before_ms} AND {has_order}
"""
_SQLITE = _QUERY.format(before_ms="?", has_order="instr(incidents.order_ids, ?) > 0")
_POSTGRES = _QUERY.format(before_ms="$1", has_order="strpos(incidents.order_ids::text, $2) > 0")


async def read(folder: Path, order_id: str, *, from_ms: int, before_ms: int) -> list[DecidedAlert]:
    """The alerts of an order that both agencies' legs recorded from `from_ms` to `before_ms`, mesh time. Exercises are left out.

    Raises CommandFailed if a database can't be read.
    """
    rows: list[tuple[str, str]] = []
    for leg in EVIDENCE_LEGS:
        url = for_leg(leg).database_url
        path = folder / "data" / f"dispatch-{leg}" / f"dispatch-{leg}.sqlite3"
        if url:
            rows += await _postgres(url, leg, order_id, before_ms=before_ms)
        elif path.exists():
            rows += _sqlite(path, order_id, before_ms)
    return of_rows(rows, order_id, from_ms=from_ms, before_ms=before_ms)


def of_rows(rows: Iterable[tuple[str, str]], order_id: str, *, from_ms: int, before_ms: int) -> list[DecidedAlert]:
    """The alerts of an order in rows of an incident's id and an event's body, each once, by time."""
    found: dict[str, DecidedAlert] = {}
    for incident_id, text in rows:
        body = json.loads(text)
        if body["order_id"] == order_id and from_ms <= body["at_ms"] < before_ms:
            found.setdefault(body["alert_id"], DecidedAlert(_alert(incident_id, body), None))
    return sorted(found.values(), key=lambda fact: (fact.decided_ms, fact.alert.alert_id))


def _alert(incident_id: str, body: dict[str, object]) -> alert_pb2.Alert:
    """The alert with the fields that a leg's record has. Its times are the time at which the leg recorded it."""
    alert = alert_pb2.Alert(
        alert_id=str(body["alert_id"]),
        incident_id=incident_id,
        order_id=str(body["order_id"]),
        wearer_id=str(body.get("wearer_id", "")),
        kind=alert_pb2.AlertKind.ValueType(_int_or_zero(body.get("kind"))),
        demand=geometry_pb2.Demand.ValueType(_int_or_zero(body["demand"])),
    )
    ring_m = body.get("ring_m")
    alert.ring_m = ring_m if isinstance(ring_m, float | int) else 0.0
    for at in (alert.at, alert.decided_at):
        at.FromMilliseconds(_int_or_zero(body["at_ms"]))
    return alert


def _int_or_zero(value: object) -> int:
    return value if isinstance(value, int) else 0


def _sqlite(path: Path, order_id: str, before_ms: int) -> Iterator[tuple[str, str]]:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            yield from connection.execute(_SQLITE, (before_ms, json.dumps(order_id)))
    except sqlite3.Error as error:
        raise CommandFailed(f"{path}: {error}") from None


async def _postgres(url: str, leg: str, order_id: str, *, before_ms: int) -> list[tuple[str, str]]:
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_WITHIN_S)
        try:
            return [tuple(row) for row in await connection.fetch(_POSTGRES, before_ms, json.dumps(order_id))]
        finally:
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        # The error's text and the URL are left out, as they may contain a password.
        raise CommandFailed(f"the {leg} leg's PostgreSQL: {type(error).__name__}") from None
