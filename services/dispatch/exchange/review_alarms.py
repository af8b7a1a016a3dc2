"""Alarms of match reviews by webhook: a review that nobody decided in time is an alarm at both agencies, until it is over.

The leg asks the registry which alarms there are, and compares the answer with the alarms of which its receivers know. So an alarm is
sent once, and its end once, whatever restarts or was lost meanwhile, the registry's database included.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import aiohttp
import grpc.aio

from services.common import ids, times
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.common.rpc import client
from services.common.rpc.server import Metadata
from services.dispatch.domain.leg import Leg
from services.dispatch.exchange.deliveries import Courier, deadline_ms
from services.dispatch.exchange.metrics import WebhookMetrics
from services.dispatch.exchange.posting import open_session
from services.dispatch.exchange.receivers import BodyForm, Receiver
from services.dispatch.exchange.store import AlarmMessage, ExchangeStore, ReviewAlarm
from services.dispatch.following.targets import CALLERS
from services.dispatch.settings import DispatchSettings
from tandem.registry.v1 import match_review_pb2, match_review_pb2_grpc

CHECK_INTERVAL_S = 5.0
"""Interval at which the registry is asked for the alarms, seconds of wall time."""
DEADLINE_S = 5.0
TYPE = "tandem.registry.v1.AlarmedReview"
"""Value of `type` in the body."""
RAISED, ENDED = "RAISED", "ENDED"


class ReviewAlarms:
    """Sends the alarms of match reviews to the receivers of one agency. CAP and EIDO describe incidents, so these forms get none."""

    def __init__(
        self,
        settings: DispatchSettings,
        store: ExchangeStore,
        *,
        receivers: Sequence[Receiver],
        metrics: WebhookMetrics,
    ) -> None:
        self._settings, self._store, self._metrics = settings, store, metrics
        self._receivers = [receiver for receiver in receivers if receiver.form is BodyForm.STEP]
        self._queued = {receiver.name: asyncio.Event() for receiver in self._receivers}
        self._is_away = False

    async def run(self) -> None:
        """Sends alarms until cancelled."""
        leg = self._settings.leg
        if not self._receivers or leg not in CALLERS:
            return
        if not self._settings.registry:
            logger().warning("reviews_not_watched", reason="TANDEM_REGISTRY isn't set")
            return
        connection = client.connection(self._settings, self._settings.registry, CALLERS[leg])
        async with connection as (channel, metadata), open_session() as session, asyncio.TaskGroup() as tasks:
            for receiver in self._receivers:
                tasks.create_task(self._serve(session, receiver))
            stub = match_review_pb2_grpc.MatchReviewServiceStub(channel)
            while True:
                await self._check(stub, metadata)
                await asyncio.sleep(CHECK_INTERVAL_S)

    async def _serve(self, session: aiohttp.ClientSession, receiver: Receiver) -> None:
        courier, queued = (
            Courier(session, receiver, self._store.reviews, metrics=self._metrics),
            self._queued[receiver.name],
        )
        while True:
            queued.clear()
            if not await courier.deliver_next():
                await queued.wait()

    async def _check(self, stub: match_review_pb2_grpc.MatchReviewServiceStub, metadata: Metadata) -> None:
        """Asks for the alarms, and queues what is new."""
        request = match_review_pb2.GetReviewQueueRequest()
        try:
            queue = await stub.GetReviewQueue(request, metadata=metadata, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if not self._is_away:
                logger().warning("reviews_unknown", code=error.code().name)
            self._is_away = True
            return
        self._is_away = False
        now = {(alarm.case_id, alarm.since_ms): alarm for alarm in map(_alarm, queue.alarms)}
        known = {(alarm.case_id, alarm.since_ms): alarm for alarm in await retried(self._store.review_alarms)}
        raised = [alarm for key, alarm in now.items() if key not in known]
        # The list may be cut. Then an alarm that it lacks may still be there.
        is_whole = len(queue.alarms) == queue.alarmed
        ended = [alarm for key, alarm in known.items() if key not in now] if is_whole else []
        if raised or ended:
            messages = [
                _message(self._settings.leg, receiver, alarm, state=state)
                for state, alarms in ((ENDED, ended), (RAISED, raised))
                for alarm in alarms
                for receiver in self._receivers
            ]
            await retried(lambda: self._store.queue_alarms(raised, ended, messages))
            logger().info("review_alarms_queued", raised=len(raised), ended=len(ended))
            for queued in self._queued.values():
                queued.set()


def _alarm(message: match_review_pb2.AlarmedReview) -> ReviewAlarm:
    return ReviewAlarm(
        case_id=message.case_id,
        since_ms=times.from_timestamp(message.since),
        order_id=message.order_id,
        wearer_id=message.wearer_id,
        alarmed_at_ms=times.from_timestamp(message.alarmed_at),
    )


def _message(leg: Leg, receiver: Receiver, alarm: ReviewAlarm, *, state: str) -> AlarmMessage:
    content = {
        "type": TYPE,
        "leg": leg.value,
        "state": state,
        "case_id": alarm.case_id,
        "order_id": alarm.order_id,
        "wearer_id": alarm.wearer_id,
        "since": times.to_timestamp(alarm.since_ms).ToJsonString(),
        "alarmed_at": times.to_timestamp(alarm.alarmed_at_ms).ToJsonString(),
    }
    return AlarmMessage(
        receiver=receiver.name,
        delivery_id=ids.hash_id("review-hook", leg.value, receiver.name, alarm.case_id, alarm.since_ms, state),
        body=json.dumps(content, sort_keys=True, separators=(",", ":")).encode(),
        content_type="application/json",
        deadline_ms=deadline_ms(receiver),
    )
