"""Spans of an incident, their viewers, and the trace contexts that calls and messages carry."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.delivered import Delivered
from services.common.observability import telemetry
from services.common.observability.spans import (
    ENTRY,
    MAX_SENDERS,
    SENDERS,
    EntryTrace,
    entry_header,
    parsed,
    parsed_entry,
    sender_of,
    senders_header,
    span_id_of,
    trace_id_of,
    traceparent,
)
from services.geofence.domain.alerts import Alert
from services.geofence.publisher import AlertTraces
from services.ingest.batch import Batch, Reports
from services.ingest.domain import Endpoint, Sender
from services.ingest.endpoints.grpc_api import Batches, PendingAnswer, ReportStream
from services.ingest.intake import InFlightLimiter
from services.registry.traces import translate
from services.registry.traces.domain import facts
from services.registry.traces.domain.facts import AlertFact, CaseVersion, DataUse, StepFact
from services.registry.traces.domain.spans import EVERYBODY, OPERATOR, REVIEWER, TraceSpan, shown_to, spans_of
from tandem.ingest.v1 import ingest_pb2
from tests.support.dispatch import dispatch
from tests.support.geofence import log

INCIDENT = "incident-1"
ROOT = span_id_of(INCIDENT)
SENT_IN = f"00-{'ab' * 16}-{'cd' * 8}-00"
ENTERED = AlertFact(
    "alert-1", 0, 10, 0, 1, "RING_ENTERED", "RESPOND", "case-1", ("police", "probation", "warning"), False, 1_000_000, 1_000_400,
    1_001_000, 1_002_000,
)  # fmt: skip
CLEARED = replace(
    ENTERED, alert_id="alert-2", sequence=20, stored=2, alert_kind="RING_CLEARED", demand="RECORD", legs=(), ends=True,
    received_us=None, entry_us=9_000_000, decided_us=9_000_500, published_us=9_001_000,
)  # fmt: skip


def step(
    leg: str, number: int, state: str, done_us: int, cause_us: int | None = 1_000_000, received: bool = False
) -> StepFact:
    return StepFact(leg, f"assign-{leg}", number, state, received, cause_us, done_us, done_us + 2_000, number)


STEPS = [
    step("police", 1, "OFFERED", 1_003_000),
    step("police", 2, "OFFERED", 1_004_000, received=True),
    step("police", 3, "ACKNOWLEDGED", 3_000_000),
    step("police", 4, "DISPATCHED", 4_000_000),
    step("police", 5, "ON_SCENE", 8_000_000),
    step("police", 6, "STOOD_DOWN", 9_003_000),
    step("warning", 1, "OFFERED", 1_003_000),
    step("warning", 2, "ACKNOWLEDGED", 1_500_000),
]


def by_name(spans: list[TraceSpan]) -> dict[str, TraceSpan]:
    return {span.name: span for span in spans}


def test_spans_follow_one_another_from_the_report_to_the_scene() -> None:
    spans = spans_of(INCIDENT, [CLEARED, ENTERED], reversed(STEPS))
    root, named = spans[0], by_name(spans)
    assert (root.name, root.span_id, root.parent_id) == ("incident opened", ROOT, "")
    assert (root.start_us, root.end_us) == (1_000_000, 1_002_000)
    before, after = named["report received"], next(span for span in spans if span.name == "evaluated")
    assert (after.parent_id, after.start_us) == (before.span_id, before.end_us)
    (decided,) = [span for span in spans if span.attributes.get("alert_id") == "alert-1"]
    assert decided.parent_id == span_id_of(INCIDENT, "evaluated", 0, 10) and decided.end_us == 1_002_000
    police = [span for span in spans if span.service == "dispatch-police"]
    assert [span.name.removeprefix("police ") for span in police] == [
        "offered", "received by the desk", "accepted", "dispatched", "on scene", "stood down",
    ]  # fmt: skip
    assert police[0].parent_id == decided.span_id
    assert {span.parent_id for span in police[1:-1]} == {police[0].span_id}
    for earlier, later in zip([decided, *police], police[:-1], strict=False):
        assert later.start_us == earlier.end_us
    (ended,) = [span for span in spans if span.attributes.get("alert_id") == "alert-2"]
    assert (police[-1].parent_id, police[-1].start_us) == (ended.span_id, ended.end_us)
    assert named["warning delivered"].parent_id == named["warning offered"].span_id


def test_the_name_and_the_viewers_of_a_step_follow_from_its_change() -> None:
    delivered = replace(step("warning", 2, "ACKNOWLEDGED", 1_500_000), offer=1)
    unreached = replace(delivered, number=3, done_us=1_600_000, flag="NO_RECEIPT")
    reached = replace(unreached, number=4, done_us=1_700_000, flag="REACHED")
    alone = replace(step("police", 2, "OFFERED", 1_800_000), absent=("probation",))
    steps = [
        step("warning", 1, "OFFERED", 1_003_000), delivered, unreached, reached,
        step("police", 1, "OFFERED", 1_003_000), alone, replace(alone, number=3, absent=()),
        replace(alone, number=4, absent=()), replace(alone, number=5, absent=(), state="ESCALATED", due_us=2_000_000),
        replace(alone, number=6, absent=(), state="ESCALATED", due_us=3_000_000),
    ]  # fmt: skip
    spans = spans_of(INCIDENT, [ENTERED], steps)
    names = {viewer: [span.name for span in shown_to(viewer, spans)] for viewer in EVERYBODY}
    person_flags = ["warning no receipt", "warning reached"]
    police_steps = ["misses probation", "sees probation again", "noted", "escalated", "escalated"]
    assert [name for name in names[REVIEWER] if name.startswith("warning")][2:] == person_flags
    assert [name for name in names["police"] if name.startswith("police")][1:] == [
        f"police {name}" for name in police_steps
    ]
    assert [name for name in names["probation"] if name.startswith("police")] == [
        "police offered",
        *["police escalated"] * 2,
    ]
    for viewer in ("probation", OPERATOR):
        assert not set(person_flags) & set(names[viewer])
    assert set(person_flags) <= set(names["police"])
    offered = {span.name: span.span_id for span in spans if span.name.endswith("offered")}
    assert {span.parent_id for span in spans if span.name.startswith("police") and span.name != "police offered"} == {
        offered["police offered"]
    }


def test_the_escalation_of_a_received_offer_is_not_a_second_receipt() -> None:
    offered = replace(step("police", 1, "OFFERED", 1_003_000), offer=1, due_us=2_000_000)
    received = replace(offered, number=2, received=True, done_us=1_004_000)
    escalated = replace(received, number=3, state="ESCALATED", done_us=2_000_000, due_us=3_000_000)
    repeated = replace(escalated, number=4, done_us=3_000_000, due_us=5_000_000)
    to_another = replace(repeated, number=5, received=False, offer=5, done_us=5_000_000, due_us=6_000_000)
    has_it_too = replace(to_another, number=6, received=True, done_us=5_100_000)
    reoffered = replace(has_it_too, number=8, state="OFFERED", offer=7, done_us=7_000_000)  # step 7 isn't known
    steps = [offered, received, escalated, repeated, to_another, has_it_too, reoffered]
    spans = [span for span in spans_of(INCIDENT, [ENTERED], steps) if span.service == "dispatch-police"]
    assert [span.name.removeprefix("police ") for span in spans] == [
        "offered", "received by the desk", "escalated", "escalated", "escalated", "received by the desk", "offered",
    ]  # fmt: skip
    (alone,) = [span for span in spans_of(INCIDENT, [ENTERED], [escalated]) if span.service == "dispatch-police"]
    assert alone.name == "police escalated"


def test_the_root_span_of_an_exercise_states_its_kind() -> None:
    (drilled,) = [
        span for span in spans_of(INCIDENT, [replace(ENTERED, exercise="DRILL")], STEPS) if not span.parent_id
    ]
    assert drilled.attributes["exercise"] == "DRILL"
    assert "exercise" not in spans_of(INCIDENT, [ENTERED], STEPS)[0].attributes
    assert facts.of_json(facts.to_json(replace(STEPS[0], absent=("police",), flag="REACHED"))) == replace(
        STEPS[0], absent=("police",), flag="REACHED"
    )


def test_an_incident_without_a_report_starts_with_its_log_entry() -> None:
    spans = spans_of(INCIDENT, [CLEARED], [])
    assert [span.name for span in spans] == ["incident opened", "evaluated", "alert"]
    assert spans[0].start_us == 9_000_000


def test_alerts_of_one_report_share_its_span_and_a_second_approach_has_its_own() -> None:
    sibling = replace(ENTERED, alert_id="alert-1b", ordinal=1, published_us=1_005_000)
    second = replace(ENTERED, alert_id="alert-3", sequence=30, received_us=20_000_000, entry_us=20_000_100)
    second = replace(second, decided_us=20_000_200, published_us=20_000_300)
    second_offer = step("police", 4, "OFFERED", 20_001_000, cause_us=20_000_000)
    spans = spans_of(INCIDENT, [ENTERED, sibling, second], [*STEPS[:3], second_offer])
    names = [span.name for span in spans]
    assert (names.count("report received"), names.count("evaluated"), names.count("alert")) == (2, 2, 3)
    last = [span for span in spans if span.name == "police offered"][-1]
    assert last.parent_id == span_id_of(INCIDENT, "alert", "alert-3")
    assert last.start_us == 20_000_300


def test_an_amended_account_is_in_the_trace_and_leads_to_no_step() -> None:
    amended = replace(CLEARED, alert_id="alert-9", sequence=40, stored=9, alert_kind="ACCOUNT_AMENDED", ends=False)
    amended = replace(amended, entry_us=9_400_000, decided_us=9_400_500, published_us=9_401_000)
    amended = replace(amended, legs=("police", "probation"))
    closed = step("police", 7, "CLOSED", 9_900_000, cause_us=None)
    spans = spans_of(INCIDENT, [ENTERED, CLEARED, amended], [*STEPS, closed])
    [shown] = [span for span in spans if span.attributes.get("alert_id") == "alert-9"]
    assert shown.attributes["kind"] == "ACCOUNT_AMENDED" and {"police", "probation"} <= shown.shows
    assert not [span for span in spans if span.parent_id == shown.span_id]


def test_a_span_of_disagreeing_clocks_has_length_0_and_states_the_difference() -> None:
    ahead = replace(ENTERED, received_us=1_000_900, decided_us=1_000_100, published_us=1_000_200)
    spans = spans_of(INCIDENT, [ahead], STEPS)
    assert all(span.end_us >= span.start_us for span in spans)
    received = by_name(spans)["report received"]
    assert (received.start_us, received.end_us) == (1_000_900, 1_000_900)
    assert received.attributes["clock_behind_us"] == "500"


@pytest.mark.parametrize("viewer", sorted(EVERYBODY))
def test_no_viewer_sees_a_span_without_its_parent(viewer: str) -> None:
    police_alert = replace(ENTERED, alert_id="alert-p", sequence=5, legs=("police",), alert_kind="PANIC")
    spans = shown_to(
        viewer,
        spans_of(INCIDENT, [police_alert, ENTERED, CLEARED], STEPS, uses=[USE], case_versions={"case-1": [IN_FORCE]}),
    )
    ids = {span.span_id for span in spans}
    assert all(span.parent_id in ids for span in spans if span.parent_id)


USE = DataUse(7, 3_500_000, "READ", "spiffe://npa/desk/x", "STALKING_9_1_2", "ENFORCEMENT", "PROTECTED_PERSON")
IN_FORCE = CaseVersion("case-1", 500, 500_000, 4, 501_000)


def test_each_agency_sees_its_own_steps_and_not_the_moves_of_the_other() -> None:
    only_police = replace(
        ENTERED, alert_id="alert-p", sequence=15, legs=("police",), alert_kind="PROTECTED_DEVICE_LOST"
    )
    spans = spans_of(INCIDENT, [ENTERED, only_police], STEPS, uses=[USE])

    def seen(viewer: str) -> tuple[set[str], set[str]]:
        shown = shown_to(viewer, spans)
        return {span.name for span in shown}, {span.attributes.get("kind", "") for span in shown} - {""}

    moves, everything = {"police dispatched", "police on scene"}, {span.name for span in spans}
    assert seen("probation") == (everything - moves - {"ledger: read"}, {"RING_ENTERED"})
    assert seen("police") == (everything - {"ledger: read"}, {"RING_ENTERED", "PROTECTED_DEVICE_LOST"})
    assert seen(OPERATOR)[0] == everything - {"ledger: read"}
    assert seen(REVIEWER)[0] == everything


def test_the_order_in_force_is_a_separate_trace_linked_from_the_incident() -> None:
    later = replace(IN_FORCE, version=900, sequence=12, made_us=2_000_000, stored_us=2_001_000)
    root, *others = spans_of(INCIDENT, [ENTERED], [], uses=[], case_versions={"case-1": [IN_FORCE, later]})
    (in_force,) = [span for span in others if span.name == "order in force"]
    assert (in_force.trace_id, in_force.attributes["version"]) == (trace_id_of("case-1:500"), "500")
    assert [(link.trace_id, link.span_id) for link in root.links] == [(in_force.trace_id, in_force.span_id)]


def test_the_report_span_links_to_the_trace_context_of_its_sender() -> None:
    received = by_name(spans_of(INCIDENT, [replace(ENTERED, sender=SENT_IN)], []))["report received"]
    assert [(link.trace_id, link.span_id) for link in received.links] == [("ab" * 16, "cd" * 8)]


def test_facts_survive_serialisation_unchanged() -> None:
    known: list[facts.Fact] = [ENTERED, CLEARED, *STEPS]
    for fact in known:
        assert facts.of_json(facts.to_json(fact)) == fact


# ── contexts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_traceparent_header_is_parsed_by_the_w3c_standard_and_all_else_gives_none() -> None:
    assert parsed(SENT_IN) == ("ab" * 16, "cd" * 8)
    assert parsed(traceparent(INCIDENT)) == (trace_id_of(INCIDENT), ROOT)
    for wrong in (
        "",
        SENT_IN.upper(),
        SENT_IN + "x",
        f"00-{'0' * 32}-{'cd' * 8}-00",
        f"00-{'ab' * 16}-{'0' * 16}-00",
        "ff-1-2-3",
    ):
        assert parsed(wrong) is None


def test_each_report_of_an_entry_keeps_the_trace_context_of_its_sender() -> None:
    other = traceparent("incident-2")
    header = senders_header([(2, SENT_IN), (3, ""), (1, other)])
    assert [sender_of(header, index) for index in range(7)] == [SENT_IN, SENT_IN, "", "", "", other, ""]
    assert senders_header([(2, ""), (1, "")]) == ""
    assert senders_header([(1, SENT_IN)] * 40) == f"40:{SENT_IN}"
    assert senders_header([(1, SENT_IN), (1, other)] * MAX_SENDERS) == ""
    assert sender_of("nonsense", 0) == sender_of("1:nonsense", 0) == ""


async def test_a_caller_without_a_trace_context_does_not_inherit_the_previous_one() -> None:
    telemetry.carry(SENT_IN)
    assert telemetry.carried() == SENT_IN
    telemetry.carry("")
    assert telemetry.carried() == ""


async def test_coalesced_batches_keep_their_trace_contexts() -> None:
    other, admitted = traceparent("incident-2"), []

    class Intake:
        """Records the batches that it admits."""

        async def admit(self, batch: Batch, sender: Sender, reports: Reports, *, endpoint: Endpoint) -> None:
            admitted.append((list(reports.positions.report_ids), list(reports.contexts), telemetry.carried()))

    batches = Batches(Intake(), SimpleNamespace(heard=lambda over: None))  # type: ignore[arg-type]

    async def send(*sent: tuple[str, str]) -> None:
        for number, (report_id, context) in enumerate(sent):
            telemetry.carry(context)
            position = ingest_pb2.Position(device_id="d", report_id=report_id, lat_deg=37, lon_deg=127, accuracy_m=5)
            position.fix_time.GetCurrentTime()
            request = ingest_pb2.ReportRequest(batch=number, positions=[position])
            stream = ReportStream(Sender("v", "v", ""), InFlightLimiter())
            answer = PendingAnswer(
                number=number, count=1, positions=1, equipment=0, together=False, receipts=(), held=1
            )
            await batches.admit(stream, request, answer)
        await asyncio.gather(*batches._workers)

    await send(("1", SENT_IN), ("2", other), ("3", SENT_IN), ("4", ""))
    (ids, contexts, carried) = admitted.pop()
    by_id = dict(zip(ids, [context for count, context in contexts for _ in range(count)], strict=True))
    assert by_id == {"1": SENT_IN, "2": other, "3": SENT_IN, "4": ""} and carried == ""
    await send(("5", SENT_IN))
    assert admitted.pop() == (["5"], [], SENT_IN)  # admitted alone, with its own context
    await send(("6", ""), ("7", ""), ("8", ""), ("9", ""))
    assert admitted.pop() == (["6", "7", "8", "9"], [], "")


CAUSE = EntryTrace(1_000_400, 3, SENT_IN)


@pytest.mark.parametrize(
    ("header", "fact"),
    [
        (entry_header(CAUSE), (1_000_400, 3, SENT_IN)),
        (entry_header(CAUSE._replace(sender="")), (1_000_400, 3, "")),
        ("1000400 0 -", (1_000_400, 1, "")),
        ("1000400 3 not-a-context", (1_000_400, 3, "")),
        *((malformed, (2_000_000, 1, "")) for malformed in ("", "1000400", "x 3 -", f"{10**17} 1 -", "1 1 - -")),
    ],
)
def test_an_alert_brings_the_data_of_its_log_entry_along(header: str, fact: tuple[int, int, str]) -> None:
    alert = dispatch.alert(10, incident=INCIDENT)
    alert.decided_at.FromMilliseconds(2_000)
    subject = flow.alert_subject(0, alert.alert_id)
    delivered = Delivered(subject, alert.SerializeToString(), "ALERTS", 1, 2_500, 0, "", headers={ENTRY: header})
    made = translate.alert_fact(alert, delivered, clock=MeshClock())
    assert (made.entry_us, made.together, made.sender) == fact
    assert facts.of_json(facts.to_json(made)) == made


def test_the_header_of_an_alert_names_the_sender_of_its_report() -> None:
    entry = log.positions_entry(log.position("t1", 1_000, 0), log.position("t2", 1_000, 0))
    first, second = traceparent("first"), traceparent("second")
    senders = senders_header([(1, first), (1, second)])
    data = entry.SerializeToString()
    delivered = Delivered("log.0.report", data, "LOG_0", 1, 1_000, 0, "", headers={SENDERS: senders})
    batch = entry.positions
    for index, sender in enumerate((first, second)):
        cause = SimpleNamespace(device_id=batch.device_id[index], report_id=batch.report_id[index])
        header = AlertTraces(delivered).header_for(cast(Alert, SimpleNamespace(cause=cause)))
        assert parsed_entry(header) == EntryTrace(1_000_000, 2, sender)
    of_time = AlertTraces(Delivered("log.0.tick", b"", "LOG_0", 2, 1_000, 0, ""))
    header = of_time.header_for(cast(Alert, SimpleNamespace(cause=None)))
    assert parsed_entry(header) == EntryTrace(1_000_000, 1, "")
