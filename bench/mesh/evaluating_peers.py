"""Peers of ingest plus an evaluator: PostGIS and Valkey, which store a report and search for near devices.

Both get the same crowd. For each report they do the minimum work of an evaluator: the distance to the other side's last position, and
whether the home is within the widest ring. Neither keeps episodes, minimises the distance over time, or notifies anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg

from bench.ingestion import postgis
from bench.ingestion.reports import ACCURACY_M, BATCH, Reports, device_id
from bench.ingestion.saturated import Tally
from bench.mesh.crowd import RINGS, Crowd
from services.common.failure import CommandFailed

_WIDEST_M = RINGS[0][0]
_BEYOND_DEG = 0.03
"""Half width of a bounding box, more than 2 km. The box excludes nearly all pairs before the slow ellipsoidal distance in PostGIS."""
_TABLES = """
    create table latest (device_id text primary key, place geography(point, 4326) not null) with (fillfactor = 50);
    create table sides (device_id text primary key, other_id text not null, home geography(polygon, 4326) not null,
        round_home geometry(polygon, 4326) not null);
"""
_PUT = "insert into sides values ($1, $2, ST_GeogFromText($3), ST_Expand(ST_GeomFromText($3, 4326), $4))"
_EVALUATE = f"""
    with stored as (
        {postgis.INSERT} returning device_id, place
    ), moved as (
        insert into latest select device_id, place from stored on conflict (device_id) do update set place = excluded.place
    )
    select count(*) from stored join sides using (device_id) left join latest on latest.device_id = sides.other_id
    where (stored.place::geometry && sides.round_home and ST_DWithin(stored.place, sides.home, {_WIDEST_M}))
        or (stored.place::geometry && ST_Expand(latest.place::geometry, {_BEYOND_DEG})
            and ST_DWithin(stored.place, latest.place, {_WIDEST_M}))
"""  # noqa: S608  # the values are constants of this module
_PING, _PONG = b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"
"""Sent after each batch, so that the end of its answers is recognizable without parsing them."""


async def create(url: str, crowd: Crowd, checked: bool) -> None:
    """Creates the tables with both sides of each case; `checked` as in bench.ingestion.postgis."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("create extension postgis")
        await postgis.make_table(connection, checked)
        await connection.execute(_TABLES)
        rows = []
        for wearer in range(crowd.wearers):
            (case,) = crowd.cases(wearer, 0)
            corners = [*case.places[0].polygon.vertices, case.places[0].polygon.vertices[0]]
            home = f"POLYGON(({','.join(f'{corner.lon_deg} {corner.lat_deg}' for corner in corners)}))"
            tag, phone = device_id(2 * wearer), device_id(2 * wearer + 1)
            rows += [(tag, phone, home, _BEYOND_DEG), (phone, tag, home, _BEYOND_DEG)]
        await connection.executemany(_PUT, rows)
        await connection.execute("analyze sides")
    finally:
        await connection.close()


async def evaluate(url: str, reports: Reports, tally: Tally) -> None:
    """Stores and evaluates reports over one connection until the tally is over."""
    connection = await asyncpg.connect(url)
    try:
        statement = await connection.prepare(_EVALUATE)
        while not tally.over:
            batch = reports.next_columns()
            size = len(batch.device_ids)
            fix_time = datetime.fromtimestamp(batch.fix_time_s, UTC)
            await statement.fetchval(
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


async def evaluate_in_valkey(port: int, reports: Reports, tally: Tally) -> None:
    """Stores and evaluates reports over one connection until the tally is over, a pipelined batch at a time.

    Each report needs XADD, GEOADD, GEODIST to the other side and GEOSEARCH around it.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while not tally.over:
            batch = reports.next_columns()
            commands = []
            for name, lat_deg, lon_deg in zip(batch.device_ids, batch.lat_deg, batch.lon_deg, strict=True):
                lat = f"{lat_deg:.7f}"
                lon = f"{lon_deg:.7f}"
                other = device_id(int(name.removeprefix("tag-")) ^ 1)
                commands += [
                    _words(("XADD", "reports", "*", "d", name, "lat", lat, "lon", lon, "r", batch.report_id)),
                    _words(("GEOADD", "latest", lon, lat, name)),
                    _words(("GEODIST", "latest", name, other, "m")),
                    _words(("GEOSEARCH", "latest", "FROMMEMBER", name, "BYRADIUS", str(_WIDEST_M), "m", "COUNT", "10")),
                ]
            writer.write(b"".join(commands) + _PING)
            answers = b""
            while not answers.endswith(_PONG):
                answers += await reader.read(1 << 18)
                if reader.at_eof() or answers.startswith(b"-") or b"\n-" in answers:
                    raise CommandFailed(f"Valkey rejected a report: {answers[-100:].decode()}")
            tally.reports += BATCH
    finally:
        writer.close()
        await writer.wait_closed()


def _words(words: Sequence[str]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)
