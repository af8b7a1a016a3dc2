"""Messages to a protected person: the words that no text in either language may contain, and the alerts that cause them."""

from __future__ import annotations

import itertools
import re

import pytest

from services.dispatch.domain.enums import Advice, Demand
from services.dispatch.warning import translate, wording
from services.dispatch.warning.domain import (
    CalledSilently,
    Cleared,
    DistanceChanged,
    Figure,
    InstructedAct,
    Instruction,
    Level,
    MessageKind,
    Rank,
    Threatened,
    ThreatKind,
)
from services.dispatch.warning.translate import PhoneSilent
from services.dispatch.warning.wording import Distance, DistanceTrend, Language, Wording
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.dispatch.dispatch import alert, mark_canary

ORDER_MS = 1_783_296_000_000
"""The morning of 6 July 2026 in Korea."""
AT_MS = 1_796_113_860_000
"""17:31 on 1 December 2026 in Korea."""

# ── the texts ────────────────────────────────────────────────────────────────────────────────────────────────────────

NEVER = re.compile(
    r"\b(safe|safety|safely|secure|no (danger|risk|threat)|out of danger|harmless|all.?clear|fine|don't worry|no need)\b"
    r"|안전|안심|위험하지|위험이 없|괜찮|무사|걱정|해제|이상 ?없",
    re.IGNORECASE,
)
"""Words that say that all is well."""
NOBODY = re.compile(
    r"\b(he|she|him|his|her|stalker|offender|wearer|husband|police|patrol|officer|address|home|house|work|school|"
    r"street|panic|duress|alarm)\b|가해자|피해자|스토커|남편|대상자|경찰|순찰|주소|자택|직장|학교|비상|신고되",
    re.IGNORECASE,
)
"""Words that reveal persons, places, a pressed button, or the response of others."""


def instruction(
    act: InstructedAct = InstructedAct.LOCK_IN,
    kind: ThreatKind = ThreatKind.RING,
    ring_m: float = 100.0,
    *,
    of_place: bool = False,
    is_unseen: bool = False,
    figure: Figure | None = None,
    drill: bool = False,
) -> Instruction:
    return Instruction(
        rank=Rank(Level.AT_HERSELF, Demand.RESPOND, 0, -ring_m),
        act=act,
        kind=kind,
        ring_m=ring_m,
        of_place=of_place,
        is_unseen=is_unseen,
        order_id="order-1",
        drill=drill,
        incident_id="i1",
        alert_id="a1",
        place=(1, 0),
        partition=0,
        since_ms=0,
        figure=figure,
    )


def all_wordings() -> list[Wording]:
    found = []
    for act, kind, language in itertools.product(InstructedAct, ThreatKind, Language):
        for of_place, is_unseen, drill in itertools.product((False, True), repeat=3):
            if of_place and act is InstructedAct.LOCK_IN:
                continue  # the wearer is within reach of herself
            said = instruction(act, kind, 1000.0, of_place=of_place, is_unseen=is_unseen, drill=drill)
            for order_from_ms, trend in itertools.product((None, ORDER_MS), DistanceTrend):
                found.append(wording.instruction(said, language, order_from_ms=order_from_ms))
                for distance_m in (None, 3.0, 99.9, 100.0, 199.9, 599.0, 601.0, 1999.0):
                    distance = Distance(distance_m, trend, AT_MS)
                    found.append(wording.instruction(said, language, distance=distance, order_from_ms=order_from_ms))
    for language in Language:
        for over, drill in itertools.product(
            (MessageKind.OVER, MessageKind.ONE_OVER, MessageKind.MINISTRY_OVER), (False, True)
        ):
            found.append(wording.over(over, language, drill=drill))
        found.append(wording.phone_silent(language))
        found += [wording.ministry(language, distance_m=each, order_from_ms=ORDER_MS) for each in (None, 5.0, 433.0)]
    return list(dict.fromkeys(found))


def all_texts() -> list[str]:
    texts = [text for words in all_wordings() for text in words]
    for language in Language:
        texts += [*wording.BUTTONS[language], wording.ANSWERED[language], wording.ASKED[language]]
    return list(dict.fromkeys(texts))


def test_no_text_says_that_all_is_well_or_names_persons_or_places() -> None:
    texts = all_texts()
    assert len(texts) > 80
    for text in texts:
        assert not NEVER.search(text), text
        assert not NOBODY.search(text), text
        assert len(text) <= 240, "too long to read while running"


@pytest.mark.parametrize(
    "words", ["You are safe now.", "안전합니다", "No danger any more", "이상 없음", "안심하십시오"]
)
def test_the_check_of_texts_finds_forbidden_words(words: str) -> None:
    assert NEVER.search(words)


def test_what_to_do_in_a_drill_says_that_it_is_one_also_where_it_is_shown_alone() -> None:
    for language, lead in ((Language.KOREAN, "[훈련] "), (Language.ENGLISH, "[Drill] ")):
        drill, live = (wording.instruction(instruction(drill=each), language) for each in (True, False))
        assert drill.act == lead + live.act and drill.text == lead + live.text


def test_an_instruction_says_who_where_and_one_thing_to_do() -> None:
    english = wording.instruction(instruction(), Language.ENGLISH)
    assert english.text == (
        "Notice: the person of your order: within 100 m of you. Stay behind a locked door. If outside, go into a building "
        "with people. If you can't speak, 112 takes text messages."
    )
    korean = wording.instruction(instruction(of_place=True, act=InstructedAct.KEEP_AWAY), Language.KOREAN)
    assert korean == Wording(
        text="[알림] 접근금지 결정의 상대방: 귀하의 보호 장소에서 100 m 이내. "
        "그곳에 가지 마십시오. 그 안에 있다면 문을 잠그고 계십시오. 말하기 어려우면 112에 문자로 알릴 수 있습니다.",
        who="접근금지 결정의 상대방",
        where="귀하의 보호 장소에서 100 m 이내",
        act="그곳에 가지 마십시오. 그 안에 있다면 문을 잠그고 계십시오.",
    )
    assert all(
        words.act.removeprefix("[훈련] ").removeprefix("[Drill] ") in words.text and words.where in words.text
        for words in all_wordings()
        if words.who and "Mini" not in words.text and "법무부" not in words.text
    )


def test_a_person_with_several_orders_learns_by_its_day_which_order_is_meant() -> None:
    korean = wording.instruction(instruction(), Language.KOREAN, order_from_ms=ORDER_MS)
    assert korean.who == "2026. 7. 6. 접근금지 결정의 상대방"
    english = wording.instruction(instruction(), Language.ENGLISH, order_from_ms=ORDER_MS)
    assert english.who == "the person of your order of 6 July 2026"


def test_a_ring_of_before_the_position_was_lost_says_so() -> None:
    unseen = instruction(is_unseen=True)
    assert wording.instruction(unseen, Language.ENGLISH).where == "last within 100 m of you, position unknown now"
    assert (
        wording.instruction(unseen, Language.KOREAN).where == "마지막으로 귀하로부터 100 m 이내, 지금 위치는 알 수 없음"
    )


def test_the_text_for_a_silent_phone_exists_in_both_languages() -> None:
    assert "your phone isn't reporting" in wording.phone_silent(Language.ENGLISH).text
    assert "위치가 오지 않습니다" in wording.phone_silent(Language.KOREAN).text


@pytest.mark.parametrize(
    ("distance_m", "statement"),
    [
        (None, "within 1 km of you"),
        (601.0, "within 1 km of you"),
        (599.0, "about 500 m from you"),
        (100.0, "about 100 m from you"),
        (99.9, "less than 100 m from you"),
    ],
)
def test_distances_are_rounded_down_and_stated_only_near_by_with_their_time(
    distance_m: float | None, statement: str
) -> None:
    distance = Distance(distance_m, DistanceTrend.NEARER, AT_MS)
    words = wording.instruction(instruction(ring_m=1000.0), Language.ENGLISH, distance=distance)
    assert words.where == f"nearer, {statement} (17:31)"


def test_each_language_has_three_different_buttons() -> None:
    for language in Language:
        assert len(set(wording.BUTTONS[language])) == 3


# ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(message: alert_pb2.Alert) -> translate.WarnableAlert | None:
    return translate.alert(message.SerializeToString())


def test_a_canary_sends_no_warning_and_a_drill_says_so() -> None:
    message = alert(1)
    mark_canary(message)
    assert read(message) is None
    message.exercise = exercise_pb2.DRILL
    warnable = read(message)
    assert warnable and warnable.drill
    assert wording.instruction(instruction(drill=True), Language.ENGLISH).text.startswith("[Drill] ")


def test_a_person_is_warned_of_the_silent_phone_though_the_alert_goes_to_the_police() -> None:
    message = alert_pb2.Alert(
        alert_id="a1",
        sequence=1,
        kind=alert_pb2.PROTECTED_DEVICE_LOST,
        demand=geometry_pb2.NOTIFY,
        order_id="o1",
        case_id="c1",
        target_id="p1",
    )
    message.destinations.add(leg=alert_pb2.POLICE, subject_id="p1")
    warnable = read(message)
    assert warnable and warnable.person_ids == ("p1",) and isinstance(warnable.occurrence, PhoneSilent)
    message.cause.device_id = "phone-1"  # her own phone reported it
    assert read(message) is None
    message.ClearField("cause")
    message.demand = geometry_pb2.RECORD
    assert read(message) is None


def test_a_panic_makes_no_message_and_a_silent_one_silences_her_phone() -> None:
    message = alert(1)
    message.kind, message.target_id = alert_pb2.PANIC, "p1"
    assert read(message) is None
    message.silent = True
    warnable = read(message)
    assert warnable and warnable.person_ids == ("p1",) and isinstance(warnable.occurrence, CalledSilently)
    message.demand = geometry_pb2.RECORD  # taken back
    warnable = read(message)
    assert warnable and isinstance(warnable.occurrence, Cleared)


def test_an_unknown_kind_gets_the_neutral_text() -> None:
    message = alert(1)
    message.kind = 99  # type: ignore[assignment]
    warnable = read(message)
    assert warnable and isinstance(warnable.occurrence, Threatened) and warnable.occurrence.kind is ThreatKind.OTHER
    neutral = wording.instruction(instruction(kind=ThreatKind.OTHER), Language.ENGLISH)
    assert "there is a message for you" in neutral.text and not neutral.who and not neutral.where


def test_a_clearing_has_the_threat_key_of_its_entry() -> None:
    message = alert(1)
    message.ring_m = 100.0

    def key() -> str:
        warnable = read(message)
        assert warnable
        match warnable.occurrence:
            case Threatened() | Cleared():
                return warnable.occurrence.key
            case DistanceChanged():
                return warnable.occurrence.ring.key
            case _:
                raise AssertionError(warnable)

    entered = key()
    message.kind = alert_pb2.DISTANCE_CHANGED
    assert key() == entered
    message.kind, message.demand = alert_pb2.RING_CLEARED, geometry_pb2.RECORD
    assert key() == entered
    message.ring_m = 1000.0
    assert key() != entered


def test_a_record_that_goes_to_nobody_ends_nothing() -> None:
    """A strap is closed while the case of the tag is still open."""
    message = alert(1, geometry_pb2.RECORD)
    message.kind = alert_pb2.TAMPERED
    assert read(message)
    message.ClearField("destinations")
    assert read(message) is None
    message.incident_ends = True
    warnable = read(message)
    assert warnable and warnable.ends_incident


def test_an_alert_about_a_place_names_it_as_the_police_do() -> None:
    message = alert(1)
    message.ring_m, message.target_id = 100.0, "home"
    warnable = read(message)
    assert warnable and isinstance(warnable.occurrence, Threatened)
    assert warnable.occurrence.place_id == f"{message.order_id}/home"


# ── advice and closings ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "advice"), [(0, Advice.NONE), (1, Advice.STAY_INSIDE), (2, Advice.LEAVE), (9, Advice.NONE)]
)
def test_advice_is_read_and_so_is_its_withdrawal(number: int, advice: Advice) -> None:
    message = following_pb2.AdviceGiven(
        advice_id="step-1", incident_id="i1", subject_id="order-1/home", sequence=5, number=3
    )
    message.advice = dispatch_pb2.Advice.ValueType(number)
    message.at.FromMilliseconds(1_000)
    given = translate.advice(message.SerializeToString())
    assert (given.advice, given.place, given.number, given.subject_id) == (advice, (5, 0), 3, "order-1/home")


def closing(**changed: object) -> translate.ClosedAssignment | None:
    step = dispatch_pb2.Step(step_id="step-1", number=3)
    step.at.FromMilliseconds(1_000)
    values = {"assignment_id": "assignment-1", "incident_id": "i1", "leg": alert_pb2.POLICE, "subject_id": "p1"}
    whole = values | {"state": dispatch_pb2.CLOSED, "close_cause": dispatch_pb2.BREACH_CONFIRMED} | changed
    step.assignment.CopyFrom(dispatch_pb2.Assignment(**whole))  # type: ignore[arg-type]
    return translate.closing(step.SerializeToString())


def test_only_a_closed_response_to_her_or_a_place_of_hers_ends_a_threat() -> None:
    closed = closing()
    assert closed and (closed.subject_id, closed.closed_ms, closed.found_nobody) == ("p1", 1_000, False)
    found_nobody = closing(close_cause=dispatch_pb2.NOBODY_FOUND)
    assert found_nobody and found_nobody.found_nobody
    assert closing(state=dispatch_pb2.STOOD_DOWN) is None
    assert closing(task=notice_pb2.CHECK) is None
