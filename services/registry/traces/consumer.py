"""The bus edge: what ALERTS and INCIDENTS say of incidents, read from where the database says, so that no incident is left out.

Nobody waits for it. While the registry is away the streams keep what it will read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from prometheus_client import Counter

from services.common.clock import wall_us
from services.common.messaging import flow, stored, trails
from services.common.messaging.bus import Bus
from services.common.messaging.pull import Delivered
from services.common.messaging.streams import LogMetadata
from services.common.messaging.trails import Trail
from services.common.observability import tracing
from services.common.observability.readiness import Readiness
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField, NotFound, TandemError
from services.registry.handlers import Registry
from services.registry.traces import store, translate
from services.registry.traces.domain.facts import Fact
from services.registry.traces.store import TraceBatch
from services.registry.traces.traces import STREAMS
from services.registry.traces.translate import EntryRead
from tandem.common.v1 import alert_pb2, exercise_pb2

KEPT_US = 3 * 365 * 86_400_000_000
"""As long as the ledgers of access, so that a reviewer finds both."""
SUBJECTS = {flow.ALERTS.name: (), flow.INCIDENTS.name: tuple(flow.incident_subject(leg, ">") for leg in flow.LEGS)}
"""What is read of each stream, all where nothing is named: what the police advise is no step, and for the warning leg alone."""
FORGET_INTERVAL_S = 3_600.0
RETRY_DELAY_S = 2.0

_FACTS = Counter(
    "tandem_registry_trace_facts", "What was taken into traces, by kind; an ordinary report is none", ["kind"]
)
_FAILED = Counter("tandem_registry_trace_failures", "Times that reading for traces broke off and began again")
_UNREADABLE = Counter("tandem_registry_trace_unreadable", "Messages that could not be read for traces", ["stream"])

OnTaken = Callable[[str], None]
"""Told of an incident of which more is kept from now on."""


class TraceReader:
    """Takes what happened in incidents into the database."""

    def __init__(
        self, registry: Registry, bus: Bus, log_meta: LogMetadata, on_taken: OnTaken, readiness: Readiness | None = None
    ) -> None:
        self._registry, self._bus, self._on_taken = registry, bus, on_taken
        self._log_id, self._clock, self._partitions = log_meta.log_id, log_meta.clock, log_meta.partitions
        readiness = readiness or Readiness()
        self._health = {stream: readiness.lesser_reader(f"{stream} for traces") for stream in STREAMS}

    async def run(self) -> None:
        """Reads for ever; of several processes on one database one at a time does. Where traces are turned off it only waits."""
        if not tracing.is_on():
            logger().warning("traces_are_off")
            await asyncio.Event().wait()
        while True:
            try:
                async with self._registry.database.alone("traces") as still_alone, asyncio.TaskGroup() as tasks:
                    for stream in STREAMS:
                        tasks.create_task(self._follow(stream, still_alone))
                    tasks.create_task(self._forget())
            except* (
                Exception
            ) as errors:  # whatever it is: records and cases go on, and reading begins again where it was
                _FAILED.inc()
                reasons = [
                    exception.reason if isinstance(exception, TandemError) else type(exception).__name__
                    for exception in errors.exceptions
                ]
                logger().error("traces_begin_again", reasons=reasons)
            await asyncio.sleep(RETRY_DELAY_S)

    async def _follow(self, stream: str, still_alone: Callable[[], Awaitable[None]]) -> None:
        trail, after = await self._reading(stream)
        async for messages in trails.follow(
            self._bus, stream, trail, SUBJECTS[stream], after=after, health=self._health[stream]
        ):
            found = await self._read(messages)
            await still_alone()
            taken = TraceBatch(stream, self._log_id, messages[-1].sequence, found, str(trail))
            await self._registry.database.visit(partial(store.take, taken=taken))
            for incident_id, fact in found:
                _FACTS.labels(fact.kind).inc()
                self._on_taken(incident_id)

    async def _reading(self, stream: str) -> tuple[Trail, int]:
        """What the database says of a stream: the entries that are read, and the last one's sequence."""
        async with self._registry.reading() as records:
            last, trail = await records.traces.reading(stream, self._log_id)
        first = (await self._bus.bounds_of(stream)).first
        if first > last + 1 and last:
            logger().error("traces_incomplete", stream=stream, missing_from=last + 1, to=first)
        return Trail.parse(trail), last

    async def _read(self, messages: Sequence[Delivered]) -> list[tuple[str, Fact]]:
        found: list[tuple[str, Fact]] = []
        entries: dict[tuple[int, int], EntryRead | None] = {}
        for message in messages:
            try:
                if message.stream == flow.INCIDENTS.name:
                    if step := translate.step_fact(message, self._clock):
                        found.append(step)
                elif (alert := self._alert(message)).incident_id and alert.exercise != exercise_pb2.CANARY:
                    place = (alert.partition, alert.sequence)
                    if place not in entries:
                        entries[place] = await self._entry(*place)
                    fact = translate.alert_fact(alert, message, entries[place], self._clock)
                    found.append((alert.incident_id, fact))
            except InvalidField as error:
                # The legs set it aside with its reason; here it is only missing from a picture.
                _UNREADABLE.labels(message.stream).inc()
                logger().warning(
                    "trace_lacks",
                    stream=message.stream,
                    sequence=message.sequence,
                    reason=f"{error.field}: {error.reason}",
                )
        return found

    def _alert(self, message: Delivered) -> alert_pb2.Alert:
        """The alert of a message. Raises InvalidField, also where its log isn't one of this mesh's, which nobody could be asked for."""
        alert = stored.alert(message.data, message.subject)
        if alert.partition >= self._partitions:
            raise InvalidField("partition", f"must be below {self._partitions}")
        return alert

    async def _entry(self, partition: int, sequence: int) -> EntryRead | None:
        """The entry of the log that decided; None once the log has forgotten it."""
        try:
            answer = await self._bus.api(f"STREAM.MSG.GET.{flow.log_stream(partition)}", {"seq": sequence})
        except NotFound:
            return None
        return translate.entry_read(answer["message"])

    async def _forget(self) -> None:
        while True:
            async with self._registry.transaction() as records:
                await records.traces.forget_before(wall_us() - KEPT_US)
            await asyncio.sleep(FORGET_INTERVAL_S)
