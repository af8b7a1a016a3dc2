"""Defects of the way between the services: publications, readers, acknowledgements, and streams that went back."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from services.common.errors import RetryableError
from services.common.messaging import cursors, pull
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.lost_publications import StreamComparison
from services.common.messaging.session import PullSession
from services.geofence.checkpoints import PublishedOutputs
from tests.simulation.mutants.replacing import nothing, replace


def readers_do_not_see_a_gap() -> None:
    """A message that was lost on its way to a reader isn't missed."""
    plain = PullSession._receive

    def receive(self: PullSession, message: Any) -> Any:
        if not self._consumer.is_durable:
            self._next_consumer_sequence = message.metadata.sequence.consumer
        return plain(self, message)

    replace(PullSession, "_receive", receive)


def readers_do_not_notice_a_reconnect() -> None:
    """A reader goes on with its consumer after the server has restarted."""
    replace(PullSession, "_has_reconnected", lambda _: False)


def readers_ignore_missed_heartbeats() -> None:
    """A reader whose request was lost waits for ever."""

    async def wait(self: PullSession) -> Any:
        await self._wake.wait()
        self._wake.clear()
        self._signs.note()
        return await plain(self)

    plain = PullSession._wait
    replace(PullSession, "_wait", wait)


def messages_are_acknowledged_before_their_effect() -> None:
    """The classic lost effect: a durable reader acknowledges what it hasn't done yet."""
    plain = pull.consume

    async def consume(bus: Bus, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async for messages in plain(bus, *arguments, **options):
            for message in messages:
                await pull.ack(bus, message)
            yield messages

    replace(pull, "consume", consume)


def acknowledgements_are_lost() -> None:
    """Durable readers never acknowledge, so each message comes repeatedly."""
    replace(pull, "ack", nothing)


def each_try_of_a_publication_has_another_id() -> None:
    """A retry isn't recognised as a duplicate."""
    plain = Bus.publish

    async def publish(self: Bus, subject: str, payload: bytes, **options: Any) -> Any:
        if options.get("msg_id"):
            options["msg_id"] = uuid.uuid4().hex
        return await plain(self, subject, payload, **options)

    replace(Bus, "publish", publish)


def publications_are_tried_once() -> None:
    """A publication whose answer is lost counts as stored by somebody."""

    async def publish(self: Bus, subject: str, payload: bytes, **options: Any) -> Any:
        options.pop("on_refused", None)
        try:
            return await self.publish(subject, payload, **options)
        except (RetryableError, AlreadyStored):
            return None

    replace(Bus, "publish_until_stored", publish)


def publications_expect_no_sequence() -> None:
    """The second publisher of a subject isn't refused."""
    plain = Bus.publish

    async def publish(self: Bus, subject: str, payload: bytes, **options: Any) -> Any:
        options.pop("expected_last", None)
        return await plain(self, subject, payload, **options)

    replace(Bus, "publish", publish)


def lost_publications_are_not_found() -> None:
    """A publisher believes that its stream keeps whatever was acknowledged."""

    async def lost(_: StreamComparison) -> list[Any]:
        return []

    replace(StreamComparison, "lost", lost)


def evaluators_do_not_verify_their_alerts() -> None:
    """An alert that ALERTS has lost after its acknowledgement is never published once more."""
    replace(PublishedOutputs, "verify", nothing)
    replace(PublishedOutputs, "is_verified", True)


def checkpoints_do_not_need_their_footing() -> None:
    """A checkpoint counts although the streams have lost the entries and alerts that it covers."""

    async def holds(*_: object) -> bool:
        return True

    replace(PublishedOutputs, "require_footing", nothing)
    replace(cursors, "holds", holds)
