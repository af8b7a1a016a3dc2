"""Reference of the practice's words: what each state, alert, demand, reason and article is called in Korean and English."""

from __future__ import annotations

from collections.abc import Mapping

from services.common import words
from services.common.words import Word
from tools.reference.markdown import code, page, table

_TABLES: Mapping[str, Mapping[str, Word]] = {
    "Legs": words.LEG_WORDS,
    "States of an assignment": words.STATE_WORDS,
    "Offers to a unit": words.UNIT_STATE_WORDS,
    "Alerts": words.ALERT_WORDS,
    "Parts of an event, after an alert's word": words.ALERT_PHASE_WORDS,
    "Demands": words.DEMAND_WORDS,
    "Tasks": words.TASK_WORDS,
    "Events of a device": words.EQUIPMENT_WORDS,
    "Causes of a closing": words.CLOSE_CAUSE_WORDS,
    "Reasons of an escalation": words.ESCALATION_REASON_WORDS,
    "What held the entry of a ring back": words.HELD_BACK_WORDS,
    "What is known of a protected person": words.WARNING_FLAG_WORDS,
    "First contact with a wearer": words.CONTACT_STATE_WORDS,
    "Notes of a desk": words.NOTE_KIND_WORDS,
    "Results of a call": words.NOTED_RESULT_WORDS,
    "What she is told to do": words.INSTRUCTED_ACT_WORDS,
    "Her answers": words.ANSWER_WORDS,
    "Articles": words.ARTICLE_WORDS,
    "Purposes of a disclosure": words.PURPOSE_WORDS,
}
"""Tables of words by their heading."""


def render() -> str:
    """The page."""
    parts: list[str] = []
    for heading, table_words in _TABLES.items():
        parts.append(f"## {heading}")
        parts.append(table(("name", "Korean", "English"), ((code(name), *word) for name, word in table_words.items())))
    return page(
        "Words",
        "What a person reads has one word for one thing: in the console, in her app, on a unit's page, in a court's document and in a "
        "message. Commands print names, and `tandem explain` these words for what held an entry back. Within a line, English begins "
        "with a small letter. [The glossary](glossary.md) says what each means. To change a word, change it in "
        "`services/common/words.py`: no page has a copy.",
        *parts,
    )
