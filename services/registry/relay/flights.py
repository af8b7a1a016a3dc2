"""Decide which messages of the outbox may be published at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from services.common.messaging import flow
from services.common.runs import runs
from services.registry.outbox.store import OutboxRow

MAX_FLIGHT = 16
"""Number of messages in flight. A stream writes one message after another to the disk, so a live report waits for a flight at most,
also while agencies renew all their records."""
MAX_FLIGHT_BYTES = 1 << 20
"""Size of the messages in flight after which the next message waits, bytes."""
_ROUTES = flow.ROUTES.subject.partition("{")[0]


def flights(rows: Iterable[OutboxRow]) -> list[list[OutboxRow]]:
    """Groups of messages in the order in which the groups are published. The messages of a group are in flight together.

    No group holds two messages of one device or one case, so that an older route or case never follows a newer one, even if the
    server refuses the older message at first. Routes come before all other messages, so that reports reach a case's partition by the
    time the fold knows the case.
    """
    ordered = sorted(rows, key=_is_after_routes)
    return [
        flight
        for _, part in groupby(ordered, _is_after_routes)
        for flight in runs(part, _key, at_most=MAX_FLIGHT, size=_size_bytes, max_size=MAX_FLIGHT_BYTES)
    ]


def _is_after_routes(row: OutboxRow) -> bool:
    return not row.subject.startswith(_ROUTES)


def _size_bytes(row: OutboxRow) -> int:
    return len(row.payload)


def _key(row: OutboxRow) -> str:
    """The case of a case's snapshot, and the subject of any other message."""
    return row.msg_id.partition(":")[0] if row.subject.endswith(".case") else row.subject
