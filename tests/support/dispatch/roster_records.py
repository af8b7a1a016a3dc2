"""Offices and units for tests, and a way to store them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.common import times
from services.common.clock import MeshClock
from tandem.dispatch.v1 import roster_pb2
from tests.support.dispatch.dispatch import Desk

DAY_MS = 86_400_000


def office(office_id: str = "a", **more: Any) -> roster_pb2.Office:
    given: dict[str, Any] = {"version": 1, "supervisor_desk": f"supervisor-{office_id}", "national_desk": "national"}
    return roster_pb2.Office(office_id=office_id, **(given | more))


def unit(unit_id: str, office_id: str = "a", **more: Any) -> roster_pb2.Unit:
    now_ms = MeshClock().now_ms()
    given: dict[str, Any] = {
        "version": 1,
        "unit_class": "patrol-car",
        "shift_from": times.to_timestamp(now_ms // DAY_MS * DAY_MS - DAY_MS),
        "shift_until": times.to_timestamp(now_ms // DAY_MS * DAY_MS + 2 * DAY_MS),
        "contact_key": "radio-7",
    }
    return roster_pb2.Unit(unit_id=unit_id, office_id=office_id, **(given | more))


async def put(desk: Desk, offices: Iterable[roster_pb2.Office], units: Iterable[roster_pb2.Unit] = ()) -> None:
    await desk.call("PutOffices", offices=offices)
    if units:
        await desk.call("PutUnits", units=units)
