"""What phones hear: access points, beacons and cells show presence and contact, give a position its source, and refuse nothing."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest

from services.common.errors import InvalidField
from services.ingest.domain import ContactReport, Position, UnitPresence
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import PhoneRequest
from tandem.common.v1 import presence_pb2

RECEIVED_MS = 1_800_000_000_000
AT_2013_MS = 1_377_177_267_000
UUID = "e2c56db5-dffb-48d2-b060-d0f5a71096e0"
AT = [("id", "phone"), ("timestamp", "1377177267")]
FIX = [*AT, ("lat", "60"), ("lon", "30")]


def query(*pairs: tuple[str, str]) -> PhoneRequest:
    return phones.parse_osmand(phones.osmand_parameters(urlencode(pairs)), RECEIVED_MS)


def app(**extras: object) -> PhoneRequest:
    location = {"timestamp": "2021-07-21T08:06:34Z", "coords": {"latitude": 60, "longitude": 30}, "extras": extras}
    return phones.parse_traccar(json.dumps({"device_id": "phone", "location": location}).encode(), RECEIVED_MS)


def test_all_access_points_and_beacons_of_a_request_are_heard_in_one_form() -> None:
    heard = query(
        *FIX,
        ("wifi", "02-00-5E-10-00-01,-80"),
        ("wifi", "02:00:5e:10:00:02,-90"),
        ("beacon", f"{UUID.upper()}:17:1,-60"),
        ("cell", "450,5,1,2"),
    ).surroundings
    assert heard.identifiers == ("02:00:5e:10:00:01", "02:00:5e:10:00:02", f"{UUID}:17:1")
    assert heard.has_wifi and heard.has_cell


def test_the_app_names_them_in_its_extras() -> None:
    assert app(wifi=["02-00-5E-10-00-01,-80"], beacon=f"{UUID},17,1").surroundings.identifiers == (
        "02:00:5e:10:00:01",
        f"{UUID}:17:1",
    )
    for rubbish in (5, None, {"a": 1}, [[], 7, "x"], "02-00"):
        request = app(wifi=rubbish, beacon=rubbish, cell=rubbish if isinstance(rubbish, str) else None)
        assert request.surroundings.identifiers == () and isinstance(request.said[0], Position)


@pytest.mark.parametrize("rubbish", ["", ",", "00-14,-80", "x" * 5_000, "02:00:5e:10:00:0g", "\n", "%", "🐟"])
def test_rubbish_with_a_position_refuses_nothing(rubbish: str) -> None:
    request = query(*FIX, ("wifi", rubbish), ("beacon", rubbish), ("cell", rubbish))
    assert request.surroundings.identifiers == ()
    (position,) = phones.said_by(request, (), "lat")
    assert isinstance(position, Position) and position.source == 0


@pytest.mark.parametrize(
    ("more", "source"),
    [
        ((), "UNSPECIFIED"),
        ((("provider", "gps"),), "GNSS"),
        ((("provider", "network"),), "CELL"),
        ((("provider", "network"), ("wifi", "02-00-5E-10-00-01,-80")), "WIFI"),
        ((("provider", "fused"), ("cell", "450,5,1,2")), "UNSPECIFIED"),
        ((("provider", "x"),), "UNSPECIFIED"),
    ],
)
def test_a_position_has_the_source_that_its_provider_and_the_surroundings_give(
    more: tuple[tuple[str, str], ...], source: str
) -> None:
    number = presence_pb2.PositionSource.Value(f"POSITION_SOURCE_{source}")
    for request in (query(*FIX, *more), app(**dict(more))):
        (position,) = request.said
        assert isinstance(position, Position) and position.source == number


def test_a_unit_that_is_heard_is_a_presence_and_a_position() -> None:
    request = query(*FIX, ("wifi", "02-00-5E-10-00-01,-80"))
    position, presence = phones.said_by(request, ["home"], "lat")
    assert isinstance(position, Position)
    assert presence == UnitPresence("phone", f"{request.report_id}-0", "home", AT_2013_MS, AT_2013_MS, left=False)


@pytest.mark.parametrize("without", [AT, [*FIX, ("valid", "false")]])
def test_a_phone_without_a_fix_is_present_or_at_least_heard(without: list[tuple[str, str]]) -> None:
    request = query(*without, ("cell", "450,5,1,2"))
    assert phones.said_by(request, (), "lat") == [ContactReport("phone", request.report_id)]
    request = query(*without, ("wifi", "02-00-5E-10-00-01,-80"))
    (presence,) = phones.said_by(request, ["home"], "lat")
    assert isinstance(presence, UnitPresence) and presence.seen_ms == AT_2013_MS


def test_a_phone_that_says_nothing_is_refused_as_before() -> None:
    for request, field in ((query(*AT), "lat"), (query(*AT, ("wifi", "x")), "lat")):
        (refused,) = phones.said_by(request, (), field)
        assert isinstance(refused, InvalidField) and refused.reason == "is missing"


def test_a_presence_isnt_of_the_future() -> None:
    request = query(("id", "phone"), ("timestamp", "1900000000"), ("wifi", "02-00-5E-10-00-01,-80"))
    (presence,) = phones.said_by(request, ["home"], "lat")
    assert isinstance(presence, UnitPresence) and presence.seen_ms == RECEIVED_MS


def test_the_same_request_has_the_same_id_and_other_surroundings_another() -> None:
    first, second = (query(*FIX, ("wifi", "02-00-5E-10-00-01,-80")) for _ in range(2))
    assert first.report_id == second.report_id != query(*FIX).report_id
