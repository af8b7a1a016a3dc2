"""Units on a desk's map: which are shown, and with which state and position."""

from __future__ import annotations

from dataclasses import replace

from services.common import times
from services.console import translate
from services.console.domain import units
from services.console.domain.board import AssignmentCard, UnitOfferCard
from services.console.domain.units import UnitCard
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import roster_pb2

CAR = UnitCard("car-3", "patrol-car", "AVAILABLE", 37.12345678, 127.12345678, 1_000_000, "")
OFFER = UnitOfferCard("car-3", "patrol-car", "UNIT_ACCEPTED", 2, asked_ms=1_000, until_ms=31_000)
GOES = AssignmentCard("a", "i", "police", "P-1", (), "EN_ROUTE", "RESPOND", "", unit_offers=(OFFER,))
ASKED = replace(GOES, state="ACKNOWLEDGED", incident_id="j", unit_offers=(replace(OFFER, state="UNIT_ASKED"),))


def test_a_unit_shows_the_state_of_its_assignment_or_else_its_own_status() -> None:
    free = units.unit_as_json(CAR, {}, 1_000_000)
    assert free and (free["state"], free["going"], free["at"]) == ("AVAILABLE", False, [127.123457, 37.123457])
    goes = units.unit_as_json(CAR, units.tasks([GOES]), 1_000_000)
    assert goes and (goes["state"], goes["going"], goes["incident"]) == ("EN_ROUTE", True, "i")
    over = [replace(GOES, state="CLOSED"), replace(GOES, unit_offers=(replace(OFFER, state="UNIT_MISSED"),))]
    assert units.tasks(over) == {}


def test_a_unit_that_goes_is_shown_with_that_also_where_another_incident_asks_it() -> None:
    for listed in ([GOES, ASKED], [ASKED, GOES]):
        assert units.tasks(listed)["car-3"] == units.UnitTask("EN_ROUTE", "i")
    assert units.tasks([ASKED])["car-3"] == units.UnitTask("UNIT_ASKED", "j")
    accepted = replace(GOES, state="ACKNOWLEDGED")
    assert units.tasks([accepted])["car-3"].state == accepted.shown_state == "UNIT_ACCEPTED"
    assert replace(accepted, unit_offers=()).shown_state == "ACKNOWLEDGED", "the desk has it, and no unit"


def test_a_unit_off_duty_is_shown_only_while_it_has_an_assignment() -> None:
    off = replace(CAR, status="OFF")
    assert units.unit_as_json(off, {}, 1_000_000) is None and units.unit_as_json(off, units.tasks([ASKED]), 1_000_000)


def test_a_position_older_than_three_minutes_is_unknown_in_spite_of_later_reports() -> None:
    for later_ms, unknown in ((units.KNOWN_FOR_MS, False), (units.KNOWN_FOR_MS + 1, True)):
        shown = units.unit_as_json(CAR, {}, 1_000_000 + later_ms)
        assert shown and shown["unknown"] is unknown
    report = roster_pb2.UnitReport(
        unit=roster_pb2.Unit(unit_id="car-3"),
        status=roster_pb2.BUSY,
        position=geometry_pb2.Point(lat_deg=37, lon_deg=127),
        reported_at=times.to_timestamp(9_000_000),
        position_at=times.to_timestamp(5_000),
    )
    read = translate.unit(report)
    assert read and (read.position_ms, read.status) == (5_000, "BUSY")


def test_a_unit_without_a_position_or_removed_is_not_on_the_map() -> None:
    assert translate.unit(roster_pb2.UnitReport(unit=roster_pb2.Unit(unit_id="car-3"))) is None
    gone = roster_pb2.UnitReport(unit=roster_pb2.Unit(unit_id="car-3", removed=True))
    gone.position.lat_deg = 37
    assert translate.unit(gone) is None
