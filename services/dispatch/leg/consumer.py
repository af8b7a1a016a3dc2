"""The bus edge: alerts for this leg, and what the other legs did. How far they are taken in is committed together with what came of it.

So the leg's database alone says where to go on: a restored older copy takes in what it lacks, an empty one all that is kept. It knows
the entries by their identity, so that a stream that went back is read again from the last one that both have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from services.common.messaging import dead_letters, flow, trails
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.messaging.pull import Delivered
from services.common.messaging.trails import Trail
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField
from services.dispatch import metrics
from services.dispatch.domain.decisions import Alert, concerns
from services.dispatch.leg import translate
from services.dispatch.leg.service import LegService
from services.dispatch.leg.store import PeerRow, StreamPosition
from services.dispatch.retrying import retried

PEERS_INTERVAL_S = 0.2
"""How long the other legs' steps wait for one another, to be kept in one transaction; the leg itself waits for none."""
PASSED_INTERVAL_S = 5.0
"""How long it is only remembered that alerts for others were passed over."""
T = TypeVar("T")


async def consume_alerts(bus: Bus, leg: LegService, log_id: str, health: ReaderHealth | None = None) -> None:
    """Folds the alerts of ALERTS, all that have arrived in one transaction, for ever."""
    stream = flow.ALERTS.name
    passed = _Passed(leg)
    trail, after = await _reading(bus, leg, stream, log_id)

    async def forget_passed(_: StreamWentBack) -> None:
        passed.position = None  # it is beyond what is read again

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(passed.keep())
        async for messages in trails.follow(bus, stream, trail, after=after, on_went_back=forget_passed, health=health):
            parsed, malformed = _parse(messages, lambda message: _alert(message, leg.name))
            await _park(bus, flow.alerts_reader(leg.name), malformed)
            alerts = [alert for alert in parsed if alert is not None and concerns(leg.name, alert)]
            position = StreamPosition(stream, log_id, messages[-1].sequence, str(trail))
            if alerts:
                passed.position = None  # this one is behind it
                await retried(partial(leg.fold, alerts, position))
            else:
                passed.position = position
            metrics.ALERTS_BEHIND.labels(leg.name).set(messages[-1].pending)


class _Passed:
    """How far alerts were passed over that concern other legs: an alert that is behind them doesn't wait for a transaction that
    only says so. What isn't kept is passed over again."""

    def __init__(self, leg: LegService) -> None:
        self._leg = leg
        self.position: StreamPosition | None = None
        """Not in the database yet."""

    async def keep(self) -> None:
        """Keeps it every 5 s, for ever."""
        while True:
            await asyncio.sleep(PASSED_INTERVAL_S)
            position, self.position = self.position, None
            if position:
                await retried(partial(self._leg.fold, (), position))


def _alert(message: Delivered, leg: str) -> Alert | None:
    if not flow.ALERTS.holds(message.subject):
        raise InvalidField("alert", "is on another subject")
    return translate.alert(message.data, leg, message.subject)


async def consume_peers(bus: Bus, leg: LegService, log_id: str, health: ReaderHealth | None = None) -> None:
    """Keeps what the other legs say of their assignments, for ever."""
    stream, subjects = flow.INCIDENTS.name, flow.peer_subjects(leg.name)
    trail, after = await _reading(bus, leg, stream, log_id)
    async for messages in trails.follow(bus, stream, trail, subjects, after=after, health=health):
        rows, malformed = _parse(messages, lambda message: translate.peer(message.data, message.subject, leg.name))
        await _park(bus, flow.peers_reader(leg.name), malformed)
        if leg.name == "police":
            await _take_flags(leg, rows)
        position = StreamPosition(stream, log_id, messages[-1].sequence, str(trail))
        await retried(partial(leg.store.put_peers, rows, position))
        leg.record.subscriptions.tell_others(rows)
        await asyncio.sleep(PEERS_INTERVAL_S)


async def _take_flags(leg: LegService, rows: Sequence[PeerRow]) -> None:
    """Writes what the warning leg says of protected persons into this leg's own chain, before its place in the stream."""
    for flag in filter(None, map(translate.peer_flag, rows)):
        told = (flag.incident_id, flag.subject_id, flag.flag, flag.alert_id, flag.place, flag.order_id, flag.flagged_ms)
        await retried(partial(leg.flag, *told))


async def _reading(bus: Bus, leg: LegService, stream: str, log_id: str) -> tuple[Trail, int]:
    """What the leg's database says of a stream: the entries that are in it, and the last one's sequence.

    The reader checks whether the stream still has them; an entry that comes again changes nothing.
    """
    known = await retried(partial(leg.store.reading, stream, log_id))
    first = (await bus.bounds_of(stream)).first
    if first > known.sequence + 1 and known.sequence:
        logger().critical("stream_aged_out", stream=stream, missing_from=known.sequence + 1, to=first)
    return Trail.parse(known.trail), known.sequence


def _parse(
    messages: list[Delivered], parse: Callable[[Delivered], T]
) -> tuple[list[T], list[tuple[Delivered, InvalidField]]]:
    good, malformed = [], []
    for message in messages:
        try:
            good.append(parse(message))
        except InvalidField as error:
            malformed.append((message, error))
    return good, malformed


async def _park(bus: Bus, by: str, malformed: list[tuple[Delivered, InvalidField]]) -> None:
    """Sets aside what can't be taken in."""
    for message, error in malformed:
        await dead_letters.keep(bus, by, message, error)
