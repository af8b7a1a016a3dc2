"""`tandem streams` and `tandem migrate`: create streams and database schema before the services start, from Jobs of a cluster."""

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
from services.common.messaging.streams import MAX_PARTITIONS, LogMetadata
from services.common.retrying import Backoff
from services.common.rpc.errors import FailedPrecondition, Unavailable
from services.common.settings import CommonSettings
from services.common.storage import db
from services.registry.settings import RegistrySettings
from services.registry.tables import MIGRATIONS

WITHIN_S = 60.0
RETRY = Backoff(1.0, 15.0)
"""Delays between attempts."""
MIGRATE_WITHIN_S = 1_500.0
"""Timeout of a migration, seconds: longer than the first pull of the database server's image, shorter than the Job's deadline."""


def streams(
    partitions: Annotated[int, typer.Option(help="Partitions of the log.", min=1, max=MAX_PARTITIONS)] = 1,
    replicas: Annotated[int, typer.Option(help="Copies of each stream on the servers: 1, 3 or 5.", min=1, max=5)] = 1,
    max_gib: Annotated[
        float, typer.Option(help="Maximum size of a stream, GiB; 0 for the sizes of the flow table.", min=0)
    ] = 0,
) -> None:
    """Create the streams of the flow table on the server at TANDEM_NATS_URL; existing streams stay unchanged."""
    try:
        settings = CommonSettings(port=0)
    except ValidationError as error:
        raise CommandFailed("; ".join(detail["msg"] for detail in error.errors()), MISUSED) from None
    log_meta = uvloop.run(make(settings, partitions, replicas, max_bytes=round(max_gib * (1 << 30)) or None))
    print(f"partitions: {log_meta.partitions}, log: {log_meta.log_id}")


async def make(settings: CommonSettings, partitions: int, replicas: int, *, max_bytes: int | None) -> LogMetadata:
    """Creates the missing streams. Retries until the server can create them.

    Raises CommandFailed if the log was created with another number of partitions or another clock rate.
    """
    async with buses.connect(settings.nats_url, "setup", settings.nats_tls) as bus:
        while True:
            try:
                async with asyncio.timeout(WITHIN_S):
                    return await tables.create(bus, partitions, MeshClock(), replicas=replicas, max_bytes=max_bytes)
            except FailedPrecondition as error:
                raise CommandFailed(error.reason, FAILED) from None
            except (nats.errors.Error, nats.js.errors.APIError, TimeoutError) as error:
                # Starting servers have no leader for a while. A retry keeps the streams that an earlier try created.
                print(f"not yet: {type(error).__name__}: {error}", file=sys.stderr)
                await asyncio.sleep(RETRY.first_s)


def migrate(
    within_s: Annotated[
        float, typer.Option("--within", help="Seconds to wait for a database that doesn't answer.", min=0)
    ] = MIGRATE_WITHIN_S,
) -> None:
    """Migrate the schema of the registry's database at TANDEM_REGISTRY_DATABASE_URL, once it answers."""
    settings = RegistrySettings()
    if not settings.registry_database_url.get_secret_value():
        raise CommandFailed(
            "TANDEM_REGISTRY_DATABASE_URL isn't set (example: postgresql://registry@db.example/registry)", MISUSED
        )
    uvloop.run(_migrate(settings.database, within_s))


async def _migrate(where: Path | str, within_s: float) -> None:
    """Migrates with retries. Otherwise the Job would use up its own retries while the database server's image is being pulled."""
    until_s, retries = time.monotonic() + within_s, 0
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
            wait_s = min(RETRY.delay_s(retries), left_s)
            print(
                f"not yet: {error.reason}; asked again in {wait_s:.0f} s, given up in {left_s:.0f} s", file=sys.stderr
            )
            await asyncio.sleep(wait_s)
            retries += 1
