"""Messages to a protected person: their times, and the words that no text in either language may contain."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dispatch.domain.enums import Demand
from services.dispatch.warning import translate, wording
from services.dispatch.warning.domain import PASSING, READ_MS, Notice, NotifiedState, Occurrence, WarningMessage, decide
from services.dispatch.warning.translate import notified_from_json, notified_to_json
from services.dispatch.warning.wording import DistanceTrend, Language
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2
from tests.support.dispatch.dispatch import alert, mark_canary

WARN, NOTIFY, RESPOND = Demand.WARN, Demand.NOTIFY, Demand.RESPOND
RINGS = {2000.0: WARN, 1000.0: NOTIFY, 100.0: RESPOND}


class Person:
    """The warnings of one person in one incident."""

    def __init__(self) -> None:
        self.state, self.now_ms, self.sequence = NotifiedState(), 1_000_000, 0

    def _see(
        self, notice: Notice, demand: Demand, threat: str, sequence: int | None, **more: Any
    ) -> WarningMessage | None:
        self.sequence += 1
        place = (sequence or self.sequence, 0)
        occurrence = replace(Occurrence(f"a{self.sequence}", "i1", place, notice, demand, threat), **more)
        self.state, message = decide(self.state, occurrence, self.now_ms)
        assert notified_from_json(notified_to_json(self.state)) == self.state
        return message

    def enters(self, ring_m: float, sequence: int | None = None, target: str = "p1") -> WarningMessage | None:
        more: dict[str, Any] = {"ring_m": ring_m, "of_place": target != "p1"}
        return self._see(Notice.APPROACH, RINGS[ring_m], f"{target}-{ring_m}", sequence, **more)

    def leaves(self, ring_m: float, sequence: int | None = None, ends: bool = False) -> WarningMessage | None:
        return self._see(Notice.APPROACH, Demand.RECORD, f"p1-{ring_m}", sequence, ring_m=ring_m, ends=ends)

    def sees(
        self, notice: Notice, demand: Demand = RESPOND, sequence: int | None = None, **more: Any
    ) -> WarningMessage | None:
        return self._see(notice, demand, notice.value, sequence, **more)

    def hears_distance(self, ring_m: float, sequence: int | None = None) -> WarningMessage | None:
        return self._see(Notice.CHANGED, WARN, f"p1-{ring_m}", sequence, ring_m=ring_m)


def test_a_nearer_ring_is_sent_at_once_and_another_ring_after_the_last_message_was_read() -> None:
    her = Person()
    for ring_m in (2000.0, 1000.0, 100.0):
        message = her.enters(ring_m)
        assert message == WarningMessage(Notice.APPROACH, RINGS[ring_m], her.now_ms, ring_m)
        her.now_ms += 1
    at_home = her.enters(2000.0, target="home")
    assert at_home and at_home.due_ms == her.now_ms - 1 + READ_MS and at_home.of_place
    # A waiting message gives its time to the new one, so that repeats don't postpone each other.
    changed = her.sees(Notice.CHANGED, WARN, ring_m=100.0)
    assert changed and changed.due_ms == at_home.due_ms
    assert changed.demand is RESPOND, "a change within a ring is as grave as the ring"
    her.now_ms = changed.due_ms + READ_MS
    repeated = her.sees(Notice.CHANGED, WARN, ring_m=100.0)
    assert repeated and repeated.due_ms == her.now_ms


def test_a_response_at_herself_does_not_wait_because_he_is_at_a_place_of_hers() -> None:
    her = Person()
    assert her.enters(100.0, target="home")
    her.now_ms += 1
    at_herself = her.enters(100.0)
    assert at_herself and at_herself.due_ms == her.now_ms
    at_school = her.enters(100.0, target="school")
    assert at_school and at_school.due_ms == her.now_ms + READ_MS


def test_a_wide_ring_around_her_waits_while_he_is_at_a_place_of_hers() -> None:
    her = Person()
    her.enters(100.0, target="home")
    wide = her.enters(1000.0)
    assert wide and wide.due_ms == her.now_ms + READ_MS


def test_a_ring_that_was_left_is_sent_at_once_when_it_is_entered_once_more() -> None:
    her = Person()
    her.enters(2000.0)
    her.enters(100.0)
    assert her.leaves(100.0) is None  # the wide ring is still active
    her.now_ms += 1
    reentered = her.enters(100.0)
    assert reentered and reentered.due_ms == her.now_ms


def test_the_end_is_sent_once_after_the_last_message_was_read_and_only_after_a_warning() -> None:
    her = Person()
    assert her.leaves(100.0) is None and her.leaves(2000.0, ends=True) is None
    her.enters(2000.0)
    over = her.leaves(2000.0)
    assert over and (over.notice, over.due_ms) == (Notice.OVER, her.now_ms + READ_MS)
    assert her.leaves(2000.0, ends=True) is None


def test_a_passing_notice_ends_with_the_incident_and_not_with_another_threat() -> None:
    her = Person()
    her.sees(Notice.COMING)
    assert her.sees(Notice.TAMPERED, Demand.RECORD) is None
    over = her.leaves(2000.0, ends=True)
    assert over and over.notice is Notice.OVER


def test_an_entry_that_arrives_after_its_clearing_sends_no_message() -> None:
    her = Person()
    assert her.leaves(100.0, sequence=7) is None
    assert her.enters(100.0, sequence=5) is None
    assert her.enters(100.0, sequence=9)
    assert her.hears_distance(100.0, sequence=10)
    assert her.leaves(100.0, sequence=8) is None and her.state.active


def test_a_distance_that_arrives_after_the_clearing_of_its_ring_sends_no_message() -> None:
    her = Person()
    assert her.enters(2000.0, sequence=5)
    assert her.leaves(2000.0, sequence=8)
    assert her.hears_distance(2000.0, sequence=7) is None
    assert her.hears_distance(2000.0, sequence=9), "within the ring once more, of which she wasn't warned"


def test_a_distance_within_a_ring_that_she_was_not_warned_of_is_sent_and_ends_with_the_incident() -> None:
    her = Person()
    message = her.hears_distance(1000.0)
    assert message and message.demand is WARN
    assert her.leaves(1000.0) is None
    over = her.leaves(2000.0, ends=True)
    assert over and over.notice is Notice.OVER


@pytest.mark.parametrize("notice", [Notice.CHANGED, Notice.COMING, Notice.STAY_INSIDE, Notice.LEAVE])
@pytest.mark.parametrize("ends", [False, True], ids=["ring left", "incident ended"])
def test_a_passing_notice_of_before_the_end_leaves_the_waiting_all_clear(notice: Notice, ends: bool) -> None:
    her = Person()
    her.enters(100.0, sequence=5)
    over = her.leaves(100.0, sequence=8, ends=ends)
    assert over and over.notice is Notice.OVER
    assert her.sees(notice, sequence=5) is None and her.sees(notice, sequence=8) is None and not her.state.open
    late = her.sees(notice, sequence=9)
    assert late and her.state.open


def test_advice_that_arrives_before_its_alert_is_sent() -> None:
    her = Person()
    her.enters(2000.0, sequence=5)
    assert her.leaves(2000.0, sequence=8)
    assert her.sees(Notice.STAY_INSIDE, sequence=9) and her.enters(100.0, sequence=9)
    assert her.sees(Notice.LEAVE, sequence=9), "as long as the threat is active"


def test_a_threat_of_before_the_end_of_the_incident_raises_no_warning_after_it() -> None:
    her = Person()
    her.enters(2000.0, sequence=5)
    assert her.leaves(2000.0, sequence=8, ends=True)
    assert her.enters(100.0, sequence=7) is None and not her.state.active


@pytest.mark.parametrize("notice", [Notice.COMING, Notice.UNSEEN, Notice.TAMPERED, Notice.NEUTRAL, Notice.LEAVE])
def test_a_new_threat_is_sent_at_once_even_right_after_a_ring(notice: Notice) -> None:
    her = Person()
    her.enters(100.0)
    her.now_ms += 1
    message = her.sees(notice)
    assert message and message.due_ms == her.now_ms
    if notice not in PASSING:
        repeated = her.sees(notice)
        assert repeated and repeated.due_ms == her.now_ms + READ_MS


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(RINGS)), st.sampled_from(["enter", "leave", "change"]), st.integers(0, 30_000)
        ),
        max_size=40,
    )
)
def test_repeats_come_no_faster_than_reading_and_a_nearer_ring_never_waits(
    story: list[tuple[float, str, int]],
) -> None:
    her = Person()
    entered: set[float] = set()
    sent_ms: list[int] = []
    waiting: int | None = None
    for ring_m, action, pause_ms in story:
        her.now_ms += pause_ms
        if waiting is not None and waiting <= her.now_ms:
            sent_ms, waiting = [*sent_ms, waiting], None
        nearer = action == "enter" and all(ring_m < other_m for other_m in entered)
        if action == "change":
            message = her.sees(Notice.CHANGED, WARN, ring_m=ring_m)
        else:
            message = her.enters(ring_m) if action == "enter" else her.leaves(ring_m)
        entered = {*entered, ring_m} if action == "enter" else entered - {ring_m} if action == "leave" else entered
        if message is None:
            assert not nearer
            continue
        if nearer or (message.due_ms == her.now_ms and action == "enter"):
            assert message.due_ms == her.now_ms
        else:
            assert all(message.due_ms - at_ms >= READ_MS for at_ms in sent_ms)
            assert message.due_ms <= her.now_ms + READ_MS
        waiting = message.due_ms
    assert len(sent_ms) == len(set(sent_ms)) or her.state.last_ms is not None


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


def all_texts() -> list[str]:
    texts = []
    for notice, demand, language in itertools.product(Notice, (WARN, NOTIFY, RESPOND), Language):
        for of_place, drill, change in itertools.product((False, True), (False, True), DistanceTrend):
            for distance_m in (None, 3.0, 99.9, 100.0, 199.9, 599.0, 601.0, 1999.0):
                more: dict[str, Any] = {
                    "of_place": of_place,
                    "drill": drill,
                    "change": change,
                    "distance_m": distance_m,
                }
                texts.append(wording.text(notice, demand, language, ring_m=1000.0, **more))
    for language in Language:
        texts += [*wording.BUTTONS[language], wording.ANSWERED[language], wording.ASKED[language]]
    return list(dict.fromkeys(texts))


def test_no_text_says_that_all_is_well_or_names_persons_or_places() -> None:
    texts = all_texts()
    assert len(texts) > 80
    for text in texts:
        assert not NEVER.search(text), text
        assert not NOBODY.search(text), text
        assert len(text) <= 200, "too long to read while running"


@pytest.mark.parametrize(
    "words", ["You are safe now.", "안전합니다", "No danger any more", "이상 없음", "안심하십시오"]
)
def test_the_check_of_texts_finds_forbidden_words(words: str) -> None:
    assert NEVER.search(words)


def test_the_text_for_a_silent_phone_exists_in_both_languages() -> None:
    english = wording.text(Notice.PHONE_SILENT, NOTIFY, Language.ENGLISH)
    korean = wording.text(Notice.PHONE_SILENT, NOTIFY, Language.KOREAN)
    assert "your phone isn't reporting" in english and "위치가 오지 않습니다" in korean


@pytest.mark.parametrize(
    ("distance_m", "statement"),
    [
        (None, "within 1 km"),
        (601.0, "within 1 km"),
        (599.0, "about 500 m"),
        (100.0, "about 100 m"),
        (99.9, "less than 100 m"),
    ],
)
def test_distances_are_rounded_down_and_stated_only_near_by(distance_m: float | None, statement: str) -> None:
    text = wording.text(
        Notice.CHANGED, NOTIFY, Language.ENGLISH, ring_m=1000.0, distance_m=distance_m, change=DistanceTrend.NEARER
    )
    assert f"nearer, {statement}." in text


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
    assert wording.text(Notice.APPROACH, WARN, Language.ENGLISH, ring_m=100.0, drill=True).startswith("[Drill] ")


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
    assert warnable and warnable.person_ids == ("p1",) and warnable.occurrence.notice is Notice.PHONE_SILENT
    message.cause.device_id = "phone-1"  # her own phone reported it
    assert read(message) is None
    message.ClearField("cause")
    message.demand = geometry_pb2.RECORD
    assert read(message) is None


def test_a_panic_and_an_unknown_kind_get_the_neutral_text() -> None:
    message = alert(1)
    for kind in (alert_pb2.PANIC, 99):
        message.kind = kind  # type: ignore[assignment]
        warnable = read(message)
        assert warnable and warnable.occurrence.notice is Notice.NEUTRAL


def test_a_clearing_has_the_threat_key_of_its_entry() -> None:
    message = alert(1)
    message.ring_m = 100.0
    entered = read(message)
    message.kind, message.demand = alert_pb2.RING_CLEARED, geometry_pb2.RECORD
    cleared = read(message)
    assert entered and cleared and entered.occurrence.threat == cleared.occurrence.threat
    message.ring_m = 1000.0
    other = read(message)
    assert other and other.occurrence.threat != cleared.occurrence.threat
