"""Notices of the Ministry by a warning leg, over a real gateway: beside the police's own warning, with a ledger row, or refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.privacy import notices, secret_keys
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import alert_pb2, contact_pb2, exercise_pb2, geometry_pb2, ledger_pb2, log_pb2, notice_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import alert, publish, running
from tests.support.dispatch.warned import until
from tests.support.dispatch.warning import HANDLE, WITHIN_S, Gateway, put_case, ring, settings

WARNING = "within 1 km"
NOTICE = "Ministry of Justice: a breach of the no-approach order, or a marked risk of one."
ENDED = "the earlier notice of the Ministry of Justice has ended"
ONE_ENDED = "the earlier notice of the Ministry of Justice has ended, but another notice continues"


def with_notice(sequence: int, ground: int = notice_pb2.TAG_15_2, **more: Any) -> alert_pb2.Alert:
    """An alert that a ring is entered, and that makes a notice due."""
    message = ring(sequence, 1000.0, geometry_pb2.NOTIFY, **more)
    message.ministry_notice.ground = notice_pb2.NoticeGround.ValueType(ground)
    message.ministry_notice.person_ids.append("p1")
    return message


def end_of_notice(sequence: int, **more: Any) -> alert_pb2.Alert:
    """The alert that the notice has ended."""
    message = alert(sequence, geometry_pb2.RECORD, **more)
    message.kind, message.target_id = alert_pb2.NOTICE_ENDED, ""
    only = [destination for destination in message.destinations if destination.leg == alert_pb2.WARNING]
    message.ClearField("destinations")
    message.destinations.extend(only)
    message.ministry_notice.MergeFrom(
        notice_pb2.MinistryNotice(ground=notice_pb2.TAG_15_2, person_ids=["p1"], ended=True)
    )
    return message


async def put_measure(bus: Bus, message: alert_pb2.Alert, distance_m: float, *, allowed: bool) -> None:
    measure = alert_pb2.Measure(alert_id=message.alert_id, distance_m=distance_m, location_allowed=allowed)
    subject = flow.measure_subject(message.partition, message.alert_id)
    await bus.publish_until_stored(subject, measure.SerializeToString(), expected_last=0)


async def shown(gateway: Gateway, count: int) -> list[str]:
    """Waits until the gateway got so many messages, and returns their texts."""
    return [(await gateway.shown(number))[1] for number in range(1, count + 1)]


async def disclosed(bus: Bus, count: int) -> list[ledger_pb2.Disclosure]:
    """Waits for so many disclosures, and returns them."""
    found: list[ledger_pb2.Disclosure] = []
    async with asyncio.timeout(WITHIN_S):
        async for messages in pull.read(bus, flow.DISCLOSURES.name, 1):
            found += [ledger_pb2.Disclosure.FromString(message.data) for message in messages]
            if len(found) >= count:
                return found
    raise AssertionError("no disclosures")


async def refused(made: DispatchSettings, alert_id: str) -> None:
    """Waits until the notice of an alert was refused after it had been accepted."""
    assert await until(made, "select alert_id from messages where state = 'refused'") == [(alert_id,)]


async def test_a_notice_accompanies_the_warning_with_giver_recipient_and_article_in_the_ledger(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made):
        near, far = with_notice(2), with_notice(1)
        await put_measure(bus, far, 990.0, allowed=False)
        await put_measure(bus, near, 430.0, allowed=True)
        await publish(bus, far)
        first = await shown(gateway, 2)
        assert sum(WARNING in text for text in first) == 1
        assert [text for text in first if NOTICE in text and "About" not in text and "punishable" not in text]
        near.ring_m = 600.0
        await publish(bus, near)
        located = [text for text in (await shown(gateway, 4))[2:] if NOTICE in text]
        assert located and "About 400 m." in located[0] and "punishable" in located[0]
        rows = await disclosed(bus, 3)
        assert [row.legal_basis for row in rows] == ["TAG_15_2", "TAG_15_2", "TAG_16_2_5"]
        assert {(row.who, row.recipient) for row in rows} == {(notices.TRACKING_CENTRE, notices.recipient_id("p1"))}
        assert {(row.record_kind, row.record_id, row.order_id) for row in rows} == {("WEARER", "w1", "order-1")}
        await publish(bus, end_of_notice(3))
        texts = await shown(gateway, 5)
        assert ENDED in texts[4]


async def test_a_notice_without_a_ground_isnt_given_and_the_warning_is(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made):
        unknown = with_notice(2, 99, incident="incident-2")
        drill = with_notice(3, incident="incident-3")
        drill.exercise = exercise_pb2.DRILL
        foreign = with_notice(4, incident="incident-4")
        foreign.ministry_notice.person_ids[:] = ["p2"]  # nobody whom the alert warns
        await publish(bus, with_notice(1, 0), unknown, drill, foreign)
        [warning] = await shown(gateway, 1)
        assert WARNING in warning
        # A later notice with a ground is given, so the others had their turn.
        await publish(bus, with_notice(5, incident="incident-5"))
        texts = await shown(gateway, 2)
        assert "Ministry" in texts[1]
        assert len(await disclosed(bus, 1)) == 1
        assert await until(made, "select count(*) from messages where ground <> ''") == [(1,)]


async def test_a_notice_of_an_order_that_is_over_isnt_given_and_its_end_is(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made):
        await publish(bus, with_notice(1))
        await shown(gateway, 2)
        await put_over(bus, made)
        await until(made, "select 1 from contacts where version = 2")
        late = with_notice(2, incident="incident-2")
        await publish(bus, late)
        await refused(made, late.alert_id)
        await publish(bus, end_of_notice(4, incident="incident-2"))
        await publish(bus, end_of_notice(3))
        texts = await shown(gateway, 3)
        assert sum(NOTICE in text for text in texts) == 1
        assert any(ONE_ENDED in text for text in texts), "the police's own instruction still applies"
        assert sum(WARNING in text for text in texts) == 1
        ends = await until(made, "select incident_id from messages where kind = 'ONE_OVER'")
        assert ends == [("incident-1",)], "she doesn't hear of the end of a notice that she never got"


async def put_over(bus: Bus, made: DispatchSettings) -> None:
    """Publishes the snapshot of the case whose order is over, as the registry does."""
    contact = contact_pb2.Contact(handle=HANDLE, language=contact_pb2.LANGUAGE_ENGLISH)
    public = secret_keys.read_public_key(secret_keys.public_file(made.warning_key_file))
    person = log_pb2.ProtectedTarget(person_id="p1", sealed_contact=secret_keys.seal(contact, "p1", public))
    case = log_pb2.CaseSnapshot(
        case_id="case-1",
        version=2,
        order_id="order-1",
        wearer_id="w1",
        persons=[person],
        valid_until_ms=made.clock.now_ms() - 60_000,
    )
    await bus.publish_until_stored(flow.log_subject(0, "case"), log_pb2.LogEntry(case=case).SerializeToString())


async def test_a_repeated_alert_notifies_once_and_an_end_that_came_first_wins(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving():
        async with running(made):
            await publish(bus, with_notice(5))
            await shown(gateway, 2)
            await publish(bus, end_of_notice(9))
            await shown(gateway, 3)
            await publish(bus, with_notice(7))
            await until(made, "select 1 from taken where alert_id = 'alert-incident-1-7'")
        async with running(made):
            await publish(bus, with_notice(11))
            await until(made, "select 1 from messages where kind = 'MINISTRY' and sequence = 11 and state = 'sending'")
    assert await until(made, "select sequence from messages where kind = 'MINISTRY' order by sequence") == [
        (5,),
        (11,),
    ]
    assert await until(made, "select sequence from messages where kind = 'ONE_OVER'") == [(9,)]
