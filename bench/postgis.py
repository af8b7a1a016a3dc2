"""Peer of bench.ingest: reports inserted durably into PostGIS, 100 a transaction, over two connections.

It gets what helps it: a table without indexes, prepared statements, and no checkpoint or vacuum while it is measured.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from bench.reports import ACCURACY_M, Reports
from bench.saturated import Tally
from tests.support import postgres
from tests.support.postgres import PostgresServer

PACKAGE = "postgresql-17-postgis-3"
CONNECTIONS = 2
_SETTINGS = ("synchronous_commit=on", "max_wal_size=8GB", "checkpoint_timeout=1h", "autovacuum=off")
_INSERT = """
    insert into reports (device_id, report_id, fix_time, place, accuracy_m)
    select device_id, $2, $3, ST_SetSRID(ST_MakePoint(lon_deg, lat_deg), 4326)::geography, $6
    from unnest($1::text[], $4::float8[], $5::float8[]) as one (device_id, lat_deg, lon_deg)
"""


def programs() -> Path | None:
    """Folder of the programs of the newest PostgreSQL that has PostGIS; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_config"), key=lambda one: one.parts[-3], reverse=True)
    on_path = shutil.which("pg_config")
    for config in [*found, *([Path(on_path)] if on_path else [])]:
        asked = (config, "--bindir", "--sharedir")
        folder, shared = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
        if (Path(shared) / "extension" / "postgis.control").exists() and (Path(folder) / "initdb").exists():
            return Path(folder)
    return None


@contextmanager
def running(folder: Path) -> Iterator[PostgresServer]:
    """A server of our own that syncs every transaction."""
    with postgres.running_postgres(fsync=True, programs=folder, settings=_SETTINGS) as server:
        yield server


async def create(url: str) -> dict[str, str]:
    """Makes the table and returns the versions."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("create extension postgis")
        await connection.execute(
            "create table reports (device_id text not null, report_id text not null, fix_time timestamptz not null,"
            " place geography(point, 4326) not null, accuracy_m float8 not null)"
        )
        return {
            "postgresql": await connection.fetchval("show server_version"),
            "postgis": await connection.fetchval("select extversion from pg_extension where extname = 'postgis'"),
        }
    finally:
        await connection.close()


async def insert(url: str, reports: Reports, tally: Tally) -> None:
    """One of the connections."""
    connection = await asyncpg.connect(url)
    try:
        statement = await connection.prepare(_INSERT)
        while not tally.over:
            batch = reports.next_columns()
            fix_time = datetime.fromtimestamp(batch.fix_time_s, UTC)
            await statement.fetch(batch.device_ids, batch.report_id, fix_time, batch.lat_deg, batch.lon_deg, ACCURACY_M)
            tally.reports += len(batch.device_ids)
    finally:
        await connection.close()
