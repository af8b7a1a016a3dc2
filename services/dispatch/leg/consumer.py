"""Consumes alerts and the other legs' steps from NATS. A stream position is committed together with the effects of its messages.

So the leg's database alone decides where reading goes on. A restored older copy consumes the messages that it lacks, and an empty
database consumes all kept messages. The database also stores the stream cursors of messages. After a stream went back, reading goes
on from the last message that stream and database have in common.

Compares a leg's record with the streams: alerts that demand its response, and its own steps.

A leg reads on in ALERTS from the position in its database. This comparison checks the content instead of the position. A missing
alert is applied, and the chain, the log and a counter record that it was missing.

Steps and advice that a stream has lost are republished in order and under the same ids. Readers recognise a repeated step by its number
and id, and ignore it. The leg compares its records of publications with the streams at the start, after each reconnect before anything
else is published, and every 10 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from services.common.clock import wall_us
from services.common.errors import InvalidField
from services.common.evidence.streams import first_at
from services.common.messaging import cursors, dead_letters, flow, lost_publications, pull, stored, trails
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.messaging.lost_publications import StreamComparison
from services.common.messaging.positions import DeferredPosition
from services.common.messaging.pull import Delivered
from services.common.messaging.trails import Trail
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.dispatch.domain.decisions import concerns
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.incident import Alert
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.publications import Published, PublishedSteps, StepOutbox
from services.dispatch.leg.service import LegService
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import NoteRow, PeerRow, StreamPosition
from services.dispatch.leg.translate import numbered

PEERS_LINGER_S = 0.05
"""Time for which the other legs' steps are collected after the first one, seconds. All legs offer in the same moment, and the own offer
goes first."""


async def consume_alerts(bus: Bus, leg: LegService, log_id: str, *, health: ReaderHealth | None = None) -> None:
    """Applies the alerts of ALERTS until cancelled. Alerts that arrived together are applied in one transaction."""
    stream = flow.ALERTS.name
    deferred: DeferredPosition[Alert, StreamPosition] = DeferredPosition(leg.fold)
    trail, after = await _reading(bus, leg, stream, log_id=log_id)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deferred.keep())
        async for messages in trails.follow(
            bus, stream, trail, after=after, on_went_back=deferred.forget, health=health
        ):
            parsed = await dead_letters.parse_or_keep(
                bus, flow.alerts_reader(leg.name), messages, parse=lambda data, subject: _alert(data, subject, leg.name)
            )
            alerts = [alert for alert in parsed if concerns(leg.name, alert)]
            position = StreamPosition(stream=stream, log_id=log_id, sequence=messages[-1].sequence, trail=str(trail))
            # While a database refuses, `put` doesn't return, and no more alerts may be waiting behind these.
            leg.metrics.alerts_behind.labels(leg.name).set(len(alerts) + messages[-1].pending)
            await deferred.put(alerts, position)
            leg.metrics.alerts_behind.labels(leg.name).set(messages[-1].pending)


def _alert(data: bytes, subject: str, leg: Leg) -> Alert | None:
    if not flow.ALERTS.holds(subject):
        raise InvalidField("alert", f"is on the subject {subject}, which isn't a subject of ALERTS")
    return translate.alert(data, leg, subject)


class _PeerStep(NamedTuple):
    """A step of another leg, as this leg keeps it."""

    row: PeerRow
    note: NoteRow | None


def _peer(data: bytes, subject: str, leg: Leg) -> _PeerStep:
    step = stored.step(data, subject)
    return _PeerStep(translate.peer(step, leg), translate.shared_note(step, leg))


async def consume_peers(bus: Bus, leg: LegService, log_id: str, *, health: ReaderHealth | None = None) -> None:
    """Stores the other legs' assignments until cancelled."""
    stream, subjects = flow.INCIDENTS.name, flow.peer_subjects(leg.name)
    trail, after = await _reading(bus, leg, stream, log_id=log_id)
    async for messages in trails.follow(
        bus, stream, trail, subjects=subjects, after=after, health=health, linger_s=PEERS_LINGER_S
    ):
        steps = await dead_letters.parse_or_keep(
            bus, flow.peers_reader(leg.name), messages, parse=lambda data, subject: _peer(data, subject, leg.name)
        )
        rows, notes = [step.row for step in steps], [step.note for step in steps if step.note]
        if leg.name.policy.answers_flags:
            await _apply_flags(leg, rows)
        position = StreamPosition(stream=stream, log_id=log_id, sequence=messages[-1].sequence, trail=str(trail))
        async with leg.record.gate.sharing():
            await retried(partial(leg.record.secondary.put_peers, rows, position, notes))
        leg.record.listing.note(row.incident_id for row in rows)
        leg.record.subscriptions.notify_others(rows)


async def _apply_flags(leg: LegService, rows: Sequence[PeerRow]) -> None:
    """Writes the warning leg's flags into this leg's chain, before the stream position is committed."""
    for row in rows:
        if flag := translate.peer_flag(row):
            await retried(partial(leg.flag, row.incident_id, flag))


async def _reading(bus: Bus, leg: LegService, stream: str, *, log_id: str) -> tuple[Trail, int]:
    """The stored trail of a stream, and the sequence of the last consumed message.

    The reader checks whether the stream still has the messages of the trail. A repeated message changes nothing.
    """
    known = await retried(partial(leg.store.reading, stream, log_id))
    first = (await bus.bounds_of(stream)).first
    if first > known.sequence + 1 and known.sequence:
        logger().critical("stream_aged_out", stream=stream, missing_from=known.sequence + 1, to=first)
    return Trail.parse(known.trail), known.sequence


COMPARE_INTERVAL_S = 10.0
"""Interval of the comparisons, seconds of wall time. Each compares the alerts that the leg has consumed since the last comparison."""
LOOKBACK_S = 86_400
"""Age of the oldest alerts in a full comparison, seconds: an incident that is a day old is over or well known."""
FULL_COMPARISON_INTERVAL_S = 3600.0
"""Interval of full comparisons, seconds. The first one runs at the start."""
COMPARE_BATCH = 256
"""Alerts that are compared in one transaction."""


class Reconciler:
    """Compares one leg's record with the streams, and adds what the record lacks."""

    def __init__(self, bus: Bus, leg: LegService, log_id: str) -> None:
        self._bus = bus
        self._leg = leg
        self._log_id = log_id
        self._unreadable: set[int] = set()
        """Sequences of alerts that this leg can't parse. Each may demand a response that is missing."""

    async def run(self) -> None:
        """Compares alerts and steps until cancelled."""
        loop = asyncio.get_running_loop()
        compared = 0
        next_full_s = 0.0
        steps_compared = False
        caught_up = (await self._bus.bounds_of(flow.ALERTS.name)).last
        while True:
            if loop.time() >= next_full_s:
                since_ms = wall_us() // 1000 - LOOKBACK_S * 1000
                compared = await retried(partial(first_at, self._bus, flow.ALERTS.name, since_ms)) - 1
                next_full_s = loop.time() + FULL_COMPARISON_INTERVAL_S
                self._unreadable.clear()
            # Alerts after this position aren't missing: the leg's reader hasn't reached them yet.
            position = await retried(partial(self._leg.store.reading, flow.ALERTS.name, self._log_id))
            consumed = position.sequence
            compared = min(compared, consumed)  # `consumed` is smaller after a stream went back
            try:
                if consumed > compared:
                    await retried(partial(self._holds, Trail.parse(position.trail)))
                    await self._compare_alerts(compared + 1, consumed)
                    compared = consumed
                if not steps_compared and consumed >= caught_up:
                    # Only the leg changes its record while it runs, so one comparison is enough.
                    await self._compare_steps()
                    steps_compared = True
            except StreamWentBack as error:
                # The leg's reader notices this too and consumes the missing alerts. So start a full comparison now.
                logger().warning("comparison_begins_again", reason=error.reason)
                next_full_s, caught_up = 0.0, (await self._bus.bounds_of(flow.ALERTS.name)).last
            await asyncio.sleep(COMPARE_INTERVAL_S)

    async def _holds(self, trail: Trail) -> None:
        """Checks that ALERTS still has the last alert that the leg consumed. Raises StreamWentBack, Unavailable.

        After a stream went back, alerts before the leg's position aren't missing: the reader will consume them.
        """
        if trail.newest:
            await cursors.holds(self._bus, flow.ALERTS.name, trail.newest)

    async def _compare_alerts(self, first: int, last: int) -> None:
        waiting: list[Delivered] = []
        async for message in pull.between(self._bus, flow.ALERTS.name, first, last=last):
            waiting.append(message)
            if len(waiting) >= COMPARE_BATCH:
                await self._compare(waiting)
                waiting = []
                await asyncio.sleep(0)  # let the leg's offers run on this event loop
        await self._compare(waiting)

    async def _compare(self, messages: Sequence[Delivered]) -> None:
        missing = await retried(partial(self._leg.reconcile, list(self._demanding(messages))))
        for alert in missing:
            self._leg.metrics.reconciled.labels(self._leg.name).inc()
            logger().critical("alert_was_missing", alert_id=alert.alert_id, incident_id=alert.incident_id)
        self._leg.metrics.unreconciled.labels(self._leg.name).set(len(self._unreadable))

    def _demanding(self, messages: Iterable[Delivered]) -> Iterable[Alert]:
        for message in messages:
            if not flow.ALERTS.holds(message.subject):
                continue  # the reader made it a dead letter
            try:
                alert = translate.alert(message.data, self._leg.name, message.subject)
            except InvalidField:
                self._unreadable.add(message.sequence)  # the reader made it a dead letter, with the reason
                continue
            if alert is not None and (
                (alert.demand is Demand.RESPOND and alert.subject_ids) or alert.check_subject_ids
            ):
                yield alert

    async def _compare_steps(self) -> None:
        """Finds steps on INCIDENTS that the leg's record lacks, for instance because an older copy was restored."""
        mine = flow.incident_subject(self._leg.name, ">")
        newest = await retried(partial(self._bus.last_sequence_of, flow.INCIDENTS.name, mine))
        if not newest:
            return
        async for messages in pull.read(self._bus, flow.INCIDENTS.name, 1, subjects=(mine,)):
            # No other reader reads this leg's own steps, so unreadable steps become dead letters here.
            reader = flow.steps_reader(self._leg.name)
            steps = await dead_letters.parse_or_keep(self._bus, reader, messages, parse=stored.step)
            await retried(partial(self._leg.compare_steps, steps))
            if messages[-1].sequence >= newest:
                return
            await asyncio.sleep(0)


class StepPublications:
    """Publications of one leg on one log, and their comparison with the streams."""

    def __init__(self, bus: Bus, leg: LegService, log_id: str) -> None:
        self._bus = bus
        self._leg = leg
        self._log_id = log_id
        self._compared: list[tuple[PublishedSteps, StreamComparison]] = []
        advice = (flow.ADVICE.name,) if leg.name.policy.advises_persons else ()
        for stream in (flow.INCIDENTS.name, *advice):
            records = PublishedSteps(store=leg.store, leg=leg.name, stream=stream, log_id=log_id)
            own = (flow.incident_subject(leg.name, ">"),) if stream == flow.INCIDENTS.name else ()
            comparison = StreamComparison(
                bus, stream, records=records, lost_among=lost_publications.by_sequence(bus, stream, own)
            )
            self._compared.append((records, comparison))
        self._reconnects: int | None = None
        """Number of reconnects at the last full comparison; None before the first."""
        self._lock, self._settling = asyncio.Lock(), asyncio.Lock()

    async def run(self) -> None:
        """Compares the streams until cancelled."""
        for records, _ in self._compared:
            first = (await self._bus.bounds_of(records.stream)).first
            await retried(partial(records.forget_before, first))
        loop = asyncio.get_running_loop()
        next_comparison_s = loop.time()
        while True:
            await self.settle()
            if loop.time() >= next_comparison_s:
                await self._compare_all()  # new steps don't wait, since a change of the stream's leader is rare
                next_comparison_s = loop.time() + lost_publications.CHECK_INTERVAL_S
            await asyncio.sleep(lost_publications.NOTICE_INTERVAL_S)

    async def settle(self) -> None:
        """Returns once the streams were compared after the last reconnect, and lost steps are in the outbox."""
        if self._reconnects == self._bus.reconnects:
            return
        async with self._settling:  # many publications may wait here, and one comparison is enough for all
            while self._reconnects != self._bus.reconnects:
                reconnects = self._bus.reconnects
                await self._compare_all()
                self._reconnects = reconnects

    async def _compare_all(self) -> None:
        async with self._lock:
            for records, comparison in self._compared:
                await retried(partial(self._compare, records, comparison))

    async def mark(self, steps: Published) -> None:
        """Records published steps in the leg's database."""
        await self._leg.record.secondary.mark_published(steps, self._log_id)

    async def _compare(self, records: PublishedSteps, comparison: StreamComparison) -> None:
        lost = await comparison.lost()
        if lost:
            await records.unpublish(lost)
            # This includes steps that another process of this leg unpublished; duplicates are recognised by their ids.
            self._leg.record.outbox.add(numbered(await self._leg.store.unpublished()), republished=True)


ADOPT_AFTER_S = 2.0
"""Interval of the search for unpublished steps of other processes, seconds. Such a step is published after one to two intervals."""


async def adopt_steps(store: Store, outbox: StepOutbox) -> None:
    """Publishes steps of other processes that stay unpublished, until cancelled.

    A step stays unpublished if its process died, or if the answer to a commit of this process was lost.
    """
    previous: set[int] = set()
    while True:
        await asyncio.sleep(ADOPT_AFTER_S)
        waiting = await retried(store.unpublished_sequences)
        orphans = {sequence for sequence in waiting if not outbox.holds(sequence)}
        # Take only steps that the previous search found too. Another process may be about to publish the newer ones.
        if orphans & previous:
            rows = await retried(store.unpublished)
            outbox.add(numbered(row for row in rows if row.sequence in orphans & previous))
        previous = orphans
