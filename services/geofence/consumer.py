"""The evaluator of one partition: reads log entries in order and folds them; its parts publish the outputs and keep checkpoints.

`publisher` says in which order outputs are published, and `checkpoints` when a checkpoint becomes valid.

A stream can go back (`common.cursors`). The evaluator then drops its state and folds again after the last common entry (`checkpoints`).
Alerts of lost entries stay published.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from services.common.clock import wall_us
from services.common.errors import InvalidField
from services.common.messaging import cursors, flow, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.streams import LogMetadata
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.geofence import checkpoints, gc_control, translate
from services.geofence.checkpoints import Checkpoints, PublishedOutputs
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import DeadLetter, Output
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from services.geofence.gc_control import GarbageCollector
from services.geofence.live_shares import WatchedShares
from services.geofence.metrics import GeofenceMetrics
from services.geofence.own_entries import KeptRules, OwnEntries
from services.geofence.publisher import Digests, OutputPublisher, RecentMeasures, StateDigest
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointStore

TICK_CHECK_S = 0.2
CURRENT_S = 10.0
"""Maximum age of the last entry, s, for a state that counts as current. In an older state, an open incident may already be over."""
STAMP_AHEAD_MS = 120_000
"""Alarm when the log leader's stamp is this far ahead of this host's clock, ms. The fold's time can't be turned back."""
READ_BATCH = 1_000
"""Entries per pull request. Large, so that the network isn't the bottleneck when the evaluator folds a backlog."""
YIELD_BYTES = 16_384
"""Bytes of backlog, some hundred reports, after which the fold yields to the other tasks of this process."""
TURNS_TO_SEND = 3
"""Event loop turns until an alert has left: it leaves its queue, reaches the client, and is written to the socket."""


class Evaluator:
    """Folds one partition. `state` holds all applied entries."""

    def __init__(
        self,
        bus: Bus,
        store: CheckpointStore,
        settings: GeofenceSettings,
        *,
        log_meta: LogMetadata,
        partition: int,
        metrics: GeofenceMetrics,
        gate: PriorityGate,
    ) -> None:
        self.partition, self._gate = partition, gate
        self.watched = WatchedShares()
        """Shares of live positions that rest on `state`."""
        self._bus = bus
        self._store = store
        self._settings = settings
        self._clock = log_meta.clock
        self._log_id = log_meta.log_id
        self.state = self._empty()
        self._published = PublishedOutputs(bus, partition)
        self._checkpoints = Checkpoints(store, self._published, partition)
        self._outputs = OutputPublisher(
            bus,
            partition,
            self._published,
            checkpoints=self._checkpoints,
            digests=Digests(bus, store.keys, settings, partition=partition, metrics=metrics),
            clock=log_meta.clock,
            metrics=metrics,
            gate=gate,
            is_backup=settings.is_backup(partition),
        )
        self._rules, self._own_entries = KeptRules(bus, partition), OwnEntries(bus, partition)
        self._entry: StreamCursor | None = None
        """The last entry of a state that was read from a checkpoint."""
        self._is_restored = self._was_current = False
        self._began_s = time.monotonic()
        self._last_entry_s: float | None = None
        """When entries were last folded, monotonic time."""
        self._caught_up = asyncio.Event()
        self._reader = ReaderHealth(flow.log_stream(partition))

    def _empty(self) -> State:
        return State(
            self.partition, log_id=self._log_id, clock_rate=self._clock.rate, clock_anchor_ms=self._clock.anchor_ms
        )

    @property
    def is_current(self) -> bool:
        """Whether the evaluator has caught up with the log and read an entry in the last CURRENT_S (ticks come each second)."""
        return self._caught_up.is_set() and self._last_entry_s is not None and self.log_age_s() < CURRENT_S

    def log_age_s(self) -> float:
        """Time since the last log entry, ticks included; before the first entry, time since the start."""
        return time.monotonic() - (self._began_s if self._last_entry_s is None else self._last_entry_s)

    def applied_sequence(self) -> int:
        """Sequence of the last log entry that is folded."""
        return self.state.sequence

    def secondary_waiting(self) -> int:
        """Number of secondary outputs that wait until no alert is being published."""
        return self._outputs.secondary_waiting

    @property
    def measures(self) -> RecentMeasures:
        """Figures of the newest alerts."""
        return self._outputs.measures

    def unable(self) -> str:
        """Why this evaluator can't decide, or "". Ticks come each second, so a log without entries can't be read or written."""
        if reason := self._reader.unable():
            return reason
        if self.is_current:
            return ""
        return f"{self._reader.name} has had no entry for {CURRENT_S:.0f} s"

    async def restore(self) -> None:
        """Drops the state in memory and loads the newest checkpoint whose footing the streams hold, else starts at the log's start."""
        await self._checkpoints.drop()
        self._outputs.drop()
        self._caught_up.clear()
        self._rules.note_dropped(self.state)
        self.watched.drop()
        restored = await checkpoints.newest_restored(
            self._bus,
            self._store,
            self._published,
            partition=self.partition,
            log_id=self._log_id,
            on_dropped=self._rules.note_dropped,
        )
        self.state = restored.state if restored else self._empty()
        self._entry = restored.footing.entry if restored else None
        self._published.reset(restored.footing if restored else None)
        self._is_restored = True

    async def run(self, on_caught_up: Callable[[], None]) -> None:
        """Restores the state, then folds until cancelled; restores again when a stream goes back.

        Raises OutdatedFold if the log requires a newer fold.
        """
        if not self._is_restored:
            await self.restore()
        logger().info("evaluator_started", partition=self.partition, sequence=self.state.sequence)
        with gc_control.infrequent_collection() as collector:
            while True:
                try:
                    await self._work(collector, on_caught_up)
                except* StreamWentBack as errors:
                    self._caught_up.clear()  # the state isn't current until the log is folded again
                    for error in errors.exceptions:
                        if isinstance(error, StreamWentBack):
                            cursors.alarm(self._bus, error)
                await asyncio.sleep(checkpoints.RETRY_DELAY_S)
                await self.restore()
                logger().warning("evaluator_began_again", partition=self.partition, sequence=self.state.sequence)

    async def _work(self, collector: GarbageCollector, on_caught_up: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._fold(collector))
            tasks.create_task(self._outputs.publish_alerts())
            tasks.create_task(self._outputs.publish_requests())
            tasks.create_task(self._outputs.publish_secondary())
            tasks.create_task(self._checkpoints.run())
            tasks.create_task(self._tick())
            tasks.create_task(self._published.watch())
            await self._caught_up.wait()
            if not self._was_current:
                self._was_current = True
                on_caught_up()

    async def _fold(self, collector: GarbageCollector) -> None:
        stream = flow.log_stream(self.partition)
        await self._own_entries.require_this_version()
        log = await self._bus.bounds_of(stream)
        if log.first > self.state.sequence + 1:
            logger().error("log_aged_out", partition=self.partition, missing_from=self.state.sequence + 1, to=log.first)
        if log.last == self.state.sequence or log.first > log.last:
            # The checkpoint is at the log's end, or the whole log aged out. Without a tick from here, perhaps no entry ever follows.
            self._caught_up.set()
        async for messages in pull.read(self._bus, stream, self._entry or 1, batch=READ_BATCH, health=self._reader):
            # Sharing and records wait while the log has a backlog. Without one, an entry is over before anything else runs.
            with self._gate.response() if messages[-1].pending else nullcontext():
                await self._apply_all(messages)
            collector.count(len(messages))
            self._last_entry_s = time.monotonic()
            if messages[-1].pending == 0:
                self._caught_up.set()

    async def _apply_all(self, messages: Sequence[pull.Delivered]) -> None:
        unyielded = 0
        for message in messages:
            decided = self._apply(message)
            unyielded += len(message.data)
            # A backlog must not delay the alerts that follow from it, nor their acknowledgements.
            for _ in range(TURNS_TO_SEND if decided else 1 if unyielded >= YIELD_BYTES else 0):
                unyielded = 0
                await asyncio.sleep(0)

    def _apply(self, message: pull.Delivered) -> bool:
        """Folds an entry and queues its outputs. Returns whether alerts are among them."""
        state = self.state
        try:
            entry = Entry(message.sequence, message.stamp_ms, translate.stored_body(message.subject, message.data))
        except InvalidField as error:
            # Every evaluator rejects this entry for the same reason, so its dead letter is an output like any other.
            state.sequence = message.sequence
            outputs: list[Output] = [DeadLetter(message.sequence, str(error))]
        else:
            outputs = fold.step(state, entry)
            self.watched.note(entry.body, outputs)
            ahead_ms = message.stamp_ms - wall_us() // 1000
            if ahead_ms > STAMP_AHEAD_MS:
                logger().critical("log_clock_ahead", partition=self.partition, sequence=message.sequence, ms=ahead_ms)
        has_alerts = self._outputs.put(outputs, message)
        every = self._settings.checkpoint_every
        if message.sequence % every == 0:
            self._outputs.put_digest(StateDigest(message.cursor, codec.state_digest(state)))
        # A fork pauses the process. The two evaluators fork at different entries, so that one of them always responds.
        if message.sequence % every == every // 2 * self._settings.replica % every:
            pending = self._checkpoints.begin(state)
            if pending is not None:
                self._outputs.put_checkpoint(pending, message.cursor)
        return has_alerts

    async def _tick(self) -> None:
        """Publishes an empty entry when the log is idle, so that the fold also makes the decisions that depend on time alone."""
        await self._caught_up.wait()
        idle_s = self._settings.tick_after_s / self._clock.rate
        while True:
            await asyncio.sleep(min(TICK_CHECK_S, idle_s))
            await self._rules.keep(self.state)
            await self._own_entries.keep_version(self.state)
            if self._last_entry_s is None or self.log_age_s() >= idle_s:
                await self._own_entries.tick(self.state.sequence)
