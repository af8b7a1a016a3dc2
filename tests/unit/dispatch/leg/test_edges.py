"""Edges of a leg without I/O: the hash chain, the parsing of alerts and steps, settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from services.common import ids, times
from services.common.errors import InvalidField
from services.common.messaging import stored
from services.dispatch.domain.enums import Demand, SubjectKind
from services.dispatch.domain.events import Cause, StoodDown
from services.dispatch.domain.incident import Alert, AlertPanic
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, translate
from services.dispatch.leg.chain import ChainedEvent, ChainHead
from services.dispatch.leg.tables import PeerRow
from services.dispatch.settings import for_leg
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch import dispatch
from tests.support.dispatch.incidents import Story


def links() -> list[ChainedEvent]:
    head, written = ChainHead(), []
    for number in range(5):
        link = chain.write(head, "incident-1", StoodDown(number, f"assign-{number}"))
        head = ChainHead(link.id, link.hash)
        written.append(link)
    return written


def test_an_unchanged_chain_verifies() -> None:
    assert chain.first_broken(ChainHead(), links()) == (ChainHead(5, links()[-1].hash), None)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda all_: [*all_[:2], all_[2]._replace(body=all_[2].body.replace("2", "7", 1)), *all_[3:]], 3),
        (lambda all_: [*all_[:2], all_[2]._replace(incident_id="incident-2"), *all_[3:]], 3),
        (lambda all_: [*all_[:2], all_[2]._replace(kind="Escalated"), *all_[3:]], 3),
        (lambda all_: all_[:2] + all_[3:], 4),
        (lambda all_: [*all_[:2], all_[3], all_[2], *all_[4:]], 4),
        (lambda all_: [*all_[:2], chain.write(ChainHead(2, "x"), "i", StoodDown(0, "a")), *all_[3:]], 3),
    ],
)
def test_a_changed_chain_is_detected(change: Callable[[list[ChainedEvent]], list[ChainedEvent]], broken: int) -> None:
    assert chain.first_broken(ChainHead(), change(links()))[1] == broken


def an_alert() -> alert_pb2.Alert:
    return alert_pb2.Alert(
        alert_id="alert-1",
        sequence=7,
        ordinal=1,
        kind=alert_pb2.PANIC,
        demand=geometry_pb2.RESPOND,
        order_id="order-1",
        incident_id="incident-1",
        target_id="p1",
        at=times.to_timestamp(4_000),
        destinations=[
            alert_pb2.Destination(leg=alert_pb2.PROBATION, subject_id="w1"),
            alert_pb2.Destination(leg=alert_pb2.POLICE, subject_id="p1"),
            alert_pb2.Destination(leg=alert_pb2.POLICE, subject_id="p1"),
            alert_pb2.Destination(leg=alert_pb2.WARNING, subject_id="p1"),
        ],
        cause=alert_pb2.ReportCause(device_id="d1", report_id="r1", received_wall_us=5),
    )


def test_an_alert_keeps_only_what_the_leg_needs() -> None:
    parsed = translate.alert(an_alert().SerializeToString(), Leg.POLICE)
    assert parsed == Alert(
        alert_id="alert-1",
        incident_id="incident-1",
        place=(7, 1),
        kind=alert_pb2.PANIC,
        demand=Demand.RESPOND,
        order_id="order-1",
        threat=ids.hash_id("threat", "order-1", alert_pb2.PANIC),
        subject_ids=("p1",),
        ends=False,
        cause=Cause("d1", "r1", 5),
        legs=(Leg.PROBATION, Leg.WARNING),
        subject_kinds={"p1": SubjectKind.PROTECTED_PERSON},
        panic=AlertPanic(ids.hash_id("caller", "order-1", "p1"), 4_000),
    )


def threat(**changes: Any) -> str:
    message = an_alert()
    message.MergeFrom(alert_pb2.Alert(**({"target_id": "p1"} | changes)))
    parsed = translate.alert(message.SerializeToString(), Leg.POLICE)
    assert parsed
    return parsed.threat


def test_the_begin_and_the_end_of_a_threat_have_one_key_and_different_threats_have_different_keys() -> None:
    entered, cleared = alert_pb2.RING_ENTERED, alert_pb2.RING_CLEARED
    assert threat(kind=entered, ring_m=100) == threat(kind=cleared, ring_m=100, demand=geometry_pb2.RECORD)
    assert threat(kind=alert_pb2.PANIC) == threat(kind=alert_pb2.PANIC, demand=geometry_pb2.RECORD)
    rings = [
        threat(kind=entered, ring_m=100),
        threat(kind=entered, ring_m=500),
        threat(kind=entered, ring_m=100, target_id="p2"),
        threat(kind=entered, ring_m=100, order_id="order-2"),
    ]
    events = [threat(kind=alert_pb2.PANIC), threat(kind=alert_pb2.TAMPERED)]
    assert len({*rings, *events}) == 6


def test_a_ring_of_radius_nan_still_has_one_key() -> None:
    assert threat(kind=alert_pb2.RING_ENTERED, ring_m=math.nan) == threat(kind=alert_pb2.RING_CLEARED, ring_m=math.nan)


def test_an_alert_of_an_unknown_kind_is_not_lost() -> None:
    message = an_alert()
    message.kind = 99  # type: ignore[assignment]
    parsed = translate.alert(message.SerializeToString(), Leg.POLICE)
    assert parsed and parsed.kind == 99 and parsed.demand is Demand.RESPOND
    story = Story()
    story.fold(parsed)
    shown = translate.assignment_message(story.incident, story.of("p1"), None)
    assert dispatch_pb2.Assignment.FromString(shown.SerializeToString()).kind == 99


def test_a_leg_ignores_an_alert_without_an_incident() -> None:
    message = an_alert()
    message.incident_id = ""
    assert translate.alert(message.SerializeToString(), Leg.POLICE) is None


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("alert_id", lambda m: m.ClearField("alert_id")),
        ("incident_id", lambda m: setattr(m, "incident_id", "a b")),
        ("incident_id", lambda m: m.MergeFrom(alert_pb2.Alert(incident_ends=True)) or m.ClearField("incident_id")),
        ("sequence", lambda m: m.ClearField("sequence")),
        ("demand", lambda m: m.ClearField("demand")),
        ("demand", lambda m: setattr(m, "demand", 99)),
        ("order_id", lambda m: m.ClearField("order_id")),
        ("destinations[1].leg", lambda m: m.destinations[1].ClearField("leg")),
        ("destinations[3].subject_id", lambda m: m.destinations[3].ClearField("subject_id")),
    ],
)
def test_a_malformed_alert_names_its_field(field: str, spoil: Callable[[alert_pb2.Alert], object]) -> None:
    message = an_alert()
    spoil(message)
    with pytest.raises(InvalidField) as refusal:
        translate.alert(message.SerializeToString(), Leg.POLICE)
    assert refusal.value.field == field


def test_bytes_that_are_not_an_alert_are_refused() -> None:
    with pytest.raises(InvalidField):
        translate.alert(b"\xff\xff\xff", Leg.POLICE)


def a_step() -> dispatch_pb2.Step:
    return dispatch_pb2.Step(
        step_id="step-1",
        number=2,
        assignment=dispatch_pb2.Assignment(
            assignment_id="assign-1", incident_id="incident-1", leg=alert_pb2.PROBATION, subject_id="w1"
        ),
    )


def read_peer(payload: bytes, subject: str) -> PeerRow:
    return translate.peer(stored.step(payload, subject), Leg.POLICE)


def test_the_kind_and_device_of_a_report_are_removed_from_a_peers_step() -> None:
    message = a_step()
    message.assignment.kind = alert_pb2.PROTECTED_DEVICE_LOST
    message.assignment.cause.device_id = "phone-1"
    kept = dispatch_pb2.Assignment.FromString(
        read_peer(message.SerializeToString(), "incident.probation.incident-1").payload
    )
    assert kept == a_step().assignment


def test_a_peers_step_on_another_subject_is_refused() -> None:
    payload = a_step().SerializeToString()
    assert read_peer(payload, "incident.probation.incident-1").number == 2
    for subject in ("incident.warning.incident-1", "incident.probation.incident-2"):
        with pytest.raises(InvalidField):
            read_peer(payload, subject)


@pytest.mark.parametrize("field", ["number", "assignment"])
def test_an_incomplete_step_of_a_peer_is_refused(field: str) -> None:
    message = a_step()
    message.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(InvalidField, match=field):
        read_peer(message.SerializeToString(), "incident.probation.incident-1")


def test_a_field_of_an_assignment_stays_with_the_leg_unless_it_is_listed_as_published() -> None:
    names = set(dispatch_pb2.Assignment.DESCRIPTOR.fields_by_name)
    private = {"rejected_reason", "close_note", "retargeted_at", "race", "one_scene_at", "spoofing_suspected_at"}
    private |= {"reminded_at", "arrival_due_at", "unit_offers", "progressed_by", "panic_at", "panic_withdrawn_at"}
    private |= {"radio_unit", "radio_by", "radio_at"}
    message = dispatch_pb2.Assignment(leg=alert_pb2.WARNING)
    for name in names - {"leg"}:
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type and field.is_repeated:
            getattr(message, name).add()
        elif field.message_type:
            getattr(message, name).SetInParent()
        elif field.is_repeated:
            getattr(message, name).append("order-1" if name == "order_ids" else 1)
        else:
            setattr(message, name, "a" if isinstance(getattr(message, name), str) else 1)
    outward = dispatch_pb2.Step.FromString(translate.outward(dispatch_pb2.Step(assignment=message))).assignment
    assert {field.name for field, _ in message.ListFields()} == names
    assert private <= names - {field.name for field, _ in outward.ListFields()}


def test_each_leg_has_a_different_port_file_and_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    legs = [for_leg(leg) for leg in Leg]
    assert [leg.port for leg in legs] == [7404, 7405, 7406]
    assert [leg.deadlines.acknowledge_ms for leg in legs] == [30_000, 30_000, 10_000]
    assert len({leg.database for leg in legs}) == 3
    monkeypatch.setenv("TANDEM_PORT", "9000")
    monkeypatch.setenv("TANDEM_ACKNOWLEDGE_WITHIN_S", "1.5")
    assert (for_leg("police").port, for_leg("police").deadlines.acknowledge_ms) == (9000, 1_500)
    with pytest.raises(ValidationError, match="leg"):
        for_leg("fire")


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("", True),
        ("https://map.example/osrm", True),
        ("http://127.0.0.1:5000", True),
        ("http://map.example", False),
        ("map.example", False),
        ("https://map.example/?key=1", False),
    ],
)
def test_a_road_map_in_plaintext_is_accepted_only_on_loopback(
    url: str, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_OSRM_URL", url)
    if accepted:
        assert for_leg("police").osrm_url == url
    else:
        with pytest.raises(ValidationError):
            for_leg("police")


@pytest.mark.parametrize(
    ("target", "accepted"),
    [
        ("", True),
        ("ipv4:127.0.0.1:7403,127.0.0.1:7413", True),
        ("localhost:7403", True),
        ("dns:///geofence:7403", False),
        ("ipv4:127.0.0.1:7403,10.0.0.1:7403", False),
        ("unix:/run/geofence", False),
    ],
)
@pytest.mark.parametrize("name", ["TANDEM_GEOFENCE", "TANDEM_INGEST"])
def test_other_services_in_plaintext_are_accepted_only_on_loopback(
    monkeypatch: pytest.MonkeyPatch, name: str, target: str, accepted: bool
) -> None:
    monkeypatch.setenv(name, target)
    setting = name.removeprefix("TANDEM_").lower()
    if accepted:
        assert getattr(for_leg("police"), setting) == target
    else:
        with pytest.raises(ValidationError, match="isn't loopback"):
            for_leg("police")
    for file in ("CERT", "KEY", "CA"):
        monkeypatch.setenv(f"TANDEM_TLS_{file}", "file.pem")
    assert getattr(for_leg("police"), setting) == target


def test_a_canary_names_no_wearer_to_follow() -> None:
    message = dispatch.alert(5)
    live = translate.alert(message.SerializeToString(), Leg.PROBATION)
    dispatch.mark_canary(message)
    canary = translate.alert(message.SerializeToString(), Leg.PROBATION)
    assert live and canary and (live.wearer_id, canary.wearer_id) == ("w1", "")
