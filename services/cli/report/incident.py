"""The report on one incident, made of a verified evidence bundle alone."""

from __future__ import annotations

import hashlib

from services.cli.evidence import bundle as evidence_bundle
from services.cli.report import chronology, document, earlier, equipment, sections
from services.cli.report import facts as report_facts
from services.cli.report.maps import maps
from services.cli.report.words import Words

_TITLES = ("summary", "order", "course", "maps", "decision", "devices", "answers", "authenticity")


def of_bundle(data: bytes, public_key: bytes | None, words: Words) -> bytes:
    """The PDF of the incident in a bundle. Raises CorruptArchive, with the place, if a byte of the bundle was altered."""
    verified = evidence_bundle.verify(data, public_key)
    facts = report_facts.of_bundle(verified)
    content = {
        "title": words("title"),
        "exercise": words("exercise") if sections.is_exercise(facts) else "",
        "titles": {name: words(name) for name in _TITLES},
        "head": sections.head(facts, words),
        "notes": [words("ids_only"), words("times")],
        "summary": sections.summary(facts, words),
        "orders": [sections.order_rows(case, words) for case in facts.cases],
        "no_case": words("no_case"),
        "course": chronology.course(facts, words),
        "about_maps": words("about_maps"),
        "maps": [map_._asdict() for map_ in maps(facts, words)],
        "about_probability": words("about_probability"),
        "decisions": sections.decisions(facts, words),
        "earlier": earlier.rows(earlier.reports(verified, facts.decisive), words),
        "earlier_titles": [words(name) for name in ("why_not_earlier", "at", "device", "probability", "held_back_by")],
        "devices": equipment.sections(facts, words),
        "no_conclusion": words("no_conclusion"),
        "device_titles": [words("reception_records"), words("handling_records"), words("events")],
        "answers": sections.answers(facts, words),
        "answer_titles": [
            words(name) for name in ("agency", "subject", "answer", "answered_by", "answered_at", "after_offer")
        ],
        "none": words("none"),
        "authenticity": sections.authenticity(facts, words, bundle_sha256=hashlib.sha256(data).hexdigest()),
        "verify": sections.how_to_verify(words),
    }
    return document.pdf("incident", content, words, at_ms=facts.manifest["made_at_ms"])
