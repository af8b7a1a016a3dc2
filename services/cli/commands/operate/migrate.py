"""`tandem migrate`: bring the schema of the registry's database up to date before the services start, from a Job of a cluster."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli.failure import FAILED, MISUSED, CommandFailed
from services.common.retrying import Backoff
from services.common.rpc.errors import Unavailable
from services.common.storage import db
from services.registry.settings import RegistrySettings
from services.registry.tables import MIGRATIONS

RETRY = Backoff(1.0, 15.0)
"""Delays between attempts."""
MIGRATE_WITHIN_S = 1_500.0
"""Timeout of a migration, seconds: longer than the first pull of the database server's image, shorter than the Job's deadline."""


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
