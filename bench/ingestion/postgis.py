"""Peer of bench.ingest: reports inserted durably into PostGIS, 100 per transaction, over two connections.

PostGIS gets favourable conditions: prepared statements, and no checkpoint or vacuum during the measurement. It is measured twice: with
a bare table without indexes, which accepts every row; and with a table that checks the same as ingest, which is a registered device,
values within bounds, and each report once.
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
_CHECKED = f"""
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
        as report (device_id, report_id, fix_time, lat_deg, lon_deg, accuracy_m)
    on conflict do nothing
"""


def programs() -> Path | None:
    """Folder of the programs of the newest PostgreSQL with PostGIS; None where none is installed."""
    configs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_config"), key=lambda path: path.parts[-3], reverse=True)
    on_path = shutil.which("pg_config")
    for config in [*configs, *([Path(on_path)] if on_path else [])]:
        arguments = (config, "--bindir", "--sharedir")
        folder, shared = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
        if (Path(shared) / "extension" / "postgis.control").exists() and (Path(folder) / "initdb").exists():
            return Path(folder)
    return None


@contextmanager
def running(folder: Path) -> Iterator[PostgresServer]:
    """Starts a separate server that syncs every transaction."""
    with postgres.running_postgres(fsync=True, programs=folder, settings=_SETTINGS) as server:
        yield server


async def create(url: str, checked: bool) -> dict[str, str]:
    """Creates the table of reports; returns the versions of the server. `checked` adds the checks and the devices."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("create extension postgis")
        await make_table(connection, checked)
        return {
            "postgresql": await connection.fetchval("show server_version"),
            "postgis": await connection.fetchval("select extversion from pg_extension where extname = 'postgis'"),
        }
    finally:
        await connection.close()


async def make_table(connection: asyncpg.Connection, checked: bool) -> None:
    """Creates the table of reports. `checked` adds the checks and the table of devices."""
    await connection.execute(_CHECKED if checked else _BARE)
    if checked:
        ids = [(device_id(index),) for index in range(DEVICES)]
        await connection.copy_records_to_table("devices", records=ids)
        await connection.execute("analyze devices")


async def insert(url: str, reports: Reports, tally: Tally) -> None:
    """Inserts reports over one connection until the tally is over."""
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
