"""The words of the practice stand in one table: each page, document and command has them from there, and no other file spells one."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

from services.common.alert_phases import AlertPhase
from services.common.privacy.grounds import LEGAL_BASES, Purpose
from services.common.words import (
    ALERT_PHASE_WORDS,
    ALERT_WORDS,
    ANSWER_WORDS,
    ANSWERED,
    ARTICLE_WORDS,
    CLOSE_CAUSE_WORDS,
    CONTACT_STATE_WORDS,
    DEMAND_WORDS,
    EQUIPMENT_WORDS,
    ESCALATION_REASON_WORDS,
    HELD_BACK_WORDS,
    INSTRUCTED_ACT_WORDS,
    LEG_WORDS,
    NOTE_KIND_WORDS,
    NOTED_RESULT_WORDS,
    OFFICER_NEEDS_HELP,
    PURPOSE_WORDS,
    SPOOFING_WARNING,
    STATE_WORDS,
    TASK_WORDS,
    UNIT_STATE_WORDS,
    WARNING_FLAG_WORDS,
    Word,
    within_a_line,
)
from services.console.pages.texts import BAR_ISLAND, ISLAND, TEXTS
from services.console.translate import FLAGS
from services.court.explain.refold import HeldBackBy
from services.court.report.words import WORDS, Words, basis_text
from services.dispatch.warning import wording
from services.dispatch.warning.domain import InstructedAct
from services.field.views import STATIC, page_file
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2, notice_pb2
from tandem.dispatch.v1 import contact_pb2, dispatch_pb2, notes_pb2, statistics_pb2

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "services" / "common" / "words.py"
LANGUAGES = ("ko", "en")
KINDS: Mapping[str, tuple[Mapping[str, Word], list[str]]] = {
    "states": (STATE_WORDS, list(dispatch_pb2.AssignmentState.keys())[1:]),
    "states of a unit's offer": (UNIT_STATE_WORDS, list(dispatch_pb2.UnitOfferState.keys())[1:]),
    "legs": (LEG_WORDS, list(alert_pb2.Leg.keys())[1:]),
    "alerts": (ALERT_WORDS, list(alert_pb2.AlertKind.keys())[1:]),
    "phases": (ALERT_PHASE_WORDS, [phase.value for phase in AlertPhase if phase is not AlertPhase.BEGUN]),
    "demands": (DEMAND_WORDS, list(geometry_pb2.Demand.keys())[1:]),
    "close causes": (CLOSE_CAUSE_WORDS, list(dispatch_pb2.CloseCause.keys())[1:]),
    "reasons of an escalation": (ESCALATION_REASON_WORDS, list(dispatch_pb2.EscalationReason.keys())[1:]),
    "rules that hold an entry back": (HELD_BACK_WORDS, [*(rule.name for rule in HeldBackBy), "ENTERED"]),
    "flags of a warning": (WARNING_FLAG_WORDS, list(dispatch_pb2.WarningFlag.keys())[1:]),
    "states of a first contact": (CONTACT_STATE_WORDS, list(contact_pb2.ContactState.keys())[1:]),
    "kinds of notes": (NOTE_KIND_WORDS, list(notes_pb2.NoteKind.keys())[1:]),
    "results of calls": (NOTED_RESULT_WORDS, list(notes_pb2.NotedResult.keys())[1:]),
    "single words": (
        {"OFFICER_NEEDS_HELP": OFFICER_NEEDS_HELP, "SPOOFING_WARNING": SPOOFING_WARNING, "ANSWERED": ANSWERED},
        ["OFFICER_NEEDS_HELP", "SPOOFING_WARNING", "ANSWERED"],
    ),
    "articles": (ARTICLE_WORDS, [basis.code for basis in LEGAL_BASES]),
    "purposes": (PURPOSE_WORDS, [purpose.value for purpose in Purpose]),
    "equipment events": (EQUIPMENT_WORDS, list(log_pb2.EquipmentKind.keys())[1:]),
    "acts of an instruction": (INSTRUCTED_ACT_WORDS, [act.name for act in InstructedAct]),
    "answers": (ANSWER_WORDS, ["1", "2", "3"]),
    "tasks": (TASK_WORDS, list(notice_pb2.Task.keys())[1:]),
}
"""Each kind of words, with the names that need one."""
STEPS = {
    "NOTIFIED": "Notified",
    "OFFERED": "Offered",
    "ESCALATED": "Escalated",
    "ACKNOWLEDGED": "Acknowledged",
    "REJECTED": "Rejected",
    "CLOSED": "Closed",
    "STOOD_DOWN": "StoodDown",
    "NOBODY_AVAILABLE": "NobodyAvailable",
}
"""Event of a leg's chain after which an assignment has a state. The document shows other states with the event Progressed."""
ORDER_TO_GO = "출동 지령"
OTHER_MEANINGS = {
    "over": "the end of an incident, in the search for incidents",
    "ended": "the end of an incident, in the search for incidents",
    "record_group_end": "forms that end a record",
    "step_noted": "a step without a meaning for other legs",
    "state_CLOSED": "the end of a match review",
    "expected_UNIT_DISPATCHED": "a step that is due",
    "expected_UNIT_ARRIVES": "a step that is due",
    "ARRIVAL": "the time until the arrival, in the statistics",
    "burden_arrivals": "a count of arrivals",
    "burden_notices": "a count of notices",
    "burden_dispatches": "a count of units that were sent",
    "record": "a column: the record that was read",
    "roster_report": "the button that stores a unit's status",
    "reviews": "the page of match reviews",
    "source_reviews": "the page of match reviews",
    "refuse": "the button that refuses",
    "do_reject": "the button that refuses",
    "OFF": "a unit's own status",
    "done": "the button that closes a dialogue",
    "encounter": "the encounter that an alert names",
    "encounters": "the encounters of an order",
    "exercise": "the mark of an exercise",
    "unit.html": "the name of the units' page",
    "name": "the name of the units' page",
    "short_name": "the name of the units' page",
}
"""Keys of texts, or files, that have a text spelled like a word of the table which means another thing, with that thing."""


class Text(NamedTuple):
    """A whole text that stands in a file of the services."""

    path: str
    key: str
    """Key of the text in its table; the file's name outside tables."""
    text: str


class _HtmlTexts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def texts_of(path: Path) -> Iterator[tuple[str, str]]:
    """Each text of a file with its key."""
    content = path.read_text()
    match path.suffix:
        case ".py":
            yield from python_texts(ast.parse(content))
        case ".json" | ".webmanifest":
            yield from ((key, text) for key, text in json.loads(content).items() if isinstance(text, str))
        case ".html":
            html = _HtmlTexts()
            html.feed(content)
            yield from (("", text) for text in html.texts)
        case ".ts":
            found = re.findall(r"\"([^\"\n]*)\"|'([^'\n]*)'|`([^`]*)`", content)
            yield from (("", text) for texts in found for text in texts)
        case _:
            raise ValueError(path)


def python_texts(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each string of a module, with the key of the dictionary whose value it is or is part of."""
    nodes = list(ast.walk(tree))
    keys: dict[ast.AST, str] = {}
    for table in (node for node in nodes if isinstance(node, ast.Dict)):
        for key, value in zip(table.keys, table.values, strict=True):
            if isinstance(key, ast.Constant):
                keys |= dict.fromkeys(ast.walk(value), str(key.value))
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield keys.get(node, ""), node.value


@cache
def elsewhere() -> list[Text]:
    """The texts of the services' sources that are spelled like a word of the table, but for the table itself."""
    spelled = {spelling for words, _ in KINDS.values() for word in words.values() for spelling in spellings(word)}
    found: list[Text] = []
    for pattern in ("*.py", "*.ts", "*.html", "frontend/public/*.json", "*.webmanifest"):
        for path in (ROOT / "services").rglob(pattern):
            if path == TABLE or {"node_modules", "static"} & set(path.parts):
                continue
            content = path.read_text().lower()
            if any(spelling in content for spelling in spelled):
                texts = (Text(str(path.relative_to(ROOT)), key or path.name, text) for key, text in texts_of(path))
                found += [text for text in texts if text.text.lower() in spelled]
    return found


def spellings(word: Word) -> list[str]:
    """How a word is spelled in small letters: in Korean, and in English where it is a phrase that nothing else is called by."""
    korean, english = word
    return [korean.lower(), *([english.lower()] if len(english.split()) >= 6 else [])]


def served_words(name: str) -> dict[str, str]:
    """The texts of a page of phones as they are served."""
    words: dict[str, str] = json.loads(page_file(STATIC / name))
    return words


def unit_words(language: str) -> dict[str, str]:
    """The texts of the unit's page as they are served."""
    return served_words(f"unit-{language}.json")


@pytest.mark.parametrize("kind", KINDS)
def test_each_name_has_a_word_of_its_own_in_each_language(kind: str) -> None:
    words, names = KINDS[kind]
    assert sorted(words) == sorted(names)
    for column in range(len(LANGUAGES)):
        assert len({word[column] for word in words.values()}) == len(words)


def test_no_word_of_the_table_stands_elsewhere() -> None:
    assert [text for text in elsewhere() if text.key not in OTHER_MEANINGS] == []


def test_each_other_meaning_is_still_there() -> None:
    assert OTHER_MEANINGS.keys() - {text.key for text in elsewhere()} == set()


@pytest.mark.parametrize("column", range(2), ids=LANGUAGES)
def test_a_state_has_one_word_everywhere(column: int) -> None:
    words, page = within_a_line(STATE_WORDS), unit_words(LANGUAGES[column])
    glossary = (ROOT / "docs" / "reference" / "glossary.md").read_text()
    for state, word in STATE_WORDS.items():
        assert TEXTS[state] == word and page[f"state_{state.lower()}"] == word[column]
        number = dispatch_pb2.AssignmentState.Value(state)
        in_document = [f"state_{number}", *([STEPS[state]] if state in STEPS else [])]
        assert {WORDS[name] for name in in_document} == {words[state]}
        assert f"| {word[0]} | {word[1]} |" in glossary
    for state, word in UNIT_STATE_WORDS.items():
        assert TEXTS[state] == word and f"| {word[0]} | {word[1]} |" in glossary
    for state in ("UNIT_ASKED", "UNIT_ACCEPTED"):
        assert page[f"state_{state.lower()}"] == UNIT_STATE_WORDS[state][column]
    assert UNIT_STATE_WORDS["UNIT_ACCEPTED"][column] != STATE_WORDS["ACKNOWLEDGED"][column], "a desk's sends nobody"


@pytest.mark.parametrize("column", range(2), ids=LANGUAGES)
def test_a_leg_has_one_word_everywhere(column: int) -> None:
    words, page = within_a_line(LEG_WORDS), unit_words(LANGUAGES[column])
    for leg, word in LEG_WORDS.items():
        key = leg.lower()
        assert TEXTS[key] == word and page[f"leg_{key}"] == word[column] and WORDS[key] == words[leg]


@pytest.mark.parametrize("column", range(2), ids=LANGUAGES)
def test_an_alert_has_one_word_everywhere(column: int) -> None:
    words, page = within_a_line(ALERT_WORDS), unit_words(LANGUAGES[column])
    for kind, word in ALERT_WORDS.items():
        assert TEXTS[kind] == word and page[f"kind_{kind.lower()}"] == word[column] and WORDS[kind] == words[kind]
    for phase, word in ALERT_PHASE_WORDS.items():
        assert TEXTS[f"phase_{phase}"] == WORDS[f"phase_{phase}"] == word
    assert {*ALERT_WORDS, *(f"phase_{phase}" for phase in ALERT_PHASE_WORDS)} <= set(ISLAND)
    assert set(ALERT_WORDS) <= set(BAR_ISLAND)


@pytest.mark.parametrize("column", range(2), ids=LANGUAGES)
def test_a_demand_and_a_task_have_one_word_everywhere(column: int) -> None:
    words = within_a_line(DEMAND_WORDS)
    assert all(TEXTS[demand] == word and WORDS[demand] == words[demand] for demand, word in DEMAND_WORDS.items())
    assert set(DEMAND_WORDS) <= {*ISLAND} & {*BAR_ISLAND}
    assert TEXTS["check"] == TEXTS["flag_check"] == TASK_WORDS["CHECK"]
    assert unit_words(LANGUAGES[column])["check"] == TASK_WORDS["CHECK"][column]
    assert WORDS["ContactBegun"] == within_a_line(TASK_WORDS)["CONTACT"]


@pytest.mark.parametrize("column", range(2), ids=LANGUAGES)
def test_a_cause_for_which_an_assignment_is_closed_has_one_word_everywhere(column: int) -> None:
    words, page = within_a_line(CLOSE_CAUSE_WORDS), unit_words(LANGUAGES[column])
    for cause, word in CLOSE_CAUSE_WORDS.items():
        number = dispatch_pb2.CloseCause.Value(cause)
        assert TEXTS[cause] == word and page[f"cause_{cause.lower()}"] == word[column]
        assert WORDS[f"cause_{number}"] == words[cause]
    ended = {
        name.removeprefix("ENDED_") for name, _ in statistics_pb2.DispatchOutcome.items() if name.startswith("ENDED_")
    }
    assert all(TEXTS[f"ENDED_{cause}"] == CLOSE_CAUSE_WORDS[cause] for cause in ended & CLOSE_CAUSE_WORDS.keys())


@pytest.mark.parametrize("column", range(2), ids=LANGUAGES)
def test_a_reason_of_an_escalation_has_one_word_everywhere(column: int) -> None:
    words = within_a_line(ESCALATION_REASON_WORDS)
    for reason, word in words.items():
        number = dispatch_pb2.EscalationReason.Value(reason)
        assert TEXTS[f"reason_{reason}"] == WORDS[f"reason_{number}"] == word
    lost = ESCALATION_REASON_WORDS["RACE_LOST"]
    assert TEXTS["race_losing"] == TEXTS["flag_losing"] == lost and WORDS["wearer_first"] == words["RACE_LOST"]
    assert unit_words(LANGUAGES[column])["losing"] == lost[column]


def test_an_equipment_event_has_one_word_everywhere() -> None:
    for event, word in EQUIPMENT_WORDS.items():
        assert TEXTS[f"event_of_{event}"] == word and WORDS[event] == within_a_line(EQUIPMENT_WORDS)[event]


def test_a_rule_that_holds_an_entry_back_has_one_word_everywhere() -> None:
    for rule, word in within_a_line(HELD_BACK_WORDS).items():
        assert TEXTS[f"held_{rule}"] == WORDS[f"held_{rule}"] == word


@pytest.mark.parametrize("column", range(2), ids=LANGUAGES)
def test_what_is_known_of_people_has_one_word_everywhere(column: int) -> None:
    page, person = unit_words(LANGUAGES[column]), within_a_line(WARNING_FLAG_WORDS)
    assert {f"flag_{flag}" for flag in FLAGS} <= TEXTS.keys()
    for flag, word in WARNING_FLAG_WORDS.items():
        assert TEXTS[f"flag_{flag.lower().replace('_', '-')}"] == word
        assert TEXTS[flag.lower().replace("_", " ")] == person[flag]
        assert WORDS[f"flag_{dispatch_pb2.WarningFlag.Value(flag)}"] == person[flag]
        assert page.get(f"flag_{flag.lower()}") == (None if flag == "REACHED" else word[column]), "no news for a unit"
    for answer in ("duress", "no-receipt", "no-contact"):
        assert TEXTS[f"panic_{answer}"] == person[answer.upper().replace("-", "_")]
    for state, word in CONTACT_STATE_WORDS.items():
        assert TEXTS[f"flag_{state.lower().replace('_', '-')}"] == word
        assert WORDS[f"contact_{contact_pb2.ContactState.Value(state)}"] == within_a_line(CONTACT_STATE_WORDS)[state]
    assert TEXTS["flag_distress"] == OFFICER_NEEDS_HELP and WORDS["DistressRaised"][0] == OFFICER_NEEDS_HELP[0]
    assert TEXTS["flag_spoofing"] == SPOOFING_WARNING and page["spoofing"] == SPOOFING_WARNING[column]


def test_what_a_desk_noted_has_one_word_everywhere() -> None:
    kinds, results = within_a_line(NOTE_KIND_WORDS), within_a_line(NOTED_RESULT_WORDS)
    for kind, word in NOTE_KIND_WORDS.items():
        assert TEXTS[f"note_{kind}"] == word and WORDS[f"note_{notes_pb2.NoteKind.Value(kind)}"] == kinds[kind]
    for result, word in NOTED_RESULT_WORDS.items():
        number = notes_pb2.NotedResult.Value(result)
        assert TEXTS[f"note_{result}"] == word and WORDS[f"result_{number}"] == results[result]


def test_an_article_and_a_purpose_have_one_name_everywhere() -> None:
    for basis in LEGAL_BASES:
        korean, english = ARTICLE_WORDS[basis.code]
        assert TEXTS[f"basis_{basis.code}"] == (korean, english) and basis.article == english
        assert basis_text(basis.code, Words("ko")) == f"{korean} [{basis.code}]"
        assert basis_text(basis.code, Words("en")) == f"{english} [{basis.code}]"
    assert all(TEXTS[f"purpose_{purpose}"] == word for purpose, word in PURPOSE_WORDS.items())


@pytest.mark.parametrize(("column", "language"), list(enumerate(wording.Language)))
def test_a_message_and_her_app_say_and_ask_the_same(column: int, language: wording.Language) -> None:
    hers = served_words(f"{language.value}.json")
    assert {act.name: texts[language] for act, texts in wording.ACTS.items()} == {
        name: word[column] for name, word in INSTRUCTED_ACT_WORDS.items()
    }
    assert hers["advice"] == wording.ACTS[InstructedAct.LOCK_IN][language]
    answers = tuple(word[column] for word in ANSWER_WORDS.values())
    assert wording.BUTTONS[language] == answers == tuple(hers[f"answer_{number}"] for number in ANSWER_WORDS)
    assert hers["answered"] == wording.ANSWERED[language] == ANSWERED[column]


def test_only_an_order_to_a_unit_is_called_an_order_to_go() -> None:
    def pairs() -> Iterator[Word]:
        yield from TEXTS.values()
        yield from WORDS.values()
        korean, english = (unit_words(language) for language in LANGUAGES)
        yield from ((korean[name], english[name]) for name in korean)

    ordered = [pair for pair in pairs() if ORDER_TO_GO in pair[0]]
    assert ordered and [pair for pair in ordered if not re.search(r"(?i)dispatched|\bsend\b|\bsent\b", pair[1])] == []
