"""The bus edge: alerts for this leg, and what the other legs did. Acknowledged is what is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from services.common import flow, pull
from services.common.bus import Bus
from services.common.errors import InvalidField
from services.common.pull import Delivered
from services.dispatch import translate
from services.dispatch.leg import Leg, retried

PEERS_EVERY_S = 0.05
"""How long the other legs' steps wait for one another, to be kept in one transaction; the leg itself waits for none."""
T = TypeVar("T")


async def consume_alerts(bus: Bus, leg: Leg) -> None:
    """Folds the alerts of ALERTS, all that have arrived in one transaction, for ever."""
    durable = flow.alerts_durable(leg.name)
    if leg.is_new:
        # The store is new, or another than the durable consumer served: what was acknowledged for that one counts for nothing here.
        await pull.forget(bus, flow.ALERTS.name, durable)
    async for messages in pull.consume(bus, flow.ALERTS.name, durable, flow.ALERTS.subjects):
        parsed, malformed = _parse(messages, lambda message: translate.alert(message.data, leg.name))
        alerts = [alert for alert in parsed if alert is not None]
        if alerts:
            await retried(partial(leg.fold, alerts))
        await _settle(bus, durable, messages, malformed)


async def consume_peers(bus: Bus, leg: Leg) -> None:
    """Keeps what the other legs say of their assignments, for ever."""
    durable = flow.peers_durable(leg.name)
    if leg.is_new:
        await pull.forget(bus, flow.INCIDENTS.name, durable)
    async for messages in pull.consume(bus, flow.INCIDENTS.name, durable, flow.peer_subjects(leg.name)):
        rows, malformed = _parse(messages, lambda message: translate.peer(message.data, message.subject))
        if rows:
            await retried(partial(leg.store.put_peers, rows))
        await _settle(bus, durable, messages, malformed)
        await asyncio.sleep(PEERS_EVERY_S)


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


async def _settle(
    bus: Bus, durable: str, messages: list[Delivered], malformed: list[tuple[Delivered, InvalidField]]
) -> None:
    """Acknowledges what was taken, then sets aside what can't be."""
    bad = {message.sequence for message, _ in malformed}
    for message in messages:
        if message.sequence not in bad:
            await pull.ack(bus, message)
    for message, error in malformed:
        subject = flow.parked_subject(durable, message.stream, message.sequence)
        await bus.park(subject, message.stream, message.sequence, durable, str(error))
        await pull.ack(bus, message)
