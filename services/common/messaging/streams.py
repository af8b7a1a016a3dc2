"""Creation of the streams of the flow table, and the checks of the mesh that each service makes before it starts."""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import aiohttp
import nats.errors
import nats.js.errors
from nats.js.api import DiscardPolicy, KeyValueConfig, RetentionPolicy, StorageType, StreamConfig

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, Unavailable
from services.common.messaging import flow, stored
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.observability.telemetry import logger
from services.common.retrying import every, retried
from services.common.settings import CommonSettings
from tandem.common.v1 import log_pb2

DUPLICATE_WINDOW_S = 600
"""Time during which the server recognizes a repeated Msg-Id, seconds."""
MAX_PARTITIONS = 64
"""Maximum number of partitions of the log."""
AWAIT_INTERVAL_S = 0.25
"""Interval of the checks of a service that starts and waits for the server or the log's metadata, seconds."""


@dataclass(frozen=True, slots=True)
class LogMetadata:
    """Metadata of the log, fixed forever when the log is created."""

    partitions: int
    clock: MeshClock
    log_id: str
    """Random id, generated when the log is created."""


async def create(
    bus: Bus, partitions: int, clock: MeshClock, *, replicas: int = 1, max_bytes: int | None = None
) -> LogMetadata:
    """Creates the missing streams, the KV bucket and the log metadata. Idempotent.

    `max_bytes` limits the size of each stream, for small disks. If None, the default, the flow table's sizes apply. Raises
    FailedPrecondition if the log was created with another number of partitions or another clock rate.
    """
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise FailedPrecondition(f"partitions must be 1 to {MAX_PARTITIONS}")
    existing = {info.config.name for info in await bus.js.streams_info()}
    if flow.LOG_META.name in existing:
        made = await _log_meta(bus)
        if made and (made.partitions != partitions or made.clock.rate != clock.rate):
            raise FailedPrecondition(
                f"this log was made with {made.partitions} partitions at clock rate {made.clock.rate}; neither can be changed"
            )
    for stream in flow.STREAMS:
        for p in range(partitions) if "{p}" in stream.name else (0,):
            name = stream.name.format(p=p)
            if name not in existing:
                await bus.js.add_stream(_config(stream, name, p, replicas=replicas, max_bytes=max_bytes))
    with suppress(nats.js.errors.BadRequestError):  # the bucket exists
        await bus.js.create_key_value(
            KeyValueConfig(bucket=flow.DEVICES_BUCKET, storage=StorageType.FILE, history=1, replicas=replicas)
        )
    log_meta = log_pb2.LogMetadata(
        partitions=partitions, clock_rate=clock.rate, clock_anchor_ms=clock.anchor_ms, log_id=uuid.uuid4().hex
    )
    with suppress(AlreadyStored):
        await bus.publish(flow.LOG_META_SUBJECT, log_meta.SerializeToString(), expected_last=0)
    return await read_log_meta(bus)


def _config(stream: flow.Stream, name: str, partition: int, *, replicas: int, max_bytes: int | None) -> StreamConfig:
    return StreamConfig(
        name=name,
        subjects=[subject.format(p=partition) for subject in stream.subjects],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD if stream.discards_oldest else DiscardPolicy.NEW,
        max_age=stream.max_age_s,
        max_bytes=min(stream.max_bytes, max_bytes or stream.max_bytes),
        duplicate_window=DUPLICATE_WINDOW_S,
        deny_delete=True,
        deny_purge=True,
        allow_direct=True,
        num_replicas=replicas,
    )


async def read_log_meta(bus: Bus) -> LogMetadata:
    """Reads the metadata of the log. Waits until they are available."""
    while True:
        log_meta = await _log_meta(bus)
        if log_meta:
            return log_meta
        await asyncio.sleep(AWAIT_INTERVAL_S)


async def _log_meta(bus: Bus) -> LogMetadata | None:
    try:
        # The log has one metadata message. Any later message comes from another publisher and isn't trusted (ADR 34).
        message = await bus.js.get_msg(flow.LOG_META.name, 1)
    except (nats.js.errors.Error, nats.errors.Error, OSError) as error:
        logger().info("streams_awaited", error=type(error).__name__)
        return None
    try:
        made = stored.log_meta(message.data or b"")
    except InvalidField as error:
        # No service can start on such a log. Waiting is better than exiting, which would only cause the next restart.
        logger().critical("log_meta_unreadable", reason=str(error))
        return None
    return LogMetadata(made.partitions, MeshClock(made.clock_rate, made.clock_anchor_ms), made.log_id)


async def pass_gate(bus: Bus, settings: CommonSettings) -> LogMetadata:
    """Checks that the mesh is safe to run on, and returns the log metadata. Waits for the server and for the metadata.

    Raises FailedPrecondition if the server may lose acknowledged messages in a power cut (`sync_interval` isn't `always`), or if
    the clock settings of this process differ from the log's.
    """
    if not settings.allow_async_store:
        if not settings.nats_monitor_url:
            raise FailedPrecondition(
                "TANDEM_NATS_MONITOR_URL is needed to check that the store is synchronous (example: http://127.0.0.1:8222)"
            )
        check = partial(_store_is_synchronous, settings.nats_monitor_url)
        if not await retried(
            check, every(AWAIT_INTERVAL_S), on=Unavailable, event="streams_awaited", level=logging.INFO
        ):
            raise FailedPrecondition(
                "nats-server must run with jetstream.sync_interval: always (or TANDEM_ALLOW_ASYNC_STORE)"
            )
    log_meta = await read_log_meta(bus)
    if log_meta.clock != settings.clock:
        raise FailedPrecondition("TANDEM_CLOCK_RATE or TANDEM_CLOCK_ANCHOR_MS differ from those in LOG_META")
    return log_meta


async def _store_is_synchronous(monitor_url: str) -> bool:
    """Whether the server writes each message to its disk before it acknowledges it. Raises Unavailable."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.get(f"{monitor_url}/varz") as answer,
        ):
            varz = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unavailable(f"no answer from {monitor_url}/varz") from error
    config = varz["jetstream"].get("config")
    if config is None:
        raise Unavailable("nats-server hasn't opened its store")  # it answers already while it starts
    return bool(config.get("sync_always"))
