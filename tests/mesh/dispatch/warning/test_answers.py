"""Answers and receipts of warnings: forged and invalid ones change nothing, an acknowledgement counts as a receipt."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.clock import wall_us
from services.common.messaging.bus import Bus
from services.dispatch.exchange.links import Token, open_key
from services.dispatch.warning import consumer
from services.dispatch.warning.channels import AnswerLinks
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import publish, running
from tests.support.dispatch.receivers import NEW_SECRET
from tests.support.dispatch.warned import flagged, rows, until
from tests.support.dispatch.warning import (
    Gateway,
    answer,
    put_case,
    ring,
    settings,
)


async def test_forged_expired_and_invalid_answers_and_receipts_change_nothing(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "RECEIPT_WITHIN_MS", 60_000)
    gateway, other = Gateway(), Gateway("other")
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made):
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        message = await gateway.message()
        url, warning_id = message["answer_url"], message["warning_id"]
        base, token = url.rsplit("/", 1)
        links = AnswerLinks(open_key(made.link_key), made.link_url)
        late = links._links.write(Token("warning", warning_id, "", wall_us() // 1_000_000 - 1, warning_id))
        unknown = links.url("warning-0").rsplit("/", 1)[1]
        stolen = AnswerLinks(bytes(32), made.link_url).url(warning_id).rsplit("/", 1)[1]
        for bad, status in ((token[:-2] + "AA", 403), (stolen, 403), ("x.y", 403), (late, 410), (unknown, 404)):
            for method in ("GET", "POST"):
                assert (await answer(f"{base}/{bad}", method, choice="1"))[0] == status, bad
        for form in ({}, {"choice": "4"}, {"choice": "1", "event": "displayed"}, {"event": "panic"}):
            assert (await answer(url, **form))[0] == 400
        delivered = {"warning_id": warning_id, "status": "delivered"}
        for more in ({"secret": NEW_SECRET}, {"ago_s": 400}, {"ago_s": -400}):
            assert await gateway.receipt(delivered, **more) == 403
        other.receipts_url = gateway.receipts_url
        for content, status in (
            ({"warning_id": warning_id}, 400),
            ([], 400),
            ({"warning_id": warning_id, "status": "acknowledged"}, 400),
            ({"warning_id": "warning-0", "status": "delivered"}, 404),
            ({"warning_id": "\ud800", "status": "delivered"}, 400),  # half a surrogate pair can't be stored
        ):
            assert await gateway.receipt(content) == status
        receipts = "select delivered_ms, displayed_ms, acknowledged_ms from messages"
        assert rows(made, receipts) == [(None, None, None)]
        assert (await answer(url, event="displayed"))[0] == 200
        await gateway.arrived(warning_id)
        first = rows(made, receipts)
        await gateway.arrived(warning_id)  # replayed
        assert (await answer(url, event="displayed"))[0] == 200
        assert rows(made, receipts) == first and None not in first[0][:2]


async def test_an_unreadable_contact_is_flagged_and_a_new_version_is_used(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    foreign = settings(nats, tmp_path / "foreign")
    await put_case(bus, foreign)  # sealed for the key of another leg
    async with gateway.serving(), running(made) as leg, leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        await flagged(desk, dispatch_pb2.NO_CONTACT)
        await put_case(bus, made, version=2)
        await until(made, "select 1 from contacts where version = 2")
        await publish(bus, ring(2, 100.0, geometry_pb2.RESPOND))
        warning_id, _ = await gateway.shown()
        await gateway.arrived(warning_id)
        await flagged(desk, dispatch_pb2.REACHED)


async def test_an_acknowledgement_by_a_grpc_gateway_counts_as_a_receipt(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    made = settings(nats, tmp_path / "leg")
    async with running(made) as leg, leg.desk.subscription() as desk:
        await publish(bus, ring(1), ring(2, incident="incident-2"))
        for _ in range(2):
            offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
            if offered.incident_id == "incident-1":
                await leg.desk.acknowledge(offered.assignment_id)
        other = await flagged(desk, dispatch_pb2.NO_CONTACT)
        assert other.incident_id == "incident-2"
        await leg.desk.acknowledge(other.assignment_id)
        assert (await flagged(desk, dispatch_pb2.REACHED)).incident_id == "incident-2"
    assert rows(made, "select flag from told where incident_id = 'incident-1'") == [(0,)]


async def test_an_acknowledgement_counts_although_the_wearer_leaves_before_the_receipt_is_due(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    made = settings(nats, tmp_path / "leg")
    async with running(made) as leg, leg.desk.subscription() as desk:
        await publish(bus, ring(1), ring(2, incident="incident-2"))
        for _ in range(2):
            offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
            if offered.incident_id == "incident-1":
                await leg.desk.acknowledge(offered.assignment_id)
        await publish(bus, ring(3, demand=geometry_pb2.RECORD, ends=True))
        await desk.next(dispatch_pb2.STOOD_DOWN)
        # The other warning, which nobody acknowledged, is flagged at the same time.
        assert (await flagged(desk, dispatch_pb2.NO_CONTACT)).incident_id == "incident-2"
        await until(made, "select 1 from messages where incident_id = 'incident-1' and receipt_due_ms is null")
    assert rows(made, "select flag from told where incident_id = 'incident-1'") == [(0,)]
