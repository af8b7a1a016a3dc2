"""What her phone shows: one present instruction over all incidents, repeated while it lasts; and nothing after a silent call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.dispatch.domain.enums import Advice, Demand
from services.dispatch.warning import consumer, phones, store
from services.dispatch.warning.domain import ALL_CLEAR_MS, READ_MS, ReceiptKind, ThreatKind
from services.dispatch.warning.tables import HANDED_OVER, IN_APP, OPEN, OUTDATED, TriedSending, to_leg
from tests.support.dispatch.instructed import DEVICE, InstructedPerson, entered, instructed_person

HOUR_MS = 3_600_000
LOCK_IN, GO_INDOORS = (
    "문을 잠그고 안에 계십시오. 밖이라면 사람이 있는 건물로 들어가십시오.",
    "문을 잠글 수 있는 실내에 계십시오.",
)


@pytest.fixture
async def her(tmp_path: Path) -> AsyncIterator[InstructedPerson]:
    async with instructed_person(tmp_path) as her:
        yield her


async def leg_updates(her: InstructedPerson) -> list[tuple[str, str, str]]:
    """The updates of the leg: what, in which incident, about which alert."""
    query = sa.select(to_leg.c.what, to_leg.c.incident_id, to_leg.c.alert_id).order_by(to_leg.c.id)
    rows = await her.database.visit(lambda connection: connection.execute(query).all())
    return [tuple(row) for row in rows]


async def hands_over(her: InstructedPerson) -> None:
    """Each channel accepts what is on its way."""
    due = await her.store.due(her.now_ms)
    await her.store.due(her.now_ms, [TriedSending(sending, HANDED_OVER, her.now_ms) for sending, _ in due.sendings])


# ── one present instruction ──────────────────────────────────────────────────────────────────────────────────────────


async def test_it_says_who_where_and_what_to_do_and_is_followed_by_the_earlier_ones(her: InstructedPerson) -> None:
    ring = entered(2)
    await her.reads(entered(1, 1000.0, Demand.NOTIFY))
    await her.passes(30_000)
    await her.reads(ring)
    await her.passes(0)
    shown = await her.shown()
    assert shown.present and [message.act_text for message in shown.earlier] == [GO_INDOORS]
    present = shown.present
    assert (present.who_text, present.where_text) == ("접근금지 결정의 상대방", "귀하로부터 100 m 이내")
    assert present.act_text == LOCK_IN and present.text.startswith("[알림] 접근금지 결정의 상대방: 귀하로부터 100 m")
    await her.reads(her.cleared(3, ring))
    await her.passes(READ_MS)
    shown = await her.shown()
    assert shown.present and shown.present.act_text == GO_INDOORS and len(shown.earlier) == 2
    await her.reads(her.ended(4))
    await her.passes(READ_MS)
    shown = await her.shown()
    assert shown.present and shown.present.kind == "OVER" and len(shown.earlier) == 3
    await her.passes(ALL_CLEAR_MS)
    shown = await her.shown()
    assert shown.present is None and shown.earlier[0].kind == "OVER"
    await her.passes(24 * HOUR_MS)
    assert (await her.shown()).earlier == []


async def test_several_orders_are_distinguished_by_their_days(her: InstructedPerson) -> None:
    await her.has_orders(her.now_ms - 200 * 24 * HOUR_MS, her.now_ms - 10 * 24 * HOUR_MS)
    await her.reads(entered(1, order_id="order-2"))
    await her.passes(0)
    present = (await her.shown()).present
    assert present and present.who_text == "2026. 11. 21. 접근금지 결정의 상대방"


async def test_the_end_of_one_of_two_incidents_is_no_all_clear(her: InstructedPerson) -> None:
    await her.reads(entered(1, incident_id="i1"), entered(2, 1000.0, Demand.NOTIFY, incident_id="i2"))
    await her.passes(READ_MS)
    await her.reads(her.ended(3, "i1"))
    await her.passes(READ_MS)
    assert [message.act_text for message in await her.messages()] == [LOCK_IN, GO_INDOORS]
    assert [each.incident_id for each in await her.ended_incidents.of_device(DEVICE)] == ["i1"]
    await her.reads(her.ended(4, "i2"))
    await her.passes(READ_MS)
    assert await her.kinds() == ["INSTRUCTION", "INSTRUCTION", "OVER"]
    assert [each.incident_id for each in await her.ended_incidents.of_device(DEVICE)] == ["i2", "i1"]


async def test_advice_may_arrive_before_its_alert_and_holds_until_the_race_is_over(her: InstructedPerson) -> None:
    await her.is_advised(Advice.STAY_INSIDE, 1)
    await her.reads(entered(1, 1000.0, Demand.NOTIFY))
    await her.passes(HOUR_MS)
    [message] = await her.messages()
    assert "밖으로 나가지 마십시오" in message.act_text
    await her.is_advised(Advice.NONE, 1)
    await her.passes(0)
    assert [each.act_text for each in await her.messages()][1:] == [GO_INDOORS]


async def test_advice_for_a_place_is_for_all_whom_its_order_protects_and_for_nobody_else(her: InstructedPerson) -> None:
    await her.reads(entered(1, 1000.0, Demand.NOTIFY))
    for subject_id in ("order-2/home", "p2"):
        await her.is_advised(Advice.STAY_INSIDE, 1, subject_id)
        await her.passes(READ_MS)
        assert len(await her.messages()) == 1
    await her.is_advised(Advice.LEAVE, 1, "order-1/home")
    await her.passes(READ_MS)
    assert (await her.messages())[1].act_text.startswith("지금 그곳을 떠나")


async def test_the_polices_desk_ends_it_also_where_the_alert_is_read_after_the_closing(her: InstructedPerson) -> None:
    await her.reads(entered(1, kind=ThreatKind.TAMPERED))
    await her.passes(HOUR_MS)
    await her.police_close("p2")
    await her.passes(READ_MS)
    assert await her.kinds() == ["INSTRUCTION"]
    await her.police_close()
    await her.passes(READ_MS)
    assert await her.kinds() == ["INSTRUCTION", "OVER"]
    await her.reads(entered(2, kind=ThreatKind.UNSEEN), ago_ms=HOUR_MS // 2)
    await her.passes(HOUR_MS)
    assert len(await her.kinds()) == 2


@pytest.mark.parametrize("drill", [False, True])
async def test_a_live_threat_goes_before_a_drill(her: InstructedPerson, drill: bool) -> None:
    await her.reads(entered(1, incident_id="i1", drill=drill), entered(2, incident_id="i2", drill=not drill))
    await her.passes(READ_MS)
    await her.reads(her.ended(3, "i2" if drill else "i1"))
    await her.passes(READ_MS)
    texts = [message.text.startswith("[훈련]") for message in await her.messages()]
    assert texts[-1] is True and texts[-2] is False


async def test_a_device_that_was_put_since_shows_it_and_one_that_was_removed_doesnt(her: InstructedPerson) -> None:
    await her.reads(entered(1))
    await her.passes(0)
    present = (await her.shown()).present
    await her.has_orders(0, device_ids=("app-2",))
    assert (await her.shown()).present is None
    assert (await her.notices.of_device("app-2")).present == present
    assert present and await her.notices.is_to_device(present, "app-2")
    assert not await her.notices.is_to_device(present, DEVICE)


# ── repetitions ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_it_is_repeated_and_each_sending_ends_when_the_next_begins(her: InstructedPerson) -> None:
    await her.reads(entered(1))
    await her.passes(0)
    await hands_over(her)
    for minutes, repetition in ((1, 1), (2, 2), (4, 3)):
        await her.passes(60_000 * minutes)
        *_, before, last = await her.sendings()
        assert last.repetition == repetition and before.expires_ms == her.now_ms
        assert last.command_id != before.command_id
        await hands_over(her)
    [message] = await her.messages()
    assert message.repetitions == 3 and message.repeated_ms == her.now_ms
    assert message.receipt_due_ms and message.issued_ms == message.receipt_due_ms - 30_000, "no new alarm"


async def test_a_receipt_puts_the_next_repetition_off_and_a_wide_ring_is_not_repeated_then(
    her: InstructedPerson,
) -> None:
    await her.reads(entered(1))
    await her.passes(60_000)
    [message] = await her.messages()
    await her.confirms(message, ReceiptKind.DISPLAYED)
    await her.passes(2 * 600_000 - 1)
    assert (await her.messages())[0].repetitions == 1
    await her.passes(1)
    assert (await her.messages())[0].repetitions == 2
    await her.reads(her.ended(2), entered(3, 2000.0, Demand.WARN, incident_id="i2"))
    await her.passes(0)
    await her.confirms((await her.messages())[1])
    await her.passes(24 * HOUR_MS)
    assert [each.repetitions for each in await her.messages()] == [2, 0]


async def test_a_channel_that_still_tries_goes_on_with_the_next_repetition(her: InstructedPerson) -> None:
    await her.reads(entered(1))
    await her.passes(60_000)
    [sending] = await her.sendings()
    assert sending.outcome == OPEN and sending.expires_ms == her.now_ms + 120_000


async def test_a_newer_instruction_ends_the_sendings_and_repetitions_of_the_last(her: InstructedPerson) -> None:
    await her.reads(entered(1, 1000.0, Demand.NOTIFY))
    await her.passes(0)
    await her.reads(entered(2))
    await her.passes(HOUR_MS)
    first, *_ = await her.sendings()
    assert first.outcome == OUTDATED and (await her.messages())[0].repetitions == 0


# ── receipts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_alert_that_adds_nothing_is_acknowledged_by_the_present_instruction(her: InstructedPerson) -> None:
    await her.reads(entered(1), entered(2, 1000.0, Demand.NOTIFY, incident_id="i2"))
    await her.passes(READ_MS)
    [message] = await her.messages()
    assert await leg_updates(her) == []
    await her.confirms(message)
    await her.confirms(message, ReceiptKind.DISPLAYED)
    assert await leg_updates(her) == [("receipt", "i1", "a1"), ("receipt", "i2", "a2")]
    await her.reads(entered(3, 600.0, Demand.NOTIFY))
    assert (await leg_updates(her))[2:] == [("receipt", "i1", "a3")], "she has a graver instruction on her phone"


async def test_a_receipt_counts_for_the_messages_before_it(her: InstructedPerson) -> None:
    await her.reads(entered(1, 1000.0, Demand.NOTIFY, incident_id="i2"))
    await her.passes(0)
    await her.reads(entered(2))
    await her.passes(0)
    await her.confirms((await her.messages())[1])
    assert await leg_updates(her) == [("receipt", "i1", "a2"), ("receipt", "i2", "a1")]
    assert all(message.receipt_due_ms is None for message in await her.messages())


# ── a silent call ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_silent_call_by_itself_changes_nothing(her: InstructedPerson) -> None:
    await her.reads(her.called_silently(1))
    await her.passes(HOUR_MS)
    await her.reads(her.ended(2))
    await her.passes(HOUR_MS)
    assert await her.messages() == [] and await her.sendings() == []


async def test_what_follows_a_silent_call_shows_in_an_open_app_only_until_the_incident_is_over(
    her: InstructedPerson,
) -> None:
    await her.reads(her.called_silently(1))
    await her.reads(entered(2), entered(3, incident_id="i2"))
    await her.passes(HOUR_MS)
    shown = await her.shown()
    assert shown.present and shown.present.act_text == LOCK_IN and shown.present.receipt_due_ms is None
    assert {sending.outcome for sending in await her.sendings()} == {IN_APP}
    await her.confirms(shown.present, ReceiptKind.DISPLAYED)
    assert await leg_updates(her) == [("receipt", "i1", "a2"), ("receipt", "i2", "a3")]
    await her.reads(her.ended(4, "i2"), her.ended(5))
    await her.passes(HOUR_MS)
    assert await her.kinds() == ["INSTRUCTION", "OVER"], "for the app alone"
    assert {sending.outcome for sending in await her.sendings()} == {IN_APP}
    await her.reads(entered(6, incident_id="i3"))
    await her.passes(0)
    assert (await her.sendings())[-1].outcome == OPEN, "a later incident is told as ever"


async def test_a_silent_call_stops_what_is_on_its_way(her: InstructedPerson) -> None:
    await her.reads(entered(1))
    await her.passes(0)
    assert [sending.outcome for sending in await her.sendings()] == [OPEN]
    await her.reads(entered(2, 2000.0, Demand.WARN), her.called_silently(3))
    assert [sending.outcome for sending in await her.sendings()] == [OUTDATED]
    await her.passes(HOUR_MS)
    assert [sending.outcome for sending in await her.sendings()] == [OUTDATED]


async def test_when_the_police_close_their_assignment_the_silence_ends_and_the_danger_is_said(
    her: InstructedPerson,
) -> None:
    await her.reads(her.called_silently(1), entered(2))
    await her.passes(HOUR_MS)
    await her.police_close(found_nobody=True)
    await her.passes(HOUR_MS)
    sendings = [sending for sending in await her.sendings() if sending.outcome == OPEN]
    assert sendings and sendings[0].repetition > 0
    [message] = await her.messages()
    assert message.receipt_due_ms is not None, "nobody knows yet whether a phone has it"


# ── indices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (consumer._OPEN_OF_PERSON, "told_open"),
        (consumer._PRESENT_OF_PERSON, "messages_present"),
        (store._TO_REPEAT, "messages_repeated"),
        (store._DUE, "messages_waiting"),
        (phones._ENDED, "told_over"),
        (phones._LAST_OF_DEVICE, "messages_present"),
        (phones._OF_DEVICE, "messages_of_person"),
    ],
)
async def test_frequent_statements_use_their_index(her: InstructedPerson, statement: object, index: str) -> None:
    def plan(connection: sa.Connection) -> str:
        compiled = statement._compiled(connection)  # type: ignore[attr-defined]
        values = [None] * len(compiled.names)
        return str(connection.exec_driver_sql(f"explain query plan {compiled.sql}", tuple(values)).all())

    assert index in await her.database.visit(plan)
