"""Notes and calls of a desk: they change nothing but the record, are written once, and are shared unless the desk keeps them."""

from __future__ import annotations

import pytest

from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.common.messaging import stored
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.decisions import MAX_INCIDENT_NOTES, AddNote
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import Event, NoteAdded, NotedResult, NoteKind
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, translate
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2, notes_pb2
from tests.support.dispatch.incidents import Story, alert

BY = "spiffe://npa/desk/kim"


def note(key: str = "key-1", text: str = "she is safe", *, kept: bool = False) -> AddNote:
    return AddNote(by=BY, note_key=key, kind=NoteKind.NOTE, result=NotedResult.UNSPECIFIED, text=text, kept=kept)


def offered() -> Story:
    story = Story("police")
    story.fold(alert(5, Demand.RESPOND, "p"))
    return story


def request(**fields: object) -> notes_pb2.AddNoteRequest:
    whole = {"incident_id": "incident-1", "note_key": "key-1", "kind": notes_pb2.NOTE, "text": "she is safe"}
    return notes_pb2.AddNoteRequest(**(whole | fields))  # type: ignore[arg-type]


def test_the_numbers_are_those_of_the_protos() -> None:
    assert {kind.name: int(kind) for kind in NoteKind} | {"NOTE_KIND_UNSPECIFIED": 0} == dict(
        notes_pb2.NoteKind.items()
    )
    results = {result.name: int(result) for result in NotedResult if result} | {"NOTED_RESULT_UNSPECIFIED": 0}
    assert results == dict(notes_pb2.NotedResult.items())


def test_a_note_changes_no_state_and_no_deadline() -> None:
    story = offered()
    before = story.of("p")
    events = story.do(note())
    after = story.of("p")
    assert [type(event) for event in events] == [NoteAdded]
    assert (after.state, after.due_ms, after.offer_number) == (before.state, before.due_ms, before.offer_number)
    assert (after.number, after.notes) == (before.number + 1, 1) and after.state is AssignmentState.OFFERED


def test_a_note_with_the_same_key_is_added_once() -> None:
    story = offered()
    story.do(note())
    assert story.do(note(text="another text")) == ()
    assert len(story.do(note("key-2"))) == 1


def test_the_chain_restores_a_note_and_detects_a_changed_one() -> None:
    (event,) = offered().do(note(text="통화함"))
    link = chain.write(chain.ChainHead(), "incident-1", event)
    assert chain.read(link.kind, link.body) == event
    changed = link._replace(body=link.body.replace("통화함", "무응답"))
    assert chain.first_broken(chain.ChainHead(), [changed])[1] == 1


def test_an_unknown_incident_takes_no_note() -> None:
    with pytest.raises(NotFound):
        Story("police").do(note())


def test_an_incident_takes_a_limited_number_of_notes() -> None:
    story = offered()
    for n in range(MAX_INCIDENT_NOTES):
        story.do(note(f"key-{n}"))
    with pytest.raises(FailedPrecondition, match="takes no more"):
        story.do(note("key-more"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": notes_pb2.NOTE_KIND_UNSPECIFIED}, "kind"),
        ({"text": " "}, "text"),
        ({"text": "x" * 501}, "text"),
        ({"text": "two\nlines"}, "text"),
        ({"note_key": ""}, "note_key"),
        ({"result": notes_pb2.NOTED_SPOKEN}, "result"),
        ({"kind": notes_pb2.CALLED_WEARER}, "result"),
        ({"kind": notes_pb2.CALLED_OTHER, "result": notes_pb2.NOTED_SPOKEN, "text": ""}, "text"),
    ],
)
def test_a_bad_note_names_its_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        translate.add_note_command(request(**fields), BY)
    assert refused.value.field == field


def test_a_call_needs_no_text() -> None:
    command = translate.add_note_command(
        request(kind=notes_pb2.CALLED_WEARER, result=notes_pb2.NOTED_NO_ANSWER, text=""), BY
    )
    assert (command.kind, command.result) == (NoteKind.CALLED_WEARER, NotedResult.NOTED_NO_ANSWER)


def step_of(event: Event, **changes: object) -> bytes:
    assert isinstance(event, NoteAdded)
    message = translate.note_message("incident-1", Leg.POLICE, event)
    for name, value in changes.items():
        setattr(message, name, value)
    story = offered()
    step = translate.step(story.incident, story.of("p"), 1_000, latency_ms=None)
    step.note.CopyFrom(message)
    return translate.outward(step)


def test_the_other_desk_gets_a_shared_note_and_the_warning_leg_none() -> None:
    (event,) = offered().do(note(text="<b>she</b> is safe"))
    payload, subject = step_of(event), "incident.police.incident-1"
    row = translate.shared_note(stored.step(payload, subject), Leg.PROBATION)
    assert row is not None
    shown = notes_pb2.IncidentNote.FromString(row.payload)
    assert (shown.text, shown.by, shown.leg) == ("<b>she</b> is safe", BY, alert_pb2.POLICE)
    assert translate.shared_note(stored.step(payload, subject), Leg.WARNING) is None
    peer = dispatch_pb2.Assignment.FromString(translate.peer(stored.step(payload, subject), Leg.PROBATION).payload)
    assert peer.subject_id == "p"  # the note itself is no part of the assignment


@pytest.mark.parametrize(
    "changes", [{"kept": True}, {"incident_id": "incident-2"}, {"leg": alert_pb2.PROBATION}, {"text": "x" * 501}]
)
def test_a_note_that_may_not_be_shared_is_refused(changes: dict[str, object]) -> None:
    (event,) = offered().do(note())
    with pytest.raises(InvalidField):
        translate.shared_note(stored.step(step_of(event, **changes), "incident.police.incident-1"), Leg.PROBATION)


def test_a_note_whose_time_no_table_can_hold_is_refused() -> None:
    (event,) = offered().do(note())
    step = dispatch_pb2.Step.FromString(step_of(event))
    step.note.at.seconds = 253_402_300_799
    with pytest.raises(InvalidField, match=r"note\.at"):
        stored.step(step.SerializeToString(), "incident.police.incident-1")


@pytest.mark.parametrize("kind", NoteKind)
def test_a_call_with_her_is_kept_unless_the_desk_says_otherwise_and_other_kinds_are_shared(kind: NoteKind) -> None:
    result = {} if kind is NoteKind.NOTE else {"result": notes_pb2.NOTED_SPOKEN}
    about = {"kind": notes_pb2.NoteKind.ValueType(kind), "text": "she is at home", **result}
    assert translate.add_note_command(request(**about), BY).kept is (kind is NoteKind.CALLED_PROTECTED_PERSON)
    for kept in (True, False):
        assert translate.add_note_command(request(**about, kept=kept), BY).kept is kept
