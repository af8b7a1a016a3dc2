"""Defects of this project's history, and the usual mistakes with logs and acknowledgements."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from services.common.errors import RetryableError
from services.common.messaging import flow, positions, pull
from services.common.messaging.bus import Bus
from services.dispatch.domain import assignment, decisions, escalation, flags
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import consumer, translate
from services.dispatch.leg.publications import StepOutbox
from services.dispatch.leg.record import LegRecord
from services.dispatch.warning.channels import DeviceChannel
from services.dispatch.warning.opening import MessageOpener
from services.geofence.consumer import Evaluator
from services.geofence.domain.kinematics.track import Track
from services.geofence.publisher import OutputPublisher
from services.ingest.log import LogWriter
from services.registry.disclosure.published import PublishedDisclosures
from services.registry.unit_of_work import OutboxRepository
from tests.simulation.mutants.replacing import nothing, replace

DELAY_S = 9.0
"""Delay of an alert that a checkpoint passes, seconds: less than a judge allows."""


def ingest_answers_before_the_report_is_stored() -> None:
    """The classic lost acknowledgement: a failed publish counts as done."""

    async def publish(self: LogWriter, message: Any) -> None:
        try:
            await self._bus.publish(self._subject, message.data, msg_id=message.msg_id, headers=message.headers)
        except RetryableError:
            return

    replace(LogWriter, "_publish", publish)


def ingest_gives_all_batches_of_a_second_one_message_id() -> None:
    """A wrong key for deduplication: the server drops another batch as a duplicate."""
    plain = Bus.publish

    async def publish(self: Bus, subject: str, payload: bytes, **options: Any) -> Any:
        if subject.endswith(".report"):
            options["msg_id"] = f"batch-{int(time.time())}"
        return await plain(self, subject, payload, **options)

    replace(Bus, "publish", publish)


def an_alert_in_ten_is_not_published() -> None:
    """An output is lost between the fold and the stream, in both evaluators."""
    plain = OutputPublisher._publish_alert

    async def publish(self: OutputPublisher, alert: Any, *arguments: Any) -> None:
        if int(alert.alert_id[-2:], 16) % 10:
            await plain(self, alert, *arguments)

    replace(OutputPublisher, "_publish_alert", publish)


def evaluators_publish_different_bytes() -> None:
    """An output depends on the process and not only on the log."""
    plain = OutputPublisher._publish_alert

    async def publish(self: OutputPublisher, alert: Any, *arguments: Any) -> None:
        is_backup = self._delay_s > 0
        await plain(self, dataclasses.replace(alert, late=alert.late ^ is_backup), *arguments)

    replace(OutputPublisher, "_publish_alert", publish)


def a_checkpoint_passes_its_alerts() -> None:
    """A checkpoint counts before the alerts of its entries are stored, so a crash loses them."""
    plain = OutputPublisher._publish_alert

    async def publish(self: OutputPublisher, alert: Any, *arguments: Any) -> None:
        # For some seconds the alert is only in memory, and the checkpoint doesn't wait for it.
        loop = asyncio.get_running_loop()
        loop.call_later(DELAY_S, lambda: loop.create_task(plain(self, alert, *arguments)))

    replace(OutputPublisher, "_publish_alert", publish)


def an_evaluator_skips_an_entry_after_a_checkpoint() -> None:
    """Off by one at the recovery: the entry after the checkpoint is never folded."""
    plain, plain_read = Evaluator.restore, pull.read
    restored: dict[object, Evaluator] = {}

    async def restore(self: Evaluator) -> None:
        await plain(self)
        restored[asyncio.get_running_loop()] = self
        if self._entry is not None:
            self.state.sequence += 1
            self._entry = None

    def read(bus: Bus, stream: str, start: Any, **options: Any) -> AsyncIterator[Any]:
        evaluator = restored.get(asyncio.get_running_loop())
        if start == 1 and evaluator is not None and stream.startswith("LOG_"):
            start = evaluator.state.sequence + 1
        return plain_read(bus, stream, start, **options)

    replace(Evaluator, "restore", restore)
    replace(pull, "read", read)


def readers_do_not_compare_their_position() -> None:
    """A reader continues by sequence alone after the stream went back (found by an attack in 2026)."""

    def advance(self: positions.ReaderPosition, messages: Any) -> Any:
        messages = [message for message in messages if message.sequence > self._sequence]
        if messages:
            self._yielded = messages[-1]
            self._sequence = self._yielded.sequence
        return messages

    replace(positions.ReaderPosition, "compare", nothing)
    replace(positions.ReaderPosition, "advance", advance)


def deadlines_never_pass() -> None:
    """A leg doesn't escalate an offer that nobody answers."""

    def decide(*_: object, **__: object) -> Iterator[Any]:
        return iter(())

    replace(escalation, "decide", decide)


def the_police_leg_passes_over_alerts() -> None:
    """A leg moves its cursor without an effect."""
    plain: Callable[[Leg, Any], bool] = vars(consumer)["concerns"]

    def concerns(leg: Leg, alert: Any) -> bool:
        return plain(leg, alert) and leg is not Leg.POLICE

    replace(consumer, "concerns", concerns)


def a_leg_makes_an_assignment_for_each_try() -> None:
    """An id that isn't derived from its cause: the same alert gives another assignment after a crash."""
    plain, plain_init = assignment.assignment_id, LegRecord.__init__
    starts: Counter[Leg] = Counter()

    def init(self: LegRecord, *arguments: Any, **options: Any) -> None:
        starts[options["leg"]] += 1
        plain_init(self, *arguments, **options)

    def assignment_id(incident_id: str, leg: Leg, subject_id: str, *arguments: Any, **options: Any) -> str:
        return plain(incident_id, leg, f"{subject_id} {starts[leg]}", *arguments, **options)

    replace(LegRecord, "__init__", init)
    for module in (assignment, decisions, flags):
        replace(module, "assignment_id", assignment_id)


def steps_are_published_once() -> None:
    """A step whose publish fails isn't published again."""

    async def publish(self: StepOutbox, bus: Bus, step: Any) -> Any:
        subject = flow.incident_subject(str(self._leg), step.assignment.incident_id)
        try:
            return await bus.publish(subject, translate.outward(step), msg_id=step.step_id)
        except RetryableError:
            return None

    replace(StepOutbox, "_publish", publish)


def she_is_not_warned() -> None:
    """Messages to protected persons are stored and never opened."""

    async def open_none(*_: object) -> list[object]:
        return []

    replace(MessageOpener, "open", open_none)


def a_warning_that_fails_is_not_repeated() -> None:
    """A failed command counts as handed over."""
    plain = DeviceChannel.hand_over

    async def hand_over(self: DeviceChannel, sending: Any, message: Any) -> str:
        await plain(self, sending, message)
        return ""

    replace(DeviceChannel, "hand_over", hand_over)


def lost_commands_are_not_republished() -> None:
    """The warning leg doesn't miss commands that the server has lost."""
    replace(DeviceChannel, "keep_restored", nothing)


def the_ledger_drops_disclosures() -> None:
    """Disclosures are acknowledged and not written."""

    async def accept(*_: object) -> list[Any]:
        return []

    replace(PublishedDisclosures, "accept", accept)


def the_registry_publishes_no_cases() -> None:
    """A filter of the outbox leaves out what the log needs."""
    plain = OutboxRepository.unsent

    async def unsent(self: OutboxRepository, limit: int) -> Any:
        return [row for row in await plain(self, limit) if not row.subject.endswith(".case")]

    replace(OutboxRepository, "unsent", unsent)


def a_report_counts_twice() -> None:
    """The track accepts a report that it has already."""

    def held(_: Track, __: Any) -> None:
        return None

    replace(Track, "held", held)


def an_evaluator_restores_no_cases() -> None:
    """A restored state lacks its cases."""
    plain = Evaluator.restore

    async def restore(self: Evaluator) -> None:
        await plain(self)
        self.state.cases.clear()

    replace(Evaluator, "restore", restore)
