"""Stages of an offer's way, from the times in its messages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from bench.latency import stages
from bench.latency.stages import AlertTimes, OfferTimes
from services.common import times
from services.common.clock import MeshClock
from services.common.messaging.delivered import Delivered
from services.common.observability import spans
from services.common.observability.spans import EntryTrace
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2

BEGAN_US = 1_780_000_000_000_000
TRIGGER = ("tag", "report")


def stored(subject: str, data: bytes, at_us: int, headers: Mapping[str, str] | None = None) -> Delivered:
    moment = datetime.fromtimestamp(at_us / 1e6, UTC)
    return Delivered(subject, data, "STREAM", 1, at_us // 1000, 0, "", headers, moment)


def alert(demand: geometry_pb2.Demand.ValueType, *, at_us: int, headers: bool = True) -> Delivered:
    message = alert_pb2.Alert(demand=demand)
    message.cause.device_id, message.cause.report_id = TRIGGER
    message.cause.received_wall_us = BEGAN_US
    entry = spans.entry_header(EntryTrace(BEGAN_US + 1_500, 1, ""))
    carried = {spans.ENTRY: entry, spans.DECIDED_US: str(BEGAN_US + 2_000)} if headers else None
    return stored("alert.0.x", message.SerializeToString(), at_us, carried)


def step(leg: str, state: dispatch_pb2.AssignmentState.ValueType, *, at_ms: int, stored_us: int) -> Delivered:
    message = dispatch_pb2.Step(at=times.to_timestamp(at_ms))
    message.assignment.state = state
    message.assignment.cause.device_id, message.assignment.cause.report_id = TRIGGER
    return stored(f"incident.{leg}.x", message.SerializeToString(), stored_us)


def test_the_first_alert_that_demands_a_response_counts() -> None:
    messages = [
        alert(geometry_pb2.RESPOND, at_us=BEGAN_US + 2_500, headers=False),  # another mesh's, without times
        alert(geometry_pb2.WARN, at_us=BEGAN_US + 2_800),
        alert(geometry_pb2.RESPOND, at_us=BEGAN_US + 3_000),
        alert(geometry_pb2.RESPOND, at_us=BEGAN_US + 9_000),
    ]
    assert stages.alerts_of(messages) == {
        TRIGGER: AlertTimes(BEGAN_US, BEGAN_US + 1_500, BEGAN_US + 2_000, BEGAN_US + 3_000)
    }


def test_the_first_offer_of_each_leg_counts() -> None:
    began_ms = BEGAN_US // 1000
    messages = [
        step("police", dispatch_pb2.OFFERED, at_ms=began_ms + 4, stored_us=BEGAN_US + 7_000),
        step("police", dispatch_pb2.OFFERED, at_ms=began_ms + 90, stored_us=BEGAN_US + 99_000),
        step("probation", dispatch_pb2.ACKNOWLEDGED, at_ms=began_ms + 5, stored_us=BEGAN_US + 8_000),
    ]
    offer = OfferTimes(BEGAN_US + 4_000, BEGAN_US + 7_000)
    assert stages.offers_of(messages, MeshClock()) == {("police", TRIGGER): offer}


def test_the_later_leg_counts_in_the_last_stages() -> None:
    decided = AlertTimes(BEGAN_US, BEGAN_US + 1_500, BEGAN_US + 2_000, BEGAN_US + 3_000)
    offers = [
        OfferTimes(BEGAN_US + 4_000, BEGAN_US + 9_000),
        OfferTimes(BEGAN_US + 6_000, BEGAN_US + 10_000),
    ]
    assert stages.durations_ms(decided, offers, [7.0, 8.0]) == (1.5, 0.5, 1.0, 3.0, 3.0, 5.0)
