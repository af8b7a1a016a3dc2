"""Bus consumer of ALERTS and INCIDENTS for the traces. Reading resumes at the sequence in the database, so nothing is skipped.

No other work waits for the traces. While the registry is down, the streams keep the messages. A fact is made from its message alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from services.common.clock import wall_us
from services.common.errors import InvalidField, TandemError
from services.common.messaging import flow, stored, trails
from services.common.messaging.bus import Bus
from services.common.messaging.pull import Delivered
from services.common.messaging.streams import LogMetadata
from services.common.messaging.trails import Trail
from services.common.observability import telemetry
from services.common.observability.health import Readiness
from services.common.observability.outages import Outages
from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.registry.metrics import RegistryMetrics
from services.registry.traces import translate
from services.registry.traces.domain.facts import Fact
from services.registry.traces.service import STREAMS, TraceBatch, TraceRepository, add_batch
from services.registry.transactions import Transactions
from tandem.common.v1 import alert_pb2, exercise_pb2

KEPT_US = 3 * 365 * 86_400_000_000
"""Retention of trace facts, microseconds: as long as the stream LEDGER keeps the signed heads, so that a reviewer finds both."""
SUBJECTS = {flow.ALERTS.name: (), flow.INCIDENTS.name: tuple(flow.incident_subject(leg, ">") for leg in flow.LEGS)}
"""Subjects that are read from each stream; empty means all. Advice of the police to the warning leg is omitted, because it
isn't a step."""
LINGER_S = 0.25
"""Time for which messages are collected after the first one, seconds. The offers that follow from it are out by then."""
COALESCE_S = 1.0
"""Pause after a batch while no more messages wait, seconds. The facts of that time then come in one batch and one transaction."""
FORGET_INTERVAL_S = 3_600.0
RETRY_DELAY_S = 2.0

OnStored = Callable[[str], None]
"""Callback with the incident id after new facts of an incident were stored."""


class TraceReader:
    """Reads facts about incidents from the streams and stores them in the database."""

    def __init__(
        self,
        transactions: Transactions,
        bus: Bus,
        log_meta: LogMetadata,
        *,
        on_stored: OnStored,
        gate: PriorityGate,
        metrics: RegistryMetrics,
        readiness: Readiness | None = None,
    ) -> None:
        self._transactions = transactions
        self._bus = bus
        self._on_stored = on_stored
        self._log_id = log_meta.log_id
        self._clock = log_meta.clock
        self._partitions = log_meta.partitions
        self._gate, self._metrics = gate, metrics
        self._outages = Outages("traces_restarted", "traces_read_again")
        readiness = readiness or Readiness()
        self._health = {stream: readiness.optional_reader(f"{stream} for traces") for stream in STREAMS}

    async def run(self) -> None:
        """Read until cancelled. Of several processes on one database only one reads. With tracing off, only wait."""
        if not telemetry.is_on():
            logger().warning("traces_are_off")
            await asyncio.Event().wait()
        while True:
            try:
                async with self._transactions.database.alone("traces") as still_alone:
                    await self._read(still_alone)
            except* (
                Exception
            ) as errors:  # any error: it must not stop records and cases, and reading resumes at the stored sequence
                self._metrics.trace_failures.inc()
                self._outages.failed({}, ", ".join(_reasons(errors)))
            await asyncio.sleep(RETRY_DELAY_S)

    async def _read(self, still_alone: Callable[[], Awaitable[None]]) -> None:
        with self._outages.working({}):
            async with asyncio.TaskGroup() as tasks:
                for stream in STREAMS:
                    tasks.create_task(self._follow(stream, still_alone))
                tasks.create_task(self._forget())

    async def _follow(self, stream: str, still_alone: Callable[[], Awaitable[None]]) -> None:
        trail, after = await self._progress(stream)
        put_off = self._metrics.put_off(stream, "traces")
        async for messages in trails.follow(
            self._bus,
            stream,
            trail,
            subjects=SUBJECTS[stream],
            after=after,
            health=self._health[stream],
            linger_s=LINGER_S,
        ):
            newest = messages[-1]
            put_off.note(len(messages) + newest.pending, messages[0].stamp_ms)
            async with self._gate.record():
                await self._store(stream, messages, trail, still_alone=still_alone)
            put_off.note(newest.pending, newest.stamp_ms)
            if not newest.pending:
                await asyncio.sleep(COALESCE_S)

    async def _store(
        self, stream: str, messages: Sequence[Delivered], trail: Trail, *, still_alone: Callable[[], Awaitable[None]]
    ) -> None:
        facts = self._facts(messages)
        await still_alone()
        batch = TraceBatch(
            stream=stream, log_id=self._log_id, sequence=messages[-1].sequence, facts=facts, trail=str(trail)
        )
        await self._transactions.database.visit(partial(add_batch, batch=batch))
        for kind, count in Counter(fact.kind for _, fact in facts).items():
            self._metrics.trace_facts.labels(kind).inc(count)
        for incident_id in {incident_id for incident_id, _ in facts}:
            self._on_stored(incident_id)

    async def _progress(self, stream: str) -> tuple[Trail, int]:
        """Stored progress in a stream: the trail of the read entries, and the sequence of the last one."""
        async with self._transactions.reading() as work:
            last, trail = await TraceRepository(work.connection).progress(stream, self._log_id)
        first = (await self._bus.bounds_of(stream)).first
        if first > last + 1 and last:
            logger().error("traces_incomplete", stream=stream, missing_from=last + 1, to=first)
        return Trail.parse(trail), last

    def _facts(self, messages: Sequence[Delivered]) -> list[tuple[str, Fact]]:
        facts: list[tuple[str, Fact]] = []
        for message in messages:
            try:
                if message.stream == flow.INCIDENTS.name:
                    if step := translate.step_fact(message, self._clock):
                        facts.append(step)
                elif (alert := self._alert(message)).incident_id and alert.exercise != exercise_pb2.CANARY:
                    facts.append((alert.incident_id, translate.alert_fact(alert, message, clock=self._clock)))
            except InvalidField as error:
                # The legs keep this message as a dead letter with its reason; here only the trace lacks it.
                self._metrics.trace_unreadable.labels(message.stream).inc()
                logger().warning(
                    "trace_message_skipped",
                    stream=message.stream,
                    sequence=message.sequence,
                    reason=f"{error.field}: {error.reason}",
                )
        return facts

    def _alert(self, message: Delivered) -> alert_pb2.Alert:
        """The alert in a message. Raises InvalidField if the alert is invalid or this mesh lacks the alert's partition."""
        alert = stored.alert(message.data, message.subject)
        if alert.partition >= self._partitions:
            raise InvalidField("partition", f"must be below {self._partitions}")
        return alert

    async def _forget(self) -> None:
        while True:
            async with self._transactions.open() as work:
                await TraceRepository(work.connection).forget_before(wall_us() - KEPT_US)
            await asyncio.sleep(FORGET_INTERVAL_S)


def _reasons(errors: BaseExceptionGroup[BaseException]) -> list[str]:
    """The distinct reasons of errors, sorted: in an outage the two streams fail in either order."""
    reasons: set[str] = set()
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            reasons |= set(_reasons(error))
        else:
            reasons.add(error.reason if isinstance(error, TandemError) else type(error).__name__)
    return sorted(reasons)
