"""Stages of an offer's way, from ingest's receipt of the report to the desks, by the times that its messages carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.mesh.load import Trigger
from bench.mesh.offers import Arrivals
from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bounds, Bus
from services.common.messaging.delivered import Delivered
from services.common.observability import spans
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2

STREAMS = (flow.ALERTS.name, flow.INCIDENTS.name)
STAGES = (
    "receipt to log",
    "log to decision",
    "decision to ALERTS",
    "ALERTS to leg",
    "leg to desk",
    "leg to INCIDENTS",
)
"""Stages in their order. The last two begin together. Where the agencies' legs differ, the later one counts."""


@dataclass(frozen=True, slots=True)
class AlertTimes:
    """Times of the first alert of a trigger that demands a response, microseconds since 1970 UTC."""

    received_us: int
    """When ingest received the report."""
    entry_us: int
    """When the log had its entry."""
    decided_us: int
    """When the evaluator whose alert was stored decided it."""
    stored_us: int
    """When ALERTS had it."""


@dataclass(frozen=True, slots=True)
class OfferTimes:
    """Times of a leg's first offer for a trigger, microseconds since 1970 UTC."""

    offered_us: int
    """When the leg began to decide it, to the millisecond."""
    stored_us: int
    """When INCIDENTS had it."""


async def bounds(bus: Bus) -> dict[str, Bounds]:
    """What the streams with the times hold now."""
    return {stream: await bus.bounds_of(stream) for stream in STREAMS}


async def read(
    bus: Bus, before: Mapping[str, Bounds], clock: MeshClock, *, arrivals: Arrivals, triggers: Iterable[Trigger]
) -> dict[str, list[float]]:
    """Durations of each stage, milliseconds, for the triggers whose messages were stored after `before`.

    Read after a load: it costs the mesh as much as any reader of its streams.
    """
    now = await bounds(bus)
    kept: dict[str, list[Delivered]] = {
        stream: [message async for message in pull.between(bus, stream, before[stream].last + 1, last=now[stream].last)]
        for stream in STREAMS
    }
    alerts, offers = alerts_of(kept[flow.ALERTS.name]), offers_of(kept[flow.INCIDENTS.name], clock)
    durations: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for trigger in triggers:
        desks_ms = [arrivals.received_to_desk_ms(leg, trigger) for leg in flow.AGENCY_LEGS]
        if trigger in alerts and all((leg, trigger) in offers for leg in flow.AGENCY_LEGS):
            found = durations_ms(alerts[trigger], [offers[leg, trigger] for leg in flow.AGENCY_LEGS], desks_ms)
            for stage, ms in zip(STAGES, found, strict=True):
                durations[stage].append(ms)
    return durations


def alerts_of(messages: Iterable[Delivered]) -> dict[Trigger, AlertTimes]:
    """The first alert of each trigger that demands a response, among messages of ALERTS."""
    found: dict[Trigger, AlertTimes] = {}
    for message in messages:
        alert = alert_pb2.Alert.FromString(message.data)
        headers = message.headers or {}
        entry = spans.parsed_entry(headers.get(spans.ENTRY, ""))
        if entry is None or alert.demand != geometry_pb2.RESPOND:
            continue
        decided = AlertTimes(
            alert.cause.received_wall_us, entry.stored_us, int(headers[spans.DECIDED_US]), message.stamp_us
        )
        found.setdefault((alert.cause.device_id, alert.cause.report_id), decided)
    return found


def offers_of(messages: Iterable[Delivered], clock: MeshClock) -> dict[tuple[str, Trigger], OfferTimes]:
    """The first offer of each leg for each trigger, among messages of INCIDENTS."""
    found: dict[tuple[str, Trigger], OfferTimes] = {}
    for message in messages:
        step = dispatch_pb2.Step.FromString(message.data)
        cause = step.assignment.cause
        if step.assignment.state == dispatch_pb2.OFFERED:
            offer = OfferTimes(clock.to_wall_us(times.from_timestamp(step.at)), message.stamp_us)
            found.setdefault((message.subject.split(".")[1], (cause.device_id, cause.report_id)), offer)
    return found


def durations_ms(alert: AlertTimes, offers: Sequence[OfferTimes], desks_ms: Sequence[float]) -> tuple[float, ...]:
    """Durations of the stages of one trigger, milliseconds, in the order of STAGES.

    `offers` are the agencies' legs', and `desks_ms` the times from ingest's receipt to their desks.
    """
    at_desks_us = [alert.received_us + ms * 1000 for ms in desks_ms]
    durations_us = (
        alert.entry_us - alert.received_us,
        alert.decided_us - alert.entry_us,
        alert.stored_us - alert.decided_us,
        max(offer.offered_us - alert.stored_us for offer in offers),
        max(at_us - offer.offered_us for at_us, offer in zip(at_desks_us, offers, strict=True)),
        max(offer.stored_us - offer.offered_us for offer in offers),
    )
    return tuple(us / 1000 for us in durations_us)
