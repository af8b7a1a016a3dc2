"""The duty to wear a tag, and authorised removals, on a whole mesh: an officer's record, the alert, both desks, the explanation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.client import mesh as meshes
from services.client.actors import MOJ_RECORDS, NPA_RECORDS, VENDOR_ID, Alerts, Desk, HeadEnd
from services.client.calls import call
from services.client.mesh import Clients
from services.common import times
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2, tag_record_pb2, trace_pb2
from tests.support.common.mesh import RunningMesh, running_mesh, tandem

DESK, REVIEWER = "spiffe://moj/desk/officer", "spiffe://tandem/reviewer/lee"
HOUR_MS = 3_600_000
BORN = "1990-01-01"
State = dispatch_pb2.AssignmentState


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m", "--clock-rate", "4") as running:
        yield running


def at(ms: int) -> Timestamp:
    return times.to_timestamp(ms)


async def put_case(clients: Clients, name: str, number: int, *, fit_by_ms: int, tag: bool) -> None:
    """A wearer, perhaps with a tag, under an order of item 3-2."""
    moj = clients.identity(MOJ_RECORDS)
    npa = clients.identity(NPA_RECORDS)
    registry = clients.registry
    national_id = f"900101-1{number:06d}"
    wearer = registry_pb2.Wearer(wearer_id=f"w-{name}", national_id=national_id, name=f"He {name}", birth_date=BORN)
    person = registry_pb2.ProtectedPerson(person_id=f"p-{name}", name="She")
    respondent = registry_pb2.Respondent(national_id=national_id, name=f"He {name}", birth_date=BORN)
    order = registry_pb2.Order(
        order_id=f"o-{name}",
        respondent=respondent,
        protected_person_ids=[f"p-{name}"],
        valid_from=at(clients.clock.now_ms() - HOUR_MS),
        valid_until=at(clients.clock.now_ms() + 1000 * HOUR_MS),
        type=registry_pb2.ORDER_TYPE_STALKING_TAG,
        fit_by=at(fit_by_ms),
    )
    await call(registry.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj)
    if tag:
        record = registry_pb2.Tag(device_id=f"tag-{name}", wearer_id=f"w-{name}", vendor_id=VENDOR_ID)
        await call(registry.PutTag, registry_pb2.PutTagRequest(tag=record), moj)
    await call(registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa)
    await call(registry.PutOrder, registry_pb2.PutOrderRequest(order=order), npa)


async def alert_of(alerts: Alerts, kind: str, demand: int) -> geofence_pb2.WatchAlertsResponse:
    """The first alert of a kind and demand, once it is there."""

    def found() -> geofence_pb2.WatchAlertsResponse | None:
        wanted = alert_pb2.AlertKind.Value(kind)
        return next((each for each in alerts.seen if (each.alert.kind, each.alert.demand) == (wanted, demand)), None)

    return await alerts.until(f"{kind} {demand}", found)


async def assignment_at(desk: Desk, subject_id: str, *states: int) -> dispatch_pb2.Assignment:
    """The assignment for a subject, once it is in one of these states at a desk."""

    def found() -> dispatch_pb2.Assignment | None:
        mine = (each for each in desk.assignments.values() if each.subject_id == subject_id and each.state in states)
        return next(mine, None)

    return await desk.until(f"an assignment for {subject_id}", found)


def check_explained(folder: Path, alert_id: str) -> str:
    """The explanation of an alert, which the fold gives again."""
    outcome = tandem("explain", alert_id, "--dir", str(folder), "--json")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert json.loads(outcome.stdout)["again"] == "SAME"
    return outcome.stdout


async def test_tag_act_31_6_4_1_not_fitted_is_a_notice_to_the_police_and_good_cause_ends_it(mesh: RunningMesh) -> None:
    async with meshes.connect(mesh.now) as clients:
        alerts, police = Alerts(clients, ["o-late"]), Desk(clients, "police", ["o-late"], answers=False)
        async with alerts, police:
            await put_case(clients, "late", 1, fit_by_ms=clients.clock.now_ms() + 20_000, tag=False)
            notified = (await alert_of(alerts, "NOT_FITTED", geometry_pb2.NOTIFY)).alert
            destinations = {(each.leg, each.subject_id) for each in notified.destinations}
            # Tag Act 31-6(5): the police go to the respondent.
            assert destinations == {(alert_pb2.PROBATION, "w-late"), (alert_pb2.POLICE, "w-late")}
            notice = await assignment_at(police, "w-late", State.NOTIFIED, State.STOOD_DOWN)
            assert notice.incident_id == notified.incident_id
            now_ms = clients.clock.now_ms()
            outcome = tandem(
                *("tag", "good-cause", "c-late", "--wearer", "w-late", "--order", "o-late"),
                *("--from", times.to_rfc3339(now_ms - HOUR_MS), "--until", times.to_rfc3339(now_ms + 20 * HOUR_MS)),
                *("--reason", "In hospital", "--dir", str(mesh.folder)),
            )
            assert (outcome.returncode, outcome.stdout) == (0, "stored\n"), outcome.stderr
            await alert_of(alerts, "NOT_FITTED", geometry_pb2.RECORD)
        request = trace_pb2.GetTraceRequest(incident_id=notified.incident_id)
        trace = await call(clients.traces.GetTrace, request, clients.identity(REVIEWER))
        assert trace.spans
    explained = check_explained(mesh.folder, notified.alert_id)
    assert '"fit_by"' in explained
    listed = tandem("tag", "list", "w-late", "--dir", str(mesh.folder))
    assert "spiffe://moj/desk/demo" in listed.stdout  # who recorded it
    assert listed.returncode == 0 and "In hospital" in listed.stdout and "disclosure read-" in listed.stdout


async def test_decree_10_a_removal_sends_nobody_until_it_ends_with_an_open_strap(mesh: RunningMesh) -> None:
    async with meshes.connect(mesh.now) as clients:
        alerts = Alerts(clients, ["o-off"])
        desks = [Desk(clients, leg, ["o-off"], answers=False) for leg in ("probation", "police")]
        async with alerts, desks[0], desks[1], HeadEnd(clients) as head_end:
            await put_case(clients, "off", 2, fit_by_ms=clients.clock.now_ms() + HOUR_MS, tag=True)
            officer = clients.identity(DESK)
            removal = tag_record_pb2.AllowRemovalRequest(
                record_id="m-off",
                device_id="tag-off",
                until=at(clients.clock.now_ms() + 10 * HOUR_MS),
                reason="Operation",
                allowed_by="head-1",
            )
            await call(clients.tag_records.AllowRemoval, removal, officer)
            # Decree 23-14(1) item 2: the police are told.
            begun = (await alert_of(alerts, "TAG_REMOVAL", geometry_pb2.NOTIFY)).alert
            assert (alert_pb2.POLICE, "w-off") in {(each.leg, each.subject_id) for each in begun.destinations}
            assert begun.removal_id == "m-off"
            opened = ingest_pb2.EquipmentEvent(
                device_id="tag-off",
                report_id="opened",
                event_time=at(clients.clock.now_ms()),
                event=log_pb2.STRAP_OPEN,
            )
            assert not await head_end.carry([opened])
            removed = (await alert_of(alerts, "TAG_REMOVED", geometry_pb2.RECORD)).alert
            assert not any(each.alert.kind == alert_pb2.TAMPERED for each in alerts.seen)
            end = tag_record_pb2.EndRemovalRequest(record_id="m-off", ended_at=at(clients.clock.now_ms()))
            await call(clients.tag_records.EndRemoval, end, officer)
            tampered = (await alert_of(alerts, "TAMPERED", geometry_pb2.RESPOND)).alert
            for desk, subject_id in zip(desks, ("w-off", "p-off"), strict=True):
                offer = await assignment_at(desk, subject_id, State.OFFERED, State.ESCALATED, State.NOBODY_AVAILABLE)
                assert offer.incident_id == tampered.incident_id
        for alert in (begun, removed, tampered):
            check_explained(mesh.folder, alert.alert_id)


async def test_tag_act_16_3_a_request_for_cctv_by_the_command(mesh: RunningMesh) -> None:
    folder = ("--dir", str(mesh.folder))
    request = (
        *("cctv", "request", "q-1", "--wearer", "w-cctv", "--ground", "14-1", "--government", "Suwon City"),
        *("--details", "Station square", *folder),
    )
    unknown = tandem(*request)
    assert (unknown.returncode, unknown.stderr) == (2, "NOT_FOUND: wearer_id: no such wearer\n")
    async with meshes.connect(mesh.now) as clients:
        wearer = registry_pb2.Wearer(wearer_id="w-cctv", national_id="900101-1000009", name="He", birth_date=BORN)
        put = registry_pb2.PutWearerRequest(wearer=wearer)
        await call(clients.registry.PutWearer, put, clients.identity(MOJ_RECORDS))
        now = times.to_rfc3339(clients.clock.now_ms())
    made = tandem(*request)
    assert made.returncode == 0 and "Suwon City" in made.stdout and "disclosure cctv-" in made.stdout
    declined = tandem("cctv", "step", "q-1", "declined", "--at", now, "--note", "Nothing was kept", *folder)
    assert declined.returncode == 0 and "Nothing was kept" in declined.stdout, declined.stderr
    listed = tandem("cctv", "list", "--wearer", "w-cctv", *folder)
    assert "Station square" in listed.stdout and "disclosure read-" in listed.stdout
    assert tandem("cctv", "list", "--overdue", *folder).stdout == "no requests\n"
    for arguments, error in (
        (("request", "q-2", "--wearer", "w", "--ground", "3-2", "--government", "X", "--details", "y"), "be one of"),
        (("step", "q-1", "lost", "--at", now), "is no step"),
        (("step", "q-1", "provided", "--at", "tomorrow"), "is not an RFC 3339 time"),
        (("step", "q-1", "provided", "--at", now), "nothing follows DECLINED"),
    ):
        outcome = tandem("cctv", *arguments, *folder)
        assert outcome.returncode == 2 and error in outcome.stderr, outcome.stderr
