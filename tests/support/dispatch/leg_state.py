"""A leg's incidents without latencies, and how far it has read its streams."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Iterable
from contextlib import closing

import grpc
import grpc.aio
import pytest

from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2


async def refused(call: Awaitable[object], code: grpc.StatusCode, part: str = "") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    assert refusal.value.code() == code and part in (refusal.value.details() or "")


def timeless(incidents: Iterable[dispatch_pb2.Incident]) -> list[dispatch_pb2.Incident]:
    """Returns incidents without latencies, because a leg stores them slightly after the steps."""
    copies = list(incidents)
    for assignment in (assignment for copy in copies for assignment in copy.assignments):
        assignment.ClearField("report_to_published_ms")
    return copies


def position_of(given: DispatchSettings) -> int:
    """Returns the sequence of the last alert that a leg has folded, from its database."""
    with closing(sqlite3.connect(given.database)) as database:
        row = database.execute("SELECT sequence FROM positions WHERE stream = 'ALERTS'").fetchone()
        return int(row[0]) if row else 0
