"""Publishes the outputs of one partition's fold in an order that no crash can turn into a lost alert.

Entries are published in order, several at a time: while the fold works off a backlog, an acknowledgement takes many turns of the event
loop, and no alert may wait for those of earlier entries. The alerts of one entry go out together, the gravest first, so that a leg
needn't finish a minor alert before it dispatches a unit. Each alert has a unique subject and is published with "expected last sequence
0". The server rejects the slower of two evaluators, which counts as success. Readers order alerts by sequence and ordinal, not by
stream position. One of the two is the backup: it publishes a moment later, so that it doesn't compete for the processor with the legs
that the alert has reached.

There are three queues: alerts, requests to devices, and secondary outputs (figures and digests). None delays the one before it.
Secondary outputs are sharing, because desks see an alert with its figures: they wait until no alert has been published for some
milliseconds, at most 1 s. A checkpoint passes all three queues, so it gets its footing only once all earlier outputs are acknowledged.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, assert_never

from services.common.clock import MeshClock, wall_us
from services.common.errors import RetryableError
from services.common.messaging import flow
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamCursor
from services.common.messaging.delivered import Delivered
from services.common.observability import spans
from services.common.observability.spans import EntryTrace
from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.common.runs import runs
from services.geofence import translate
from services.geofence.checkpoints import Checkpoints, PublishedOutputs
from services.geofence.domain.alerts import Alert, ContactRequest, DeadLetter, Output, Request, SensingRequest
from services.geofence.domain.entries import Exercise
from services.geofence.metrics import GeofenceMetrics
from services.geofence.settings import GeofenceSettings, StateKeys
from services.geofence.store import Footing, PendingCheckpoint, PublishedAlert
from tandem.common.v1 import alert_pb2, log_pb2

ALERT_CONCURRENCY = 64
"""Alerts, of one entry or several, that are published concurrently."""
TURNS_TO_WRITE = 2
"""Event loop turns until a publish is written to the socket: its task runs, and then the client's."""
BACKUP_DELAY_S = 0.02
"""Time from a decision until the backup publishes its alerts, seconds. By then the other evaluator's alerts are stored, unless it is
stopped or busy."""
REQUEST_DELAY_S = 0.02
"""Time for which requests to devices are collected after the first one, seconds. A device answers in seconds, and the offers that were
decided in the same moment go first."""
REQUEST_CONCURRENCY = 64
"""Requests to different devices that are published concurrently. All tags of a new mesh are asked within seconds, and one after the
other each would wait for the disk of the server."""


@dataclass(frozen=True, slots=True)
class StateDigest:
    """Encoding of all open rings and incidents after an entry. Both evaluators of a partition must produce the same bytes."""

    entry: StreamCursor
    encoded: bytes


@dataclass(frozen=True, slots=True)
class _Decided:
    """The alerts of one entry."""

    alerts: Sequence[Alert]
    at_wall_us: int
    publish_at_s: float
    """When this evaluator publishes them, by the event loop's clock, seconds."""
    entry: Delivered


@dataclass(frozen=True, slots=True)
class _QueuedCheckpoint:
    """A checkpoint of the state after an entry, queued behind the alerts that it depends on."""

    pending: PendingCheckpoint
    entry: StreamCursor


@dataclass(frozen=True, slots=True)
class _AlertedCheckpoint:
    """A checkpoint after its alerts were stored, queued behind the figures that it depends on."""

    pending: PendingCheckpoint
    entry: StreamCursor
    alert: PublishedAlert | None
    """The newest alert that was stored when all alerts of earlier entries were. It may be of a later entry."""


@dataclass(frozen=True, slots=True)
class _Figures:
    """The figures of alerts that are stored."""

    alerts: Sequence[Alert]


_Outgoing: TypeAlias = _Decided | _QueuedCheckpoint | StateDigest
_Secondary: TypeAlias = _Figures | _AlertedCheckpoint | StateDigest
_Request: TypeAlias = SensingRequest | ContactRequest | DeadLetter | _AlertedCheckpoint


class OutputPublisher:
    """Publishes the alerts, figures and dead letters of one partition, and its digests and checkpoints in their order."""

    def __init__(
        self,
        bus: Bus,
        partition: int,
        published: PublishedOutputs,
        *,
        checkpoints: Checkpoints,
        digests: Digests,
        clock: MeshClock,
        metrics: GeofenceMetrics,
        gate: PriorityGate,
        is_backup: bool = False,
    ) -> None:
        self._gate, self._delay_s = gate, BACKUP_DELAY_S if is_backup else 0.0
        self._bus = bus
        self._partition = partition
        self._published = published
        self._clock = clock
        self._checkpoints = checkpoints
        self._digests = digests
        self._metrics = metrics
        self.measures = RecentMeasures()
        self._places = asyncio.Semaphore(ALERT_CONCURRENCY)
        self._publishing: set[asyncio.Task[None]] = set()
        """Entries whose alerts aren't all stored yet."""
        self._outgoing: asyncio.Queue[_Outgoing] = asyncio.Queue()
        self._requests: asyncio.Queue[_Request] = asyncio.Queue()
        self._secondary: asyncio.Queue[_Secondary] = asyncio.Queue()

    @property
    def secondary_waiting(self) -> int:
        """Number of figures of entries, digests and checkpoints that wait to be published."""
        return self._secondary.qsize()

    # ── from the fold ────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, outputs: Sequence[Output], entry: Delivered) -> bool:
        """Queues the outputs of an entry. Returns whether alerts are among them."""
        alerts: list[Alert] = []
        for output in outputs:
            match output:
                case Alert():
                    alerts.append(output)
                case SensingRequest() | ContactRequest() | DeadLetter():
                    self._requests.put_nowait(output)
                case _:
                    assert_never(output)
        if alerts:
            publish_at_s = asyncio.get_running_loop().time() + self._delay_s
            self._outgoing.put_nowait(_Decided(alerts, at_wall_us=wall_us(), publish_at_s=publish_at_s, entry=entry))
        return bool(alerts)

    def put_digest(self, digest: StateDigest) -> None:
        """Queues a digest behind the earlier alerts."""
        self._outgoing.put_nowait(digest)

    def put_checkpoint(self, pending: PendingCheckpoint, entry: StreamCursor) -> None:
        """Queues a checkpoint of the state after an entry behind the outputs that it depends on."""
        self._outgoing.put_nowait(_QueuedCheckpoint(pending, entry))

    def drop(self) -> None:
        """Drops everything in the queues, because the state that it follows from is dropped."""
        self._outgoing = asyncio.Queue()
        self._requests = asyncio.Queue()
        self._secondary = asyncio.Queue()
        self.measures.drop()

    # ── to the streams ───────────────────────────────────────────────────────────────────────────────────────────────

    async def publish_alerts(self) -> None:
        """Publishes alerts in the order of their entries, until cancelled. A checkpoint waits until all earlier alerts are stored."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                match await self._outgoing.get():
                    case StateDigest() as digest:
                        self._secondary.put_nowait(digest)
                    case _QueuedCheckpoint() as checkpoint:
                        # A task of its own, because the alerts of later entries don't wait for those of earlier ones.
                        tasks.create_task(self._pass_checkpoint(checkpoint, frozenset(self._publishing)))
                    case _Decided() as decided:
                        if self._delay_s:
                            await asyncio.sleep(max(0.0, decided.publish_at_s - asyncio.get_running_loop().time()))
                        await self._begin(decided, tasks)
                    case unknown:
                        assert_never(unknown)

    async def _pass_checkpoint(self, checkpoint: _QueuedCheckpoint, earlier: Collection[asyncio.Task[None]]) -> None:
        """Queues a checkpoint behind the requests once the alerts of all earlier entries are stored."""
        if earlier:
            await asyncio.wait(earlier)
        newest = self._published.newest(flow.ALERTS.name)
        self._requests.put_nowait(_AlertedCheckpoint(checkpoint.pending, checkpoint.entry, newest))

    async def _begin(self, decided: _Decided, tasks: asyncio.TaskGroup) -> None:
        """Begins to publish the alerts of an entry, in their order. Their figures follow once all of them are stored."""
        entry = AlertTraces(decided.entry)
        gravest_first = sorted(decided.alerts, key=lambda alert: -alert.demand)
        publishing: list[asyncio.Task[None]] = []
        for alert in gravest_first:
            await self._places.acquire()
            publishing.append(tasks.create_task(self._publish_alert(alert, decided.at_wall_us, entry)))
            publishing[-1].add_done_callback(lambda _: self._places.release())
            if len(publishing) == 1:
                # The gravest is written to the socket while the others are still being encoded.
                for _ in range(TURNS_TO_WRITE):
                    await asyncio.sleep(0)
        following = tasks.create_task(self._queue_figures(gravest_first, publishing))
        self._publishing.add(following)
        following.add_done_callback(self._publishing.discard)

    async def _queue_figures(self, alerts: Sequence[Alert], publishing: Sequence[asyncio.Task[None]]) -> None:
        with self._gate.response():
            await asyncio.wait(publishing)
        for first in range(0, len(alerts), ALERT_CONCURRENCY):
            self._secondary.put_nowait(_Figures(alerts[first : first + ALERT_CONCURRENCY]))

    async def publish_requests(self) -> None:
        """Publishes requests to devices and dead letters, until cancelled. A checkpoint follows them."""
        while True:
            requests = [await self._requests.get()]
            await asyncio.sleep(self._delay_s + REQUEST_DELAY_S)
            requests += [self._requests.get_nowait() for _ in range(self._requests.qsize())]
            for run in runs(requests, _device_of, at_most=REQUEST_CONCURRENCY):
                await asyncio.gather(*map(self._put_out, run))

    async def _put_out(self, output: _Request) -> None:
        match output:
            case SensingRequest() | ContactRequest() as request:
                await self._publish_request(request)
            case DeadLetter(sequence, reason):
                stream = flow.log_stream(self._partition)
                subject = flow.dead_letter_subject(flow.FOLD_READER, stream, sequence)
                await self._bus.store_dead_letter(subject, stream, sequence, by=flow.FOLD_READER, reason=reason)
            case _AlertedCheckpoint() as checkpoint:
                self._secondary.put_nowait(checkpoint)
            case unknown:
                assert_never(unknown)

    async def publish_secondary(self) -> None:
        """Publishes figures and digests while no alert is being published, until cancelled. A checkpoint follows them."""
        while True:
            match await self._secondary.get():
                case _Figures(alerts):
                    async with self._gate.sharing():
                        await asyncio.gather(*(self._publish_figures(alert) for alert in alerts))
                case StateDigest() as digest:
                    async with self._gate.sharing():
                        await self._digests.compare(digest)
                case _AlertedCheckpoint(pending, entry, newest):
                    footing = Footing(entry, newest, self._published.newest(flow.MEASURES.name))
                    self._checkpoints.support(pending, footing)
                case unknown:
                    assert_never(unknown)

    async def _publish_request(self, request: Request) -> None:
        """Publishes a request, unless its need has ended: a log that is folded again holds the requests of its whole time."""
        if request.until_ms > self._clock.now_ms():
            message = translate.request_to_proto(request).SerializeToString()
            subject = flow.sensing_subject(self._partition, request.request_id)
            await self._bus.publish_until_stored(subject, message, expected_last=0)

    async def _publish_figures(self, alert: Alert) -> None:
        figures = translate.measure_to_proto(alert)
        record = partial(self._published.note_stored, flow.MEASURES.name, alert.alert_id)
        ack = await self._bus.publish_until_stored(
            flow.measure_subject(self._partition, alert.alert_id),
            figures.SerializeToString(),
            expected_last=0,
            on_refused=record,
        )
        if ack:
            record(ack.seq)
        self.measures.keep(figures)

    async def _publish_alert(self, alert: Alert, decided_wall_us: int, entry: AlertTraces) -> None:
        message = translate.alert_to_proto(alert, self._partition).SerializeToString()
        # In headers, because the message must be byte for byte the same from every evaluator.
        headers = {spans.DECIDED_US: str(decided_wall_us)}
        if alert.incident_id:
            headers[spans.ENTRY] = entry.header_for(alert)
            headers[spans.TRACEPARENT] = spans.traceparent(alert.incident_id, "alert", alert.alert_id)
        record = partial(self._published.note_stored, flow.ALERTS.name, alert.alert_id)
        subject = flow.alert_subject(self._partition, alert.alert_id)
        ack = await self._bus.publish_until_stored(
            subject, message, expected_last=0, headers=headers, on_refused=record
        )
        if ack:
            record(ack.seq)
        if ack and alert.cause:
            # A canary has no stored trace, so it gets no exemplar.
            is_traced = alert.incident_id and alert.exercise is not Exercise.CANARY
            exemplar = {"trace_id": spans.trace_id_of(alert.incident_id)} if is_traced else None
            self._metrics.report_to_alert_s.observe((wall_us() - alert.cause.received_wall_us) / 1e6, exemplar)
        logger().info(
            "alert_published" if ack else "alert_already_published",
            alert_id=alert.alert_id,
            incident_id=alert.incident_id,
            kind=alert.kind.value,
            demand=alert.demand.name,
        )


def _device_of(output: _Request) -> str | None:
    """The device that a request is about; None for other outputs, which wait for all requests before them."""
    match output:
        case SensingRequest() | ContactRequest():
            return output.device_id
        case DeadLetter() | _AlertedCheckpoint():
            return None
        case unknown:
            assert_never(unknown)


class Digests:
    """Publishes and compares the digests of one partition."""

    def __init__(
        self, bus: Bus, keys: StateKeys, settings: GeofenceSettings, *, partition: int, metrics: GeofenceMetrics
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._partition = partition
        self._metrics = metrics
        self._replica, self._replicas = settings.replica, settings.replicas

    async def compare(self, digest: StateDigest) -> None:
        """Publishes this evaluator's keyed digest after an entry, and raises an alarm if another evaluator's digest differs.

        The subject includes the stamp of the entry. A stream that went back gives the sequence to another entry, and the states after
        two different entries must not be compared.
        """
        partition, entry = self._partition, digest.entry
        try:
            with suppress(AlreadyStored):
                keyed = self._keys.digest(partition, entry.sequence, digest.encoded)
                await self._bus.publish(self._subject(entry, self._replica), keyed, expected_last=0)
            for other in range(self._replicas):
                if other != self._replica:
                    await self._compare(digest, other)
        except RetryableError as error:
            logger().warning("digest_not_compared", partition=partition, sequence=entry.sequence, reason=error.reason)

    async def _compare(self, digest: StateDigest, other: int) -> None:
        """Compares a digest with that of another evaluator, if that evaluator has published one. Raises Unavailable if the server
        can't be asked."""
        partition, sequence = self._partition, digest.entry.sequence
        theirs = await self._bus.last_of(flow.DIGESTS.name, self._subject(digest.entry, other))
        if theirs is None:
            return
        same = self._keys.is_same(theirs, partition, sequence, encoded=digest.encoded)
        if same is None:
            reason = f"the digest of evaluator {other} is malformed, or made with a key that TANDEM_STATE_KEY lacks"
            logger().error("digest_not_compared", partition=partition, sequence=sequence, reason=reason)
        elif not same:
            self._metrics.differs(partition)
            logger().critical("evaluators_differ", partition=partition, sequence=sequence, other=other)

    def _subject(self, entry: StreamCursor, replica: int) -> str:
        return flow.digest_subject(self._partition, entry.sequence, entry.stored_at_ns, replica=replica)


class AlertTraces:
    """Headers ENTRY of the alerts of one log entry."""

    def __init__(self, entry: Delivered) -> None:
        batch = log_pb2.LogEntry.FromString(entry.data).positions  # the fold has read these bytes, so they parse
        self._reports = list(zip(batch.device_id, batch.report_id, strict=False))
        self._stored_us = entry.stamp_us
        self._senders = (entry.headers or {}).get(spans.SENDERS, "")

    def header_for(self, alert: Alert) -> str:
        """Value of the header ENTRY of an alert."""
        cause = (alert.cause.device_id, alert.cause.report_id) if alert.cause else None
        index = self._reports.index(cause) if cause in self._reports else 0
        sender = spans.sender_of(self._senders, index)
        return spans.entry_header(EntryTrace(self._stored_us, max(len(self._reports), 1), sender))


MEASURES_KEPT = 1_000
"""Number of figures that are kept. Those of older alerts are read from MEASURES."""


class RecentMeasures:
    """The newest figures of one partition that MEASURES holds."""

    def __init__(self) -> None:
        self._by_alert: OrderedDict[str, alert_pb2.Measure] = OrderedDict()

    def keep(self, measure: alert_pb2.Measure) -> None:
        """Keeps figures that were just stored."""
        self._by_alert[measure.alert_id] = measure
        if len(self._by_alert) > MEASURES_KEPT:
            self._by_alert.popitem(last=False)

    def figures_of(self, alert_id: str) -> alert_pb2.Measure | None:
        """Returns the figures of an alert; None if they aren't kept."""
        return self._by_alert.get(alert_id)

    def drop(self) -> None:
        """Drops all figures, because the stream may have lost them."""
        self._by_alert.clear()
