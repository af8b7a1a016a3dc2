"""Notices of the Ministry on a whole mesh, by article: records in; the notice to her, the check, the trace and the ledger out."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any, TypeVar

import grpc.aio
import pytest

from services.client.actors import DESKS, NPA_RECORDS, REVIEWER
from services.client.calls import call
from services.common.privacy import notices
from services.console.pages.texts import TEXTS
from tandem.common.v1 import alert_pb2, geometry_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.registry.v1 import enrolment_pb2, notice_pb2_grpc, registry_pb2, trace_pb2
from tandem.registry.v1 import notice_pb2 as registry_notice_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh, tandem
from tests.support.console.console import visiting
from tests.support.dispatch.chase import HOME, Chase, between, chase, north_of
from tests.support.field.phone import PhoneClient, phone

NOTICE = "법무부 통지"
ENDED = "법무부의 앞선 통지가 끝났지만, 다른 알림은 계속됩니다"  # the police's instruction ends a moment later
State = dispatch_pb2.AssignmentState
T = TypeVar("T")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("notices") / "mesh") as running:
        yield running


async def until(what: str, read: Callable[[], Awaitable[T | None]]) -> T:
    """Reads until there is something."""
    give_up_at = time.monotonic() + PATIENCE_S
    while (found := await read()) is None:
        assert time.monotonic() < give_up_at, what
        await asyncio.sleep(0.1)
    return found


def texts(chased: Chase) -> list[str]:
    """Texts that her device was sent, in order."""
    shown = (command.instruction.show_notice for command in chased.commanded)
    return [notice.text for notice in shown if notice.text]


async def sent_text(chased: Chase, part: str) -> str:
    """Waits until her device is sent a text with this part, and returns the text."""

    async def read() -> str | None:
        return next((text for text in texts(chased) if part in text), None)

    try:
        return await until(part, read)
    except AssertionError as error:
        raise AssertionError(f"no text with {part!r} among {texts(chased)}") from error


async def grounds(chased: Chase, spiffe_id: str = NPA_RECORDS) -> registry_notice_pb2.OrderGround:
    """What the registry answers about the ground of the order."""
    stub = notice_pb2_grpc.NoticeServiceStub(await chased.channel("registry"))
    request = registry_notice_pb2.ListNoticeGroundsRequest(order_id=chased.order_id)
    (found,) = (await call(stub.ListNoticeGrounds, request, chased.clients.identity(spiffe_id))).grounds
    return found


def ledger(mesh: RunningMesh, chased: Chase) -> list[tuple[Any, ...]]:
    """The rows of the registry's ledger on notices about the wearer, in order."""
    with closing(sqlite3.connect(mesh.folder / "data" / "registry" / "registry.sqlite3")) as database:
        return database.execute(
            "select who, recipient, legal_basis, purpose, record_kind, order_id from ledger"
            " where deed = 'NOTIFIED' and record_id = ? order by sequence",
            (chased.wearer_id,),
        ).fetchall()


async def alert_with_notice(chased: Chase, kind: alert_pb2.AlertKind.ValueType) -> geofence_pb2.WatchAlertsResponse:
    """Waits for an alert of a kind and the demand RESPOND that makes a notice due."""
    return await chased.alerts.until(
        "a notice",
        lambda: next(
            (
                seen
                for seen in chased.alerts.seen
                if seen.alert.kind == kind
                and seen.alert.demand == geometry_pb2.RESPOND
                and seen.alert.HasField("ministry_notice")
            ),
            None,
        ),
        PATIENCE_S,
    )


async def spans(chased: Chase, incident_id: str, name: str, **attributes: str) -> list[trace_pb2.Span]:
    """Waits for a span with a name and attributes in the trace of an incident, as a reviewer sees it.

    Returns all spans with the name: the trace grows while the legs work.
    """

    async def read() -> list[trace_pb2.Span] | None:
        request = trace_pb2.GetTraceRequest(incident_id=incident_id)
        trace = await call(chased.clients.traces.GetTrace, request, chased.clients.identity(REVIEWER))
        named = [span for span in trace.spans if span.name == name]
        return named if any(attributes.items() <= span.attributes.items() for span in named) else None

    return await until(name, read)


async def console_page(mesh: RunningMesh, role: str, incident_id: str) -> str:
    """The console's page of an incident, as a desk sees it once the registry has said the ground of the notices."""
    async with visiting(mesh.now.console_url) as visitor:
        await visitor.read("/sign-in")
        assert (await visitor.post("/sign-in", role=role, name="duty-1"))[0] == 303

        async def read() -> str | None:
            page = await visitor.read(f"/incidents/{incident_id}")
            return None if TEXTS["notice_unread"][0] in page else page

        return await until("the ground of the notices", read)


async def checked(chased: Chase, leg: str) -> dispatch_pb2.Assignment:
    """Waits until a desk has accepted its check of the wearer."""
    return await chased.until(
        leg,
        "the check",
        lambda assignment: assignment.task == notice_pb2.CHECK and assignment.HasField("acknowledged_at"),
    )


def checks(chased: Chase, leg: str) -> list[dispatch_pb2.Assignment]:
    """The checks of a leg so far."""
    return [assignment for assignment in chased.desks[leg].assignments.values() if assignment.task == notice_pb2.CHECK]


async def test_tag_act_15_2_she_is_notified_and_probation_must_check_by_decree_13_2(mesh: RunningMesh) -> None:
    async with chase(
        mesh, basis=registry_pb2.TAG_BASIS_JUDGMENT, order_type=registry_pb2.ORDER_TYPE_TAG_CONDITION
    ) as chased:
        found = await grounds(chased)
        assert (found.ground, found.giver, found.recipient) == (notice_pb2.TAG_15_2, "MINISTRY", "PROTECTED_PERSON")
        assert list(found.articles) == ["TAG_15_2", "TAG_16_2_5", "TAG_DECREE_13_3"] and not found.why_none
        await chased.come_home()
        await sent_text(chased, NOTICE)
        check = await checked(chased, "probation")
        assert (check.subject_id, check.leg, check.HasField("offered_at")) == (
            chased.wearer_id,
            alert_pb2.PROBATION,
            True,
        )
        await chased.acknowledged("probation", chased.wearer_id)
        await chased.acknowledged("police", chased.person_id)
        assert not checks(chased, "police") and not checks(chased, "warning")
        seen = await alert_with_notice(chased, alert_pb2.RING_ENTERED)
        assert list(seen.alert.ministry_notice.person_ids) == [chased.person_id]
        assert [(to.leg, to.subject_id) for to in seen.alert.checks] == [(alert_pb2.PROBATION, chased.wearer_id)]

        async def rows() -> list[tuple[Any, ...]] | None:
            stored = ledger(mesh, chased)
            return stored if {row[2] for row in stored} >= {"TAG_15_2", "TAG_16_2_5"} else None

        stored = await until("the ledger", rows)
        recipient = f"spiffe://tandem/protected-person/{chased.person_id}"
        assert {row[:2] for row in stored} == {(notices.TRACKING_CENTRE, recipient)}
        assert {row[3:] for row in stored} == {("VICTIM_CONTACT", "WEARER", chased.order_id)}
        uses = await spans(chased, seen.alert.incident_id, "ledger: notified")
        assert {span.attributes["giver"] for span in uses} == {notices.TRACKING_CENTRE}
        assert {span.attributes["who"] for span in uses} == {recipient}
        await spans(chased, seen.alert.incident_id, "probation offered", task="CHECK")
        await spans(chased, seen.alert.incident_id, "alert", notice="TAG_15_2", checked_by="probation")
        explained = tandem("explain", seen.alert.alert_id, "--dir", str(mesh.folder), "--json")
        assert explained.returncode == 0, explained.stderr
        output = json.loads(explained.stdout)
        assert output["again"] == "SAME" and output["case"]["notice_ground"] == "TAG_15_2"
        assert output["alert"]["ministry_notice"]["ground"] == "TAG_15_2"
        assert output["her_map"] == [{"person_id": chased.person_id, "outcome": "SHOWN"}]
        assert "TAG_15_2 to " in tandem("explain", seen.alert.alert_id, "--dir", str(mesh.folder)).stdout
        listed = tandem("incidents", "--dir", str(mesh.folder), "--json")
        (incident,) = [
            each for each in json.loads(listed.stdout)["incidents"] if each["incident_id"] == seen.alert.incident_id
        ]
        assert [leg["task"] for leg in incident["legs"] if "task" in leg] == ["CHECK"]
        page = await console_page(mesh, "probation", seen.alert.incident_id)
        assert "전자장치부착법 제15조의2" in page and "통지에 따른 확인" in page
        await chased.end_order()
        await sent_text(chased, ENDED)
        assert not [
            text for text in texts(chased)[texts(chased).index(await sent_text(chased, ENDED)) + 1 :] if NOTICE in text
        ]
        await chased.until(
            "probation",
            "the response is over",
            lambda each: each.task != notice_pb2.CHECK and each.state == State.STOOD_DOWN,
        )
        # The duty to look into the act outlives the threat: only the desk ends it.
        (open_check,) = checks(chased, "probation")
        assert open_check.state == State.ACKNOWLEDGED
        close = dispatch_pb2.CloseRequest(assignment_id=open_check.assignment_id, cause=dispatch_pb2.BREACH_CONFIRMED)
        closed = await call(chased.clients.legs["probation"].dispatch.Close, close, chased.identity("probation"))
        assert closed.assignment.state == State.CLOSED
        over = await grounds(chased)
        assert over.order_over and over.ground == notice_pb2.TAG_15_2


async def test_tag_act_31_6_4_item_2_she_is_notified_and_31_6_5_the_police_must_check_the_wearer(
    mesh: RunningMesh,
) -> None:
    async with chase(
        mesh, basis=registry_pb2.TAG_BASIS_STALKING_ORDER, order_type=registry_pb2.ORDER_TYPE_STALKING_APPROACH
    ) as chased:
        found = await grounds(chased, DESKS["police"])
        assert (found.ground, found.police_must_check) == (notice_pb2.TAG_31_6_4, True)
        assert list(found.articles) == ["TAG_31_6_4", "TAG_31_8_2_5", "TAG_DECREE_23_17"]
        await chased.come_home()
        await sent_text(chased, NOTICE)
        check = await checked(chased, "police")
        assert (check.subject_id, check.leg) == (chased.wearer_id, alert_pb2.POLICE)
        # The check is beside the assignment to her.
        await chased.acknowledged("police", chased.person_id)
        await chased.acknowledged("probation", chased.wearer_id)
        assert not checks(chased, "probation")

        async def rows() -> list[tuple[Any, ...]] | None:
            stored = ledger(mesh, chased)
            return stored if {row[2] for row in stored} >= {"TAG_31_6_4", "TAG_31_8_2_5"} else None

        stored = await until("the ledger", rows)
        assert {row[0] for row in stored} == {notices.TRACKING_CENTRE}


async def test_tag_act_31_6_4_item_3_a_cut_strap_sends_the_police_to_the_wearer_and_no_notice_to_her(
    mesh: RunningMesh,
) -> None:
    async with chase(
        mesh, basis=registry_pb2.TAG_BASIS_STALKING_ORDER, order_type=registry_pb2.ORDER_TYPE_STALKING_APPROACH
    ) as chased:
        await chased.cut_strap()
        check = await checked(chased, "police")
        assert check.subject_id == chased.wearer_id
        await chased.acknowledged("warning", chased.person_id)  # the police's own warning
        assert ledger(mesh, chased) == [] and not [text for text in texts(chased) if NOTICE in text]


async def test_core_case_an_earlier_tag_and_a_bare_police_order_give_no_ground(mesh: RunningMesh) -> None:
    async with chase(
        mesh, basis=registry_pb2.TAG_BASIS_JUDGMENT, order_type=registry_pb2.ORDER_TYPE_POLICE_EMERGENCY
    ) as chased:
        found = await grounds(chased)
        assert not found.ground and not found.articles and not found.giver and not found.police_must_check
        assert found.why_none == "no article covers a notice under an order of the type POLICE_EMERGENCY"
        await chased.come_home()
        await chased.acknowledged("police", chased.person_id)
        await chased.acknowledged("probation", chased.wearer_id)
        await chased.acknowledged("warning", chased.person_id)
        await sent_text(chased, "100 m 이내")  # the police's own warning is unaffected
        responding = await chased.alerts.until(
            "the breach",
            lambda: next((each for each in chased.alerts.seen if each.alert.demand == geometry_pb2.RESPOND), None),
            PATIENCE_S,
        )
        await chased.end_order()
        await sent_text(chased, "앞선 알림이 끝났습니다")
        assert not [each for each in chased.alerts.seen if each.alert.HasField("ministry_notice") or each.alert.checks]
        assert not [text for text in texts(chased) if "법무부" in text]
        assert ledger(mesh, chased) == [] and not checks(chased, "probation") and not checks(chased, "police")
        assert "없음: 피해자에게 통지·위치 제공 불가" in await console_page(
            mesh, "police", responding.alert.incident_id
        )
        explained = tandem("explain", responding.alert.alert_id, "--dir", str(mesh.folder))
        assert explained.returncode == 0, explained.stderr
        assert "none: no notice of the Ministry and no location for her" in explained.stdout


async def enrolled(chased: Chase, hers: PhoneClient, person_id: str) -> None:
    """Enrols a phone for a person. It is a second device, and reports nothing."""
    device = registry_pb2.Device(device_id=f"phone-{person_id}", person_id=person_id, source_version=1)
    npa = chased.clients.identity(NPA_RECORDS)
    await call(chased.clients.registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
    stub = EnrolmentServiceStub(await chased.channel("registry"))
    request = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device.device_id)
    code = (await call(stub.IssueEnrolmentCode, request, chased.clients.identity(DESKS["police"]))).code
    assert (await hers.enrol(code)).status == 200


async def map_of(client: PhoneClient) -> list[dict[str, Any]]:
    """The views of a phone's map. Waits where a region left for the phone a moment ago."""

    async def read() -> list[dict[str, Any]] | None:
        answer = await client.ask("GET", "/api/map")
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) > 0
            return None
        assert answer.status == 200 and answer.content["is_whole"], answer
        views: list[dict[str, Any]] = answer.content["views"]
        return views

    return await until("the map", read)


async def test_tag_act_16_2_5_her_map_needs_an_open_notice_and_each_view_has_its_rows(mesh: RunningMesh) -> None:
    async with (
        chase(mesh, basis=registry_pb2.TAG_BASIS_JUDGMENT, order_type=registry_pb2.ORDER_TYPE_TAG_CONDITION) as chased,
        phone(mesh.now.field_url) as hers,
        phone(mesh.now.field_url) as others,
    ):
        assert (await hers.ask("GET", "/api/map"))[:2] == (401, {"error": "not_enrolled"})
        other = registry_pb2.ProtectedPerson(person_id=f"other-{chased.run_id}", name="Other", source_version=1)
        await call(
            chased.clients.registry.PutProtectedPerson,
            registry_pb2.PutProtectedPersonRequest(protected_person=other),
            chased.clients.identity(NPA_RECORDS),
        )
        await enrolled(chased, hers, chased.person_id)
        await enrolled(chased, others, other.person_id)
        far = between(north_of(HOME, 2_400), north_of(HOME, 1_800), 20)  # so slowly that no contact is predicted
        await chased.drive(far, until_ago_s=120, every_s=15)
        await chased.acknowledged("warning", chased.person_id)  # within 2 km: warned, and no notice is open
        assert await map_of(hers) == [] and ledger(mesh, chased) == []

        await chased.drive(between(far[-1], north_of(HOME, 450), 8), until_ago_s=0, every_s=15)

        async def shown() -> dict[str, Any] | None:
            return next((view for view in await map_of(hers) if view["outcome"] == "shown"), None)

        view = await until("a region", shown)
        assert set(view) == {"outcome", "circles", "grows_mps", "age_s", "unknown_in_s", "from_her"}
        assert view["age_s"] + view["unknown_in_s"] == pytest.approx(180) and view["grows_mps"] > 0
        place = view["from_her"]
        assert (place["direction"], place["way_out"]) == ("north", "south")
        assert place["least_m"] < 450 < place["greatest_m"]
        assert all(circle["radius_m"] % 50 == 0 for circle in view["circles"])
        assert await map_of(others) == []

        async def rows() -> list[tuple[Any, ...]] | None:
            stored = [row for row in ledger(mesh, chased) if row[2] == "TAG_16_2_5"]
            return stored or None

        (row, *_) = await until("the rows", rows)
        recipient = f"spiffe://tandem/protected-person/{chased.person_id}"
        assert row == (notices.TRACKING_CENTRE, recipient, "TAG_16_2_5", "VICTIM_CONTACT", "WEARER", chased.order_id)

        await chased.end_order()

        async def is_over() -> bool | None:
            return (await map_of(hers) == []) or None

        await until("the end of the map", is_over)

        async def summaries() -> list[dict[str, Any]] | None:
            answer = await hers.ask("GET", "/api/afterwards")
            if answer.status == 429:  # she gets some time to read the notice before the one that it is over
                return None
            assert answer.status == 200, answer
            found: list[dict[str, Any]] = answer.content["summaries"]
            return found or None

        [afterwards] = await until("what happened", summaries)
        assert set(afterwards) == {"began_ms", "sent_ms", "arrived_ms", "ended_ms"}
        assert afterwards["began_ms"] <= afterwards["ended_ms"]
        assert (await others.ask("GET", "/api/afterwards")).content == {"summaries": []}


async def test_bad_input_of_the_registrys_answer(mesh: RunningMesh) -> None:
    async with chase(mesh) as chased:
        stub = notice_pb2_grpc.NoticeServiceStub(await chased.channel("registry"))
        for order_id, code in (("", "INVALID_ARGUMENT"), ("no such", "INVALID_ARGUMENT"), ("none", "NOT_FOUND")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                request = registry_notice_pb2.ListNoticeGroundsRequest(order_id=order_id)
                await call(stub.ListNoticeGrounds, request, chased.clients.identity(NPA_RECORDS))
            assert refused.value.code().name == code
        found = await grounds(chased)
        assert found.why_none == "no article covers a notice under an order of the type UNSPECIFIED"
