"""Peer of bench.ingest: reports inserted durably into PostGIS, 100 a transaction, over two connections.

It gets what helps it: prepared statements, and no checkpoint or vacuum while it is measured. Twice: into a bare table without
indexes, which takes whatever comes; and into one that asks what ingest asks, a registered device, values within bounds, and each
report once.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from bench.ingestion.reports import ACCURACY_M, DEVICES, Reports, device_id
from bench.ingestion.saturated import Tally
from tests.support.common import postgres
from tests.support.common.postgres import PostgresServer

PACKAGE = "postgresql-17-postgis-3"
CONNECTIONS = 2
_SETTINGS = ("synchronous_commit=on", "max_wal_size=8GB", "checkpoint_timeout=1h", "autovacuum=off")
_COLUMNS = """
    device_id text not null, report_id text not null, fix_time timestamptz not null,
    place geography(point, 4326) not null, accuracy_m float8 not null
"""
_BARE = f"create table reports ({_COLUMNS});"
_ASKING = f"""
    create table devices (device_id text primary key);
    create table reports ({_COLUMNS},
        primary key (device_id, report_id),
        foreign key (device_id) references devices,
        check (report_id ~ '^[A-Za-z0-9_.-]{{1,64}}$'),
        check (accuracy_m > 0 and accuracy_m <= 100000),
        check (fix_time <= now() + interval '2 minutes'));
"""
INSERT = """
    insert into reports (device_id, report_id, fix_time, place, accuracy_m)
    select device_id, report_id, fix_time, ST_SetSRID(ST_MakePoint(lon_deg, lat_deg), 4326)::geography, accuracy_m
    from unnest($1::text[], $2::text[], $3::timestamptz[], $4::float8[], $5::float8[], $6::float8[])
        as one (device_id, report_id, fix_time, lat_deg, lon_deg, accuracy_m)
    on conflict do nothing
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


async def create(url: str, asking: bool) -> dict[str, str]:
    """Makes the table, with the devices where it asks for them, and returns the versions."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("create extension postgis")
        await make_table(connection, asking)
        return {
            "postgresql": await connection.fetchval("show server_version"),
            "postgis": await connection.fetchval("select extversion from pg_extension where extname = 'postgis'"),
        }
    finally:
        await connection.close()


async def make_table(connection: asyncpg.Connection, asking: bool) -> None:
    """The table of reports, with the devices where it asks for them."""
    await connection.execute(_ASKING if asking else _BARE)
    if asking:
        ids = [(device_id(index),) for index in range(DEVICES)]
        await connection.copy_records_to_table("devices", records=ids)
        await connection.execute("analyze devices")


async def insert(url: str, reports: Reports, tally: Tally) -> None:
    """One of the connections."""
    connection = await asyncpg.connect(url)
    try:
        statement = await connection.prepare(INSERT)
        while not tally.over:
            batch = reports.next_columns()
            fix_time = datetime.fromtimestamp(batch.fix_time_s, UTC)
            size = len(batch.device_ids)
            await statement.fetch(
                batch.device_ids,
                [batch.report_id] * size,
                [fix_time] * size,
                batch.lat_deg,
                batch.lon_deg,
                [ACCURACY_M] * size,
            )
            tally.reports += size
    finally:
        await connection.close()
