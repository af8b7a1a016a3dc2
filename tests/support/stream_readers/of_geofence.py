"""Readers in the evaluators: the log, alerts and measures for WatchAlerts, and the other evaluator's digests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc.aio

from services.common.messaging import cursors, flow
from tandem.geofence.v1 import device_state_pb2, device_state_pb2_grpc, geofence_pb2, geofence_pb2_grpc
from tests.support.geofence import log
from tests.support.stream_readers.alerts import LOG_ROWS, alert_id, alert_messages
from tests.support.stream_readers.mesh import CHECKPOINT_EVERY, Connection
from tests.support.stream_readers.reader import Message, Reader

DESK = "spiffe://npa/desk/seoul"
SILENT_S = 2.0
"""Time without an answer after which an open WatchAlerts counts as having sent all alerts, seconds."""


def case_message(name: str) -> Message:
    """Log entry with a case snapshot."""
    entry = log.case_entry(name)
    return log.subject_of(entry, 0), entry.SerializeToString()


async def _case(connection: Connection, name: str) -> Sequence[Message]:
    return [case_message(name)]


async def _case_is_known(connection: Connection, name: str) -> int:
    stub: Any = device_state_pb2_grpc.DeviceStateServiceStub(connection.channels["geofence"])
    request = device_state_pb2.ListDeviceStatesRequest(device_id=f"d{name}")
    try:
        await stub.ListDeviceStates(request, **connection.call(DESK))
    except grpc.aio.AioRpcError:
        return 0
    return 1


async def _alert(connection: Connection, name: str) -> Sequence[Message]:
    return alert_messages(name)


async def _alert_elsewhere(connection: Connection, name: str) -> Sequence[Message]:
    (_, alert), figures = alert_messages(name)
    return [(flow.alert_subject(0, f"{name}-x"), alert), figures]


async def _watched(connection: Connection, name: str) -> int:
    """Number of times that WatchAlerts sends an alert, beginning at the first alert that the stream holds."""
    stub: Any = geofence_pb2_grpc.GeofenceServiceStub(connection.channels["geofence"])
    call = stub.WatchAlerts(geofence_pb2.WatchAlertsRequest(), **connection.call(DESK))
    count = 0
    try:
        while True:
            async with asyncio.timeout(SILENT_S if count else None):
                answer = await call.read()
            if answer is grpc.aio.EOF:
                return count
            count += answer.alert.alert_id == alert_id(name)
    except TimeoutError:
        return count
    except grpc.aio.AioRpcError:
        return 0
    finally:
        call.cancel()


async def _alert_with_garbage_for_figures(connection: Connection, name: str) -> Sequence[Message]:
    return [*alert_messages(f"{name}-x", figures=b"{}"), *alert_messages(name)]


async def _other_digests(connection: Connection, name: str) -> Sequence[Message]:
    """Log entries, garbage on the subjects of the other evaluator's digests, and a case after them."""
    first = (await connection.bus.bounds_of(flow.log_stream(0))).last + 1
    for n in range(CHECKPOINT_EVERY):
        await connection.publish(*case_message(f"{name}-{n}"))
    digests = []
    for sequence in range(first, first + CHECKPOINT_EVERY):
        if sequence % CHECKPOINT_EVERY == 0:
            entry = await cursors.at(connection.bus, flow.log_stream(0), sequence)
            assert entry
            digests.append((flow.digest_subject(0, sequence, entry.stored_at_ns, replica=1), b"\xff\xfe{}"))
    return [*digests, case_message(name)]


READERS = (
    Reader(
        name="geofence-log",
        service="geofence",
        rows=tuple((subject, "geofence") for subject in LOG_ROWS),
        valid=_case,
        effects=_case_is_known,
        garbage=tuple(subject.format(p=0) for subject in LOG_ROWS),
        dead_letter_by="fold",
    ),
    Reader(
        name="geofence-watch-alerts",
        rows=(("alert.{p}.{alert_id}", "geofence"),),
        valid=_alert,
        effects=_watched,
        misplaced=_alert_elsewhere,
        garbage=("alert.0.junk-{name}",),
        counts_duplicates=True,
        at_reuse=False,
    ),
    Reader(
        name="geofence-figures",
        rows=(("measure.{p}.{alert_id}", "geofence"),),
        valid=_alert_with_garbage_for_figures,
        effects=_watched,
        garbage=("measure.0.junk-{name}",),
        counts_duplicates=True,
        at_reuse=False,
    ),
    Reader(
        name="geofence-digests",
        service="geofence",
        rows=(("digest.{p}.{sequence}.{stamp}.{replica}", "geofence"),),
        valid=_other_digests,
        effects=_case_is_known,
        garbage=("digest.0.junk-{name}.1",),
        logs=("geofence", "digest_not_compared"),
        only_at_start=True,
        only_garbage=True,
    ),
)
