"""What tests see of a warning leg: rows of its database, and flags at the police's desk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from services.common.messaging.bus import Bus
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch import dispatch
from tests.support.dispatch.dispatch import Desk, Subscription, running
from tests.support.dispatch.warning import (
    WITHIN_S,
    Gateway,
    put_case,
    settings,
)


def rows(made: DispatchSettings, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{made.warning_database}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


async def until(made: DispatchSettings, query: str) -> list[Any]:
    """Waits until a query returns rows, and returns them."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                if found := rows(made, query):
                    return found
            except sqlite3.OperationalError as error:
                assert "no such table" in str(error) or "unable to open" in str(
                    error
                )  # the tables are still being created
            await asyncio.sleep(0.05)


async def flagged(desk: Subscription, flag: dispatch_pb2.WarningFlag.ValueType) -> dispatch_pb2.Assignment:
    """Waits for a step with a flag, and returns its assignment."""
    while True:
        assignment = (await desk.next_of_any()).step.assignment
        if assignment.person_flag.flag == flag:
            return assignment


@asynccontextmanager
async def three_legs(
    nats: TestServer, bus: Bus, folder: Path, gateway: Gateway
) -> AsyncIterator[tuple[DispatchSettings, Desk]]:
    """Runs all legs, and yields the settings of the warning leg and the police desk."""
    made = settings(nats, folder / "warning", gateway)
    await put_case(bus, made)
    police, probation = (dispatch.settings(leg, nats, folder / leg) for leg in ("police", "probation"))
    async with gateway.serving(), running(police) as leg, running(probation), running(made):
        await until(made, "select 1 from contacts")
        yield made, leg.desk
