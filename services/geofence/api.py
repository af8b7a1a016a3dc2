"""gRPC servicer of the geofence service: alerts, rules and devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

import grpc.aio

from services.common import fields
from services.common.errors import InvalidField, StoreFull, Unavailable
from services.common.ids import hash_id
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.common.rpc import server
from services.common.rpc.history import HistoryBudget
from services.common.rpc.identity import Role
from services.geofence import translate
from services.geofence.consumer import Evaluator
from services.geofence.devices import DeviceList
from tandem.common.v1 import alert_pb2, exercise_pb2, log_pb2
from tandem.geofence.v1 import geofence_pb2, geofence_pb2_grpc

ALERTS_PAGE = 64
"""Alerts that are read together: a page of the history's budget."""
ALERTS_LINGER_S = 0.1
"""Time for which new alerts are collected after the first one, seconds. Their figures are stored by then, so that each is read once."""
MEASURE_RETRY = Backoff(0.01, 0.1)
MEASURE_AWAITED_S = 5.0
MAX_ALERT_STREAMS = 50
"""Concurrent WatchAlerts calls per evaluator. Each call uses one stream consumer, and all evaluators together may have
`permissions.ALERT_READERS` consumers."""


class GeofenceApi(geofence_pb2_grpc.GeofenceServiceServicer):
    """Serves GeofenceService from the evaluators of this process."""

    def __init__(
        self, bus: Bus, evaluators: Mapping[int, Evaluator], partitions: int, *, history: HistoryBudget
    ) -> None:
        self._history = history
        self._bus = bus
        self._evaluators = evaluators
        self._partitions = partitions
        self._alert_streams = 0
        """Open WatchAlerts calls."""
        self._devices = DeviceList(evaluators, partitions)

    async def WatchAlerts(
        self, request: geofence_pb2.WatchAlertsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[geofence_pb2.WatchAlertsResponse]:
        if self._alert_streams >= MAX_ALERT_STREAMS:
            raise StoreFull(
                f"this evaluator already serves {MAX_ALERT_STREAMS} WatchAlerts calls: call another evaluator",
                retry_after_s=5.0,
            )
        self._alert_streams += 1
        try:
            async for response in self._alerts(request):
                yield response
        finally:
            self._alert_streams -= 1

    async def _alerts(
        self, request: geofence_pb2.WatchAlertsRequest
    ) -> AsyncIterator[geofence_pb2.WatchAlertsResponse]:
        only_canaries = server.caller().role == Role.ROLE_WATCH
        who = server.caller().spiffe_id
        start, linger_s = await self._start(request), 0.0 if only_canaries else ALERTS_LINGER_S
        async for messages in pull.read(self._bus, flow.ALERTS.name, start, batch=ALERTS_PAGE, linger_s=linger_s):
            if messages[-1].pending:  # earlier alerts are history
                page: list[geofence_pb2.WatchAlertsResponse] = []
                failure = await self._history.read_in_stream(
                    who, partial(self._read_page, messages, page, only_canaries=only_canaries)
                )
                for response in page:
                    yield response
                if failure:
                    raise failure
            else:
                for message in messages:
                    if (live := await self._response(message, only_canaries)) is not None:
                        yield live

    async def _read_page(
        self,
        messages: Sequence[pull.Delivered],
        page: list[geofence_pb2.WatchAlertsResponse],
        *,
        only_canaries: bool,
    ) -> Unavailable | None:
        """Appends the responses for messages of ALERTS to a page. Returns the error at which it ended early, or None."""
        try:
            for message in messages:
                if (response := await self._response(message, only_canaries)) is not None:
                    page.append(response)
        except Unavailable as error:
            return error
        return None

    async def _response(self, message: pull.Delivered, only_canaries: bool) -> geofence_pb2.WatchAlertsResponse | None:
        """The response for a message of ALERTS; None if the caller doesn't get it."""
        alert = self._readable(message)
        if alert is None or (only_canaries and alert.exercise != exercise_pb2.CANARY):
            return None
        measure = None if only_canaries else await self._measure(alert)
        return geofence_pb2.WatchAlertsResponse(stream_sequence=message.sequence, alert=alert, measure=measure)

    def _readable(self, message: pull.Delivered) -> alert_pb2.Alert | None:
        """Alert of a message of ALERTS; None for another message, and for one that can't be read."""
        if not flow.ALERTS.holds(message.subject):
            return None
        try:
            return stored.alert(message.data, message.subject)
        except InvalidField as error:
            # The legs make a dead letter of this message. An error here would fail every retry for as long as ALERTS keeps the message.
            dead_letters.pass_over(self._bus, "watch-alerts", message.stream, sequence=message.sequence, error=error)
            return None

    async def _start(self, request: geofence_pb2.WatchAlertsRequest) -> int | StreamCursor:
        """Where to start reading ALERTS for a request. Raises InvalidField, StreamWentBack or Unavailable."""
        after = request.after_stream_sequence
        if after and request.new_only:
            raise InvalidField("new_only", "can't be combined with after_stream_sequence: set only one of the two")
        bounds = await self._bus.bounds_of(flow.ALERTS.name)
        if after > bounds.last:
            raise InvalidField("after_stream_sequence", f"is beyond the last alert, {bounds.last}")
        if after and after + 1 < bounds.first:
            # The alerts in between have aged out, and the caller must not miss them silently. 0 asks for all that are left.
            raise InvalidField("after_stream_sequence", f"is before the alerts that are kept, from {bounds.first} on")
        if after:
            return await self._resume_point(after, fields.required_id("after_alert_id", request.after_alert_id))
        return bounds.last + 1 if request.new_only else 1

    async def _resume_point(self, sequence: int, alert_id: str) -> int | StreamCursor:
        """Where to resume reading ALERTS after the alert at a sequence. Raises StreamWentBack if another alert is stored there."""
        message = await cursors.stored_at(self._bus, flow.ALERTS.name, sequence)
        if message is None:
            return sequence + 1  # the alert at `sequence` was the last one to age out
        if message["subject"].rpartition(".")[2] != alert_id:
            raise StreamWentBack(flow.ALERTS.name, sequence, cursors.of_stored(message))
        return cursors.of_stored(message)

    async def _measure(self, alert: alert_pb2.Alert) -> alert_pb2.Measure | None:
        """The figures of an alert, published right after it. None if they can't be parsed.

        Raises Unavailable if they aren't published within MEASURE_AWAITED_S.
        """
        evaluator = self._evaluators.get(alert.partition)
        if evaluator is not None and (recent := evaluator.measures.figures_of(alert.alert_id)) is not None:
            return recent
        subject = flow.measure_subject(alert.partition, alert.alert_id)
        deadline, retries = asyncio.get_running_loop().time() + MEASURE_AWAITED_S, 0
        while True:
            data = await self._bus.last_of(flow.MEASURES.name, subject)
            if data is not None:
                try:
                    return stored.measure(data)
                except InvalidField as error:
                    logger().error("figures_unreadable", alert_id=alert.alert_id, reason=str(error))
                    return None
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable("the figures of an alert aren't published yet")
            await asyncio.sleep(MEASURE_RETRY.delay_s(retries))
            retries += 1

    async def PutRules(
        self, request: geofence_pb2.PutRulesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> geofence_pb2.PutRulesResponse:
        translate.check_rules("rules.", request.rules)
        entry = log_pb2.LogEntry(rules=request.rules).SerializeToString()
        acks = [
            await self._bus.publish(
                flow.log_subject(p, "rules"), entry, msg_id=hash_id("rules", p, entry.hex(), self._now_sequence(p))
            )
            for p in range(self._partitions)
        ]
        return geofence_pb2.PutRulesResponse(sequences=[ack.seq for ack in acks])

    async def ListDevices(
        self, request: geofence_pb2.ListDevicesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> geofence_pb2.ListDevicesResponse:
        return await self._devices.page(request)

    def _now_sequence(self, partition: int) -> int:
        evaluator = self._evaluators.get(partition)
        return evaluator.state.sequence if evaluator else 0
