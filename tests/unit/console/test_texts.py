"""Texts of the console: none is English in Korean, and each value of the services that a page shows has one."""

from __future__ import annotations

import re

import pytest

from services.common.alert_phases import AlertPhase
from services.common.privacy.grounds import LEGAL_BASES, Purpose, RecordKind
from services.console.domain.waterfall import STEP_NAMES
from services.console.pages.texts import TEXTS
from services.console.sign_in.provider import AccountEnd
from services.ingest.commands.asks import HELD, OUTDATED, REFUSED_BEFORE
from services.ingest.commands.service import SUPERSEDED
from services.registry.domain.disclosure import Deed
from services.registry.traces.domain.spans import STEP_NAME_OF_STATE
from tandem.ingest.v1 import ingest_pb2
from tests.support.console.korean import LATIN_ALLOWED

PLACE = re.compile(r"\{[a-z_]+\}")
"""Place of a value within a text."""


def test_no_korean_text_has_a_latin_word() -> None:
    english = {
        key: words
        for key, (korean, _) in TEXTS.items()
        if key != "language" and (words := set(re.findall("[A-Za-z]+", PLACE.sub("", korean))) - LATIN_ALLOWED)
    }
    assert english == {}


@pytest.mark.parametrize(
    ("prefix", "values"),
    [
        ("deed_", [deed.value for deed in Deed]),
        ("phase_", [phase.value for phase in AlertPhase if phase is not AlertPhase.BEGUN]),
        ("kind_", [kind.value for kind in RecordKind]),
        ("purpose_", [purpose.value for purpose in Purpose]),
        ("basis_", [basis.code for basis in LEGAL_BASES]),
        ("refusal_", list(ingest_pb2.RefusalCode.keys())[1:]),
        ("ended_", [end.value for end in AccountEnd]),
        ("", [HELD, OUTDATED, REFUSED_BEFORE, SUPERSEDED]),
    ],
)
def test_each_value_that_a_page_shows_has_a_text(prefix: str, values: list[str]) -> None:
    assert [value for value in values if f"{prefix}{value}" not in TEXTS] == []


def test_each_step_of_the_registrys_traces_has_a_text() -> None:
    assert [name for name in STEP_NAME_OF_STATE.values() if STEP_NAMES.get(name, name) not in TEXTS] == []
