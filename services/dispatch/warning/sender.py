"""Sends due messages: to each gateway by a signed webhook, and to each device of the person as a command, independently.

Each attempt looks up the contact and unseals its handle. Neither is stored. Gateways are reached without NATS, and sending needs no
other service.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from prometheus_client import Counter, Histogram

from services.common import ids, times
from services.common.clock import MeshClock
from services.common.messaging import flow, stored
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.observability.telemetry import logger
from services.common.privacy import sealing
from services.common.rpc.errors import InvalidField, RetryableError
from services.dispatch.domain.enums import Demand
from services.dispatch.exchange.posting import open_session, post
from services.dispatch.exchange.receivers import Receiver
from services.dispatch.retrying import retried
from services.dispatch.warning import wording
from services.dispatch.warning.consumer import TTL_MS
from services.dispatch.warning.domain import Notice
from services.dispatch.warning.http import AnswerLinks
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import GIVEN_UP, HANDED_OVER, OPEN, ContactRow, MessageRow, Sending
from services.dispatch.warning.wording import DistanceTrend, Language
from tandem.common.v1 import command_pb2, contact_pb2

GATEWAY, DEVICE = "gateway/", "device/"
FIRST_WAIT_MS, LAST_WAIT_MS = 1_000, 10_000
"""First and longest backoff, milliseconds of mesh time: a message should be read within 10 s, so the backoff stays short."""
DISTANCE_TIMEOUT_S = 1.0
"""Maximum wait for the distance of a message, seconds: it is stored after its alert. After that the text goes without it."""
MAX_SLEEP_S = 1.0
"""Maximum sleep between two checks for due messages, seconds of wall time."""
LANE_CONCURRENCY = 64
"""Concurrent attempts per lane. A hanging gateway delays only its own lane."""
COALESCE_S = 0.01
"""Delay in which due messages and outcomes of attempts are collected into one transaction, seconds."""
ISSUED_BY = "dispatch-warning"
"""Issuer of the commands to devices."""
_LANGUAGES = {contact_pb2.LANGUAGE_ENGLISH: Language.ENGLISH}

_TRIES = Counter("tandem_warning_tries", "Attempts to hand a warning over, by way and outcome", ("way", "outcome"))
_HANDED_OVER = Histogram(
    "tandem_warning_handed_over_seconds", "Time from when a warning is due until a way accepts it, mesh time", ("way",)
)


class WarningSender:
    """Sends the warnings of one leg."""

    def __init__(
        self,
        store: WarningStore,
        clock: MeshClock,
        keys: Sequence[X25519PrivateKey],
        *,
        gateways: Sequence[Receiver],
        links: AnswerLinks | None,
    ) -> None:
        self._store, self._clock, self._keys, self._links = store, clock, keys, links
        self._gateways = {gateway.name: gateway for gateway in gateways}
        self.bus: Bus | None = None
        """Bus for commands to devices; None without a connection."""
        self._woken = asyncio.Event()
        self._under_way: dict[str, set[str]] = {}
        """Keys of running attempts by lane. Each gateway has a lane, and all devices share one."""
        self._outcomes: list[tuple[Sending, str, int]] = []
        self._storing: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wakes the sender, because a message may be due."""
        self._woken.set()

    async def run(self) -> None:
        """Sends messages until cancelled."""
        async with AsyncExitStack() as stack:
            # A session per gateway: a hanging gateway mustn't use up the connections of another.
            sessions = {name: await stack.enter_async_context(open_session()) for name in self._gateways}
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            while True:
                self._woken.clear()
                now_ms = self._clock.now_ms()
                due = await retried(partial(self._store.due, now_ms))
                # Messages without a distance go at once, all in one transaction.
                await self._open([message for message in due if Notice(message.notice) is not Notice.CHANGED])
                for message in due:
                    if Notice(message.notice) is Notice.CHANGED:
                        self._begin(tasks, "open", message.message_id, work=partial(self._open, [message]))
                for sending, message in await retried(partial(self._store.to_try, now_ms)):
                    session = sessions.get(sending.way.removeprefix(GATEWAY))
                    lane = sending.way if session else DEVICE
                    self._begin(
                        tasks,
                        lane,
                        sending.message_id + sending.way,
                        work=partial(self._try, session, sending, message),
                    )
                await self._sleep(now_ms)
                await asyncio.sleep(COALESCE_S)

    async def _sleep(self, now_ms: int) -> None:
        next_ms = await retried(self._store.next_ms)
        sleep_s = MAX_SLEEP_S if next_ms is None else self._clock.wall_s(max(0, next_ms - now_ms))
        if any(self._under_way.values()):
            sleep_s = MAX_SLEEP_S  # each running attempt wakes this loop when it ends
        try:
            async with asyncio.timeout(min(max(sleep_s, 0.01), MAX_SLEEP_S)):
                await self._woken.wait()
        except TimeoutError:
            return

    def _begin(
        self, tasks: asyncio.TaskGroup, lane: str, key: str, *, work: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        under_way = self._under_way.setdefault(lane, set())
        if key in under_way or len(under_way) >= LANE_CONCURRENCY:
            return
        under_way.add(key)

        async def finish() -> None:
            try:
                await work()
            finally:
                under_way.discard(key)
                self._woken.set()

        tasks.create_task(finish())

    # ── a message ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self, due: Sequence[MessageRow]) -> None:
        """Writes the texts of messages, and stores them with a sending for each channel."""
        if not due:
            return
        opened = []
        contacts_by_person = await retried(partial(self._store.contacts_of, *{message.person_id for message in due}))
        for message in due:
            contacts = contacts_by_person[message.person_id]
            contact = self._contact(message.person_id, contacts)
            language = _LANGUAGES.get(contact.language, Language.KOREAN) if contact else Language.KOREAN
            distance_m, change = await self._distance_and_trend(message)
            text = wording.text(
                Notice(message.notice),
                Demand(message.demand),
                language,
                ring_m=message.ring_m,
                of_place=message.of_place,
                distance_m=distance_m,
                change=change,
                drill=message.drill,
            )
            ways = [GATEWAY + name for name in self._gateways] if contact else []
            ways += [DEVICE + id_ for id_ in dict.fromkeys(id_ for contact in contacts for id_ in contact.device_ids)]
            now_ms = self._clock.now_ms()
            sendings = [
                Sending(
                    message_id=message.message_id,
                    way=way,
                    command_id=_command_id(message, way),
                    tries=0,
                    next_ms=now_ms,
                    expires_ms=message.due_ms + TTL_MS,
                    outcome=OPEN,
                )
                for way in ways
            ]
            opened.append((message, text, language.value, sendings))
        await retried(partial(self._store.open, opened))
        for message, _, _, sendings in opened:
            fields = {"message_id": message.message_id, "notice": message.notice, "ways": len(sendings)}
            logger().info("warning_opened", **fields)

    def _contact(self, person_id: str, contacts: Sequence[ContactRow]) -> contact_pb2.Contact | None:
        for contact in contacts:
            if contact.sealed:
                try:
                    return sealing.unseal(contact.sealed, person_id, self._keys)
                except InvalidField:
                    logger().critical("contact_cannot_be_opened", case_id=contact.case_id)
        return None

    async def _distance_and_trend(self, message: MessageRow) -> tuple[float | None, DistanceTrend]:
        """Returns the distance of the wearer in metres and its trend since the previous alert; unknown unless the text uses them."""
        if Notice(message.notice) is not Notice.CHANGED or self.bus is None:
            return None, DistanceTrend.UNKNOWN
        now_m = await self._distance_m(message.partition, message.alert_id)
        before_m = (
            await self._distance_m(message.partition, message.before_alert_id) if message.before_alert_id else None
        )
        if now_m is None or before_m is None:
            return now_m, DistanceTrend.UNKNOWN
        return now_m, DistanceTrend.NEARER if now_m < before_m else DistanceTrend.FARTHER

    async def _distance_m(self, partition: int, alert_id: str) -> float | None:
        bus, subject = self.bus, flow.measure_subject(partition, alert_id)
        try:
            async with asyncio.timeout(DISTANCE_TIMEOUT_S):
                while bus is not None:
                    data = await bus.last_of(flow.MEASURES.name, subject)
                    if data is not None:
                        measure = stored.measure(data)
                        return measure.distance_m if measure.HasField("distance_m") else None
                    await asyncio.sleep(0.1)
        except (TimeoutError, RetryableError, InvalidField):
            logger().warning("warning_without_figure", alert_id=alert_id)
        return None

    # ── a sending ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _try(self, session: aiohttp.ClientSession | None, sending: Sending, message: MessageRow) -> None:
        kind = sending.way.partition("/")[0]
        fields = {"message_id": message.message_id, "way": sending.way, "tries": sending.tries + 1}
        now_ms = self._clock.now_ms()
        if now_ms >= sending.expires_ms:
            await self._store_outcome(sending, GIVEN_UP, now_ms)
            _TRIES.labels(kind, "given up").inc()
            logger().critical("warning_given_up", **fields)
            return
        reason = await (self._command(sending, message) if kind == "device" else self._post(session, sending, message))
        now_ms = self._clock.now_ms()
        if reason:
            wait_ms = min(FIRST_WAIT_MS << min(sending.tries, 8), LAST_WAIT_MS)
            await self._store_outcome(sending, OPEN, now_ms + wait_ms)
            logger().warning("warning_failed", reason=reason, **fields)
        else:
            await self._store_outcome(sending, HANDED_OVER, now_ms)
            _HANDED_OVER.labels(kind).observe((now_ms - message.due_ms) / 1000)
            logger().info("warning_handed_over", **fields)
        _TRIES.labels(kind, "failed" if reason else "handed over").inc()

    async def _store_outcome(self, sending: Sending, outcome: str, next_ms: int) -> None:
        """Stores the outcome of an attempt, in one transaction with others. Returns once it is on disk."""
        self._outcomes.append((sending, outcome, next_ms))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.ensure_future(self._store_outcomes())
        storing = self._storing
        await asyncio.shield(storing)

    async def _store_outcomes(self) -> None:
        await asyncio.sleep(COALESCE_S)
        tried, self._outcomes, self._storing = self._outcomes, [], None
        await retried(partial(self._store.tried, tried))

    async def _post(self, session: aiohttp.ClientSession | None, sending: Sending, message: MessageRow) -> str:
        """Posts a message to a gateway. Returns the reason of a failure; empty on success."""
        gateway = self._gateways.get(sending.way.removeprefix(GATEWAY))
        contacts = await retried(partial(self._store.contacts_of, message.person_id))
        contact = self._contact(message.person_id, contacts[message.person_id])
        if gateway is None or session is None or contact is None:
            return (
                "the person has no readable contact any more"
                if contact is None
                else "the gateway is not configured any more"
            )
        body = {
            "type": "tandem.warning.v1",
            "warning_id": message.message_id,
            "to": contact.handle,
            "language": message.language,
            "text": message.text,
            "silent": True,
            "expires_at": times.to_rfc3339(sending.expires_ms),
        }
        if self._links:
            body["answer_url"] = self._links.url(message.message_id)
        content = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return await post(session, gateway, message.message_id, body=content, content_type="application/json")

    async def _command(self, sending: Sending, message: MessageRow) -> str:
        """Publishes a message as a command. Ingest hands it to the device at once or at its next contact.

        Returns the reason of a failure; empty on success.
        """
        if self.bus is None:
            return "no connection to NATS"
        command = command_pb2.Command(
            command_id=sending.command_id,
            device_id=sending.way.removeprefix(DEVICE),
            instruction=command_pb2.Instruction(
                show_notice=command_pb2.ShowNotice(
                    warning_id=message.message_id,
                    text=message.text,
                    language=message.language,
                    answer_url=self._links.url(message.message_id) if self._links else "",
                )
            ),
            issued_at_ms=self._clock.now_ms(),
            expires_at_ms=sending.expires_ms,
            issued_by=ISSUED_BY,
            reference=message.incident_id,
        )
        try:
            subject = flow.command_subject(ISSUED_BY, command.command_id)
            await self.bus.publish(subject, command.SerializeToString(), expected_last=0)
        except AlreadyStored:
            return ""
        except RetryableError as error:
            return error.reason
        return ""


def _command_id(message: MessageRow, way: str) -> str:
    return ids.hash_id("notice", message.message_id, way) if way.startswith(DEVICE) else ""
