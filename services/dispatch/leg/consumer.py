"""Consumes alerts and the other legs' steps from NATS. A stream position is committed together with the effects of its messages.

So the leg's database alone decides where reading goes on. A restored older copy consumes the messages that it lacks, and an empty
database consumes all kept messages. The database also stores the stream cursors of messages. After a stream went back, reading goes
on from the last message that stream and database have in common.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from services.common.messaging import dead_letters, flow, stored, trails
from services.common.messaging.bus import Bus
from services.common.messaging.positions import DeferredPosition
from services.common.messaging.trails import Trail
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.alert import Alert
from services.dispatch.domain.decisions import concerns
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.rows import NoteRow, PeerRow, StreamPosition
from services.dispatch.leg.service import LegService
from services.dispatch.notes import translate as translate_notes

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
    return _PeerStep(translate.peer(step, leg), translate_notes.shared(step, leg))


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
