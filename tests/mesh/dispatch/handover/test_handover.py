"""Handovers of the shifts and the burden of an order by real gRPC: stored append-only, acknowledged by another, refused input."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
import sqlalchemy as sa

from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.common.storage.db import Database, open_database
from services.dispatch import burden
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.handover import api
from services.dispatch.handover.domain import HandoverWritten
from services.dispatch.leg import tables
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2, handover_pb2, handover_pb2_grpc, order_burden_pb2, order_burden_pb2_grpc
from tests.support.common.postgres import PostgresServer
from tests.support.dispatch.dispatch import DESKS, SECRET, RunningLeg, alert, publish, running
from tests.support.dispatch.leg_chain import first_broken_record
from tests.support.dispatch.roster_records import office, put, unit

KIM, LEE, PARK = (f"spiffe://npa/desk/{name}" for name in ("kim", "lee", "park"))
REVIEWER, PROBATION = "spiffe://tandem/reviewer/audit", DESKS["probation"]
NOTES = "2차선 공사로 우회 중\n<b>카메라 고장</b>"


async def call(leg: RunningLeg, method: str, who: str, **request: Any) -> Any:
    """Calls a method of HandoverService, or of OrderBurdenService, as a caller."""
    of_burden = hasattr(order_burden_pb2, f"{method}Request")
    messages = order_burden_pb2 if of_burden else handover_pb2
    stub: Any = (
        order_burden_pb2_grpc.OrderBurdenServiceStub(leg.channel)
        if of_burden
        else handover_pb2_grpc.HandoverServiceStub(leg.channel)
    )
    make = getattr(messages, f"{method}Request")
    return await getattr(stub, method)(
        make(**request), metadata=server.bearer(who, SECRET), timeout=server.UNARY_DEADLINE_S
    )


async def refusal(work: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return caught.value.code(), caught.value.details() or ""


async def test_a_handover_is_written_once_and_acknowledged_by_another_person(
    bus: Bus, police: DispatchSettings
) -> None:
    given: dict[str, Any] = {"handover_id": "h-1", "notes": NOTES, "review_case_ids": ["case-1"]}
    given |= {"device_ids": ["tag-1", "tag-1"], "devices_incomplete": True}
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        offered = await steps.next(dispatch_pb2.OFFERED)
        written = (await call(leg, "WriteHandover", KIM, **given)).handover
        assert written.notes == NOTES and written.written_by == KIM and written.written_at.seconds
        assert list(written.open_incident_ids) == [offered.step.assignment.incident_id]
        assert list(written.device_ids) == ["tag-1"] and not written.HasField("acknowledged_at")
        assert written.devices_incomplete and not written.reviews_incomplete
        assert (await call(leg, "WriteHandover", KIM, **given)).handover == written, "a repetition changes nothing"
        for other in ({"notes": "anderes"}, {"devices_incomplete": False}):
            code, _ = await refusal(call(leg, "WriteHandover", KIM, **(given | other)))
            assert code is grpc.StatusCode.ABORTED
        code, text = await refusal(call(leg, "AcknowledgeHandover", KIM, handover_id="h-1"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION and "next shift" in text
    async with running(police) as leg:  # a restart loses nothing
        acknowledged = [
            (await call(leg, "AcknowledgeHandover", LEE, handover_id="h-1", remark="확인")).handover for _ in range(2)
        ]
        assert acknowledged[0] == acknowledged[1] and acknowledged[0].acknowledged_by == LEE
        assert acknowledged[0].remark == "확인" and acknowledged[0].acknowledged_at.seconds
        code, text = await refusal(call(leg, "AcknowledgeHandover", PARK, handover_id="h-1"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION and "another person" in text
        await call(leg, "WriteHandover", LEE, handover_id="h-2", notes="특이사항 없음")
        listed = await call(leg, "ListHandovers", REVIEWER, page_size=1)
        assert [handover.handover_id for handover in listed.handovers] == ["h-2"] and listed.next_page_token == "h-2"
        older = await call(leg, "ListHandovers", PARK, page_token=listed.next_page_token)
        assert list(older.handovers) == [acknowledged[0]] and not older.next_page_token
    async with open_database(police.database, MIGRATIONS) as database:
        assert await database.visit(first_broken_record) is None
        await _change(database, "notes", "nodes")
        assert await database.visit(first_broken_record) == 1, "a changed record breaks the chain"


async def _change(database: Database, old: str, new: str) -> None:
    statement = sa.text("UPDATE duty_records SET body = replace(body, :old, :new) WHERE id = 1")
    await database.visit(lambda connection: connection.execute(statement, {"old": old, "new": new}))


async def test_a_bad_handover_is_refused_with_its_field_and_other_roles_are_denied(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg:
        cases: list[tuple[str, dict[str, Any], str]] = [
            ("WriteHandover", {"handover_id": "h-1"}, "notes"),
            ("WriteHandover", {"handover_id": "h-1", "notes": "  "}, "notes"),
            ("WriteHandover", {"handover_id": "h-1", "notes": "x" * 4_001}, "notes"),
            ("WriteHandover", {"handover_id": "h-1", "notes": "bell\a"}, "notes"),
            ("WriteHandover", {"handover_id": "h 1", "notes": "x"}, "handover_id"),
            ("WriteHandover", {"notes": "x"}, "handover_id"),
            ("WriteHandover", {"handover_id": "h-1", "notes": "x", "device_ids": ["ok", "?"]}, "device_ids[1]"),
            ("WriteHandover", {"handover_id": "h-1", "notes": "x", "review_case_ids": ["c"] * 201}, "review_case_ids"),
            ("AcknowledgeHandover", {"handover_id": "h-1", "remark": "x" * 501}, "remark"),
            ("ListHandovers", {"page_size": 101}, "page_size"),
            ("ListHandovers", {"page_token": "h-7"}, "page_token"),
            ("ListOrderIncidents", {}, "order_id"),
        ]
        for method, request, field in cases:
            code, text = await refusal(call(leg, method, KIM, **request))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith(field + ":"), (method, text)
        assert not (await call(leg, "ListHandovers", KIM)).handovers, "nothing is half done"
        code, _ = await refusal(call(leg, "AcknowledgeHandover", KIM, handover_id="h-1"))
        assert code is grpc.StatusCode.NOT_FOUND
        for who in (PROBATION, "spiffe://tandem/operator/kim", "spiffe://npa/records", DESKS["warning"]):
            for method in ("WriteHandover", "AcknowledgeHandover", "ListHandovers", "ListOrderIncidents"):
                assert (await refusal(call(leg, method, who)))[0] is grpc.StatusCode.PERMISSION_DENIED, (who, method)
        for method in ("WriteHandover", "AcknowledgeHandover"):
            code, _ = await refusal(call(leg, method, REVIEWER, handover_id="h-1"))
            assert code is grpc.StatusCode.PERMISSION_DENIED, "a reviewer only reads"


async def test_the_burden_of_an_order_counts_what_its_incidents_sent(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        offer = (await steps.next(dispatch_pb2.OFFERED)).step.assignment
        (order_id,) = offer.order_ids
        await leg.desk.acknowledge(offer.assignment_id)
        for state in (dispatch_pb2.DISPATCHED, dispatch_pb2.EN_ROUTE, dispatch_pb2.ON_SCENE):
            await leg.desk.call("Progress", assignment_id=offer.assignment_id, state=state, offer_number=1)
        await leg.desk.call(
            "Close", assignment_id=offer.assignment_id, cause=dispatch_pb2.FALSE_POSITION, offer_number=1
        )
        answer = await call(leg, "ListOrderIncidents", KIM, order_id=order_id)
        (incident,) = answer.incidents
        (task,) = incident.tasks
        assert incident.incident_id == offer.incident_id and not answer.incomplete
        assert (task.offers, task.dispatches, task.arrivals, task.notices) == (1, 1, 1, 0)
        assert task.close_cause == dispatch_pb2.FALSE_POSITION and task.state == dispatch_pb2.CLOSED and task.kind
        assert not (await call(leg, "ListOrderIncidents", REVIEWER, order_id="o-unknown")).incidents
        later = offer.offered_at
        later.seconds += 3_600
        assert not (await call(leg, "ListOrderIncidents", KIM, order_id=order_id, opened_from=later)).incidents


async def test_a_unit_counts_as_sent_once_it_accepts_or_is_entered_by_radio(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1"), unit("a2")])
        await publish(bus, alert(5))
        seen = (await steps.next(dispatch_pb2.OFFERED)).step.assignment
        id_, (order_id,) = seen.assignment_id, seen.order_ids

        async def sent() -> tuple[int, int, int, int]:
            (incident,) = (await call(leg, "ListOrderIncidents", KIM, order_id=order_id)).incidents
            (task,) = incident.tasks
            return task.offers, task.dispatches, task.by_radio, task.arrivals

        await leg.desk.call("Receive", assignment_id=id_, offer_number=seen.offer_number)
        at_desk = await leg.desk.acknowledge(id_)
        assert await sent() == (1, 0, 0, 0), "a desk's acceptance sends nobody, and a receipt is no offer"
        asked = await leg.desk.call("SendUnit", assignment_id=id_, unit_id="a2", offer_number=at_desk.offer_number)
        assert await sent() == (2, 0, 0, 0), "a unit that is asked isn't sent"
        await leg.desk.acknowledge(id_, "a2")
        assert await sent() == (2, 1, 0, 0)
        number = asked.assignment.unit_offers[-1].offer_number
        back = await leg.desk.call("Reject", assignment_id=id_, offer_number=number, reason="no car")
        newest = max(offer.offer_number for offer in back.assignment.unit_offers)
        newest = max(newest, back.assignment.offer_number)
        await leg.desk.call("SendByRadio", assignment_id=id_, unit_name="12", offer_number=newest)
        for state in (dispatch_pb2.EN_ROUTE, dispatch_pb2.ON_SCENE):
            await leg.desk.call("Progress", assignment_id=id_, state=state)
        assert (await sent())[1:] == (2, 1, 1)


async def test_handovers_and_the_incidents_of_an_order_are_read_alike_on_postgresql(postgres: PostgresServer) -> None:
    url = postgres.new_schemas("police")["police"]
    rows = [
        {
            "incident_id": id_,
            "opened_sequence": n,
            "opened_ms": n,
            "ended_ms": None,
            "order_ids": ids,
            "exercise": exercise,
        }
        for n, (id_, ids, exercise) in enumerate(
            (("i-1", ["o-1"], 0), ("i-2", ["o-2", "o-1"], 0), ("i-3", ["o-10"], 0), ("canary", ["o-1"], 2))
        )
    ]
    written = [HandoverWritten(f"h-{n}", "글", ("i-2",), (), ("tag-1",), KIM, n) for n in range(3)]

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.insert(tables.incidents), rows)
        assert api.open_incident_ids(connection) == ("i-3", "i-2", "i-1")
        found = burden.incidents_of(connection, "o-1", 0, limit=9)
        assert [incident.incident_id for incident in found] == ["i-2", "i-1"]
        assert [found.incident_id for found in burden.incidents_of(connection, "o-1", 1, limit=9)] == ["i-2"]
        for handover in written:
            api.append_record(connection, handover)
        assert [known.written for known in api.newest_handovers(connection, 2, "h-2")] == [written[1], written[0]]
        assert first_broken_record(connection) is None

    async with open_database(url, MIGRATIONS) as database:
        await database.visit(work)
