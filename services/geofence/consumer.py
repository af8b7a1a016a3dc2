"""The evaluator of one partition: reads log entries in order, folds them, publishes the outputs and writes checkpoints.

Each alert has a unique subject and is published with "expected last sequence 0". The server rejects the slower of two evaluators, which
counts as success. Entries are published in order; the alerts of one entry go out together, the gravest first, so that no leg finishes
a minor alert before it dispatches a unit. Readers order alerts by sequence and ordinal, not by stream position. A checkpoint becomes
valid only once every earlier alert is acknowledged, so recovery never skips an unpublished alert.

A stream can go back (`common.cursors`). The evaluator then drops its state and folds again after the last common entry (`recovery`).
Alerts of lost entries stay published.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import Gauge, Histogram

from services.common.clock import wall_us
from services.common.messaging import cursors, flow, pull
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.streams import LogMetadata
from services.common.observability import trace_ids
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField, RetryableError
from services.geofence import gc_control, recovery, translate
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Alert, DeadLetter, Output
from services.geofence.domain.entries import Entry, Exercise
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION
from services.geofence.gc_control import GarbageCollector
from services.geofence.kept_rules import KeptRules
from services.geofence.outputs import digests
from services.geofence.outputs.published import PublishedOutputs
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointFailed, CheckpointStore, Footing, PendingCheckpoint, PublishedAlert
from tandem.common.v1 import log_pb2

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
ALERT_CONCURRENCY = 64
"""Alerts published concurrently."""
CHECKPOINT_CHECK_S = 0.05
CHECKPOINT_TIMEOUT_S = 600.0
CHECKPOINT_PAUSE_FACTOR = 9.0
"""After a checkpoint that took t seconds, wait 9 t before the next one, so that checkpoints don't run back to back under load."""
_LOG_AGE_S = Gauge(
    "tandem_geofence_log_age_seconds",
    "Time since the last log entry, ticks included; before the first entry, time since the start",
    ["partition"],
)
_REPORT_TO_ALERT_S = Histogram(
    "tandem_geofence_report_to_alert_seconds",
    "Time from the receipt of a report until the alert that it caused is durable",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
)
_TICK = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()


@dataclass(frozen=True, slots=True)
class _StateDigest:
    """Encoding of all open rings and incidents after an entry. Both evaluators of a partition must produce the same bytes."""

    entry: StreamCursor
    encoded: bytes


@dataclass(frozen=True, slots=True)
class _QueuedCheckpoint:
    """A checkpoint of the state after an entry, queued behind the alerts that it depends on."""

    pending: PendingCheckpoint
    entry: StreamCursor
    alert: PublishedAlert | None = None
    """The newest stored alert, once every alert that the checkpoint depends on is stored."""


@dataclass(frozen=True, slots=True)
class _Decided:
    """The alerts of one entry."""

    alerts: Sequence[Alert]
    at_wall_us: int


class Evaluator:
    """Folds one partition. `state` holds all applied entries; `applied` wakes callers that wait for a sequence."""

    def __init__(
        self, bus: Bus, store: CheckpointStore, settings: GeofenceSettings, *, log_meta: LogMetadata, partition: int
    ) -> None:
        self.partition = partition
        self.applied = asyncio.Condition()
        self._bus, self._store, self._settings, self._clock = bus, store, settings, log_meta.clock
        self._log_id = log_meta.log_id
        self.state = self._empty()
        self._published = PublishedOutputs(bus, partition)
        self._rules = KeptRules(bus, partition)
        self._entry: StreamCursor | None = None
        """The last entry of a state that was read from a checkpoint."""
        self._is_restored = self._was_current = False
        self._outgoing: asyncio.Queue[_Decided | _QueuedCheckpoint | _StateDigest] = asyncio.Queue()
        self._secondary: asyncio.Queue[Output | _QueuedCheckpoint | _StateDigest] = asyncio.Queue()
        self._checkpoints: asyncio.Queue[tuple[PendingCheckpoint, Footing]] = asyncio.Queue()
        self._is_checkpointing = False
        self._child: PendingCheckpoint | None = None
        """The checkpoint that a child process is writing."""
        self._finishing: asyncio.Future[None] | None = None
        self._checkpoint_began_s = self._no_checkpoint_before_s = 0.0
        """When the last checkpoint began, and when the next may begin, loop time."""
        self._last_entry_wall_s = 0.0
        self._caught_up = asyncio.Event()
        self._reader = ReaderHealth(flow.log_stream(partition))
        began_s = time.monotonic()
        digests.begin_counting(partition)
        _LOG_AGE_S.labels(str(partition)).set_function(lambda: time.monotonic() - max(self._last_entry_wall_s, began_s))

    def _empty(self) -> State:
        return State(
            self.partition, log_id=self._log_id, clock_rate=self._clock.rate, clock_anchor_ms=self._clock.anchor_ms
        )

    @property
    def is_current(self) -> bool:
        """Whether the evaluator has caught up with the log and read an entry in the last CURRENT_S (ticks come each second)."""
        heard_s = asyncio.get_running_loop().time() - self._last_entry_wall_s
        return self._caught_up.is_set() and heard_s < CURRENT_S

    def unable(self) -> str:
        """Why this evaluator can't decide, or "". Ticks come each second, so a log without entries can't be read or written."""
        if reason := self._reader.unable():
            return reason
        if self.is_current:
            return ""
        return f"{self._reader.name} has had no entry for {CURRENT_S:.0f} s"

    async def restore(self) -> None:
        """Drops the state in memory and loads the newest checkpoint whose footing the streams hold, else starts at the log's start."""
        if self._finishing:
            await asyncio.wait([self._finishing])
        if self._child:
            self._store.abandon(self._child)
        self._outgoing, self._secondary, self._checkpoints = asyncio.Queue(), asyncio.Queue(), asyncio.Queue()
        self._is_checkpointing, self._child, self._finishing = False, None, None
        self._caught_up.clear()
        self._rules.note_dropped(self.state)
        restored = await recovery.newest(
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

        Raises OutdatedFold where the log requires a newer fold.
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
                            cursors.alarm(error)
                await asyncio.sleep(recovery.RETRY_DELAY_S)
                await self.restore()
                logger().warning("evaluator_began_again", partition=self.partition, sequence=self.state.sequence)

    async def _work(self, collector: GarbageCollector, on_caught_up: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._fold(collector))
            tasks.create_task(self._publish())
            tasks.create_task(self._publish_secondary())
            tasks.create_task(self._keep_checkpoints())
            tasks.create_task(self._tick())
            tasks.create_task(self._published.watch())
            await self._caught_up.wait()
            if not self._was_current:
                self._was_current = True
                on_caught_up()

    async def _fold(self, collector: GarbageCollector) -> None:
        stream = flow.log_stream(self.partition)
        await self._require_this_version()
        log = await self._bus.bounds_of(stream)
        if log.first > self.state.sequence + 1:
            logger().error("log_aged_out", partition=self.partition, missing_from=self.state.sequence + 1, to=log.first)
        if log.last == self.state.sequence or log.first > log.last:
            # The checkpoint is at the log's end, or the whole log aged out. Without a tick from here, perhaps no entry ever follows.
            self._caught_up.set()
        async for messages in pull.read(self._bus, stream, self._entry or 1, batch=READ_BATCH, health=self._reader):
            unyielded = 0
            for message in messages:
                decided = self._apply(message)
                unyielded += len(message.data)
                # A backlog must not delay the alerts that come of it, nor their acknowledgements.
                for _ in range(TURNS_TO_SEND if decided else 1 if unyielded >= YIELD_BYTES else 0):
                    unyielded = 0
                    await asyncio.sleep(0)
            collector.count(len(messages))
            self._last_entry_wall_s = asyncio.get_running_loop().time()
            async with self.applied:
                self.applied.notify_all()
            if messages[-1].pending == 0:
                self._caught_up.set()

    async def _require_this_version(self) -> None:
        """Writes this fold version to the log, so that older folds stop, unless the log has it already."""
        subject = flow.log_subject(self.partition, "fold")
        entry = log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=VERSION)).SerializeToString()
        last = await recovery.retried(lambda: self._bus.last_of(flow.log_stream(self.partition), subject))
        if last is None or translate.fold_version_of(last) < VERSION:
            await self._bus.publish_until_stored(subject, entry, msg_id=f"fold-{self.partition}-{VERSION}")

    def _apply(self, message: pull.Delivered) -> bool:
        """Folds an entry and queues its outputs; True where alerts are among them."""
        state = self.state
        try:
            entry = Entry(message.sequence, message.stamp_ms, translate.stored_body(message.subject, message.data))
        except InvalidField as error:
            # Every evaluator rejects this entry for the same reason, so its dead letter is an output like any other.
            state.sequence = message.sequence
            outputs: list[Output] = [DeadLetter(message.sequence, str(error))]
        else:
            outputs = fold.step(state, entry)
            ahead_ms = message.stamp_ms - wall_us() // 1000
            if ahead_ms > STAMP_AHEAD_MS:
                logger().critical("log_clock_ahead", partition=self.partition, sequence=message.sequence, ms=ahead_ms)
        if alerts := [output for output in outputs if isinstance(output, Alert)]:
            self._outgoing.put_nowait(_Decided(alerts, wall_us()))
        for output in outputs:
            if isinstance(output, DeadLetter):
                self._secondary.put_nowait(output)
        every = self._settings.checkpoint_every
        if message.sequence % every == 0:
            self._outgoing.put_nowait(_StateDigest(message.cursor, codec.state_digest(state)))
        # A fork pauses the process. The two evaluators fork at different entries, so that one of them always responds.
        if message.sequence % every == every // 2 * self._settings.replica % every:
            self._begin_checkpoint(message.cursor)
        return bool(alerts)

    def _begin_checkpoint(self, entry: StreamCursor) -> None:
        """Begins a checkpoint and queues it behind the alerts that it depends on. Does nothing during or soon after the last one."""
        now_s = asyncio.get_running_loop().time()
        if self._is_checkpointing or now_s < self._no_checkpoint_before_s:
            return
        try:
            pending = self._store.begin(self.state)
        except OSError as error:
            logger().error("checkpoint_failed", partition=self.partition, reason=str(error.strerror))
        else:
            self._outgoing.put_nowait(_QueuedCheckpoint(pending, entry))
            self._is_checkpointing, self._child, self._checkpoint_began_s = True, pending, now_s

    # ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _publish(self) -> None:
        """Publishes alerts entry by entry. Checkpoints and digests share this queue because they must follow earlier alerts."""
        while True:
            match await self._outgoing.get():
                case _StateDigest() as digest:
                    self._secondary.put_nowait(digest)
                case _QueuedCheckpoint(pending, entry):
                    newest = self._published.newest(flow.ALERTS.name)
                    self._secondary.put_nowait(_QueuedCheckpoint(pending, entry, newest))
                case _Decided(alerts, at_wall_us):
                    gravest_first = sorted(alerts, key=lambda alert: -alert.demand)
                    for first in range(0, len(alerts), ALERT_CONCURRENCY):
                        batch = gravest_first[first : first + ALERT_CONCURRENCY]
                        await asyncio.gather(*(self._publish_alert(alert, at_wall_us) for alert in batch))
                        for alert in batch:
                            self._secondary.put_nowait(alert)

    async def _publish_secondary(self) -> None:
        """Publishes the secondary outputs (figures, dead letters, digests, checkpoints) after their alerts, without delaying others."""
        stream = flow.log_stream(self.partition)
        while True:
            match await self._secondary.get():
                case Alert() as alert:
                    figures = translate.measure_to_proto(alert).SerializeToString()
                    subject = flow.measure_subject(self.partition, alert.alert_id)
                    record = partial(self._published.note_stored, flow.MEASURES.name, alert.alert_id)
                    ack = await self._bus.publish_until_stored(subject, figures, expected_last=0, on_refused=record)
                    if ack:
                        record(ack.seq)
                case DeadLetter() as dead_letter:
                    subject = flow.dead_letter_subject(flow.FOLD_READER, stream, dead_letter.sequence)
                    await self._bus.store_dead_letter(
                        subject, stream, dead_letter.sequence, by=flow.FOLD_READER, reason=dead_letter.reason
                    )
                case _QueuedCheckpoint(pending, entry, newest):
                    footing = Footing(entry, newest, self._published.newest(flow.MEASURES.name))
                    self._checkpoints.put_nowait((pending, footing))
                case _StateDigest() as digest:
                    await digests.compare(
                        self._bus,
                        self._store.keys,
                        self._settings,
                        partition=self.partition,
                        entry=digest.entry,
                        encoded=digest.encoded,
                    )

    async def _publish_alert(self, alert: Alert, decided_wall_us: int) -> None:
        message = translate.alert_to_proto(alert, self.partition).SerializeToString()
        # In headers, because the message must be byte for byte the same from every evaluator.
        headers = {trace_ids.DECIDED_US: str(decided_wall_us)}
        if alert.incident_id:
            headers[trace_ids.TRACEPARENT] = trace_ids.traceparent(alert.incident_id, "alert", alert.alert_id)
        record = partial(self._published.note_stored, flow.ALERTS.name, alert.alert_id)
        subject = flow.alert_subject(self.partition, alert.alert_id)
        ack = await self._bus.publish_until_stored(
            subject, message, expected_last=0, headers=headers, on_refused=record
        )
        if ack:
            record(ack.seq)
        if ack and alert.cause:
            # A canary has no stored trace, so it gets no exemplar.
            is_traced = alert.incident_id and alert.exercise is not Exercise.CANARY
            exemplar = {"trace_id": trace_ids.trace_id_of(alert.incident_id)} if is_traced else None
            _REPORT_TO_ALERT_S.observe((wall_us() - alert.cause.received_wall_us) / 1e6, exemplar)
        logger().info(
            "alert_published" if ack else "alert_already_published",
            alert_id=alert.alert_id,
            incident_id=alert.incident_id,
            kind=alert.kind.value,
            demand=alert.demand.name,
        )

    async def _keep_checkpoints(self) -> None:
        """Makes each pending checkpoint valid, once its child has written it and its earlier outputs are verified as stored."""
        while True:
            pending, footing = await self._checkpoints.get()
            try:
                await self._written(pending)
                while not self._published.is_verified:  # noqa: ASYNC110  # verified each second
                    await asyncio.sleep(CHECKPOINT_CHECK_S)
                self._finishing = asyncio.ensure_future(asyncio.to_thread(self._store.finish, pending, footing))
                await asyncio.shield(self._finishing)
            except (CheckpointFailed, OSError) as error:
                # Decisions need no checkpoint, and the next one may succeed. Without any, a restart replays more.
                logger().error("checkpoint_failed", partition=self.partition, reason=str(error))
            else:
                logger().info("checkpoint_written", partition=self.partition, sequence=pending.sequence)
            now_s = asyncio.get_running_loop().time()
            self._no_checkpoint_before_s = now_s + CHECKPOINT_PAUSE_FACTOR * (now_s - self._checkpoint_began_s)
            self._is_checkpointing = False

    async def _written(self, pending: PendingCheckpoint) -> None:
        try:
            async with asyncio.timeout(CHECKPOINT_TIMEOUT_S):
                while not self._store.is_written(pending):  # noqa: ASYNC110  # another process's work
                    await asyncio.sleep(CHECKPOINT_CHECK_S)
        except TimeoutError:
            self._store.abandon(pending)
            raise CheckpointFailed(f"the child took longer than {CHECKPOINT_TIMEOUT_S:.0f} s") from None
        except asyncio.CancelledError:
            self._store.abandon(pending)
            raise
        finally:
            self._child = None

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tick(self) -> None:
        """Publishes an empty entry when the log is idle, so that the fold also makes the decisions that depend on time alone."""
        await self._caught_up.wait()
        loop = asyncio.get_running_loop()
        idle_s = self._settings.tick_after_s / self._clock.rate
        while True:
            await asyncio.sleep(min(TICK_CHECK_S, idle_s))
            await self._rules.keep(self.state)
            if loop.time() - self._last_entry_wall_s < idle_s:
                continue
            try:
                # Both evaluators see the idle log. The last sequence in the message id makes their two ticks one entry.
                await self._bus.publish(
                    flow.log_subject(self.partition, "tick"),
                    _TICK,
                    msg_id=f"tick-{self.partition}-{self.state.sequence}",
                )
            except (RetryableError, AlreadyStored):
                continue  # without the log there is nothing to decide; the next round retries
