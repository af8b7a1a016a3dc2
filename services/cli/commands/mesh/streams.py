"""`tandem streams` and `tandem migrate`: what must be there before the services start, made by Jobs of a cluster."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated

import nats.errors
import nats.js.errors
import typer
import uvloop
from pydantic import ValidationError

from services.cli.failure import FAILED, MISUSED, CommandFailed
from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import streams as tables
from services.common.messaging.streams import PARTITIONS_MAX, LogMetadata
from services.common.rpc.errors import FailedPrecondition, Unavailable
from services.common.settings import CommonSettings
from services.common.storage import db
from services.registry.settings import RegistrySettings
from services.registry.store import MIGRATIONS

WITHIN_S = 60.0
RETRY_DELAY_S = 1.0
MAX_RETRY_S = 15.0
MIGRATE_WITHIN_S = 1_500.0
"""Longer than a first pull of the server's image takes; the Job's own deadline is longer still."""


def streams(
    partitions: Annotated[int, typer.Option(help="Partitions of the log.", min=1, max=PARTITIONS_MAX)] = 1,
    replicas: Annotated[
        int, typer.Option(help="Copies that the servers keep of each stream: 1, 3 or 5.", min=1, max=5)
    ] = 1,
    max_gib: Annotated[
        float, typer.Option(help="Most that one stream may take; 0 for what the flow table says.", min=0)
    ] = 0,
) -> None:
    """Create the streams of the flow table on the server that TANDEM_NATS_URL names; those that are there stay as they are."""
    try:
        settings = CommonSettings(port=0)
    except ValidationError as error:
        raise CommandFailed("; ".join(one["msg"] for one in error.errors()), MISUSED) from None
    made = uvloop.run(make(settings, partitions, replicas, round(max_gib * (1 << 30)) or None))
    print(f"partitions: {made.partitions}, log: {made.log_id}")


async def make(settings: CommonSettings, partitions: int, replicas: int, max_bytes: int | None) -> LogMetadata:
    """Makes what is missing, once the server can."""
    async with buses.connect(settings.nats_url, "setup", settings.nats_tls) as bus:
        while True:
            try:
                async with asyncio.timeout(WITHIN_S):
                    return await tables.create(bus, partitions, MeshClock(), replicas, max_bytes)
            except FailedPrecondition as error:
                raise CommandFailed(error.reason, FAILED) from None
            except (nats.errors.Error, nats.js.errors.APIError, TimeoutError) as error:
                # Servers that start have no leader for a while; a second try finds what the first has made.
                print(f"not yet: {type(error).__name__}: {error}", file=sys.stderr)
                await asyncio.sleep(RETRY_DELAY_S)


def migrate(
    within_s: Annotated[
        float, typer.Option("--within", help="Seconds to wait for a database that doesn't answer yet.", min=0)
    ] = MIGRATE_WITHIN_S,
) -> None:
    """Bring the schema of the registry's database up to date, once that answers; TANDEM_REGISTRY_DATABASE_URL names it."""
    settings = RegistrySettings()
    if not settings.registry_database_url.get_secret_value():
        raise CommandFailed("TANDEM_REGISTRY_DATABASE_URL names no database", MISUSED)
    uvloop.run(_migrate(settings.database, within_s))


async def _migrate(where: Path | str, within_s: float) -> None:
    """A Job that failed while the server's image is still pulled would use up its tries before the server is there."""
    until_s, wait_s = time.monotonic() + within_s, RETRY_DELAY_S
    while True:
        try:
            async with db.open_database(where, MIGRATIONS):
                return
        except Unavailable as error:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise CommandFailed(
                    f"the database didn't answer for {within_s:.0f} s: {error.reason}", FAILED
                ) from None
            wait_s = min(wait_s, left_s)
            print(
                f"not yet: {error.reason}; asked again in {wait_s:.0f} s, given up in {left_s:.0f} s", file=sys.stderr
            )
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_RETRY_S)
