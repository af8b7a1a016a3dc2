"""Pages of match reviews without a mesh: bars, marked differences, ages, and a text for each code of the registry."""

from __future__ import annotations

import pytest

from services.common.privacy.grounds import LEGAL_BASES, RecordKind
from services.console.domain import match_reviews
from services.console.domain.match_reviews import Bar, Part, WaitingReviews
from services.console.pages.match_reviews import DECISIONS
from services.console.pages.texts import TEXTS
from services.registry.domain.reviews import ANSWER_WITHIN_MS
from services.registry.matching.compare import PERSON
from tandem.registry.v1 import registry_pb2, review_pb2

SINCE_MS = 1_700_000_000_000
DECIDING = {"CONFIRMED", "REJECTED", "UNDONE"}
"""Events of which the history tells the decision instead."""


@pytest.mark.parametrize(
    ("weight_bits", "bar"),
    [
        (0.0, Bar(50.0, 0.0, is_for=True)),
        (10.0, Bar(50.0, 25.0, is_for=True)),
        (-10.0, Bar(25.0, 25.0, is_for=False)),
        (99.0, Bar(50.0, 50.0, is_for=True)),
        (-99.0, Bar(0.0, 50.0, is_for=False)),
    ],
)
def test_a_bar_grows_from_the_middle_and_ends_at_the_edge(weight_bits: float, bar: Bar) -> None:
    assert match_reviews.bar(weight_bits) == bar


@pytest.mark.parametrize(
    ("mine", "other", "marks"),
    [
        ("남궁민수", "남궁민수", []),
        ("남궁민수", "남궁민주", ["수"]),
        ("1978-07-17", "1979-07-17", ["8"]),
        ("010-9876-5432", "010-9876-5423", ["2"]),
        ("kim minsu", "", []),
        ("", "kim", []),
        ("<b>", "<i>", ["b"]),
    ],
)
def test_only_what_differs_is_marked_and_nothing_is_lost(mine: str, other: str, marks: list[str]) -> None:
    parts = match_reviews.marked(mine, other)
    assert "".join(part.text for part in parts) == mine
    assert [part.text for part in parts if part.differs] == marks
    assert match_reviews.marked(mine, mine) == ((Part(mine, differs=False),) if mine else ())


def test_the_badge_counts_whole_minutes_of_the_mesh() -> None:
    waiting = WaitingReviews(open=2, since_ms=SINCE_MS, alarmed=1)
    assert match_reviews.badge(waiting, SINCE_MS + ANSWER_WITHIN_MS - 1) == (2, 14, 1)
    assert match_reviews.badge(waiting, SINCE_MS + ANSWER_WITHIN_MS) == (2, 15, 1)
    assert match_reviews.badge(waiting, SINCE_MS - 5_000) == (2, 0, 1)  # the services' clocks differ a little
    assert match_reviews.badge(WaitingReviews(open=0, since_ms=None, alarmed=0), SINCE_MS) == (0, 0, 0)


def test_each_code_of_the_registry_has_a_text_in_both_languages() -> None:
    needed = {f"agree_{field.name.upper()}_{level.name}" for field in PERSON.fields for level in field.levels}
    needed |= {f"agree_{field.name.upper()}_MISSING" for field in PERSON.fields}
    needed |= {f"field_{field.name.upper()}" for field in PERSON.fields}
    needed |= {f"basis_{basis.code}" for basis in LEGAL_BASES if {RecordKind.WEARER, RecordKind.ORDER} <= basis.kinds}
    states, events = review_pb2.ReviewState.keys()[1:], registry_pb2.MatchEvent.keys()[1:]
    needed |= {f"state_{state.removeprefix('REVIEW_STATE_')}" for state in states}
    needed |= {f"event_{name}" for event in events if (name := event.removeprefix("MATCH_EVENT_")) not in DECIDING}
    needed |= {f"decided_{decision.removeprefix('DECISION_')}" for decision in review_pb2.Decision.keys()[1:]}
    needed |= {f"{part}_{act}" for act in match_reviews.ACTS for part in ("act", "do", "done", "causes")}
    needed |= {
        "review_EVIDENCE_CHANGED",
        "review_DECIDED_MEANWHILE",
        "review_ALREADY_DECIDED",
        "review_NOTHING_TO_UNDO",
    }
    needed |= {f"ring_{demand}" for demand in ("WARN", "NOTIFY", "RESPOND")}
    assert needed - TEXTS.keys() == set()
    assert tuple(DECISIONS) == match_reviews.ACTS
    for key in needed:
        korean, english = TEXTS[key]
        assert any("가" <= letter <= "힣" for letter in korean), key
        assert english.isascii(), key
