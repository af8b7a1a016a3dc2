"""The log edge: one evaluator of one partition. Reads entries in order, folds them, publishes what comes out, checkpoints.

An alert has a subject of its own and is published with "expected last sequence 0", so of two evaluators the slower one is
refused, which is success. Entry after entry is published in order, the alerts of one entry together and the gravest first: no leg has
to finish a lesser one before it sends somebody. Readers go by sequence and ordinal, not by places in the stream. A checkpoint counts
only once everything before it is acknowledged, so recovery never passes an alert that nobody has seen.

A stream can go back (`common.cursors`). Then the evaluator drops its state and folds again from behind the last common entry, by itself
(`recovery`). Alerts of entries that are lost stay published.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import Gauge, Histogram

from services.common.clock import wall_us
from services.common.messaging import cursors, flow, pull, stored
from services.common.messaging.bus import AlreadyThere, Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.streams import LogMetadata
from services.common.observability import trace_ids
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField, RetryableError
from services.geofence import digests, gc_control, recovery, translate
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Alert, DeadLetter, Output
from services.geofence.domain.entries import Entry, Exercise
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION
from services.geofence.gc_control import Garbage
from services.geofence.kept_rules import KeptRules
from services.geofence.published import Published
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointFailed, CheckpointStore, Footing, PendingCheckpoint, PublishedAlert
from tandem.common.v1 import log_pb2

TICK_CHECK_S = 0.2
CURRENT_S = 10.0
"""A state that no entry has reached for so long is of the past: an incident that is open in it may be over."""
STAMP_AHEAD_MS = 120_000
"""A stamp of the log's leader this far ahead of this host is an alarm: the fold's time can't be turned back."""
READ_BATCH = 1_000
"""Entries that are asked for before more are: after a pause the log is there as fast as it can be folded."""
YIELD_BYTES = 16_384
"""Bytes of a backlog, some hundred reports, after which others in this process get their turn."""
TURNS_TO_SEND = 3
"""Turns of the loop until an alert has left: it is taken from its queue, given to the client, and written to the socket."""
WAVE = 64
"""Alerts on their way at once."""
DRAFT_CHECK_S = 0.05
DRAFT_WITHIN_S = 600.0
DRAFTS_REST = 9.0
"""After each second that a child worked on a checkpoint none works for so many: under load they would come one upon the other."""
_LOG_AGE_S = Gauge(
    "tandem_geofence_log_age_seconds",
    "Time since anything was last heard of the log, ticks too; before it is caught up with, since the start",
    ["partition"],
)
_REPORT_TO_ALERT_S = Histogram(
    "tandem_geofence_report_to_alert_seconds",
    "From the receipt of the report that decided until its alert is durable",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
)
_TICK = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()


@dataclass(frozen=True, slots=True)
class _StateDigest:
    """What is open after an entry; both evaluators must say the same."""

    entry: StreamCursor
    encoded: bytes


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A checkpoint that is being written, of the state behind an entry."""

    draft: PendingCheckpoint
    entry: StreamCursor
    alert: PublishedAlert | None = None
    """The newest that is stored once all are that the checkpoint rests on."""


@dataclass(frozen=True, slots=True)
class _Decided:
    """What an entry has decided."""

    alerts: Sequence[Alert]
    at_wall_us: int


class Evaluator:
    """Folds one partition. `state` is what has been applied; `applied` wakes those who wait for a sequence."""

    def __init__(
        self,
        bus: Bus,
        store: CheckpointStore,
        settings: GeofenceSettings,
        log_meta: LogMetadata,
        partition: int,
    ) -> None:
        self.partition = partition
        self.applied = asyncio.Condition()
        self._bus, self._store, self._settings, self._clock = bus, store, settings, log_meta.clock
        self._log_id = log_meta.log_id
        self.state = self._empty()
        self._published = Published(bus, partition)
        self._rules = KeptRules(bus, partition)
        self._entry: StreamCursor | None = None
        """The last entry of the state, where it was read from a checkpoint."""
        self._is_restored = self._was_current = False
        self._outgoing: asyncio.Queue[_Decided | _Drafted | _StateDigest] = asyncio.Queue()
        self._beside: asyncio.Queue[Output | _Drafted | _StateDigest] = asyncio.Queue()
        self._drafts: asyncio.Queue[tuple[PendingCheckpoint, Footing]] = asyncio.Queue()
        self._drafting = False
        self._child: PendingCheckpoint | None = None
        """What a child process is writing."""
        self._finishing: asyncio.Future[None] | None = None
        self._drafted_s = self._no_draft_before_s = 0.0
        """When the last one began, and when the next may, by the loop's clock."""
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
        """Whether the state is of now: it has caught up, and has heard of the log in the last 10 s (ticks come each second)."""
        heard_s = asyncio.get_running_loop().time() - self._last_entry_wall_s
        return self._caught_up.is_set() and heard_s < CURRENT_S

    def unable(self) -> str:
        """Why it doesn't decide, or nothing. Ticks come each second, so a log without entries is one that it can't read or write."""
        if reason := self._reader.unable():
            return reason
        if self.is_current:
            return ""
        return f"{self._reader.name} has had no entry for {CURRENT_S:.0f} s"

    async def restore(self) -> None:
        """Drops what is in memory and goes to the newest checkpoint whose footing the streams hold, else to the log's start."""
        if self._finishing:
            await asyncio.wait([self._finishing])
        if self._child:
            self._store.abandon(self._child)
        self._outgoing, self._beside, self._drafts = asyncio.Queue(), asyncio.Queue(), asyncio.Queue()
        self._drafting, self._child, self._finishing = False, None, None
        self._caught_up.clear()
        self._rules.dropped(self.state)
        found = await recovery.newest(
            self._bus, self._store, self._published, self.partition, self._log_id, self._rules.dropped
        )
        self.state = found.state if found else self._empty()
        self._entry = found.footing.entry if found else None
        self._published.begin_with(found.footing if found else None)
        self._is_restored = True

    async def run(self, on_caught_up: Callable[[], None]) -> None:
        """Recovers and then folds for ever, over streams that go back. Raises OutdatedFold where the log demands a newer fold."""
        if not self._is_restored:
            await self.restore()
        logger().info("evaluator_started", partition=self.partition, sequence=self.state.sequence)
        with gc_control.looked_for_seldom() as seldom:
            while True:
                try:
                    await self._work(seldom, on_caught_up)
                except* StreamWentBack as errors:
                    self._caught_up.clear()  # until it is folded again nothing of it is of now
                    for error in errors.exceptions:
                        if isinstance(error, StreamWentBack):
                            cursors.alarm(error)
                await asyncio.sleep(recovery.RETRY_DELAY_S)
                await self.restore()
                logger().warning("evaluator_began_again", partition=self.partition, sequence=self.state.sequence)

    async def _work(self, seldom: Garbage, on_caught_up: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._fold(seldom))
            tasks.create_task(self._publish())
            tasks.create_task(self._publish_beside())
            tasks.create_task(self._keep_checkpoints())
            tasks.create_task(self._tick())
            tasks.create_task(self._published.watch())
            await self._caught_up.wait()
            if not self._was_current:
                self._was_current = True
                on_caught_up()

    async def _fold(self, seldom: Garbage) -> None:
        stream = flow.log_stream(self.partition)
        await self._require_this_version()
        log = await self._bus.bounds_of(stream)
        if log.first > self.state.sequence + 1:
            logger().error("log_aged_out", partition=self.partition, missing_from=self.state.sequence + 1, to=log.first)
        if log.last == self.state.sequence or log.first > log.last:
            # A checkpoint of the log's very end, or all of it has aged out: without a tick of ours perhaps nothing ever follows.
            self._caught_up.set()
        async for messages in pull.read(self._bus, stream, self._entry or 1, batch=READ_BATCH, health=self._reader):
            unyielded = 0
            for message in messages:
                decided = self._apply(message)
                unyielded += len(message.data)
                # A backlog must not hold up the alerts that it brings, nor the answers to them.
                for _ in range(TURNS_TO_SEND if decided else 1 if unyielded >= YIELD_BYTES else 0):
                    unyielded = 0
                    await asyncio.sleep(0)
            seldom.after(len(messages))
            self._last_entry_wall_s = asyncio.get_running_loop().time()
            async with self.applied:
                self.applied.notify_all()
            if messages[-1].pending == 0:
                self._caught_up.set()

    async def _require_this_version(self) -> None:
        """Tells older folds to stop, in the log itself, unless it was told already."""
        subject = flow.log_subject(self.partition, "fold")
        entry = log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=VERSION)).SerializeToString()
        last = await recovery.retried(lambda: self._bus.last_of(flow.log_stream(self.partition), subject))
        if last is None or _fold_version(last) < VERSION:
            await self._bus.publish_until_stored(subject, entry, msg_id=f"fold-{self.partition}-{VERSION}")

    def _apply(self, message: pull.Delivered) -> bool:
        """Folds an entry; whether there are alerts of it, which wait to be published."""
        state = self.state
        try:
            entry = Entry(message.sequence, message.stamp_ms, translate.stored_body(message.subject, message.data))
        except InvalidField as error:
            # Whoever reads the log parks this entry for the same reason, so parking is an output like any other.
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
                self._beside.put_nowait(output)
        every = self._settings.checkpoint_every
        if message.sequence % every == 0:
            self._outgoing.put_nowait(_StateDigest(message.cursor, codec.outline(state)))
        # A fork takes a moment: never on both evaluators at once, so that one of them is always awake.
        if message.sequence % every == every // 2 * self._settings.replica % every:
            self._draft(message.cursor)
        return bool(alerts)

    def _draft(self, entry: StreamCursor) -> None:
        """Begins a checkpoint, unless the last one is being written or was just now; it waits behind the alerts that it rests on."""
        now_s = asyncio.get_running_loop().time()
        if self._drafting or now_s < self._no_draft_before_s:
            return
        try:
            draft = self._store.begin(self.state)
        except OSError as error:
            logger().error("checkpoint_failed", partition=self.partition, reason=str(error.strerror))
        else:
            self._outgoing.put_nowait(_Drafted(draft, entry))
            self._drafting, self._child, self._drafted_s = True, draft, now_s

    # ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _publish(self) -> None:
        """Publishes alerts, those of one entry after those of another; nothing else stands in this queue but what waits for them."""
        while True:
            match await self._outgoing.get():
                case _StateDigest() as outline:
                    self._beside.put_nowait(outline)
                case _Drafted(draft, entry):
                    self._beside.put_nowait(_Drafted(draft, entry, self._published.newest(flow.ALERTS.name)))
                case _Decided(alerts, at_wall_us):
                    gravest_first = sorted(alerts, key=lambda alert: -alert.demand)
                    for first in range(0, len(alerts), WAVE):
                        wave = gravest_first[first : first + WAVE]
                        await asyncio.gather(*(self._publish_alert(alert, at_wall_us) for alert in wave))
                        for one in wave:
                            self._beside.put_nowait(one)

    async def _publish_beside(self) -> None:
        """Figures, what is parked, outlines and drafts: behind the alerts that they belong to, and never in the way of the next."""
        stream = flow.log_stream(self.partition)
        while True:
            match await self._beside.get():
                case Alert() as alert:
                    figures = translate.measure_to_proto(alert).SerializeToString()
                    subject = flow.measure_subject(self.partition, alert.alert_id)
                    noted = partial(self._published.stored, flow.MEASURES.name, alert.alert_id)
                    ack = await self._bus.publish_until_stored(subject, figures, expected_last=0, on_refused=noted)
                    if ack:
                        noted(ack.seq)
                case DeadLetter() as dead_letters:
                    subject = flow.dead_letter_subject(flow.FOLD_READER, stream, dead_letters.sequence)
                    await self._bus.park(subject, stream, dead_letters.sequence, flow.FOLD_READER, dead_letters.reason)
                case _Drafted(draft, entry, newest):
                    footing = Footing(entry, newest, self._published.newest(flow.MEASURES.name))
                    self._drafts.put_nowait((draft, footing))
                case _StateDigest() as outline:
                    await digests.compare(
                        self._bus, self._store.keys, self._settings, self.partition, outline.entry, outline.encoded
                    )

    async def _publish_alert(self, alert: Alert, decided_wall_us: int) -> None:
        message = translate.alert_to_proto(alert, self.partition).SerializeToString()
        # Beside the message, which is the same from every evaluator to the last byte.
        headers = {trace_ids.DECIDED_US: str(decided_wall_us)}
        if alert.incident_id:
            headers[trace_ids.TRACEPARENT] = trace_ids.traceparent(alert.incident_id, "alert", alert.alert_id)
        noted = partial(self._published.stored, flow.ALERTS.name, alert.alert_id)
        subject = flow.alert_subject(self.partition, alert.alert_id)
        ack = await self._bus.publish_until_stored(subject, message, expected_last=0, headers=headers, on_refused=noted)
        if ack:
            noted(ack.seq)
        if ack and alert.cause:
            # A canary leaves no trace that an exemplar could lead to.
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
        """Makes checkpoints of drafts that nothing is missing before, once they are written."""
        while True:
            draft, footing = await self._drafts.get()
            try:
                await self._written(draft)
                while not self._published.is_compared:  # noqa: ASYNC110  # it is looked at each second
                    await asyncio.sleep(DRAFT_CHECK_S)
                self._finishing = asyncio.ensure_future(asyncio.to_thread(self._store.finish, draft, footing))
                await asyncio.shield(self._finishing)
            except (CheckpointFailed, OSError) as error:
                # Decisions don't need it; the next one may fit. Without any, a restart replays more.
                logger().error("checkpoint_failed", partition=self.partition, reason=str(error))
            else:
                logger().info("checkpoint_written", partition=self.partition, sequence=draft.sequence)
            now_s = asyncio.get_running_loop().time()
            self._no_draft_before_s = now_s + DRAFTS_REST * (now_s - self._drafted_s)
            self._drafting = False

    async def _written(self, draft: PendingCheckpoint) -> None:
        try:
            async with asyncio.timeout(DRAFT_WITHIN_S):
                while not self._store.is_written(draft):  # noqa: ASYNC110  # another process's work
                    await asyncio.sleep(DRAFT_CHECK_S)
        except TimeoutError:
            self._store.abandon(draft)
            raise CheckpointFailed("took too long") from None
        except asyncio.CancelledError:
            self._store.abandon(draft)
            raise
        finally:
            self._child = None

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _tick(self) -> None:
        """Publishes an empty entry when the log is idle, so that what time alone decides is decided."""
        await self._caught_up.wait()
        loop = asyncio.get_running_loop()
        idle_s = self._settings.tick_after_s / self._clock.rate
        while True:
            await asyncio.sleep(min(TICK_CHECK_S, idle_s))
            await self._rules.keep(self.state)
            if loop.time() - self._last_entry_wall_s < idle_s:
                continue
            try:
                # Two evaluators see the same idleness; the number of the last entry makes their ticks one.
                await self._bus.publish(
                    flow.log_subject(self.partition, "tick"),
                    _TICK,
                    msg_id=f"tick-{self.partition}-{self.state.sequence}",
                )
            except (RetryableError, AlreadyThere):
                continue  # without a log there is nothing to decide; once it is back the next look ticks


def _fold_version(data: bytes) -> int:
    """The version that an entry demands; 0 where it can't be read: the fold sets it aside, and this version is demanded behind it."""
    try:
        return stored.entry(data).fold_version.version
    except InvalidField:
        return 0
