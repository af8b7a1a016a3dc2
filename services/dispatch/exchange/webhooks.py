"""Webhooks of a leg: a message for each step, and for each alarm of a match review, is queued on disk for each receiver.

Queued messages are sent signed, in order, retried, and given up after a deadline with an alarm. Delivery is at least once, so a
receiver must deduplicate by id.

A review that nobody decided in time is an alarm at both agencies, until it is over. The leg asks the registry which alarms there are,
and compares the answer with the alarms of which its receivers know. So an alarm is sent once, and its end once, whatever restarts or
was lost meanwhile, the registry's database included.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import aiohttp
import grpc.aio

from services.common import ids, times
from services.common.clock import wall_us
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff, retried
from services.common.rpc import client
from services.common.rpc.server import Metadata
from services.common.web.receivers import BodyForm, Receiver, open_session, post
from services.dispatch.domain.leg import Leg
from services.dispatch.exchange import messages
from services.dispatch.exchange.links import Links
from services.dispatch.exchange.store import (
    DELIVERED,
    GIVEN_UP,
    WAITING,
    AlarmMessage,
    Delivery,
    DeliveryQueue,
    ExchangeStore,
    ReviewAlarm,
    StepDelivery,
)
from services.dispatch.following.targets import CALLERS
from services.dispatch.leg import translate
from services.dispatch.leg.record import LegRecord
from services.dispatch.leg.tables import StepRow
from services.dispatch.metrics import WebhookMetrics
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import match_review_pb2, match_review_pb2_grpc

COMPARE_PAGE = 100
"""Number of queued steps that are compared with the leg's record at a time."""


class _StepIdentity(NamedTuple):
    """Identity of a step in the leg's record. A step that the leg makes once more has another time."""

    sequence: int
    step_id: str
    at_ms: int

    @classmethod
    def of(cls, sequence: int, payload: bytes) -> _StepIdentity:
        """The identity of a serialised step."""
        step = dispatch_pb2.Step.FromString(payload)
        return cls(sequence, step.step_id, times.from_timestamp(step.at))


class Webhooks:
    """Delivers the steps of one leg."""

    def __init__(
        self,
        leg: str,
        record: LegRecord,
        store: ExchangeStore,
        *,
        receivers: Sequence[Receiver],
        links: Links | None,
        metrics: WebhookMetrics,
        is_outward: Callable[[dispatch_pb2.Assignment], bool],
    ) -> None:
        self._is_outward = is_outward
        self._leg = leg
        self._record = record
        self._store = store
        self._links = links
        self._receivers, self._metrics = receivers, metrics

    async def run(self) -> None:
        """Delivers steps until cancelled. Receivers don't wait for each other."""
        async with open_session() as session, asyncio.TaskGroup() as tasks:
            for receiver in self._receivers:
                tasks.create_task(self._serve(session, receiver))

    async def _serve(self, session: aiohttp.ClientSession, receiver: Receiver) -> None:
        courier = Courier(session, receiver, self._store.steps, metrics=self._metrics)
        await retried(lambda: self._compare(receiver))
        while True:
            head = self._record.head
            await retried(lambda: self._queue_steps(receiver))
            if not await courier.deliver_next():
                await self._record.changed(head)

    async def _compare(self, receiver: Receiver) -> None:
        """Continues after the last queued step that the leg's record still has.

        The record is another one after its database was lost or an older copy was restored. It numbers its steps from there, and the
        receiver would get none until their sequences exceed the old ones.
        """
        name = receiver.name
        last, newest = await self._store.queued_up_to(name), await self._store.newest_queued(name, None, 1)
        if last is None:
            return
        head = (await self._record.store.head()).id
        held = await self._last_held(name) if newest else min(last, head)
        if held != (newest[0].sequence if newest else last) or head < last:
            await self._store.continue_after(name, held)
            logger().warning("webhook_record_replaced", receiver=name, queued_up_to=last, continues_after=held)

    async def _last_held(self, receiver: str) -> int:
        """Sequence of the last queued step that the leg's record still has; 0 if it has none of them."""
        before: int | None = None
        while queued := await self._store.newest_queued(receiver, before, COMPARE_PAGE):
            rows = await self._record.store.steps_at([step.sequence for step in queued])
            held = {_StepIdentity.of(row.sequence, row.payload) for row in rows}
            for step in queued:
                if _StepIdentity.of(step.sequence, step.step) in held:
                    return step.sequence
            before = queued[-1].sequence
        return 0

    async def _queue_steps(self, receiver: Receiver) -> None:
        """Queues the steps that were committed since the last call. For a new receiver, only later steps are queued."""
        last = await self._store.queued_up_to(receiver.name)
        if last is None:
            head = await self._record.store.head()
            await self._store.queue(receiver.name, head.id, ())
            return
        rows = await self._record.store.steps_after(last)
        if rows:
            await self._store.queue(receiver.name, rows[-1].sequence, await self._deliveries(receiver, rows))

    async def _deliveries(self, receiver: Receiver, rows: Sequence[StepRow]) -> list[StepDelivery]:
        """Writes the message of each step that is for receivers."""
        due_ms = deadline_ms(receiver)
        deliveries: list[StepDelivery] = []
        for row in rows:
            step = translate.stored_step(row)
            if not self._is_outward(step.assignment):
                continue
            incident_id = step.assignment.incident_id
            id_ = messages.delivery_id(self._leg, receiver.name, step)
            link = self._links.url(receiver.name, id_, step) if self._links and receiver.links else ""
            before: list[bytes] = []
            if receiver.form is not BodyForm.STEP:
                before += await self._store.steps_of(receiver.name, incident_id)
                before += [delivery.step for delivery in deliveries if delivery.incident_id == incident_id]
            body, content_type = messages.write_body(
                self._leg, receiver, row.sequence, step=step, before=before, link=link
            )
            deliveries.append(
                StepDelivery(
                    receiver=receiver.name,
                    sequence=row.sequence,
                    delivery_id=id_,
                    incident_id=incident_id,
                    step=step.SerializeToString(),
                    body=body,
                    content_type=content_type,
                    deadline_ms=due_ms,
                )
            )
        return deliveries


REVIEW_CHECK_INTERVAL_S = 5.0
"""Interval at which the registry is asked for the alarms, seconds of wall time."""
REVIEW_CALL_DEADLINE_S = 5.0
TYPE = "tandem.registry.v1.AlarmedReview"
"""Value of `type` in the body."""
RAISED, ENDED = "RAISED", "ENDED"


class ReviewAlarms:
    """Sends the alarms of match reviews to the receivers of one agency. EIDO describes incidents, so its receivers get none."""

    def __init__(
        self,
        settings: DispatchSettings,
        store: ExchangeStore,
        *,
        receivers: Sequence[Receiver],
        metrics: WebhookMetrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
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
                await asyncio.sleep(REVIEW_CHECK_INTERVAL_S)

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
            queue = await stub.GetReviewQueue(request, metadata=metadata, timeout=REVIEW_CALL_DEADLINE_S)
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


RETRY = Backoff(1.0, 300.0)
"""Delays between attempts to deliver a message, seconds of wall time."""
MAX_BODY_BYTES = 64 << 10


class Courier:
    """Delivers the messages of one queue to one receiver. Receivers and queues don't wait for each other."""

    def __init__(
        self, session: aiohttp.ClientSession, receiver: Receiver, queue: DeliveryQueue, *, metrics: WebhookMetrics
    ) -> None:
        self._session = session
        self._receiver = receiver
        self._queue = queue
        self._metrics = metrics
        self._waiting = metrics.waiting.labels(receiver.name, queue.name)
        self._failures = 0

    async def deliver_next(self) -> bool:
        """Attempts the next message. Returns False at once if none waits; after a failure, waits until the next attempt."""
        delivery = await retried(lambda: self._queue.waiting(self._receiver.name))
        if delivery is None:
            self._waiting.set(0)
            return False
        if await self._attempt(delivery):
            self._failures = 0
            return True
        self._waiting.set(await retried(lambda: self._queue.count_waiting(self._receiver.name)))
        remaining_s = delivery.deadline_ms / 1000 - wall_us() / 1_000_000
        await asyncio.sleep(min(RETRY.delay_s(self._failures), max(remaining_s, 0.01)))
        self._failures += 1
        return True

    async def _attempt(self, delivery: Delivery) -> bool:
        """Attempts a delivery. Returns True if the message is done with, so that the next message may be sent."""
        fields = {"receiver": delivery.receiver, "delivery_id": delivery.delivery_id, "tries": delivery.tries + 1}
        is_too_large = len(delivery.body) > MAX_BODY_BYTES
        reason = f"the body is larger than {MAX_BODY_BYTES} bytes"
        if not is_too_large:
            reason = await post(
                self._session,
                self._receiver,
                delivery.delivery_id,
                body=delivery.body,
                content_type=delivery.content_type,
            )
        if not reason:
            await self._note(delivery, DELIVERED, "delivered")
            logger().info("webhook_delivered", **fields)
            return True
        if is_too_large or wall_us() // 1000 >= delivery.deadline_ms:
            await self._note(delivery, GIVEN_UP, "given up")
            logger().critical("webhook_given_up", reason=reason, **fields)
            return True
        await self._note(delivery, WAITING, "failed")
        logger().warning("webhook_failed", reason=reason, **fields)
        return False

    async def _note(self, delivery: Delivery, outcome: str, label: str) -> None:
        await retried(lambda: self._queue.tried(delivery, outcome))
        self._metrics.tries.labels(delivery.receiver, label).inc()


def deadline_ms(receiver: Receiver) -> int:
    """The deadline of a message that is queued now for a receiver, wall clock, milliseconds since 1970 UTC."""
    return wall_us() // 1000 + round(receiver.deadline_s * 1000)
