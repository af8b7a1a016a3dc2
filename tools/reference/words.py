"""Reference of the practice's words: what each state, alert, demand, reason and article is called in Korean and English."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.words import Word, alerts, articles, contacts, instructions, reasons, states
from tools.reference.markdown import code, page, table

_TABLES: Mapping[str, Mapping[str, Word]] = {
    "Legs": states.LEG_WORDS,
    "States of an assignment": states.STATE_WORDS,
    "Offers to a unit": states.UNIT_STATE_WORDS,
    "Alerts": alerts.ALERT_WORDS,
    "Parts of an event, after an alert's word": alerts.ALERT_PHASE_WORDS,
    "Demands": alerts.DEMAND_WORDS,
    "Tasks": alerts.TASK_WORDS,
    "Events of a device": alerts.EQUIPMENT_WORDS,
    "Causes of a closing": reasons.CLOSE_CAUSE_WORDS,
    "Reasons of an escalation": reasons.ESCALATION_REASON_WORDS,
    "What held the entry of a ring back": reasons.HELD_BACK_WORDS,
    "What is known of a protected person": contacts.WARNING_FLAG_WORDS,
    "First contact with a wearer": contacts.CONTACT_STATE_WORDS,
    "Notes of a desk": contacts.NOTE_KIND_WORDS,
    "Results of a call": contacts.NOTED_RESULT_WORDS,
    "What she is told to do": instructions.INSTRUCTED_ACT_WORDS,
    "Her answers": instructions.ANSWER_WORDS,
    "Articles": articles.ARTICLE_WORDS,
    "Purposes of a disclosure": articles.PURPOSE_WORDS,
}
"""Tables of words by their heading."""


def render() -> str:
    """The page."""
    parts: list[str] = []
    for heading, words in _TABLES.items():
        parts.append(f"## {heading}")
        parts.append(table(("name", "Korean", "English"), ((code(name), *word) for name, word in words.items())))
    return page(
        "Words",
        "What a person reads has one word for one thing: in the console, in her app, on a unit's page, in a court's document and in a "
        "message. Commands print names, and `tandem explain` these words for what held an entry back. Within a line, English begins "
        "with a small letter. [The glossary](glossary.md) says what each means. To change a word, change it in "
        "`services/common/words`: no page has a copy.",
        *parts,
    )
