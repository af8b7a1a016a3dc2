"""Which units a desk's map shows, and how."""

from __future__ import annotations

from dataclasses import replace

from services.common import times
from services.console import translate
from services.console.domain import units
from services.console.domain.board import Assignment
from services.console.domain.units import Unit
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import roster_pb2

CAR = Unit("car-3", "patrol-car", "AVAILABLE", 37.12345678, 127.12345678, 1_000_000, "")
ASKED = Assignment("a", "i", "police", "P-1", (), "EN_ROUTE", "RESPOND", "", unit_id="car-3")


def test_a_unit_says_how_far_it_is_and_else_what_it_says_of_itself() -> None:
    free = units.told(CAR, {}, 1_000_000)
    assert free and (free["state"], free["going"], free["at"]) == ("AVAILABLE", False, [127.123457, 37.123457])
    goes = units.told(CAR, units.states([ASKED]), 1_000_000)
    assert goes and (goes["state"], goes["going"]) == ("EN_ROUTE", True)
    assert units.states([replace(ASKED, state="CLOSED"), replace(ASKED, unit_id="")]) == {}


def test_one_that_is_off_is_shown_only_while_it_has_a_part_in_something() -> None:
    off = replace(CAR, status="OFF")
    assert units.told(off, {}, 1_000_000) is None and units.told(off, units.states([ASKED]), 1_000_000)


def test_where_it_was_three_minutes_ago_is_unknown_whatever_it_said_since() -> None:
    for later_ms, unknown in ((units.KNOWN_FOR_MS, False), (units.KNOWN_FOR_MS + 1, True)):
        told = units.told(CAR, {}, 1_000_000 + later_ms)
        assert told and told["unknown"] is unknown
    report = roster_pb2.UnitReport(
        unit=roster_pb2.Unit(unit_id="car-3"),
        status=roster_pb2.BUSY,
        position=geometry_pb2.Point(lat_deg=37, lon_deg=127),
        reported_at=times.to_timestamp(9_000_000),
        position_at=times.to_timestamp(5_000),
    )
    read = translate.unit(report)
    assert read and (read.position_ms, read.status) == (5_000, "BUSY")


def test_what_never_said_where_it_is_or_is_gone_has_no_place_on_a_map() -> None:
    assert translate.unit(roster_pb2.UnitReport(unit=roster_pb2.Unit(unit_id="car-3"))) is None
    gone = roster_pb2.UnitReport(unit=roster_pb2.Unit(unit_id="car-3", removed=True))
    gone.position.lat_deg = 37
    assert translate.unit(gone) is None
