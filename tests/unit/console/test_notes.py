"""Notes of the live page's form."""

from __future__ import annotations

import pytest

from services.console.domain.desk import KEPT_KINDS, NOTE_KINDS, NOTED_RESULTS, BadField, read_note
from services.console.pages.texts import TEXTS
from services.dispatch.domain import events
from services.dispatch.domain.events import NoteKind
from tandem.dispatch.v1 import notes_pb2

FORM = {"key": "key-1", "kind": "NOTE", "text": " <b>safe</b> "}


def test_the_codes_are_those_of_the_protos() -> None:
    assert set(NOTE_KINDS) | {"NOTE_KIND_UNSPECIFIED"} == set(notes_pb2.NoteKind.keys())
    assert set(NOTED_RESULTS) | {"NOTED_RESULT_UNSPECIFIED"} == set(notes_pb2.NotedResult.keys())
    assert all(f"note_{code}" in TEXTS for code in (*NOTE_KINDS, *NOTED_RESULTS))


def test_a_note_keeps_its_text_as_it_was_typed() -> None:
    note = read_note(FORM)
    assert (note.text, note.result) == ("<b>safe</b>", "")


def test_the_desk_says_whether_a_note_is_shared_and_else_its_kind_does() -> None:
    kept = {share: read_note({**FORM, "share": share}).kept for share in ("yes", "no", "")}
    assert kept == {"yes": False, "no": True, "": None}
    assert read_note(FORM).kept is None
    assert {NoteKind[kind] for kind in KEPT_KINDS} == events.KEPT_KINDS, "the form proposes what the leg does"


def test_a_call_has_a_result_and_needs_no_text() -> None:
    note = read_note({"key": "key-1", "kind": "CALLED_WEARER", "result": "NOTED_SPOKEN"})
    assert (note.result, note.text) == ("NOTED_SPOKEN", "")


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        ({"key": ""}, "key", "missing"),
        ({"key": "a b"}, "key", "unreadable"),
        ({"kind": ""}, "kind", "missing"),
        ({"kind": "GOSSIP"}, "kind", "unreadable"),
        ({"text": " "}, "text", "missing"),
        ({"text": "x" * 501}, "text", "too_long"),
        ({"text": "a\x07b"}, "text", "unreadable"),
        ({"kind": "CALLED_UNIT"}, "result", "missing"),
        ({"kind": "CALLED_UNIT", "result": "MAYBE"}, "result", "unreadable"),
        ({"share": "perhaps"}, "share", "unreadable"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, str], field: str, why: str) -> None:
    with pytest.raises(BadField) as refused:
        read_note(FORM | change)
    assert (refused.value.field, refused.value.why) == (field, why)
